"""A stage on disk: its record, its hashes, and when it may be trusted.

A finished stage is a folder with its files and ``stage.json``; one being computed is a folder
``<name>~<process>.part`` with ``intent.json``, the identity of what is being computed there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from undertone.errors import RunError
from undertone.provenance.plain_data import canonical_json
from undertone.rows import atomic_file

RECORD = "stage.json"  # in a finished stage: identity, digest, hashes, what compute returned
INTENT = "intent.json"  # in a .part folder: the identity of what is being computed there


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    `digest` is that of its identity, what was asked for; `output_digest` that of its files and
    its summary, what came out, and what later stages chain on. `seconds` is the wall-clock time of
    computing it, `cpu_seconds` the CPU time over all threads of the process, which waiting for a
    busy machine does not add to (None: in records from before it was recorded); both cover only the
    last session if it was interrupted. `summary` is what `compute` returned.
    """

    name: str
    path: Path
    digest: str
    output_digest: str
    seconds: float
    summary: dict[str, Any] = field(default_factory=dict)
    reused: bool = False
    cpu_seconds: float | None = None

    def read_json(self, name: str) -> Any:
        """The value of one of the stage's JSON files."""
        return _read_json(self.path / name)

    def identity_content(self) -> str:
        """What later stages depend on: what came out."""
        return self.output_digest

    @property
    def readable_folders(self) -> tuple[Path, ...]:
        """What a stage that is given this one may read."""
        return (self.path.absolute(),)


def write_json(path: str | Path, obj: object) -> None:
    """Write a value as JSON, complete or not at all; a RunError names the key of a NaN."""
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False)
        encoded = text.encode("utf-8") + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise RunError(
            f"{path} cannot be written as JSON",
            got=_culprit(obj, "") or str(error),
            allowed="valid text, finite numbers, booleans, None, lists, and dicts with text keys",
        ) from error
    with atomic_file(Path(path)) as file:
        file.write(encoded)


# --- a stage on disk ------------------------------------------------------------------------------


def prepare(part: Path, identity: dict[str, Any]) -> None:
    """An empty ``.part`` folder, or the one that an equal computation left, without half files."""
    if part.exists() and peek(part / INTENT) == identity:
        (part / RECORD).unlink(missing_ok=True)
        for half in part.rglob("*.part"):
            half.unlink() if half.is_file() else shutil.rmtree(half)
        return
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    write_json(part / INTENT, identity)


class Clock:
    """Measures one computation: wall-clock time, and CPU time of this process over all its threads."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Seconds since it was made."""
        return {
            "seconds": round(time.perf_counter() - self._wall, 3),
            "cpu_seconds": round(time.process_time() - self._cpu, 3),
        }


def seal(
    part: Path,
    identity: dict[str, Any],
    times: Mapping[str, float],
    summary: Mapping[str, Any] | None,
    inputs: Sequence[str] = (),
) -> None:
    """Write the record that makes the folder a finished stage once it is renamed; `times` as of a `Clock`."""
    files = _hashes(part, sync=True)
    record = {
        "identity": identity,
        "inputs": sorted(inputs),
        "digest": _digest(identity),
        "files": files,
        **times,
        "summary": dict(summary or {}),
        "finished": now(),
    }
    record = _as_read(record, part)
    record["output_digest"] = _digest([record["files"], record["summary"]])
    write_json(part / RECORD, record | {"seal": _digest(record)})
    (part / INTENT).unlink(missing_ok=True)
    for folder in (part, *(path for path in part.rglob("*") if path.is_dir())):
        sync(folder)


