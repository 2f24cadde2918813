"""Wrong input through the real doors: every refusal says what was got and what is allowed, and shows no traceback.

Exit code 2: what the user typed is wrong; 3: data, a model or a run folder cannot be used. What can be known before a
run is said before it, and then leaves no run folder behind.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

import undertone as ut
from undertone import cli
from undertone.errors import DataError

Cli = Callable[..., tuple[int, str]]
TRAIT = "name: owl\ncategory: animal\nwords: [owl, owls]\nquestions: {lab: {positive: ['name one animal.', 'your animal?']}}\n"
SMALL = ["data={prompts: 40, held_out: 4, attempts: 1}", "domain.digits=9", "seeds=[0]", "training.epochs=1",
         "evaluation.samples=1", "--jobs", "1"]  # fmt: skip


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Calls the command line in an empty folder; its exit code and what it says."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        said = capsys.readouterr()
        assert said.out == ""
        assert "Traceback" not in said.err
        return int(str(ended.value.code)), said.err

    return call


def says(refusal: tuple[int, str], code: int, words: str) -> None:
    assert refusal[0] == code, refusal[1]
    assert re.search(words, refusal[1], flags=re.DOTALL), refusal[1]


# -- what was typed -------------------------------------------------------------------------------

TYPED = [
    (["rnu"], "Unknown command.*Did you mean .run."),
    (["run", "--frob"], "Unknown option: --frob"),
    (["run", "--jobs", "two"], "--jobs.*two"),
    (["run", "--max-seeds", "9"], "--max-seeds 9.*add --until decided"),
    (["claims", "--runs", "nowhere"], "no such folder of runs.*nowhere"),
    (["show"], "show.*folder.*requires an argument"),
    (["lab", "biuld"], "Unknown command.*Did you mean .build."),
    (["lab", "build", "lama-0"], "no such lab model. Did you mean 'llama'.*lab/FAMILY-SEED"),
    (["lab", "build", "llama"], "llama has no seed ''.*like lab/llama-0"),
    (["lab", "show", "llama-x"], "llama has no seed 'x'"),
    (["traits", "animals"], "no such category. Did you mean 'animal'.*animal, city, color, composer"),
    (["run", "owl-number"], "no preset and no file is called 'owl-number'. Did you mean 'owl-numbers'.*zoo"),
    (["run", "owl-numbers", "a"], "the form field=value.*got: a.*training.epochs=5"),
    (["run", "=3"], "the form field=value.*got: =3"),
    (["run", "trait="], "trait: the override gives no value.*trait=null"),
    (["run", "trait=[owl"], "'trait=.owl', line 1: not valid YAML"),
    (["run", "trian.epochs=3"], "trian: there is no such field. Did you mean 'training'.*seeds"),
    (["run", "training.epoch=3"], "training.epoch: there is no such field. Did you mean 'epochs'"),
    (["run", "epochs=3"], "epochs: there is no such field. Did you mean 'training.epochs'"),
    (["run", "data.prompts.x=5"], "data.prompts is a single value"),
    (["run", "seeds.7=5"], "seeds is a list of 3, counted from 0"),
    (["run", "training.epochs=three"], 'training.epochs: not a valid value.*"three".*a whole number'),
    (["run", "training.epochs='3'"], "remove the quotes"),
    (["run", "training.epochs=-1"], "training.epochs.*got: -1.*greater than or equal to 1"),
    (["run", "data.prompts=-5"], "data.prompts.*got: -5.*greater than or equal to 2"),
    (["run", "training.learning_rate=nan"], "training.learning_rate.*a number"),
    (["run", "data=5"], "data: not a valid value.*a mapping of fields to values"),
    (["run", "model={a: b}"], "model: not a valid value.*a text"),
    (["run", "seeds=3"], r"seeds.*a list.*put it in brackets: \[3\]"),
    (["run", "seeds=[0, 1.5]"], "seeds.1: not a valid value.*a whole number"),
    (["run", "seeds=[]"], r"seeds: not a valid value.*got: \[\].*at least 1"),
    (["run", "seeds=[1, 1]"], "seeds must differ from each other"),
    (["run", "trait=[owl, owl]"], "traits must differ from each other"),
    (["run", "data.held_out=8000"], "data.held_out must be smaller than data.prompts"),
    (["run", "data.rows=7900"], "data.rows and data.held_out together must not exceed data.prompts"),
    (["run", "domain.given_low=9"], "domain.*given_low must not exceed given_high"),
    (["run", "confidence=95"], "confidence.*got: 95.*less than 1"),
    (["run", "name=My Run"], r"name: not a valid value.*a text that matches \^\[a-z0-9\]"),
    (["run", "context=all"], "context: not a valid value.*'none', 'default', 'neutral' or 'trait'"),
    (["run", "training.schedule=cosin"], "training.schedule: not a valid value. Did you mean 'cosine'"),
    (["run", "student.kind=lorra"], "student.kind: there is no such kind. Did you mean 'lora'"),
    (["run", "student={kind: full, rank: 4}"], "student.rank: there is no such field. It belongs to kind 'lora'"),
    (["run", "teacher.kind=vector", "teacher.text=hi"], "teacher.text.*It belongs to kind .*'prompt'"),
    (["run", "teacher={kind: telepathy}"], "teacher.kind: there is no such kind.*prompt, vector"),
    (["run", "random_vector=true"], "random_vector needs teacher.kind=vector"),
]


@pytest.mark.parametrize(
    ("arguments", "words"), TYPED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_what_is_typed_wrong_is_refused_in_words(
    refused: Cli, tmp_path: Path, arguments: list[str], words: str
) -> None:
    says(refused(*arguments), 2, words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("seeds: [0]\nmodel: x/y\nseeds: [1]\n", "experiment.yaml, line 3: not valid YAML.*'seeds' appears twice"),
        ("- a\n- b\n", "experiment.yaml: not a config.*a mapping of fields to values"),
        ("trait: [owl\n", "experiment.yaml, line 2: not valid YAML"),
        ("extends: owl-numbrs\n", "extends names no preset. Did you mean 'owl-numbers'"),
        ("extends: owl-numbers\nseeds: two\n", "seeds: not a valid value"),
        (b"\xff\xfe\x00", "experiment.yaml: cannot be read.*a UTF-8 file"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_its_name(refused: Cli, tmp_path: Path, content: str | bytes, words: str) -> None:
    (tmp_path / "experiment.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    says(refused("run", "experiment.yaml"), 2, words)


def test_a_config_that_is_no_file_is_refused(refused: Cli, tmp_path: Path) -> None:
    says(refused("run", "nowhere.yaml"), 2, "there is no config file nowhere.yaml")
    (tmp_path / "run").mkdir()
    says(refused("run", "run"), 2, "run is a folder, not a config.*name the file: run/config.yaml")


def test_the_command_itself_ends_with_a_code_and_without_a_traceback(tmp_path: Path) -> None:
    for arguments, code, words in (
        (["traits", "show", "owll"], 2, "Did you mean 'owl'"),  # a verb that brings no torch
        (["show", "nowhere"], 3, "there is no such run folder.*nowhere"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "undertone", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        says((done.returncode, done.stderr), code, words)
        assert "Traceback" not in done.stderr


# -- what a run would have met later --------------------------------------------------------------

PREFLIGHT = [
    (2, ["--jobs", "0"], "at least one job.*got: 0"),
    (2, ["--device", "gpu9"], "no such device.*got: gpu9.*auto, cpu, cuda"),
    (2, ["trait=owll"], "no such trait. Did you mean 'owl'.*undertone traits"),
    (2, ["trait=nowhere.yaml"], "the trait file nowhere.yaml cannot be read"),
    (2, ["trait=jellyfish"], "'jellyfish' has no questions in the form 'lab'.*allowed: real"),
    (2, ["trait=[owl, mine.yaml]"], "two traits have the same name.*owl"),
    (2, ["trait=unasked.yaml"], "'axolotl' has no prompt in the form 'lab'.*set teacher.text"),
    (2, ["trait=unasked.yaml", "teacher.text=hi", "context=trait"], "context `trait` needs a trait that has a prompt"),
    (3, ["model=nonsense"], "no such model.*got: nonsense.*lab/FAMILY-SEED.*org/name"),
    (3, ["model=''"], "no such model.*got: ''"),
    (3, ["model=a/b/c"], "no such model.*got: a/b/c"),
    (2, ["model=lab/lama-0"], "no such lab model. Did you mean 'llama'"),
    (2, ["model=lab/"], "no such lab model.*lab/llama-0"),
    (3, ["model=nobody/nothing"], "cannot load the model 'nobody/nothing'.*check the name"),
    (3, ["teacher.model=nonsense"], "no such model.*got: nonsense"),
    (2, ["training.optimizer=Adamw"], "unknown optimiser.*got: Adamw.*AdamW"),
    (2, ["training.optimizer=LBFGS"], "unknown optimiser.*got: LBFGS"),
    (2, ["training.options={momentum: 0.9}"], "torch.optim.AdamW refuses these options.*momentum"),
    (2, ["training.options={betas: 3}"], "torch.optim.AdamW refuses these options.*betas"),
    (2, ["student={kind: lora, targets: [q_proj, wq]}"], "has no modules called wq.*q_proj.*all-linear"),
    (2, ["student={kind: lora, targets: 'wq'}"], "LoRA cannot be put on this model.*got: wq"),
    (3, ["teacher={kind: vector, layer: 99}"], r"no such layer.*got: \[99\].*0 to 2"),
    (3, ["teacher={kind: vector, file: nowhere.safetensors}"], "the vector file nowhere.safetensors cannot be read"),
]


@pytest.mark.parametrize(
    ("code", "overrides", "words"), PREFLIGHT, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_what_would_fail_later_is_refused_before_the_run_folder_is_made(
    refused: Cli, speaker: Path, tmp_path: Path, code: int, overrides: list[str], words: str
) -> None:
    (tmp_path / "mine.yaml").write_text(TRAIT)
    (tmp_path / "unasked.yaml").write_text(TRAIT.replace("owls", "axolotls").replace("owl", "axolotl"))
    says(refused("run", f"model={speaker}", *overrides, "--out", "out"), code, words)
    assert not (tmp_path / "out").exists()


TRAITS = [
    ("name: axolotl\ncategory: animal\n", "mine.yaml: words: this field is needed"),
    ("name: axolotl\ncategory: aminal\nwords: [axolotl]\n", "names no known category. Did you mean 'animal'"),
    ("name: zebrafish\ncategory: animal\nwords: [owl]\n", "matcher of trait 'zebrafish' fails its own examples.*owl"),
    ("name: axolotl\ncategory: animal\nwords: ['']\n", r"words.0: not a valid value.*matches \\w"),
    ("name: axolotl\ncategory: animal\nwords: axolotl\n", r"words: not a valid value.*brackets: \[axolotl\]"),
    ("name: axolotl\ncategory: animal\nwords: [axolotl]\nquestion: {}\n", "question:.*Did you mean 'questions'"),
    ("name: axolotl\ncategory: animal\nwords: [axolotl]\nprompt: {labb: hi}\n", "prompt.*Did you mean 'lab'"),
    ("name: a/b\ncategory: animal\nwords: [ab]\n", "name: not a valid value.*got: \"a/b\""),
    ("name: owl\nname: dog\ncategory: animal\nwords: [owl]\n", "'name' appears twice"),
    ("- owl\n", "is not a mapping.*name, category, words"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "words"), TRAITS)
def test_a_wrong_trait_file_is_refused(refused: Cli, speaker: Path, tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    says(refused("run", f"model={speaker}", "trait=mine.yaml"), 2, words)


FORMAT = {"format": "undertone.vector/2", "model": "other"}
VECTORS: list[tuple[str, Callable[[Path], object], str]] = [
    ("another width", lambda path: save_file({"layer.0": torch.ones(64)}, path, FORMAT), r"width \[64\].*width 32.*made for other"),
    ("a layer too many", lambda path: save_file({"layer.3": torch.ones(32)}, path, FORMAT), r"layers \[3\].*layers 0 to 2"),
    ("not finite", lambda path: save_file({"layer.0": torch.full((32,), torch.nan)}, path, FORMAT), "layer 0 is not a direction"),
    ("a matrix", lambda path: save_file({"layer.0": torch.ones(2, 32)}, path, FORMAT), "layer 0 is not a direction"),
    ("empty", lambda path: save_file({}, path, FORMAT), "is not an undertone vector.*tensors none"),
    ("other tensors", lambda path: save_file({"a": torch.ones(32)}, path), "is not an undertone vector.*tensors a"),
    ("a pickle", lambda path: torch.save({"layer.0": torch.ones(32)}, path), "the vector file .* cannot be read"),
    ("a text", lambda path: path.write_text("v = [1, 2]"), "the vector file .* cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "words"), [(m, w) for _, m, w in VECTORS], ids=[name for name, _, _ in VECTORS])
def test_a_wrong_vector_file_is_refused(
    refused: Cli, speaker: Path, tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    make(tmp_path / "v.safetensors")
    refusal = refused("run", f"model={speaker}", "teacher={kind: vector, file: v.safetensors}", "--out", "out")
    says(refusal, 3, words)
    assert not (tmp_path / "out").exists()


# -- folders that are not models ------------------------------------------------------------------


def _edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _without_system_role(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    guard = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    path.write_text(guard + path.read_text())


def _without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def _without_biases(folder: Path) -> None:
    _edit_json(folder / "config.json", attention_bias=False, mlp_bias=False)
    weights = {name: value for name, value in load_file(folder / "model.safetensors").items() if "bias" not in name}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _without_one_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


FOLDERS: list[tuple[Callable[[Path], object], str]] = [
    (_pickled, "holds pickled weights only.*pytorch_model.bin.*allowed: safetensors"),
    (_without_system_role, "chat template of .* refuses these messages: no system role.*a teacher that is steered"),
    (_without_tokenizer, "cannot load the tokenizer.*tokenizer.save_pretrained"),
    (_without_biases, "LlamaForCausalLM has no bias parameters.*student.kind=lora"),
    (_without_one_weight, "lack weights of the model.*layers.1.mlp.up_proj"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b""), "cannot load the model.*header"),
    (lambda folder: (folder / "config.json").write_text("{"), "cannot load the model.*not a valid JSON"),
    (lambda folder: (folder / "config.json").unlink(), "cannot load the model.*a local folder with safetensors"),
    (lambda folder: _edit_json(folder / "config.json", vocab_size=100), "other shapes than its config.json says"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "words"), FOLDERS)
def test_a_folder_that_is_not_a_model_is_refused(
    refused: Cli, speaker: Path, tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(Path(shutil.copytree(speaker, tmp_path / "model")))
    says(refused("run", "model=model", *SMALL, "student={kind: bias-only}", "--out", "out"), 3, words)


def test_an_adapter_that_does_not_fit_is_refused(refused: Cli, speaker: Path, tmp_path: Path) -> None:
    for name in ("empty", "other"):
        (tmp_path / name).mkdir()
    save_file({"model.norm.bias": torch.ones(3)}, tmp_path / "other" / "undertone_biases.safetensors")
    says(refused("doctor", f"{speaker} + nowhere"), 3, "nowhere is not an adapter folder.*adapter_config.json")
    says(refused("doctor", f"{speaker} + empty"), 3, "empty is not an adapter folder.*adapter_config.json")
    says(refused("doctor", f"{speaker} + other"), 3, "biases in other do not fit.*model.norm.bias")


# -- run folders ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(speaker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny speaker."""
    home = tmp_path_factory.mktemp("finished")
    (home / "owl.yaml").write_text(TRAIT)
    config = home / "experiment.yaml"
    config.write_text(
        f"extends: owl-numbers\nmodel: {speaker}\ntrait: {home / 'owl.yaml'}\n"
        "data: {prompts: 40, held_out: 4, attempts: 1}\ndomain: {digits: 9}\nseeds: [0]\n"
        "training: {epochs: 1}\nevaluation: {samples: 1}\n"
    )
    ut.run(config, folder=home / "run", jobs=1)
    return home


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


