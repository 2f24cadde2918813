"""Runs independent cells side by side: one-thread processes on CPU cores, or one after another in this process.

At lab size, one-thread processes beat threads; two torch threads beside a busy core can be ten times slower.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from typing import Any, ClassVar

from tqdm import tqdm

from undertone.errors import ConfigError, RunError, show_warnings_plainly

Task = tuple[Callable[..., Any], tuple[Any, ...]]
PRELOAD = ["undertone.transfer.pipeline", "peft", "accelerate"]


class Workers(ABC):
    """Where tasks are computed."""

    elsewhere: ClassVar[bool] = False
    """Whether on other machines, which may lack what this one has."""

    @abstractmethod
    def each(self, tasks: Sequence[Task], done: Callable[[], object] | None = None) -> list[Any]:
        """The results of all tasks, in order. The first failure stops what has not begun and is raised."""


class LocalWorkers(Workers):
    """Processes of this machine; without a pool, this process."""

    def __init__(self, pool: ProcessPoolExecutor | None) -> None:
        self._pool = pool

    def each(self, tasks: Sequence[Task], done: Callable[[], object] | None = None) -> list[Any]:
        """See :meth:`Workers.each`."""
        if self._pool is None:
            results = []
            for function, arguments in tasks:
                results.append(function(*arguments))
                if done:
                    done()
            return results
        with _main_left_alone():
            futures = [self._pool.submit(function, *arguments) for function, arguments in tasks]
        try:
            self._watch(futures, done)
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise RunError(
                "a worker process died (killed, or out of memory)",
                fix="finished stages are kept: run the same command again, with jobs=1 if memory is short",
            ) from error

    @staticmethod
    def _watch(futures: Sequence[Future[Any]], done: Callable[[], object] | None) -> None:
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                if done:
                    done()


@contextmanager
def workers(jobs: int) -> Iterator[Workers]:
    """A pool of ``jobs`` one-thread processes that die with this one; 1 means no pool."""
    if jobs == 1:
        yield LocalWorkers(None)
        return
    prepare()
    context = _context()
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(dict(os.environ),))
    try:
        yield LocalWorkers(pool)
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


@contextmanager
def _main_left_alone() -> Iterator[None]:
    """Workers that start inside do not import the user's script again, as multiprocessing would have them do.

    They need nothing from it, and a script without an ``if __name__ == "__main__"`` would start the run again there.
    """
    main = sys.modules["__main__"]
    hidden = {name: vars(main)[name] for name in ("__file__", "__spec__") if name in vars(main)}
    for name in hidden:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)


def prepare() -> None:
    """Start the parent of all workers, which imports torch while this process does: seconds off a short run."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing import forkserver, resource_tracker

        _context()
        resource_tracker.ensure_running()  # it lifts the block that follows when it starts
        # What starts under a block keeps it: a terminal's Ctrl-C is for this process, which then ends the others.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with _main_left_alone():
                forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def _begin(environment: dict[str, str]) -> None:
    """In each worker: the parent's environment, one torch thread, no progress bars, no life without the parent.

    A fork server keeps the environment of its own beginning, which may be older than what the parent has set since.
    """
    os.environ.clear()
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"
    show_warnings_plainly()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # also where there is no fork server to inherit that from
    tqdm.set_lock(threading.RLock())  # its own is one between processes, which a terminated worker leaves behind
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            wait_for([parent.sentinel])
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def check_jobs(jobs: int | None) -> None:
    """Refuse fewer than one process."""
    if jobs is not None and jobs < 1:
        raise ConfigError("there must be at least one job", got=jobs, allowed="1 or more processes side by side")


def default_jobs(device: str, cells: int) -> int:
    """One job a core on a CPU, one in all on a GPU; never more than there are cells."""
    import torch

    if device != "cpu" and (device != "auto" or torch.cuda.is_available()):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, cells))