def _as_read(record: dict[str, Any], part: Path) -> dict[str, Any]:
    """The record as it will be read back (tuples as lists), or the error of `write_json`."""
    try:
        read: dict[str, Any] = json.loads(json.dumps(record, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RunError(
            f"the summary of {part.name.partition('~')[0]} cannot be written as JSON",
            got=_culprit(record["summary"], "") or str(error),
            allowed="valid text, finite numbers, booleans, None, lists, and dicts with text keys",
        ) from error
    return read


def is_complete(part: Path, identity: dict[str, Any]) -> bool:
    """Whether only the rename is missing: the process died between the record and it."""
    if not (part / RECORD).exists():
        return False
    try:
        record = record_of(part)
        _verify(part, record)
    except RunError:
        return False
    if record["identity"] != identity:
        return False
    (part / INTENT).unlink(missing_ok=True)
    return True


def differences(final: Path, identity: dict[str, Any]) -> list[str]:
    """What a finished stage was computed from, beside what it would be now, a line a difference; empty: the same."""
    return changes(record_of(final)["identity"], identity)


def changes(stored: dict[str, Any], identity: dict[str, Any]) -> list[str]:
    """In what one identity differs from another, a line a difference; empty: in nothing."""
    return [] if stored == identity else _changes(_flat(stored), _flat(identity))


def reuse(final: Path, name: str) -> Stage:
    """The finished stage, if every file is as it was written."""
    record = record_of(final)
    _verify(final, record)
    return stage_of(final, record, name, reused=True)


def stage_of(path: Path, record: dict[str, Any], name: str, *, reused: bool) -> Stage:
    """The stage that a record speaks of."""
    return Stage(
        name=name,
        path=path,
        digest=record["digest"],
        output_digest=record["output_digest"],
        seconds=record["seconds"],
        summary=record["summary"],
        reused=reused,
        cpu_seconds=record.get("cpu_seconds"),
    )


def record_of(folder: Path) -> dict[str, Any]:
    """The record of a finished stage, checked against its own seal."""
    path = folder / RECORD
    record = peek(path)
    if not isinstance(record, dict):
        raise _corrupt(folder, f"{RECORD} is missing or is not JSON")
    body = {key: value for key, value in record.items() if key != "seal"}
    if record.get("seal") != _digest(body):
        raise _corrupt(folder, f"{RECORD} was changed after it was written")
    return body


def _verify(folder: Path, record: dict[str, Any]) -> None:
    stored, found = record["files"], _hashes(folder)
    for name in sorted(stored.keys() | found.keys()):
        if name not in found:
            raise _corrupt(folder, f"{name} is missing")
        if name not in stored:
            raise _corrupt(folder, f"{name} does not belong to it")
        if stored[name] != found[name]:
            raise _corrupt(folder, f"{name} has changed (sha256 {found[name]}, was {stored[name]})")


def _corrupt(folder: Path, finding: str) -> RunError:
    return RunError(
        f"the stage in {folder} is corrupt",
        got=finding,
        allowed="exactly the files that were written when it was finished",
        fix=f"delete {folder} and run the same command again: only this stage is computed anew",
    )


def _hashes(folder: Path, *, sync: bool = False) -> dict[str, str]:
    """Relative path -> SHA-256 of every file but our own; with `sync` each is flushed to disk."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (RECORD, INTENT):
            with path.open("rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
                if sync:
                    os.fsync(file.fileno())
    return hashes


def sync(folder: Path) -> None:
    """Flush the names in a folder to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(data: object) -> str:
    return hashlib.sha256(canonical_json(data).encode("utf-8")).hexdigest()


def peek(path: Path) -> Any:
    """The JSON value of a file, or None if there is none to be had."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read as JSON", got=str(error)) from error


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``; lists by index."""
    items: dict[str, Any] = {}
    if isinstance(value, dict) and value:
        items = value
    elif isinstance(value, list) and value:
        items = {str(i): item for i, item in enumerate(value)}
    else:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, inner in items.items():
        flat |= _flat(inner, f"{name}.{key}" if name else key)
    return flat


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    keys = [*old, *(key for key in new if key not in old)]

    def shown(side: dict[str, Any], key: str) -> str:
        return json.dumps(side[key], ensure_ascii=False) if key in side else "(none)"

    return [f"{key}: {shown(old, key)} → {shown(new, key)}" for key in keys if shown(old, key) != shown(new, key)]


def _culprit(value: object, name: str) -> str | None:
    """Where in `value` JSON fails: ``a.0.b = nan``."""
    if isinstance(value, Mapping):
        wrong = next((key for key in value if not isinstance(key, str | int | float)), None)
        if wrong is not None:
            return f"the key {wrong!r} in {name or 'the top level'}"
        items: list[tuple[object, object]] = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
        except (TypeError, ValueError):
            return f"{name} = {value!r}"
        return None
    found = (_culprit(inner, f"{name}.{key}" if name else str(key)) for key, inner in items)
    return next((culprit for culprit in found if culprit), None)


def now() -> str:
    """This moment in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
