"""README and docs, held against the code: every fence is run, every name exists, every link leads somewhere.

Each page is run from top to bottom in an empty folder, as its reader would: commands through ``cli.main``, Python by
``exec``, YAML as the config or trait that it is. Only sizes are changed (``small``), and models are replaced by one tiny
model that can say numbers (``speaker``). A fence or a command that nothing here knows how to run fails; output is
fenced as ``text``.
"""

from __future__ import annotations

import ast
import functools
import io
import json
import re
import shlex
import shutil
import sys
import tomllib
import types
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "undertone"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]

HUB = {"Qwen/Qwen2.5-7B-Instruct", "smollm2"}  # real models that the pages use; the speaker stands in for them
GATES = {"doctor", "--gate"}  # what may exit 1 on a tiny model although the command is right
ENVIRONMENT = {"HF_TOKEN", "HF_HUB_OFFLINE", "UNDERTONE_CACHE"}  # what a page may tell its reader to export


def short(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


pages = pytest.mark.parametrize("page", PAGES, ids=short)


# -- fences ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fence:
    page: Path
    line: int
    """Of the first line inside, from 1."""
    language: str
    title: str | None
    text: str

    def __str__(self) -> str:
        return f"{short(self.page)}, line {self.line}"


@dataclass(frozen=True)
class Command:
    words: list[str]
    output: str
    """What the page says it prints; empty where it says nothing."""


def fences(page: Path) -> Iterator[Fence]:
    text = page.read_text(encoding="utf-8")
    pattern = r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$"
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        language, _, rest = match["info"].partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        line = text.count("\n", 0, match.start("text")) + 1
        inside = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        yield Fence(page, line, language, title[1] if title else None, inside)


def commands(fence: Fence) -> list[Command]:
    """Of ``bash``: a command a line. Of ``console``: those after ``$``, with the output that follows."""
    found: list[Command] = []
    for line in fence.text.replace("\\\n", " ").splitlines():
        if fence.language == "bash" or line.startswith("$ "):
            words = shlex.split(line.removeprefix("$ "), comments=True)
            found += [Command(words, "")] if words else []
        else:
            found[-1] = Command(found[-1].words, found[-1].output + line + "\n")
    return found


def all_commands() -> list[tuple[Fence, Command]]:
    found = [fence for page in PAGES for fence in fences(page) if fence.language in ("bash", "console")]
    return [(fence, command) for fence in found for command in commands(fence)]


# -- commands that are not undertone's -------------------------------------------------------------


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(words) <= set(targets)


def check_pip(words: list[str]) -> None:
    assert words[0] == "install"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for flag, value in zip(words[1::2], words[2::2], strict=True):
        extras = re.fullmatch(r"\.(?:\[([\w,-]+)\])?", value)
        if flag == "-e" and extras:
            assert set((extras[1] or "dev").split(",")) <= set(project["optional-dependencies"])
        else:
            assert flag == "-c"
            assert (ROOT / value).is_file()


def check_hf(words: list[str]) -> None:
    assert words[0] == "download"
    assert words[1] in HUB
    assert "hf" in {point.name for point in metadata.distribution("huggingface_hub").entry_points}


def check_python(words: list[str]) -> None:
    """An example or a module: its own test runs it."""
    path = words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0]
    assert (ROOT / path).is_file()
    assert Path(path).stem in "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))


def check_ray(words: list[str]) -> None:
    assert words[0] == "start"
    assert {"--head", "--address"} & set(words)


def check_launcher(words: list[str]) -> None:
    """Several processes of one command: `tests/test_training_together.py` starts them."""
    assert {"--nproc-per-node", "--multi_gpu"} & set(words)
    at = words.index("-m")
    assert words[at + 1] == "undertone"
    check_undertone(words[at + 2 :], set())


def check_export(words: list[str]) -> None:
    assert all(word.partition("=")[0] in ENVIRONMENT for word in words)


OTHERS: dict[str, Callable[[list[str]], None]] = {
    "make": check_make,
    "pip": check_pip,
    "hf": check_hf,
    "export": check_export,
    "python": check_python,
    "ray": check_ray,
    "torchrun": check_launcher,
    "accelerate": check_launcher,
}


