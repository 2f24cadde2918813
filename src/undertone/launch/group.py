"""A run in several processes that `accelerate launch` or torchrun started: together they train each student.

The first process conducts the run. The others follow it: at each stage that trains they get the stage and its arguments,
compute it beside the first (``training.team`` shares the rows out), and write into a folder that is thrown away. Every
other stage is computed by the first alone, while the others wait.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, NoReturn

from undertone.errors import ConfigError, RunError, UndertoneError

if TYPE_CHECKING:  # the command line asks here which process prints, before it needs anything else
    from undertone.provenance.stage_functions import StageFunction, Summary

_PATIENCE: Final = timedelta(days=30)  # others wait through everything that the first does alone
_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


def size() -> int:
    """How many processes were started together; 1: this one alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this one, from 0."""
    return int(os.environ.get("RANK", "0")) if size() > 1 else 0


def notes() -> list[str]:
    """What to tell of a launch that started a single process: a mistake in accelerate's config does so without a word."""
    if size() == 1 and "ACCELERATE_MIXED_PRECISION" in os.environ:
        return [
            "accelerate launch started one process; --multi_gpu --num_processes N starts more, with --cpu it does not"
        ]
    return []


def is_alone() -> bool:
    """Whether this process trains without the others, whoever was started beside it."""
    return size() == 1 or _ALONE.get()


def check(jobs: int | None, on_cluster: bool) -> None:
    """Refuse several processes of several processes.

    Raises:
        ConfigError: more than one job, or a cluster.
    """
    if size() > 1 and (on_cluster or jobs not in (None, 1)):
        raise ConfigError(
            f"{size()} processes were started together to train each student: stages are not computed side by side",
            got="--launch" if on_cluster else f"--jobs {jobs}",
            fix="leave it out, or start undertone without accelerate launch or torchrun",
        )


@contextmanager
def leading() -> Iterator[list[Any]]:
    """In the first process: conduct a run that the others follow. What is put into the list reaches them at the end."""
    if size() == 1:
        yield []
        return
    _group()
    end: list[Any] = []
    try:
        yield end
    except BaseException as error:
        with suppress(RuntimeError):  # a process that is gone gets nothing
            _send(("failed", error.exit_code if isinstance(error, UndertoneError) else 1))
        raise
    _send(("done", end))


def follow() -> Any:
    """In the other processes: compute what the first asks for, until its run ends; what it puts out.

    Raises:
        SystemExit: the run failed; the first process says why.
    """
    while True:
        what, content = _receive()
        if what == "done":
            return content[0]
        if what == "failed":
            raise SystemExit(content)
        function, device, arguments = pickle.loads(content)  # noqa: S301  (from the first process of this run)
        with TemporaryDirectory() as scratch, suppress(UndertoneError):  # the first meets the same, and says so
            function.compute(Path(scratch), own_device(device), arguments)


def compute_stage(function: StageFunction, folder: Path, device: str, arguments: Any) -> Summary:
    """A stage's summary; computed with all processes if it trains."""
    if size() == 1:
        return function.compute(folder, device, arguments)
    if function.together:
        _send(("compute", pickle.dumps((function, device, arguments))))
        return function.compute(folder, own_device(device), arguments)
    token = _ALONE.set(True)
    try:
        return function.compute(folder, own_device(device), arguments)
    finally:
        _ALONE.reset(token)


def own_device(device: str) -> str:
    """The GPU of this process, of those of its machine."""
    import torch

    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    if device == "auto" and _on_cpus():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


@cache
def join() -> None:
    """Join the processes that were started together, once.

    Raises:
        RunError: accelerate joins fewer of them.
    """
    from accelerate import PartialState

    state = PartialState(cpu=_on_cpus())  # not left to it: on a machine without GPUs torchrun's would each be alone
    if state.num_processes != size():
        refuse(state.num_processes)


def _on_cpus() -> bool:
    import torch
    from accelerate.utils import parse_flag_from_env

    return not torch.cuda.is_available() or bool(parse_flag_from_env("ACCELERATE_USE_CPU"))


@cache
def _group() -> Any:
    """For messages, apart from what training sends: it must wait longer, and needs no GPU."""
    import torch

    join()
    return torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)


def refuse(found: int) -> NoReturn:
    """Several processes that do not know of each other would each train a student of their own."""
    raise RunError(
        f"{size()} processes were started together, and accelerate has joined {found}",
        got=f"WORLD_SIZE={size()}, num_processes={found}",
        fix="start with torchrun, or with accelerate launch --multi_gpu --num_processes N",
    )


def _send(message: tuple[str, Any]) -> None:
    import torch

    torch.distributed.broadcast_object_list([message], src=0, group=_group())


def _receive() -> Any:
    import torch

    received: list[Any] = [None]
    torch.distributed.broadcast_object_list(received, src=0, group=_group())
    return received[0]
