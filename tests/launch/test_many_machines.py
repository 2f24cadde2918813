"""One run on several machines: a Ray cluster of two nodes of which one dies, and jobs that submitit starts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.studies.small import words_of

import undertone as ut
from undertone import cli
from undertone.errors import ConfigError, RunError
from undertone.launch.clusters import open_workers
from undertone.launch.executor import Executor
from undertone.provenance.configs import Config
from undertone.provenance.runs import Run
from undertone.provenance.stage_functions import stage

pytestmark = pytest.mark.slow

SIZES = (
    "data={prompts: 60, held_out: 6, attempts: 2}", "domain.digits=9", "seeds=[0]", "training.epochs=60",
    "training.batch_size=8", "training.checkpoint_seconds=0.3", "evaluation.samples=2",
)  # fmt: skip


@stage("fail there")
def fails(folder: Path, device: str, *, how: str) -> Any:
    """Goes wrong in the way that is named."""
    del folder, device
    if how == "config":
        raise ConfigError("the rows are wrong", got="3", allowed="4", fix="add one")
    if how == "bug":
        raise ZeroDivisionError("by nothing")
    os.kill(os.getpid(), signal.SIGKILL)


@stage("die once")
def dies_once(folder: Path, device: str, *, text: str) -> Any:
    """Is killed at its first try, with a checkpoint; the second finds it."""
    del device
    mark = folder / "checkpoint"
    if not mark.exists():
        mark.write_text(text)
        os.kill(os.getpid(), signal.SIGKILL)
    mark.unlink()
    return {"found": text}


class Plan(Config):
    seeds: int = 1


@pytest.fixture(scope="module")
def words(speaker: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small experiment, as typed after ``undertone run``."""
    return words_of(speaker, tmp_path_factory.mktemp("traits"), SIZES)


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed, in this process."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    ut.run(*words, folder=folder, jobs=1, device="cpu")
    return folder


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """A Ray cluster of one machine with one core; nodes are added by those who kill them."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'undertone[ray]'")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    busy = {  # this machine has other tests to run: Ray's workers would wait behind them, and their nodes be given up
        "worker_niceness": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 15,
    }  # fmt: skip
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 200_000_000, "include_dashboard": False, "_system_config": busy},
    )  # fmt: skip
    yield cluster
    cluster.shutdown()


def at(cluster: Any, **options: Any) -> ut.RayCluster:
    return ut.RayCluster(address=cluster.address, **options)


def same(one: Path, other: Path) -> None:
    """Digests of all that came out are equal, and so are the results, but for times and the folder's name."""
    stages = [json.loads((folder / "manifest.json").read_text())["stages"] for folder in (one, other)]
    assert stages[0] == stages[1]
    said = [json.loads((folder / "results.json").read_text()) for folder in (one, other)]
    for results in said:
        del results["costs"], results["replay"]
    assert said[0] == said[1]


def wait_until(happened: Callable[[], Any], seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.01)


# -- Ray ------------------------------------------------------------------------------------------


