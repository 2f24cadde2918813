"""SHA-256 digests of files and folders, over every byte.

The digest of a large file is stored in ``digests.json`` in the cache folder, under the file's path, size, modification
time and inode, so that 15 GB of weights are read once and not at every command. A file below :data:`REMEMBERED` bytes
is read every time.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Final

from filelock import FileLock

from undertone.provenance.cache import cache_folder
from undertone.rows import atomic_file

REMEMBERED: Final = 16 * 2**20
_IGNORED: Final = {".cache", ".git", "__pycache__"}


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex.

    Raises:
        OSError: it cannot be read.
    """
    state = path.stat()
    if state.st_size < REMEMBERED:
        return _read(path)
    key = f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}\0{state.st_ino}"
    known = _memory()
    if key not in known:
        known[key] = _read(path)
        _remember(key, known[key])
    return known[key]


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all files of a folder, in hex."""
    whole = hashlib.sha256()
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        name = path.relative_to(folder)
        if not _IGNORED & set(name.parts):
            whole.update(f"{name.as_posix()}\0{file_digest(path)}\0".encode())
    return whole.hexdigest()


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def memory_file() -> Path:
    """Where the digests of large files are stored."""
    return cache_folder() / "digests.json"


@cache
def _memory() -> dict[str, str]:
    return _stored(memory_file())


def _stored(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _remember(key: str, digest: str) -> None:
    path = memory_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=5), atomic_file(path) as file:
            file.write(json.dumps({**_stored(path), key: digest}).encode())
    except (OSError, TimeoutError):
        return  # the file is read again next time: slower, not wrong