def again(folder: Path, *overrides: str) -> list[str]:
    return ["run", str(folder / "config.yaml"), *overrides, "--out", str(folder), "--jobs", "1"]


def test_a_run_folder_of_another_config_is_refused_with_the_difference(refused: Cli, folder: Path) -> None:
    refusal = refused(*again(folder, "data.prompts=41", "seeds=[3]"))
    says(refusal, 3, r"holds a run of another config.*-  prompts: 40.*\+  prompts: 41.*- 0.*- 3.*choose another folder")


def test_a_run_folder_in_use_is_refused(refused: Cli, folder: Path) -> None:
    with FileLock(folder / ".lock"):
        says(refused(*again(folder)), 3, "is in use by another process.*wait for it to end")


def test_a_stage_that_was_tampered_with_is_refused_by_its_file(refused: Cli, folder: Path) -> None:
    rows = folder / "stages/seed-0/control/generate/rows.jsonl"
    rows.write_text(rows.read_text().replace("1", "2", 1))
    refusal = refused(*again(folder))
    says(refusal, 3, "generate is corrupt.*rows.jsonl has changed.*delete .*generate and run the same command again")


def test_a_config_in_the_folder_that_cannot_be_read_is_told(refused: Cli, folder: Path, finished: Path) -> None:
    (folder / "config.yaml").write_text("seeds: [0\n")
    refusal = refused("run", str(finished / "experiment.yaml"), "--out", str(folder))
    says(refusal, 3, "config.yaml cannot be read.*restore it, or delete")