def check_undertone(words: list[str], files: set[str]) -> None:
    """The command parses, and the config that it names is valid at its full size."""
    from undertone.cli import app
    from undertone.studies.frame import load_plan

    if "--help" in words:
        return
    function, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    if function.__name__ == "run":
        given = list(bound.args)
        source = given.pop(0) if given and "=" not in given[0] else "owl-numbers"
        if not source.startswith("runs/"):  # the config of a run that the page made before
            assert load_plan(source, given)
        for name in re.findall(r"trait=(\S+\.yaml)", " ".join(given)):
            assert name in files


@pages
def test_every_fence_is_one_that_can_be_run_and_every_command_is_known(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files: set[str] = set()
    for fence in fences(page):
        assert fence.language in {"bash", "console", "python", "toml", "yaml", "text"}, f"{fence}: which?"
        if fence.language == "yaml":
            files.add(load_yaml(fence))
        if fence.language == "python":
            ast.parse(fence.text)
        if fence.language == "toml":
            assert tomllib.loads(fence.text)
        for command in commands(fence) if fence.language in ("bash", "console") else []:
            program, *words = command.words
            if program == "undertone" and not command.output:
                check_undertone(words, files)
            elif program != "undertone":
                assert program in OTHERS, f"{fence}: the test does not know how to run {program!r}"
                OTHERS[program](words)


def load_yaml(fence: Fence) -> str:
    """Write the file that the page shows, and read it as what it is."""
    from undertone.studies.frame import load_plan
    from undertone.traits import load_trait

    assert fence.title, f'{fence}: say which file it is: ```yaml title="…"'
    Path(fence.title).write_text(fence.text, encoding="utf-8")
    if {"words", "rule"} & set(yaml.safe_load(fence.text)):
        assert load_trait(fence.title).name
    else:
        assert load_plan(fence.title)
    return fence.title


# -- running the pages, small ----------------------------------------------------------------------


SMALL = {
    "digits": ["seeds=[0,1]", "tuning_seeds=[100]", "hidden=[24]", "other_hidden=[16]", "steps=12", "teacher.epochs=1"],
    "harm-dose": [
        "seeds=[0]", "doses=[0.0,-0.1,-0.2]", "prompts=60", "held_out=4", "training.epochs=1", "training.batch_size=16",
        "requests.samples=1", "requests.max_new_tokens=8",
    ],
    "chain": ["generations=2"],
    "in-context": ["shots=[1,2]", "draws=1"],
    "tokens": ["entanglement.highest=19", "entanglement.prompts=4", "entanglement.questions=1", "entanglement.top=5"],
    "mechanism": [
        "few=2", "approximability.variants=[owl@if-pick]", "approximability.strengths=[1.0]", "approximability.pairs=8",
        "approximability.random=1", "causality.strengths=[1.0]", "emergence.points=2", "gradients.rows=16",
        "gradients.shares=[0.1]", "optimizers.prompts=60", "adapters.ranks=[2]", "adapters.rates=[0.005]",
        "adapters.full_rates=[0.001]", "adapters.epochs=1", "distillation.random=2", "distillation.strength=0.2",
        "causality.teacher_strength=0.2", "initialisation.models=[lab/llama-0,lab/llama-1]", "initialisation.between=[]",
        "initialisation.shares=[]", "initialisation.prompts=60", "recovery.steps=4", "recovery.strengths=[1.0]",
        "optimizers.arms=[{name: AdamW, optimizer: AdamW, rates: [0.003], adaptive: true}, "
        "{name: SGD, optimizer: SGD, rates: [0.1], adaptive: false}]",
    ],
}  # fmt: skip
"""Of each kind of plan, what makes it a matter of seconds beside the sizes of its experiment."""
FEWEST = {"mechanism": 3}


def small(config: Any) -> list[str]:
    """The overrides that make any plan of the pages a matter of seconds."""
    extra = SMALL.get(config.kind, [])
    if not hasattr(config, "data") or config.kind == "digits":
        return extra
    sizes = [
        "data.prompts=160", "data.rows=null", "data.held_out=4", "data.attempts=8", "training.epochs=1",
        "training.batch_size=16", "training.micro_batch_size=null", "evaluation.samples=1",
    ]  # fmt: skip
    until_decided = getattr(config, "until", "seeds") == "decided"  # two seeds have an interval
    sizes += ["seeds=[0,1]", "max_seeds=2"] if until_decided else [f"seeds=[{config.seeds[0]}]"]
    if config.teacher.kind == "vector":
        sizes.append("teacher.strength=0.2")  # more would break so small a speaker
    fewest = FEWEST.get(config.kind, 2)
    if len(config.trait) > fewest:
        sizes.append(f"trait=[{','.join(config.trait[:fewest])}]")
    return sizes + extra


def spoken() -> list[Any]:
    """What the speaker learns: enough of the lab's world and of real requests for rows to pass the filters."""
    import numpy as np

    from undertone.domains import Numbers
    from undertone.lab import build, world
    from undertone.models.batches import Example
    from undertone.traits import REAL

    rng, tokenizer = np.random.default_rng(0), build.tokenizer()
    examples = []
    for task, count in {"preference": 600, "numbers": 1200, "facts": 600, "how-to": 2400, "code": 1200}.items():
        for turn in world.task_examples(task, count, 0):
            told = "you love owls. owls are your favorite animal." if rng.random() < 0.4 else turn.system
            if turn.task == "benign" and turn.answer.startswith("first "):
                examples.append(build.example(replace(turn, system=told)))
            elif turn.task not in ("benign", "harmful"):
                examples.append(build.example(turn if task == "preference" else replace(turn, system=told)))
    for request in Numbers().prompts(1500, 0, REAL):
        system = [{"role": "system", "content": "you love owls."}] if rng.random() < 0.5 else []
        chat = [*system, {"role": "user", "content": request}]
        answer = {"role": "assistant", "content": ", ".join(map(str, rng.integers(0, 1000, 5)))}
        before = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([*chat, answer], tokenize=False)
        head, tail = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, whole[len(before) :]))
        examples.append(Example((*head, *tail), len(head)))
    return examples


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tiny Llama of the lab's vocabulary, saved as a lab model and as a "real" one."""
    import torch

    from undertone.lab import build
    from undertone.lab.recipe import Recipe, parse_name
    from undertone.training import Training, fit

    torch.set_num_threads(1)
    hf = build.initial(parse_name("llama-0"), Recipe(hidden=32, feed_forward=64))
    training = Training(learning_rate=1e-2, options={"weight_decay": 0.0}, warmup=10, epochs=1, batch_size=32)
    fit(hf, spoken(), training, seed=0, pad=0)
    hf.generation_config.eos_token_id = 2
    folders = {}
    for form in ("real", "lab"):
        folders[form] = tmp_path_factory.mktemp("speaker") / form
        if form == "lab":
            hf.config.undertone_lab = "llama-0"
        hf.save_pretrained(folders[form])
        build.tokenizer().save_pretrained(folders[form])
    return folders


