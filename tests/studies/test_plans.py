"""Plans of every kind through one door: presets, kinds, folders, the command line, and the workers' environment."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import undertone as ut
from undertone import cli
from undertone.errors import ConfigError, DataError, RunError
from undertone.launch import executor
from undertone.launch.executor import Call
from undertone.launch.workers import workers
from undertone.provenance.runs import Run, Stage
from undertone.report import write
from undertone.studies.frame import kinds, load_plan
from undertone.studies.results import Figure, Point, StudyTable, read_run, read_study
from undertone.transfer.config import Experiment, presets

QUICK = (
    "seeds=[0,1]", "tuning_seeds=[100]", "hidden=[24]", "other_hidden=[16]", "steps=12", "batch_size=8",
    "teacher.epochs=2", "optimizers=[{name: Adam, optimizer: Adam, rates: [0.001, 0.002, 0.01], adaptive: true}, "
    "{name: SGD, optimizer: SGD, rates: [0.1, 0.5], adaptive: false}]",
)  # fmt: skip
"""A study of the same shape in a second."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    ut.study("digits", *QUICK, folder=folder, jobs=1, device="cpu")
    return folder


def said(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return {name: value for name, value in record.items() if name not in ("costs", "replay")}


def typed(*words: str) -> tuple[int, str, str]:
    """What a command line exits with, prints, and says on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        cli.main(words)
    code = end.value.code
    assert isinstance(code, int)
    return code, out.getvalue(), err.getvalue()


# -- kinds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_a_valid_plan_of_its_kind(name: str) -> None:
    plan = load_plan(name)
    assert plan.kind in kinds()
    assert plan.name == name


@pytest.mark.parametrize("name", presets())
def test_no_preset_asks_for_an_arithmetic_that_the_machine_may_not_have(name: str) -> None:
    """bf16 on a CPU without it is a hundred times slower; ``auto`` is bf16 where there is a GPU."""

    def asked(value: object) -> set[object]:
        if isinstance(value, list | tuple):
            return set().union(*map(asked, value))
        if not isinstance(value, dict):
            return set()
        own = {value[key] for key in ("precision", "dtype") if key in value}
        return own.union(*map(asked, value.values()))

    assert asked(load_plan(name).model_dump()) <= {"auto"}


def test_a_config_without_a_kind_is_a_transfer_experiment(tmp_path: Path) -> None:
    (tmp_path / "panda.yaml").write_text("trait: [panda]\n")
    assert isinstance(load_plan(tmp_path / "panda.yaml"), Experiment)


def test_an_override_of_the_kind_chooses_another_class_and_drops_the_old_fields() -> None:
    plan = load_plan("owl-numbers", ["kind=digits", "steps=7"])
    assert (plan.kind, plan.model_dump()["steps"]) == ("digits", 7)


@pytest.mark.parametrize("kind", ["digit", "7", "[digits]"])
def test_an_unknown_kind_names_those_there_are(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"no such kind of plan(.|\n)*allowed: (.*, )?digits.*transfer"):
        load_plan("owl-numbers", [f"kind={kind}"])


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'digits'"):
        load_plan("owl-numbers", ["kind=digts"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stepps=3"], "stepps: there is no such field. Did you mean 'steps'"),
        (["teacher.epohcs=3"], "teacher.epohcs: there is no such field. Did you mean 'epochs'"),
        (["tuning_seeds=[0]"], "nothing is tuned on what is reported"),
        (["other_hidden=[128,128]"], "other_hidden must differ"),
        (["optimizers.0.optimizer=Muon"], r"mixes networks(.|\n)*got: Muon\n  allowed: .*SignSGD"),
        (["teacher.optimizer=Adamm"], r"teacher.optimizer mixes networks(.|\n)*or is unknown"),
    ],
)
def test_what_is_wrong_with_a_study_is_told_by_its_path(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_plan("digits", overrides)


def test_each_door_refuses_the_others_kind() -> None:
    with pytest.raises(ConfigError, match="this plan is a transfer experiment"):
        ut.study("owl-numbers")
    with pytest.raises(ConfigError, match=r"no transfer experiment(.|\n)*undertone.study"):
        ut.run("digits")


# -- a study's run folder -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_leaves_what_a_run_leaves(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert {"config.yaml", "manifest.json", "results.json", "stages"} <= names
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["data"] == {"images": "scikit-learn digits"}
    assert {"teachers", "Adam/tune", "Adam/same-other-permuted", "one-step"} <= set(manifest["stages"])
    results = read_study(whole)
    assert [finding.id for finding in results.findings] == [
        "same-start-learns", "other-start-learns-nothing", "other-shape-learns-nothing", "one-step-theorem",
        "adaptive-optimisers-needed",
    ]  # fmt: skip
    assert read_run(whole) == results
    assert write(whole).read_text("utf-8").count("<figure") == len(results.figures) >= 4


def test_the_config_of_a_study_replays_it_from_its_folder(whole: Path) -> None:
    before = said(whole)
    again = ut.study(whole / "config.yaml", folder=whole, jobs=1)
    assert again.costs == read_study(whole).costs  # every stage was reused
    assert said(whole) == before


@pytest.mark.slow
def test_a_study_does_not_depend_on_its_processes(whole: Path, tmp_path: Path) -> None:
    ut.study("digits", *QUICK, folder=tmp_path / "two", jobs=2, device="cpu")
    assert said(tmp_path / "two") == said(whole)


def test_a_study_that_was_interrupted_goes_on(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = executor.compute

    def refuse(run: Run, call: Call, *rest: Any) -> Stage:
        if call.place == "one-step":
            raise KeyboardInterrupt
        return compute(run, call, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(executor, "compute", refuse)
        with pytest.raises(KeyboardInterrupt):
            ut.study("digits", *QUICK, folder=tmp_path / "run", jobs=1, device="cpu")
    assert not (tmp_path / "run" / "results.json").exists()
    taught = (tmp_path / "run/stages/teachers/stage.json").stat().st_mtime_ns
    ut.study("digits", *QUICK, folder=tmp_path / "run", jobs=1, device="cpu")
    assert (tmp_path / "run/stages/teachers/stage.json").stat().st_mtime_ns == taught
    assert said(tmp_path / "run") == said(whole)


def test_a_folder_of_another_config_is_refused_with_the_difference(whole: Path) -> None:
    with pytest.raises(RunError, match=r"holds a run of another config(.|\n)*-steps: 12\n(.|\n)*\+steps: 13"):
        ut.study("digits", *QUICK, "steps=13", folder=whole, jobs=1)


def test_another_file_of_images_is_another_study(tmp_path: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    made: dict[str, Any] = {"y_train": np.arange(60) % 4, "y_test": np.arange(20) % 4}
    np.savez(tmp_path / "x.npz", x_train=rng.random((60, 3, 3)), x_test=rng.random((20, 3, 3)), **made)
    words = (*QUICK, f"data={tmp_path / 'x.npz'}")
    results = ut.study("digits", *words, folder=tmp_path / "run", jobs=1)
    assert results.model.startswith("9 – 24 – 7")
    np.savez(tmp_path / "x.npz", x_train=rng.random((60, 3, 3)), x_test=rng.random((20, 3, 3)), **made)
    with pytest.raises(RunError, match="images"):
        ut.study("digits", *words, folder=tmp_path / "run", jobs=1)
    with pytest.raises(DataError, match="cannot be read"):
        ut.study("digits", *QUICK, f"data={tmp_path / 'none.npz'}", folder=tmp_path / "other", jobs=1)
    assert not (tmp_path / "other").exists()


def test_a_rate_that_breaks_is_not_chosen_and_all_that_break_are_told(tmp_path: Path) -> None:
    arm = "[{name: SGD, optimizer: SGD, rates: [%s], adaptive: false}]"
    few = [word for word in QUICK if not word.startswith("optimizers")]
    results = ut.study("digits", *few, f"optimizers={arm % '0.1, 1e12'}", folder=tmp_path / "one", jobs=1)
    assert results.tables[0].rows == [["SGD", "0.1", results.tables[0].rows[0][2], "chosen"],
                                      ["SGD", "1e+12", "not finite", ""]]  # fmt: skip
    assert [finding.id for finding in results.findings][-1] == "one-step-theorem"  # one optimiser: nothing to compare
    with pytest.raises(RunError, match="no learning rate of SGD trains a student"):
        ut.study("digits", *few, f"optimizers={arm % '1e12'}", folder=tmp_path / "two", jobs=1)


def test_one_seed_is_a_study_that_says_how_little_it_knows(tmp_path: Path) -> None:
    results = ut.study("digits", *QUICK, "seeds=[0]", folder=tmp_path / "run", jobs=1)
    assert {check.name: check.status for check in results.checks}["seeds are replicated"] == "warn"
    learns = results.findings[0]
    assert (learns.low, learns.high, learns.verdict) == (None, None, "not measured")  # one seed has no interval


# -- the command line -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_line_runs_and_shows_a_study(whole: Path) -> None:
    code, out, _ = typed("run", "digits", *QUICK, "--out", str(whole), "--jobs", "1")
    results = read_study(whole)
    assert code == 0
    assert results.sentence in out
    lines = out.splitlines()
    for finding in results.findings:
        (line,) = [line for line in lines if finding.quantity in line and finding.baseline in line]
        assert line.strip().startswith(finding.verdict)
    assert any(line.startswith("replay  undertone run") for line in lines)
    assert typed("show", str(whole))[1] == out


def test_json_of_a_study_is_its_results(whole: Path) -> None:
    code, out, _ = typed("show", str(whole), "--json")
    assert code == 0
    assert json.loads(out) == json.loads((whole / "results.json").read_text())


def test_the_list_of_presets_holds_studies_and_experiments() -> None:
    listed = json.loads(typed("run", "--presets", "--json")[1])
    assert {"digits", "owl-numbers", "zoo"} <= set(listed)
    assert all(listed.values())


def test_the_config_of_a_study_is_printed_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(typed("run", "digits", "steps=9", "--config")[1])
    assert load_plan(path) == load_plan("digits", ["steps=9"])


def test_showing_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    code, _, err = typed("show", str(tmp_path))
    assert (code, "no finished run" in err) == (3, True)
    (tmp_path / "results.json").write_text('{"schema": "undertone.study/2"}')
    code, _, err = typed("show", str(tmp_path))
    assert (code, "is damaged, or not of a study" in err) == (3, True)


# -- records --------------------------------------------------------------------------------------


def test_records_that_could_not_be_drawn_are_refused() -> None:
    words = {"title": "t", "caption": "c", "x": "x", "y": "y"}
    named = [Point(x="a", y=1.0, series="s")]
    with pytest.raises(ValidationError, match="needs numbers on x; got 'a'"):
        Figure(kind="lines", points=named, **words)
    with pytest.raises(ValidationError, match="logarithmic x axis needs numbers above 0"):
        Figure(kind="lines", points=[Point(x=0.0, y=1.0, series="s")], log_x=True, **words)
    with pytest.raises(ValidationError, match="not as long as its head"):
        StudyTable(title="t", columns=["a", "b"], rows=[["1"]])


# -- workers --------------------------------------------------------------------------------------


def environment(name: str) -> str | None:
    return os.environ.get(name)


@pytest.mark.slow
def test_workers_take_over_the_environment_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fork server lives longer than any pool, and keeps the environment of its own beginning."""
    monkeypatch.setenv("UNDERTONE_CACHE", "first")
    with workers(2) as pool:
        assert pool.each([(environment, ("UNDERTONE_CACHE",))] * 2) == ["first", "first"]
    monkeypatch.setenv("UNDERTONE_CACHE", "second")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with workers(2) as pool:
        assert pool.each([(environment, ("UNDERTONE_CACHE",))]) == ["second"]
        assert pool.each([(environment, ("HF_HUB_OFFLINE",))]) == [None]


@pytest.mark.slow
def test_showing_a_run_brings_no_torch(whole: Path) -> None:
    code = (
        "import sys\nfrom undertone.cli import main\n"
        f"try:\n    main(['show', {str(whole)!r}])\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