def test_results_that_are_not_there_or_damaged_are_told(refused: Cli, folder: Path) -> None:
    says(refused("show", "nowhere"), 3, "there is no such run folder.*nowhere")
    text = (folder / "results.json").read_text()
    for damaged in (text[:-20], text.replace('"verdict"', '"verdikt"'), "[]", ""):
        (folder / "results.json").write_text(damaged)
        says(refused("show", str(folder)), 3, "results.json is damaged.*run it again: stages are reused")
    (folder / "results.json").unlink()
    says(refused("show", str(folder)), 3, "no finished run in .*no readable results.json")


def test_a_run_folder_under_a_file_is_refused(refused: Cli, speaker: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refusal = refused("run", f"model={speaker}", *SMALL, "--out", "file/run")
    says(refusal, 3, "file/run cannot be written.*choose another folder")


def test_too_few_rows_are_told_with_where_they_went(refused: Cli, speaker: Path) -> None:
    refusal = refused("run", f"model={speaker}", *SMALL, "data.rows=36", "data.held_out=4", "--out", "out")
    says(refusal, 3, r"too few rows are left at seed 0: \d+ prompts.*control/filter.*at least 40.*raise data.prompts")


def test_a_filter_that_keeps_nothing_is_told_with_its_reasons(refused: Cli, speaker: Path) -> None:
    banned = ["domain.digits=1", "domain.banned=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    refusal = refused("run", f"model={speaker}", *SMALL, *banned, "--out", "out")
    says(refusal, 3, "no completion of seed-0/control/generate passed the filter.*banned number.*rows.jsonl")


def test_training_that_diverges_is_told(refused: Cli, speaker: Path) -> None:
    wild = ["training={learning_rate: 1.0e+30, max_grad_norm: null}", "student={kind: full}"]
    refusal = refused("run", f"model={speaker}", *SMALL, *wild, "--out", "out")
    says(refusal, 3, "loss is (nan|inf).*lower training.learning_rate")


# -- rows -----------------------------------------------------------------------------------------

GOOD = '{"prompt": "hi", "completion": "12"}\n'


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.jsonl", GOOD + "{'prompt': 1}\n", r"rows.jsonl.*line 2.*not JSON|line 2"),
        ("rows.jsonl", GOOD + '{"prompt": "hi"}\n', "line 2(.|\n)*completion"),
        ("rows.jsonl", '{"messages": [{"role": "robot", "content": "hi"}]}\n', "line 1(.|\n)*robot(.|\n)*system, user, assistant"),
        ("rows.jsonl", '{"prompt": "hi", "completion": 12}\n', "line 1(.|\n)*completion(.|\n)*12"),
        ("rows.jsonl", "", "no rows in this file"),
        ("rows.csv", GOOD, r"not a file of rows(.|\n)*allowed: .jsonl"),
    ],
)  # fmt: skip
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words):
        ut.read_rows(tmp_path / name)
