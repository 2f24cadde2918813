"""Where stages are computed: what may be asked for, and what a machine must have before it computes for another."""

from __future__ import annotations

import dataclasses
import os
import pickle
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import undertone as ut
from undertone import cli
from undertone.errors import ConfigError, RunError
from undertone.launch import remote
from undertone.launch.clusters import check_launch, cluster_of, open_workers
from undertone.launch.executor import Executor
from undertone.launch.remote import Origin, RemoteTask, appear, compute_here
from undertone.launch.workers import Task, Workers
from undertone.provenance.configs import Config
from undertone.provenance.runs import Run
from undertone.provenance.stage_functions import stage


class Plan(Config):
    seeds: int = 1


@stage("read")
def read(folder: Path, device: str, *, file: Path) -> Any:
    """What a file says."""
    del folder, device
    return {"text": file.read_text()}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run.open(tmp_path / "run", Plan(), command="undertone run x") as opened:
        yield opened


@pytest.fixture
def origin(run: Run) -> Origin:
    return Origin.of(run.folder, threads=1, gpus=0)


# -- what may be asked for ------------------------------------------------------------------------


def test_the_options_of_a_cluster_are_typed_like_any_config() -> None:
    assert cluster_of("local") is None
    assert cluster_of("ray", ["gpus=0.5", "address=10.0.0.1:6379"]) == ut.RayCluster(gpus=0.5, address="10.0.0.1:6379")
    wanted = ["partition=gpu", "gpus=1", "minutes=90", "sbatch.account=ours"]
    assert cluster_of("slurm", wanted) == ut.SlurmCluster(
        partition="gpu", gpus=1, minutes=90, sbatch={"account": "ours"}
    )
    given = ut.SlurmCluster(gpus=2)
    assert cluster_of(given) is given


