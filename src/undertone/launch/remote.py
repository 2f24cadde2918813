"""A task on another machine: what travels with it, what is checked there, and how its error comes back.

The machine must have the same undertone, see the same run folder and, where a stage reads a model or a file, the same
bytes: the stage's identity is computed there again. Errors come back as values, in their own words; one that is not
undertone's leaves its traceback in the log of the machine and arrives as a RunError that says where that is.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import undertone
from undertone.errors import RunError, UndertoneError, show_warnings_plainly
from undertone.launch.workers import Task
from undertone.provenance.runs import OWNER

SEEN_AFTER: Final = 90.0  # seconds after which a network file system has told of any new file
_PASSED_ON: Final = ("UNDERTONE_", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE")  # no tokens, no keys


@dataclass(frozen=True)
class Origin:
    """What the process that sends tasks expects of the machine that gets them."""

    folder: Path
    """The run folder, which both must see."""
    owner: bytes
    """The content of its file that names the process that has it open."""
    version: str
    environment: Mapping[str, str]
    paths: Sequence[str]
    """Where Python finds modules."""
    threads: int = 1
    gpus: float = 0

    @classmethod
    def of(cls, folder: Path, threads: int, gpus: float) -> Origin:
        """This process, which has the run folder open."""
        passed = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        return cls(folder, (folder / OWNER).read_bytes(), undertone.__version__, passed, sys.path, threads, gpus)

    def check(self) -> None:
        """Raise unless this machine can compute for it.

        Raises:
            RunError: another undertone, another run folder, or no GPU.
        """
        host = socket.gethostname()
        if undertone.__version__ != self.version:
            raise RunError(
                f"the machine {host} has another version of undertone",
                got=f"{undertone.__version__}, in {Path(undertone.__file__).parent}",
                allowed=self.version,
                fix="install the same version, with the same constraints.txt, on all machines",
            )
        appear([self.folder / OWNER])
        if (self.folder / OWNER).read_bytes() != self.owner:
            raise RunError(
                f"the machine {host} sees another folder at {self.folder}",
                fix="name a run folder on a file system that all machines share (--out)",
            )
        if self.gpus and not _has_gpu():
            raise RunError(
                f"the machine {host} was given {self.gpus:g} GPUs, and torch sees none",
                fix="install a build of torch for its GPUs there, or ask for none: --cluster gpus=0",
            )


@dataclass(frozen=True)
class RemoteResult:
    """What became of a task: its result, or its error."""

    result: Any = None
    error: UndertoneError | None = None

    def unwrap(self) -> Any:
        """The result, or the error raised."""
        if self.error is not None:
            raise self.error
        return self.result


@dataclass(frozen=True)
class RemoteTask:
    """A task as it is sent; what it needs is imported on the other machine once that knows where to look."""

    content: bytes = field(repr=False)
    origin: Origin = field(repr=False)

    @classmethod
    def of(cls, task: Task, origin: Origin) -> RemoteTask:
        """A function and its arguments, packed."""
        return cls(pickle.dumps(task), origin)


def compute_here(task: RemoteTask) -> RemoteResult:
    """On the other machine: compute it; whatever goes wrong is in the outcome."""
    try:
        _settle(task.origin)
        task.origin.check()
        function, arguments = pickle.loads(task.content)  # noqa: S301  (sent by this user's own process)
        return RemoteResult(function(*arguments))
    except UndertoneError as error:
        return RemoteResult(error=error)
    except Exception as error:  # noqa: BLE001  (it must reach the user from wherever it was raised)
        traceback.print_exc()
        return RemoteResult(error=_as_run_error(error))


def appear(paths: Sequence[Path]) -> None:
    """Wait until files that another machine has just written are seen here: network file systems tell of them late.

    Raises:
        RunError: one is still not seen after :data:`SEEN_AFTER` seconds.
    """
    until = time.monotonic() + SEEN_AFTER
    for path in paths:
        while not path.exists():
            if time.monotonic() > until:
                raise RunError(
                    f"a file of the run is not seen on the machine {socket.gethostname()}",
                    got=f"no {path}, {SEEN_AFTER:.0f} seconds after it was written",
                    fix="name a run folder on a file system that all machines share (--out)",
                )
            with suppress(OSError):
                os.listdir(path.parent.parent)  # noqa: PTH208  (opening a folder asks the file server anew)
            time.sleep(0.2)


def _settle(origin: Origin) -> None:
    """Make this process a worker: threads, no progress bars, the sender's caches and, at the end, its module folders."""
    sys.path += [path for path in origin.paths if path not in sys.path and Path(path).exists()]
    os.environ.update(origin.environment)
    os.environ["TQDM_DISABLE"] = "1"
    show_warnings_plainly()
    import torch

    torch.set_num_threads(origin.threads)


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _as_run_error(error: Exception) -> RunError:
    last = traceback.extract_tb(sys.exc_info()[2])[-1]
    if isinstance(error, ImportError):
        return RunError(
            f"the machine {socket.gethostname()} lacks a module",
            got=str(error),
            fix="install the same packages, your own included, in the same versions on all machines",
        )
    return RunError(
        f"a stage failed on the machine {socket.gethostname()}",
        got=f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})",
        fix="finished stages are kept; the whole traceback is in that machine's log of this task",
    )