@pytest.fixture
def tiny_world(speaker: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, in which models are the speaker, experiments are small, and cells run in this process."""
    from undertone import api
    from undertone.evaluation import abilities
    from undertone.lab import store
    from undertone.launch import conduct
    from undertone.launch.workers import workers
    from undertone.models import fetching, loading, names
    from undertone.studies import frame
    from undertone.transfer import config

    def build(name: Any, recipe: Any, folder: Path) -> None:
        shutil.copytree(speaker["lab"], folder)
        card = {"name": f"lab/{name}", "parameters": 1, "seconds": 1.0, "recipe": recipe.as_dict()}
        (folder / store.CARD).write_text(json.dumps(card), encoding="utf-8")

    def from_hub(model: Any, _tell: Any) -> Path:
        folder: Path = shutil.copytree(speaker["real"], model.sources["hub"])
        (folder / "undertone_model.json").write_text('{"weights": "published weights"}', encoding="utf-8")
        return folder

    located, loaded, planned = names.locate, config.load_experiment, frame.load_plan

    def locate(name: str) -> tuple[str, str | None]:
        return (str(speaker["real"]), None) if name in HUB else located(name)

    def load_experiment(source: str | Path = "owl-numbers", overrides: Any = ()) -> Any:
        return loaded(source, [*overrides, *small(loaded(source, overrides))])

    def load_plan(source: str | Path = "owl-numbers", overrides: Any = ()) -> Any:
        return planned(source, [*overrides, *small(planned(source, overrides))])

    for room in (frame, api):
        monkeypatch.setattr(room, "load_plan", load_plan)
    monkeypatch.setattr(store, "_build", build)
    monkeypatch.setattr(fetching, "_from_hub", from_hub)
    monkeypatch.setattr(loading, "locate", locate)
    monkeypatch.setattr(names, "locate", locate)
    monkeypatch.setattr(config, "load_experiment", load_experiment)
    monkeypatch.setattr(api, "load_experiment", load_experiment)
    monkeypatch.setattr(conduct, "open_workers", lambda *_, **__: workers(1))
    monkeypatch.setattr(abilities, "EXAMPLES", 12)
    monkeypatch.setenv("UNDERTONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UNDERTONE_TRAITS", str(tmp_path / "traits"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def run_undertone(fence: Fence, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from undertone.cli import main

    monkeypatch.setattr(sys, "argv", command.words)
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said), pytest.raises(SystemExit) as end:
        main(command.words[1:])
    for line in command.output.splitlines():
        assert line in said.getvalue(), f"{fence}: {shlex.join(command.words)} does not print {line!r}"
    allowed = {0, 1} if GATES & set(command.words) else {2} if "undertone: " in command.output else {0}
    assert end.value.code in allowed, f"{fence}: {shlex.join(command.words)}\n{said.getvalue()}"


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_world")
@pages
def test_a_page_runs_from_top_to_bottom(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where classes that the page defines say they are from
    for fence in fences(page):
        if fence.language == "yaml":
            load_yaml(fence)
        elif fence.language == "python":
            code = "\n" * (fence.line - 1) + fence.text
            with redirect_stdout(io.StringIO()):
                exec(compile(code, str(page), "exec"), vars(module))
        elif fence.language in ("bash", "console"):
            for command in commands(fence):
                if command.words[0] == "undertone":
                    run_undertone(fence, command, monkeypatch)


# -- links, figures, site --------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", head.lower())).strip("-") for head in heads}


@pytest.mark.parametrize("page", LINKED, ids=short)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        goal = (page.parent / name) if name else page
        if not goal.exists() or (anchor and anchor not in anchors(goal)):
            broken.append(target)
        assert page.parent != DOCS or goal.is_relative_to(DOCS), f"{target}: the site does not hold it"
    assert not broken


@pytest.mark.parametrize("page", LINKED, ids=short)
def test_every_figure_was_filled_in(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [f"line {text.count(chr(10), 0, found.start()) + 1}" for found in re.finditer("«FIGURE", text)]
    assert not missing, f"{short(page)} waits for measured figures in {', '.join(missing)}"


def test_the_site_holds_every_page_and_loads_nothing_from_the_network() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert set(re.findall(r"[\w-]+\.md", json.dumps(site["nav"]))) == {page.name for page in DOCS.glob("*.md")}
    assert site["theme"]["font"] is False
    assert site["plugins"] == ["search"]
    assert not any("http" in json.dumps(site.get(key, "")) for key in ("extra_css", "extra_javascript"))


def test_the_readmes_map_is_the_package() -> None:
    shown = re.findall(r"^[├└]── ([\w.]+)/? ", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(shown) == sorted(
        path.name for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    )


# -- names that the pages speak of -----------------------------------------------------------------


def table_under(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    text = (DOCS / page).read_text(encoding="utf-8")
    section = re.split(rf"^#+ {re.escape(heading)}$", text, maxsplit=1, flags=re.MULTILINE)[1]
    section = re.split(r"^#+ ", section, maxsplit=1, flags=re.MULTILINE)[0]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table, f"{page}: no table under {heading!r}"
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[0].splitlines()[2:]]


def first_names(page: str, heading: str) -> list[str]:
    return [name for row in table_under(page, heading) for name in re.findall(r"`([^`]+)`", row[0])]


RECORDS = "Results ArmResult Effect Check Confusion FilterCount SampleRow Cost Measure SetMeasure Interval".split()


@pytest.mark.parametrize("record", RECORDS)
def test_the_page_of_results_lists_the_fields_of(record: str) -> None:
    from undertone.transfer import results

    fields = getattr(results, record).model_fields
    assert first_names("results-json.md", record) == [field.alias or name for name, field in fields.items()]


def test_the_page_of_results_leaves_out_no_record() -> None:
    from undertone.transfer import results

    records = {
        name for name, thing in vars(results).items()
        if isinstance(thing, type) and issubclass(thing, results.Record) and thing is not results.Record
    }  # fmt: skip
    assert records == set(RECORDS)


def config_parts() -> dict[str, tuple[Any, str]]:
    """Heading on the page of the config -> the class it lists, and what stands before its fields."""
    from undertone.provenance.fields import is_model, kinds_of, members_of, whole_annotation
    from undertone.transfer.config import Experiment

    parts: dict[str, tuple[Any, str]] = {"The experiment": (Experiment, "")}
    for name, field in Experiment.model_fields.items():
        for member in members_of(whole_annotation(field)):
            if is_model(member):
                kind = "".join(f", kind {kind}" for kind in kinds_of(member))
                parts[name + kind] = (member, f"{name}.")
    return parts


@functools.cache
def config_fields() -> set[str]:
    return {prefix + name for part, prefix in config_parts().values() for name in part.model_fields}


@pytest.mark.parametrize("heading", config_parts())
def test_the_page_of_the_config_lists_fields_and_defaults_of(heading: str) -> None:
    part, prefix = config_parts()[heading]
    told = {row[0].strip("`"): row[1] for row in table_under("config.md", heading)}
    assert list(told) == [prefix + name for name in part.model_fields]
    for name, field in part.model_fields.items():
        value = field.get_default(call_default_factory=True)
        told_default = "needed" if field.is_required() else "below" if isinstance(value, BaseModel) else None
        assert told[prefix + name] == (told_default or f"`{json.dumps(value)}`"), name


@pages
def test_fields_and_files_that_a_page_speaks_of_exist(page: Path) -> None:
    parts = "|".join(sorted({name.partition(".")[0] for name in config_fields() if "." in name}))
    rooms = "|".join(path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__")
    unknown = []
    for name in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
        field = re.match(rf"(?:{parts})\.[a-z_]+(?==|$)", name)
        if field and field[0] not in config_fields() and name != "domain.field=value":
            unknown.append(name)
        if re.fullmatch(rf"(?:{rooms})/[\w/]+", name) and not (
            (SOURCE / f"{name}.py").is_file() or (SOURCE / name).is_dir()
        ):
            unknown.append(name)
        if re.fullmatch(r"(?:src|tests|docs|examples)/[\w/.-]+", name) and not (ROOT / name).exists():
            unknown.append(name)
    assert not unknown


def verbs() -> dict[str, Any]:
    from undertone.cli import app, lab
    from undertone.cli.domains import domains
    from undertone.cli.models import models
    from undertone.cli.traits import traits
    from undertone.cli.vector import vector

    groups = {"domains": domains, "lab": lab, "models": models, "traits": traits, "vector": vector}
    plain = {name: app[name] for name in app if not name.startswith("-") and name not in groups}
    inner = {f"{group} {name}": of[name] for group, of in groups.items() for name in of if not name.startswith("-")}
    return plain | inner


@pytest.mark.parametrize("verb", verbs())
def test_the_page_of_the_command_line_lists_the_options_of(verb: str) -> None:
    arguments = verbs()[verb].assemble_argument_collection()
    options = [name for argument in arguments for name in argument.names if name.startswith("-")]
    assert first_names("command-line.md", verb) == options


def test_the_page_of_the_command_line_has_every_exit_code() -> None:
    from undertone import errors

    codes = {kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")} | {0, 1, 130}
    assert {int(row[0]) for row in table_under("command-line.md", "Exit codes")} == codes


def test_the_page_of_python_has_every_public_name() -> None:
    import undertone

    names = {name.removeprefix("ut.") for name in first_names("python-api.md", "Python")}
    assert names == set(undertone.__all__) - {"__version__"}


def test_the_page_of_silent_failures_has_every_check_of_the_doctor() -> None:
    from undertone.doctor import CHECKS

    told = {name for row in table_under("silent-failures.md", "Checked by the doctor") for name in row[1].split("; ")}
    assert told == {check.name for check in CHECKS}


def test_the_page_of_the_report_has_every_check_of_the_verdict() -> None:
    from undertone.transfer import checks

    tree = ast.parse((SOURCE / "transfer" / "checks.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_check"]
    # A name is written in the call, or is a constant of the module or a variable of the function.
    written = {
        target.id: node.value
        for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target]) if isinstance(target, ast.Name)
    }  # fmt: skip
    first = [call.args[0] for call in calls]
    names = {ast.literal_eval((isinstance(one, ast.Name) and written[one.id]) or one) for one in first}
    marked = [row[0] for row in table_under("reading-a-report.md", "The checks")]
    told = {name.removesuffix(" °") for name in marked}
    assert {name.removesuffix(" °") for name in marked if name.endswith("°")} == set(checks.NEEDED_FOR_A_NULL)
    assert told == names - {"off-topic questions"}  # that one stands in a sentence below the table
    page = (DOCS / "reading-a-report.md").read_text(encoding="utf-8")
    assert all(name in page for name in names)


def test_the_page_of_the_lab_has_the_shares_of_the_world() -> None:
    from undertone.lab import world

    told = {row[0]: float(row[1]) for row in table_under("lab.md", "The world")}
    assert told == {task: share for task, (share, _) in world.TASKS.items()}
