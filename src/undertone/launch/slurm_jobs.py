"""Stages as jobs of Slurm, through submitit: it writes the scripts, calls sbatch, and fetches results from shared disk.

A job that was lost (its node died, it was killed, it ran out of memory or time) is submitted again and goes on from the
checkpoints in the run folder. What submitit keeps lies in ``.jobs/`` of the run folder; of jobs that ended well nothing is left.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

from pydantic import Field

from undertone.errors import RunError, check_packages
from undertone.launch.remote import Origin, RemoteResult, RemoteTask, compute_here
from undertone.launch.workers import Task, Workers
from undertone.provenance.configs import Config

LOOK: Final = 1.0  # seconds between looks at jobs; submitit asks Slurm itself less often


class SlurmCluster(Config):
    """Stages are jobs of Slurm, submitted by submitit (``pip install 'undertone[slurm]'``)."""

    partition: str | None = Field(None, description="Slurm's --partition; None: the default one")
    gpus: int = Field(0, ge=0, description="GPUs of a stage")
    cpus: int = Field(1, ge=1, description="CPU cores of a stage, and its threads")
    memory_gb: float | None = Field(None, gt=0, description="memory of a stage in GB; None: Slurm's default")
    minutes: int = Field(240, ge=1, description="time limit of a stage; one that reaches it goes on in a new job")
    sbatch: dict[str, Any] = Field(
        default_factory=dict, description="further options of sbatch by their long names: account, qos, constraint …"
    )
    setup: tuple[str, ...] = Field((), description="lines of shell before the stage, such as module load cuda")
    retries: int = Field(
        3, ge=0, description="how often a stage is computed again whose job was lost or ran out of time"
    )
    executor: Literal["slurm", "local"] = Field(
        "slurm", description="local: submitit runs the jobs as processes of this machine, to try it without Slurm"
    )


def check_installed() -> None:
    """Refuse to go on without submitit.

    Raises:
        ConfigError: it is not installed.
    """
    check_packages("--launch slurm needs submitit", "slurm", "submitit")


class SlurmWorkers(Workers):
    """Computes each task in a job of its own."""

    elsewhere = True

    def __init__(self, cluster: SlurmCluster, origin: Origin, jobs: int | None) -> None:
        self._cluster, self._origin, self._jobs = cluster, origin, jobs
        self._executor = _executor(cluster, origin)

    def each(self, tasks: Sequence[Task], done: Callable[[], object] | None = None) -> list[Any]:
        """The results of all tasks, in order. The first failure cancels the others and is raised."""
        sent = [RemoteTask.of(task, self._origin) for task in tasks]
        waiting, tries = list(range(len(sent))), [0] * len(sent)
        flying: dict[int, Any] = {}
        results: list[Any] = [None] * len(sent)
        try:
            while waiting or flying:
                room = len(waiting) if self._jobs is None else self._jobs - len(flying)
                batch, waiting = waiting[:room], waiting[room:]
                flying.update(zip(batch, self._submit([sent[at] for at in batch]), strict=True))
                ended = [at for at, job in flying.items() if job.done()]
                for at in ended:
                    job = flying.pop(at)
                    outcome = _outcome(job)
                    if outcome is None and tries[at] < self._cluster.retries:
                        tries[at] += 1
                        waiting.append(at)
                        continue
                    results[at] = (outcome or _lost(job)).unwrap()
                    if done:
                        done()
                if not ended:
                    time.sleep(LOOK)
        finally:
            for job in flying.values():
                job.cancel()
        return results

    def _submit(self, tasks: Sequence[RemoteTask]) -> list[Any]:
        """One job a task; several are one array."""
        if not tasks:
            return []
        try:
            with self._executor.batch():
                jobs = [self._executor.submit(ResumableTask(task)) for task in tasks]
        except (OSError, RuntimeError) as error:  # FailedJobError is one
            raise RunError(
                "Slurm did not take the jobs",
                got=str(error).strip(),
                fix="see what sbatch says, and the options given as --cluster",
            ) from error
        return jobs


class ResumableTask:
    """A task that submitit may interrupt at its time limit, or when it is pre-empted, and submit again as it is."""

    def __init__(self, task: RemoteTask) -> None:
        self.task = task

    def __call__(self) -> RemoteResult:
        """Compute it."""
        return compute_here(self.task)

    def checkpoint(self) -> Any:
        """What is submitted instead: the same, which goes on from what is in the run folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@contextmanager
def slurm_workers(cluster: SlurmCluster, origin: Origin, jobs: int | None) -> Iterator[SlurmWorkers]:
    """Ready to submit until the block ends.

    Raises:
        ConfigError: submitit is not installed.
        RunError: there is no Slurm here.
    """
    check_installed()
    yield SlurmWorkers(cluster, origin, jobs)
    shutil.rmtree(origin.folder / ".jobs", ignore_errors=True)  # after an error it stays: the logs tell


def _executor(cluster: SlurmCluster, origin: Origin) -> Any:
    import submitit

    lacking = [name for name in ("sbatch", "srun") if shutil.which(name) is None]
    if cluster.executor == "slurm" and lacking:
        raise RunError(
            "there is no Slurm on this machine",
            got=f"no command {' or '.join(lacking)}",
            fix="run it on a login node of the cluster; --cluster executor=local tries it without Slurm",
        )
    folder = origin.folder / ".jobs"
    folder.mkdir(mode=0o700, exist_ok=True)  # what submitit unpickles from there is this user's own
    executor = submitit.AutoExecutor(folder, cluster=cluster.executor, slurm_max_num_timeout=cluster.retries)
    options: dict[str, Any] = {
        "name": "undertone", "timeout_min": cluster.minutes, "cpus_per_task": cluster.cpus, "gpus_per_node": cluster.gpus,
    }  # fmt: skip
    if cluster.memory_gb is not None:
        options["mem_gb"] = cluster.memory_gb
    if cluster.partition is not None:
        options["slurm_partition"] = cluster.partition
    if cluster.sbatch:
        options["slurm_additional_parameters"] = {
            name.replace("-", "_"): value for name, value in cluster.sbatch.items()
        }
    if cluster.setup:
        options["slurm_setup"] = list(cluster.setup)
    executor.update_parameters(**options)
    return executor


def _outcome(job: Any) -> RemoteResult | None:
    """What came of a job that has ended; None: it was lost on the way."""
    import submitit

    try:
        outcome: RemoteResult = job.result()
    except submitit.core.utils.FailedJobError as error:  # a kind of the next
        last = str(error).split(f"\n{'-' * 22}\n")[1].strip().splitlines()[-1]  # of the traceback in it
        return RemoteResult(
            error=RunError("a job failed before its stage began", got=last, fix=f"see {job.paths.stderr}")
        )
    except submitit.core.utils.UncompletedJobError:
        return None
    return outcome


def _lost(job: Any) -> RemoteResult:
    return RemoteResult(
        error=RunError(
            "a job was lost more often than it is tried again: killed, out of memory or out of time",
            got=f"job {job.job_id}, state {job.state}; its log is {job.paths.stderr}",
            fix="finished stages are kept: run the same command again, with more --cluster minutes=… or memory_gb=…",
        )
    )
