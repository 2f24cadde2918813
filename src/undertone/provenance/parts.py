"""The folder that a stage is computed in, ``NAME~HOST-PROCESS.part``: one a process, so that no two ever write into one.

The lock of a stage keeps others away while its holder lives. Across machines that is not enough: a machine that lost its
connection loses its locks too, computes on, and may come back; and some shared file systems lock on each machine apart. So
every process has a folder of its own, and a stage is finished by renaming it, which the file system lets one of them do.

What a process left that is gone (checkpoints) is taken over by renaming its folder. A process of this machine is gone when
its lock is free. One of another machine is gone when it has not touched its folder for :data:`LOST_AFTER` seconds, by the
clock of the file system; if it does come back, its folder is not there any more and it fails.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Final

from undertone.errors import RunError
from undertone.provenance.stages import INTENT, RECORD

LOST_AFTER: Final = 90.0  # seconds without a sign of life; a network file system may hold one back for a minute
BEAT: Final = 15.0  # seconds between signs of life
_LOOK: Final = 0.5


@cache
def this_machine() -> str:
    """Host name and a piece of the running kernel's id: containers and virtual machines often share a name."""
    try:
        booted = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
    except OSError:
        booted = ""
    return re.sub(r"[^A-Za-z0-9.]", "", f"{socket.gethostname()}.{booted}").strip(".") or "host"


def own_part(final: Path) -> Path:
    """Where this process computes the stage."""
    return final.with_name(f"{final.name}~{this_machine()}-{os.getpid()}.part")


def claim(final: Path, clock: Path, patience: float) -> Path | None:
    """This process's folder for a stage whose lock it holds, with what a process that is gone left there.

    Args:
        final: the folder of the finished stage.
        clock: a file beside it that may be touched, to read the file system's clock.
        patience: seconds to wait for a process of another machine that still computes the stage.

    Returns:
        The folder, which need not be there yet; None: the other process has finished the stage.

    Raises:
        RunError: the other process is still at work after ``patience`` seconds.
    """
    own, until = own_part(final), time.monotonic() + patience
    while living := [part for part in _others(final) if not _is_left(part, clock)]:
        if time.monotonic() > until:
            raise RunError(
                f"the stage {final.name!r} is being computed by a process of another machine",
                got=f"{living[0]}, written to in the last {LOST_AFTER:.0f} seconds",
                fix="wait for that process or stop it, then run the command again",
            )
        time.sleep(_LOOK)
        if final.exists():
            return None
    for left in _others(final):
        if own.exists():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):  # another process was faster
                left.rename(own)
    return own


@contextmanager
def signs_of_life(file: Path) -> Iterator[None]:
    """Touch a file of the folder every :data:`BEAT` seconds while the block runs."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            with suppress(OSError):
                os.utime(file)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def finish(part: Path, final: Path) -> bool:
    """Rename what was computed to the finished stage; False: another process was first, and its stage stands.

    Raises:
        OSError: the folder cannot be renamed.
    """
    try:
        part.rename(final)
    except OSError:
        if not (final.exists() and part.exists()):
            raise
        shutil.rmtree(part)
        return False
    return True


def _others(final: Path) -> list[Path]:
    """Folders of other processes, the latest first; also one with the name that folders had before they had owners."""
    found = [*final.parent.glob(f"{final.name}~*.part"), final.with_name(f"{final.name}.part")]
    times = {part: _touched(part) for part in found if part != own_part(final)}
    return sorted((part for part, at in times.items() if at is not None), key=lambda part: -(times[part] or 0.0))


def _is_left(part: Path, clock: Path) -> bool:
    """Whether the process that computed there is gone."""
    owner = part.name.removesuffix(".part").partition("~")[2].rpartition("-")[0]
    if owner in ("", this_machine()):
        return True  # it would hold the lock
    with suppress(FileNotFoundError):
        os.utime(clock)
        return clock.stat().st_mtime - (_touched(part) or 0.0) > LOST_AFTER
    return True


def _touched(part: Path) -> float | None:
    """When a process last gave a sign of life in its folder; None: the folder is not there."""
    times = []
    for path in (part, part / INTENT, part / RECORD):
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times) if times and part.exists() else None