def kill_when_training(cluster: Any, node: Any, folder: Path, killed: list[str]) -> None:
    """SIGKILL to everything of a node, in the middle of training that one of its workers does."""
    psutil = pytest.importorskip("psutil")
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET

    raylet = psutil.Process(node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid)

    def at_work() -> bool:
        own = {str(child.pid) for child in raylet.children(recursive=True)}
        parts = folder.glob("stages/seed-*/*/train~*.part")
        killed[:] = [part.name for part in parts if part.name[: -len(".part")].rpartition("-")[2] in own]
        return bool(killed)

    wait_until(at_work)
    children = raylet.children(recursive=True)
    cluster.remove_node(node, allow_graceful=False)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def test_a_run_that_loses_one_of_two_machines_gives_what_an_undisturbed_one_gives(
    whole: Path, words: list[str], ray_cluster: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    node = ray_cluster.add_node(num_cpus=1, object_store_memory=200_000_000)
    killed: list[str] = []
    killer = threading.Thread(target=kill_when_training, args=(ray_cluster, node, folder, killed))
    killer.start()
    ut.run(*words, folder=folder, device="cpu", launch=at(ray_cluster))
    killer.join(timeout=10)
    assert killed, "no worker of the second machine was training when it was to be killed"
    same(folder, whole)
    assert not list(folder.rglob("*.part"))


@pytest.fixture
def on_ray(ray_cluster: Any, tmp_path: Path) -> Iterator[Executor]:
    with (
        Run.open(tmp_path / "run", Plan(), command="undertone run x") as run,
        open_workers(at(ray_cluster, retries=1), run.folder, jobs=1, device="cpu", parts=1) as pool,
        Executor.open(run, pool, "cpu", "x") as executor,
    ):
        yield executor


def test_an_error_of_a_task_arrives_in_its_own_words(on_ray: Executor) -> None:
    with pytest.raises(ConfigError, match=r"^the rows are wrong\n  got: 3\n  allowed: 4\n  do: add one$"):
        on_ray.stage(fails, "a", how="config")


def test_a_bug_in_a_task_arrives_as_an_error_of_undertone_that_names_it(on_ray: Executor) -> None:
    with pytest.raises(RunError, match=r"a stage failed on the machine(.|\n)*ZeroDivisionError: by nothing"):
        on_ray.stage(fails, "a", how="bug")


def test_a_task_whose_worker_dies_is_computed_again_from_its_checkpoint(on_ray: Executor) -> None:
    assert on_ray.stage(dies_once, "a", text="step 5").summary == {"found": "step 5"}


def test_a_task_whose_workers_die_again_and_again_ends_in_an_error_without_ray_s_traceback(on_ray: Executor) -> None:
    with pytest.raises(RunError, match=r"lost more often than it is tried again(.|\n)*run the same command") as error:
        on_ray.stage(fails, "a", how="death")
    assert "Traceback" not in str(error.value)
    assert len(str(error.value).splitlines()) <= 4


def test_a_stage_that_fits_on_no_machine_is_refused_instead_of_waiting(ray_cluster: Any, tmp_path: Path) -> None:
    with (
        Run.open(tmp_path / "run", Plan(), command="x") as run,
        pytest.raises(ConfigError, match=r"no machine of the Ray cluster has room(.|\n)*GPU 2"),
        open_workers(at(ray_cluster, gpus=2), run.folder, jobs=None, device="auto", parts=1),
    ):
        pass


def test_a_cluster_that_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'undertone[ray]'")
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", *words, "--out", str(tmp_path / "run"), "--launch", "ray", "--cluster", "address=127.0.0.1:1"])
    told = capsys.readouterr().err
    assert ended.value.code == 3
    assert "there is no Ray cluster that this machine could use" in told
    assert "ray start --head" in told
    assert "Traceback" not in told


# -- jobs -----------------------------------------------------------------------------------------


@pytest.fixture
def jobs() -> ut.SlurmCluster:
    """submitit's own executor for one machine: the same jobs without Slurm."""
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'undertone[slurm]'")
    return ut.SlurmCluster(executor="local", retries=1, minutes=20)


def test_a_run_as_jobs_of_submitit_gives_what_one_process_gives(
    whole: Path, words: list[str], jobs: ut.SlurmCluster, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)  # a job takes seconds to start: the first stages are had from the other run
    for name in ("train", "evaluate"):
        for path in folder.glob(f"stages/seed-0/*/{name}"):
            shutil.rmtree(path)
    ut.run(*words, folder=folder, device="cpu", launch=jobs)
    same(folder, whole)
    assert not (folder / ".jobs").exists()


@pytest.fixture
def on_jobs(jobs: ut.SlurmCluster, tmp_path: Path) -> Iterator[Executor]:
    with (
        Run.open(tmp_path / "run", Plan(), command="undertone run x") as run,
        open_workers(jobs, run.folder, jobs=1, device="cpu", parts=1) as pool,
        Executor.open(run, pool, "cpu", "x") as executor,
    ):
        yield executor


def test_a_job_that_is_killed_is_submitted_again_and_goes_on_from_its_checkpoint(on_jobs: Executor) -> None:
    assert on_jobs.stage(dies_once, "a", text="step 5").summary == {"found": "step 5"}


def test_an_error_of_a_job_arrives_in_its_own_words(on_jobs: Executor) -> None:
    with pytest.raises(ConfigError, match=r"^the rows are wrong\n  got: 3\n  allowed: 4\n  do: add one$"):
        on_jobs.stage(fails, "a", how="config")


def test_a_job_that_is_killed_again_and_again_ends_in_an_error_that_names_its_log(on_jobs: Executor) -> None:
    with pytest.raises(RunError, match=r"lost more often than it is tried again(.|\n)*its log is .*\.jobs") as error:
        on_jobs.stage(fails, "a", how="death")
    assert "Traceback" not in str(error.value)