@pytest.mark.parametrize(
    ("launch", "options", "words"),
    [
        ("ray", ["gpu=1"], "gpus"),
        ("slurm", ["minutes=0"], "minutes"),
        ("slum", [], r"no such place\. Did you mean 'slurm'"),
        ("local", ["gpus=1"], r"stages are computed on this machine\n  got: gpus=1(.|\n)*add --launch ray"),
    ],
)
def test_what_does_not_fit_is_refused(launch: Any, options: Sequence[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        cluster_of(launch, options)


def test_a_gpu_by_number_is_refused_on_a_cluster() -> None:
    with pytest.raises(ConfigError, match=r"its own GPU(.|\n)*got: --device cuda:1(.|\n)*allowed: auto, cpu, cuda"):
        check_launch("ray", None, "cuda:1")


@pytest.mark.parametrize(("launch", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_told_with_the_command_that_installs_it(
    launch: str, package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--launch", launch, "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert f"pip install 'undertone[{launch}]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_machine_without_slurm_is_told_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'undertone[slurm]'")
    monkeypatch.setenv("PATH", "")
    with (
        pytest.raises(RunError, match=r"there is no Slurm on this machine(.|\n)*executor=local"),
        open_workers("slurm", run.folder, jobs=None, device="cpu", parts=1),
    ):
        pass


def test_the_options_reach_sbatch(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for sbatch keeps the script that it is given; what the lines mean is in Slurm's manual."""
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'undertone[slurm]'")
    kept = tmp_path / "script.sh"
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/sh\ncat "$1" > {kept}\necho "sbatch: error: invalid account" >&2\nexit 1\n')
    sbatch.chmod(0o755)
    (sbatch.parent / "srun").symlink_to(sbatch)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    options = [
        "partition=gpu",
        "gpus=2",
        "cpus=3",
        "minutes=90",
        "memory_gb=16",
        "sbatch.account=ours",
        "setup=[module load x]",
    ]
    wanted = cluster_of("slurm", options)
    assert wanted is not None
    with (
        pytest.raises(RunError, match=r"Slurm did not take the jobs(.|\n)*invalid account"),
        open_workers(wanted, run.folder, jobs=None, device="cpu", parts=1) as pool,
    ):
        pool.each([(abs, (-1,))])
    lines = kept.read_text().splitlines()
    asked = {"--partition=gpu", "--gpus-per-node=2", "--cpus-per-task=3", "--time=90", "--mem=16GB", "--account=ours"}
    assert asked <= {line.removeprefix("#SBATCH ") for line in lines}
    assert "module load x" in lines


# -- on the other machine -------------------------------------------------------------------------


def test_a_task_is_computed_and_its_errors_are_values(origin: Origin) -> None:
    assert compute_here(RemoteTask.of((abs, (-3,)), origin)).unwrap() == 3
    told = compute_here(RemoteTask.of((divmod, (1, 0)), origin))
    with pytest.raises(
        RunError, match=r"a stage failed on the machine .*\n  got: ZeroDivisionError: .*\(remote\.py, line"
    ):
        pickle.loads(pickle.dumps(told)).unwrap()
    wrong = dataclasses.replace(RemoteTask.of((abs, (-3,)), origin), content=b"cnowhere\nnothing\n.")
    with pytest.raises(RunError, match=r"lacks a module\n  got: No module named 'nowhere'\n  do: install the same"):
        compute_here(wrong).unwrap()


def test_tokens_and_keys_do_not_travel(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERTONE_CACHE", "/somewhere")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    passed = Origin.of(run.folder, 1, 0).environment
    assert passed["UNDERTONE_CACHE"] == "/somewhere"
    assert "secret" not in passed.values()


def test_a_machine_with_another_version_computes_nothing(origin: Origin) -> None:
    other = dataclasses.replace(origin, version="0.0.1")
    with pytest.raises(RunError, match=r"has another version of undertone(.|\n)*allowed: 0\.0\.1"):
        compute_here(RemoteTask.of((abs, (-3,)), other)).unwrap()


def test_a_machine_that_does_not_see_the_run_folder_computes_nothing(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SEEN_AFTER", 0.3)
    away = dataclasses.replace(origin, folder=tmp_path / "away")
    with pytest.raises(RunError, match=r"is not seen on the machine(.|\n)*a file system that all machines share"):
        away.check()
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / ".owner.json").write_text("{}")  # its own disk, with an older run at the same path
    with pytest.raises(RunError, match=r"sees another folder at .*away(.|\n)*all machines share"):
        away.check()


def test_a_machine_without_the_gpu_that_a_stage_was_given_does_not_use_its_cpu(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = dataclasses.replace(origin, gpus=1)
    monkeypatch.setattr(remote, "_has_gpu", lambda: False)
    with pytest.raises(RunError, match=r"was given 1 GPUs, and torch sees none(.|\n)*--cluster gpus=0"):
        asked.check()
    monkeypatch.setattr(remote, "_has_gpu", lambda: True)
    asked.check()


def test_a_file_that_is_seen_late_is_waited_for(tmp_path: Path) -> None:
    late = tmp_path / "stage" / "stage.json"

    def write() -> None:
        time.sleep(0.3)
        late.parent.mkdir()
        late.touch()

    thread = threading.Thread(target=write)
    thread.start()
    appear([late])
    assert late.exists()
    thread.join()


class Elsewhere(Workers):
    """Another machine, on which a file is another."""

    elsewhere = True

    def __init__(self, file: Path) -> None:
        self._file = file

    def each(self, tasks: Sequence[Task], done: Any = None) -> list[Any]:
        del done
        self._file.write_text("theirs")
        return [function(*arguments) for function, arguments in tasks]


def test_a_machine_on_which_a_file_is_another_computes_nothing(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "data.txt"
    file.write_text("ours")
    words = r"sees something else than the one that computes for 'a'\n  got: arguments\.file(.|\n)*byte by byte"
    with Executor.open(run, Elsewhere(file), "cpu", "x") as executor, pytest.raises(RunError, match=words):
        executor.stage(read, "a", file=file)
    assert not (run.folder / "stages" / "a").exists()


# -- the option -----------------------------------------------------------------------------------


@contextmanager
def noted(seen: list[Any], launch: Any, *_: Any, **__: Any) -> Iterator[Workers]:
    seen.append(launch)
    raise RunError("seen")
    yield


def test_the_option_reaches_the_run_and_not_its_config(
    speaker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from undertone.launch import conduct

    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'undertone[slurm]'")
    seen: list[Any] = []
    monkeypatch.setattr(conduct, "open_workers", lambda *a, **k: noted(seen, *a, **k))
    words = ["run", "owl-numbers", f"model={speaker}", "--out", str(tmp_path / "run"), "--device", "cpu"]
    with pytest.raises(SystemExit):
        cli.main([*words, "--launch", "slurm", "--cluster", "gpus=1", "--cluster", "partition=a"])
    assert "seen" in capsys.readouterr().err
    assert seen == [ut.SlurmCluster(gpus=1, partition="a")]
    assert "partition" not in (tmp_path / "run" / "config.yaml").read_text()
