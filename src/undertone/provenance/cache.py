"""The cache folder: what undertone builds or reads once for all runs of a user."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
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


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, made if it is not there: whole or not at all, and by one process while others wait.

    Args:
        folder: its place.
        make: fills an empty folder, which is renamed afterwards. Whatever it raises, nothing of it is left.

    Raises:
        RunError: the cache cannot be written.
    """
    if folder.is_dir():
        return folder
    part = folder.with_name(folder.name + ".part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not folder.is_dir():
                shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
                part.mkdir()
                try:
                    make(part)
                    part.rename(folder)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise RunError(
            f"{folder.name} cannot be written to {folder.parent}",
            got=str(error),
            fix="set UNDERTONE_CACHE to a folder with room that you may write",
        ) from error
    return folder
