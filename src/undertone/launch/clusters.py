"""Where stages are computed: processes of this machine, a Ray cluster, jobs of Slurm. Nothing of it enters an identity.

``--launch ray --cluster gpus=1`` on the command line, ``launch=RayCluster(gpus=1)`` in Python. All of them compute the
same stages of one run folder, which every machine must see under the same path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from undertone.errors import ConfigError, nearest
from undertone.launch import group, ray_tasks, slurm_jobs
from undertone.launch.ray_tasks import RayCluster
from undertone.launch.remote import Origin
from undertone.launch.slurm_jobs import SlurmCluster
from undertone.launch.workers import Workers, check_jobs, default_jobs, workers
from undertone.provenance import configs

Kind = Literal["local", "ray", "slurm"]
Cluster = RayCluster | SlurmCluster
Launch = Cluster | Kind
_CLUSTERS: dict[str, type[RayCluster] | type[SlurmCluster]] = {"ray": RayCluster, "slurm": SlurmCluster}


def cluster_of(launch: Launch, options: Sequence[str] = ()) -> Cluster | None:
    """The cluster that is meant; None: this machine.

    Args:
        launch: local, ray or slurm; or the cluster itself.
        options: ``field=value`` of the cluster.

    Raises:
        ConfigError: no such kind, an unknown option or a wrong value.
    """
    if isinstance(launch, RayCluster | SlurmCluster):
        return launch
    if launch not in get_args(Kind):
        raise ConfigError(
            f"launch: there is no such place.{nearest(str(launch), get_args(Kind))}", got=launch, allowed=get_args(Kind)
        )
    if launch in _CLUSTERS:
        return configs.load(_CLUSTERS[launch], {}, options)
    if options:
        raise ConfigError(
            "--cluster describes a cluster, and stages are computed on this machine",
            got=" ".join(options),
            fix="add --launch ray or --launch slurm, or leave --cluster out",
        )
    return None


def check_launch(launch: Launch, jobs: int | None, device: str) -> None:
    """Refuse what could not be launched, before anything else is done.

    Raises:
        ConfigError: fewer than one job, a package that is not installed, a GPU named by number on a cluster.
    """
    check_jobs(jobs)
    cluster = cluster_of(launch)
    group.check(jobs, cluster is not None)
    if cluster is None:
        return
    if ":" in device:
        raise ConfigError(
            "on a cluster every stage is given its own GPU, which is number 0 to it",
            got=f"--device {device}",
            allowed="auto, cpu, cuda",
        )
    room = ray_tasks if isinstance(cluster, RayCluster) else slurm_jobs
    room.check_installed()


@contextmanager
def open_workers(launch: Launch, folder: Path, *, jobs: int | None, device: str, parts: int) -> Iterator[Workers]:
    """Where the stages of an open run are computed, until the block ends.

    Args:
        launch: local, ray or slurm; or the cluster itself.
        folder: the run folder, open in this process.
        jobs: stages side by side; None: as many as there is room for.
        device: auto, cpu, cuda …
        parts: how many parts are independent: no more processes of this machine are started.

    Raises:
        ConfigError: see :func:`check_launch`.
        RunError: there is no such cluster.
    """
    cluster = cluster_of(launch)
    if cluster is None:
        with workers(1 if group.size() > 1 else jobs or default_jobs(device, parts)) as pool:
            yield pool
    elif isinstance(cluster, RayCluster):
        with ray_tasks.ray_workers(cluster, folder, jobs, device) as tasks:
            yield tasks
    else:
        if jobs is None and cluster.executor == "local":
            jobs = default_jobs(device, parts)
        origin = Origin.of(folder, cluster.cpus, cluster.gpus)
        with slurm_jobs.slurm_workers(cluster, origin, jobs) as submitted:
            yield submitted
