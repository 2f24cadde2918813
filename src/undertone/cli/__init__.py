"""The command line: verbs that parse, call, print, and map errors to exit codes.

Results go to stdout (with ``--json`` as JSON), everything else to stderr. Exit codes: 0 done, 1 a check that was asked
to gate did not pass, 2 the user's input is wrong, 3 data or model unusable, 130 interrupted (and resumable).
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import cyclopts
from cyclopts import App, Parameter

from undertone.cli import vector_tuning  # noqa: F401  (adds `vector tune`)
from undertone.cli.claims import claims
from undertone.cli.domains import domains
from undertone.cli.models import models
from undertone.cli.options import Cluster, Device, Jobs, Json, Launch, ModelName, Recompute, place_of, start_workers
from undertone.cli.printing import (
    MARKS,
    check_lines,
    fail,
    finding_lines,
    is_follower,
    print_json,
    say,
    say_notes,
    table,
)
from undertone.cli.traits import traits
from undertone.cli.vector import vector
from undertone.errors import ConfigError, UndertoneError, show_warnings_plainly

if TYPE_CHECKING:
    from undertone.studies.results import StudyResults
    from undertone.transfer.results import Cost, Results

app = App(
    name="undertone",
    help=(
        "Subliminal learning, measured with controls: what a student model picks up from a teacher's data.\n\n"
        "`undertone run` with no arguments shows it on a built-in model in about two minutes: no download, no key, "
        "no GPU."
    ),
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `main` says what is kept and how to go on
    help_format="markdown",
)
lab = App(
    name="lab",
    help="The built-in models: tiny transformers of a little world, trained here on first use.",
)
app.command(lab)
app.command(claims)
app.command(domains)
app.command(models)
app.command(traits)
app.command(vector)


@app.command
def run(
    *words: Annotated[
        str,
        Parameter(
            help="a preset or a YAML file first, then key=value overrides",
            allow_leading_hyphen=False,
        ),
    ],
    out: Annotated[Path | None, Parameter(name=["--out", "-o"], help="run folder; default runs/NAME-DIGEST")] = None,
    jobs: Jobs = None,
    device: Device = "auto",
    launch: Launch = "local",
    cluster: Cluster = (),
    presets: Annotated[bool, Parameter(name="--presets", negative="", help="list the presets and stop")] = False,
    show_config: Annotated[
        bool,
        Parameter(name="--config", negative="", help="print the whole config, defaults included, and stop"),
    ] = False,
    gate: Annotated[
        bool,
        Parameter(
            name="--gate", negative="", help="exit 1 unless the verdict is `transferred` (a study: no check failed)"
        ),
    ] = False,
    until: Annotated[
        Literal["decided"] | None,
        Parameter(help="decided: add seeds until the verdict is, by a stopping rule that allows for every look"),
    ] = None,
    max_seeds: Annotated[int | None, Parameter(help="with --until: the most seeds (default 12)")] = None,
    recompute: Recompute = False,
    as_json: Json = False,
) -> int:
    """Run an experiment: teacher, data, filter, control, students, evaluation, verdict, report; or a study.

    With no arguments: preset `owl-numbers` on `lab/llama-0`. The same command goes on where an interrupted run stopped,
    and answers at once when the run is finished; with more seeds, traits or samples it extends the finished run.

    Examples: `undertone run trait=panda seeds=[0,1,2,3,4]` · `undertone run zoo` ·
    `undertone run cloud-numbers model=Qwen/Qwen2.5-7B-Instruct` · `undertone run runs/X/config.yaml`
    """
    if not (presets or show_config):
        start_workers(jobs, launch)
    from undertone.studies.frame import load_plan, run_plan
    from undertone.transfer.config import presets as known

    if presets:
        return _print_presets(known(), as_json)
    source = words[0] if words and "=" not in words[0] else "owl-numbers"
    overrides = list(words[1:] if words and "=" not in words[0] else words)
    overrides += [f"{name}={value}" for name, value in (("until", until), ("max_seeds", max_seeds)) if value]
    place = place_of(launch, cluster)
    config = load_plan(source, overrides)
    say_notes()
    _check_max_seeds(config, max_seeds)
    if show_config:
        sys.stdout.write(config.to_yaml())
        return 0
    folder = out or config.folder()
    say(f"run folder: {folder}")
    command = "undertone " + shlex.join(sys.argv[1:])
    results = run_plan(config, folder, jobs=jobs, device=device, command=command, recompute=recompute, launch=place)
    _print_results(results, folder, as_json)
    return int(gate and not _passed(results))


def _check_max_seeds(config: object, max_seeds: int | None) -> None:
    if max_seeds is not None and getattr(config, "until", "seeds") != "decided":
        raise ConfigError(
            "--max-seeds says where adding seeds ends, and none are added",
            got=f"--max-seeds {max_seeds}",
            fix="add --until decided, or list the seeds: seeds=[0,1,2,3]",
        )


@app.command
def show(
    folder: Annotated[Path, Parameter(help="a run folder")],
    as_json: Json = False,
) -> int:
    """Show a finished run again: the sentence, the checks, where the report is (written anew)."""
    from undertone.studies.results import read_run

    _print_results(read_run(folder), folder, as_json)
    return 0


@app.command
def doctor(
    model: ModelName,
    trait: Annotated[str | None, Parameter(name="--trait", help="also check this trait's answers and matcher")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Known-answer checks on any model, before GPU hours are spent. Exits 1 if one fails."""
    from undertone.doctor import examine
    from undertone.models.loading import load
    from undertone.traits import load_trait

    findings = examine(load(model, device=device), load_trait(trait) if trait else None)
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        check_lines(findings, f"doctor: {model}")
    return int(any(finding.status == "fail" for finding in findings))


