"""The cache folder: what undertone builds or reads once for all runs of a user."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from undertone.errors import RunError


def cache_folder() -> Path:
    """``$UNDERTONE_CACHE``, else ``undertone`` in the user's cache folder."""
    chosen = os.environ.get("UNDERTONE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "undertone"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "undertone"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process makes this folder of the cache: two that need the same one wait for each other.

    Raises:
        RunError: the cache cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            yield
    except OSError as error:
        raise RunError(
            f"{folder.name} cannot be written to {folder.parent}",
            got=str(error),
            fix="set UNDERTONE_CACHE to a folder with room that you may write",
        ) from error


@contextmanager
def part_of(folder: Path) -> Iterator[Path]:
    """Inside a lock, an empty folder beside this one, of which nothing is left afterwards; errors as of :func:`locked`."""
    part = folder.with_name(folder.name + ".part")
    with locked(folder):
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        part.mkdir()
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, made if it is not there: whole or not at all, and by one process while others wait.

    Args:
        folder: its place.
        make: fills an empty folder, which is renamed afterwards. Whatever it raises, nothing of it is left.

    Raises:
        RunError: the cache cannot be written.
    """
    if not folder.is_dir():
        with part_of(folder) as part:
            if not folder.is_dir():
                make(part)
                part.rename(folder)
    return folder
