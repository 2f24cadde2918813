"""Stages as tasks of a Ray cluster: spread over its machines, each with the GPUs that it asks for.

A stage whose machine or process was lost is computed again elsewhere (``max_retries``): it goes on from the checkpoints
in the run folder. Ray itself carries arguments and small results only; what stages write is in the run folder.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from undertone.errors import ConfigError, RunError, check_packages
from undertone.launch.remote import Origin, RemoteTask, compute_here
from undertone.launch.workers import Task, Workers
from undertone.provenance.configs import Config


class RayCluster(Config):
    """Stages are tasks of a Ray cluster (``pip install 'undertone[ray]'``)."""

    address: str = Field(
        "auto",
        description="auto: the cluster that this machine belongs to; HOST:PORT; local: start one on this machine",
    )
    cpus: int = Field(1, ge=1, description="CPU cores of a stage, and its threads")
    gpus: float | None = Field(
        None, ge=0, description="GPUs of a stage; None: 1 where the cluster has any and --device is not cpu"
    )
    memory_gb: float | None = Field(None, gt=0, description="memory of a stage in GB; None: not asked for")
    retries: int = Field(3, ge=0, description="how often a stage is computed again whose machine or process was lost")


def check_installed() -> None:
    """Refuse to go on without Ray.

    Raises:
        ConfigError: it is not installed.
    """
    check_packages("--launch ray needs Ray", "ray", "ray")


class RayWorkers(Workers):
    """Computes tasks on a cluster that this process is connected to."""

    elsewhere = True

    def __init__(self, cluster: RayCluster, origin: Origin, jobs: int | None) -> None:
        import ray

        self._origin, self._jobs = origin, jobs
        self._send = ray.remote(compute_here).options(
            num_cpus=cluster.cpus,
            num_gpus=origin.gpus,
            memory=None if cluster.memory_gb is None else int(cluster.memory_gb * 1e9),
            max_retries=cluster.retries,
            scheduling_strategy="SPREAD",
            name="undertone",
        )

    def each(self, tasks: Sequence[Task], done: Callable[[], object] | None = None) -> list[Any]:
        """The results of all tasks, in order. The first failure stops the others and is raised."""
        import ray

        waiting = list(enumerate(tasks))[::-1]
        flying: dict[Any, int] = {}
        results: list[Any] = [None] * len(tasks)
        try:
            while waiting or flying:
                while waiting and (self._jobs is None or len(flying) < self._jobs):
                    at, task = waiting.pop()
                    flying[self._send.remote(RemoteTask.of(task, self._origin))] = at
                ready, _ = ray.wait(list(flying), num_returns=1)
                for reference in ready:
                    at = flying.pop(reference)
                    results[at] = ray.get(reference).unwrap()
                    if done:
                        done()
        except ray.exceptions.RayError as error:
            raise _failed(error) from error
        finally:
            # Not by force: where a task ends at that moment, Ray 2.60 aborts this process. What is left ends with the connection.
            for reference in flying:
                ray.cancel(reference, force=False)
        return results


@contextmanager
def ray_workers(cluster: RayCluster, folder: Path, jobs: int | None, device: str) -> Iterator[RayWorkers]:
    """Connected to a cluster until the block ends; a connection that was there before is used and left.

    Raises:
        ConfigError: more GPUs for a stage than the cluster has.
        RunError: there is no cluster at that address.
    """
    check_installed()
    import ray

    own = not ray.is_initialized()
    if own:
        _connect(cluster)
    try:
        there = ray.cluster_resources()
        gpus = _gpus(cluster, device, there.get("GPU", 0.0))
        _check_room(cluster, gpus, there)
        yield RayWorkers(cluster, Origin.of(folder, cluster.cpus, gpus), jobs)
    finally:
        if own:
            ray.shutdown()


def _connect(cluster: RayCluster) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = {"include_dashboard": False} if cluster.address == "local" else {}
    try:
        if cluster.address not in ("auto", "local"):
            host, _, port = cluster.address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray would try for minutes
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, ValueError, OSError, RuntimeError) as error:
        raise RunError(
            "there is no Ray cluster that this machine could use",
            got=f"--cluster address={cluster.address}: {str(error).strip().splitlines()[0]}",
            allowed="auto on a machine of the cluster, HOST:PORT of its head, or local",
            fix="start one with `ray start --head` (on other machines `ray start --address HOST:PORT`), or try "
            "--cluster address=local",
        ) from error


def _gpus(cluster: RayCluster, device: str, there: float) -> float:
    """GPUs of a stage."""
    if device == "cpu":
        return 0.0
    if cluster.gpus is None:
        return 1.0 if there or device == "cuda" else 0.0
    return cluster.gpus


def _check_room(cluster: RayCluster, gpus: float, there: dict[str, float]) -> None:
    """A task that fits nowhere would wait for ever."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    asked = {"CPU": float(cluster.cpus), "GPU": gpus, "memory": (cluster.memory_gb or 0.0) * 1e9}
    if not any(all(node.get(name, 0.0) >= least for name, least in asked.items()) for node in nodes):
        shown = {name: there.get(name, 0.0) for name in asked}
        raise ConfigError(
            "no machine of the Ray cluster has room for a stage",
            got=", ".join(f"{name} {least:g}" for name, least in asked.items() if least),
            allowed=f"in {len(nodes)} machines together: " + ", ".join(f"{n} {v:g}" for n, v in shown.items()),
            fix="ask for less: --cluster cpus=…, gpus=… or memory_gb=…; or --device cpu",
        )


def _failed(error: Exception) -> RunError:
    """In undertone's words: a task that did not even begin, or one that was lost too often."""
    import ray

    last = next((line for line in reversed(str(error).splitlines()) if line.strip()), "").strip()
    if isinstance(error, ray.exceptions.RayTaskError):
        return RunError(
            "a stage could not begin on a machine of the Ray cluster",
            got=last,
            fix="install undertone and your own packages there, in the same versions, where Python finds them (PYTHONPATH)",
        )
    return RunError(
        "a stage was lost more often than it is tried again: its machines or processes died",
        got=f"{type(error).__name__}: {last}",
        fix="finished stages are kept: run the same command again; if memory is short, with --cluster memory_gb=… or fewer "
        "--jobs",
    )