@lab.command(name="build")
def lab_build(
    *names: Annotated[str, Parameter(help="FAMILY-SEED, e.g. llama-0 qwen-1 neox-0")],
    again: Annotated[bool, Parameter(name="--again", negative="", help="build even if it is in the cache")] = False,
    as_json: Json = False,
) -> int:
    """Build lab models now (default: llama-0). They are otherwise built on first use."""
    from undertone.lab import ensure

    folders = {name: str(ensure(_bare(name), rebuild=again)) for name in names or ("llama-0",)}
    if as_json:
        print_json(folders)
    else:
        for name, folder in folders.items():
            print(f"lab/{_bare(name)}  {folder}")
    return 0


@lab.command(name="list")
def lab_list(*, as_json: Json = False) -> int:
    """List the lab models in the cache; those of another version or recipe are not in use and can be deleted."""
    from undertone.lab import cache_folder, stored

    cards = stored()
    if as_json:
        print_json(cards)
    elif not cards:
        print(f"no lab models in {cache_folder()} yet; `undertone lab build` makes one")
    else:
        table(
            "lab models",
            ["name", "parameters", "built in", "in use", "folder"],
            [
                [
                    c["name"],
                    f"{c['parameters']:,}",
                    f"{c['seconds']:.0f} s",
                    "yes" if c["current"] else "no",
                    c["folder"],
                ]
                for c in cards
            ],
        )
    return 0


@lab.command(name="show")
def lab_show(
    name: Annotated[str, Parameter(help="FAMILY-SEED")] = "llama-0",
    *,
    as_json: Json = False,
) -> int:
    """Show what a lab model can do, on held-out prompts: accuracy per task, preferences, refusals, teacher KL."""
    from undertone.evaluation.abilities import examine_lab

    sheet = examine_lab(_bare(name))
    if as_json:
        print_json(sheet)
        return 0
    for title, (columns, rows) in sheet["tables"].items():
        table(title, columns, rows)
    return 0


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point: parse, call, and turn errors into messages and exit codes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    show_warnings_plainly()
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        fail(str(error), "see `undertone --help`", 2)
    except UndertoneError as error:
        fail(str(error), None, error.exit_code)
    except KeyboardInterrupt:
        fail("interrupted; finished stages are kept", "run the same command again to go on", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def _bare(name: str) -> str:
    return name.removeprefix("lab/")


def _print_presets(known: dict[str, Path], as_json: bool) -> int:
    about = {
        name: " ".join(line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#")
        for name, path in known.items()
    }
    if as_json:
        print_json(about)
    else:
        table("presets", ["name", "what it is"], list(about.items()))
    return 0


def _passed(results: Results | StudyResults) -> bool:
    from undertone.transfer.results import Results

    if isinstance(results, Results):
        return results.verdict == "transferred"
    return not any(check.status == "fail" for check in results.checks)


def _print_results(results: Results | StudyResults, folder: Path, as_json: bool) -> None:
    """With the report written anew; of several processes that were started together the first does it."""
    from undertone import report
    from undertone.transfer.results import Results

    if is_follower():
        return
    page = report.write(folder)
    if as_json:
        print_json(results.model_dump(mode="json", by_alias=True))
        return
    if isinstance(results, Results):
        print(f"\n{results.verdict.upper()}  {results.sentence}\n")
    else:
        print(f"\n{results.sentence}\n")
        for line in finding_lines(results.findings):
            print(f"  {line}")
        print()
    for check in results.checks:
        print(f"  {MARKS[check.status]:4}  {check.name}: {check.value}")
    print(f"\nreport  {page}\nreplay  {results.replay}\nwork    {_work(results.costs)}, in {folder}")


def _work(costs: Sequence[Cost]) -> str:
    """CPU time, which waiting for a busy machine does not add to; wall-clock time where CPU time was not recorded."""
    from undertone.transfer.results import cpu_seconds

    wall = sum(cost.seconds for cost in costs)
    cpu = cpu_seconds(costs)
    if cpu is None:
        return f"{wall:.0f} s of stages"
    return f"{cpu:.0f} s of CPU time ({wall:.0f} s wall-clock, all stages)"
