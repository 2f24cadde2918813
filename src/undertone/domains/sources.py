"""Sources: the user's own prompts, from a JSON Lines file or a data set of the hub.

``source`` is a file (``.jsonl``, ``.jsonl.gz``) or ``hf:org/name[:subset][@split]``, which needs the package
``datasets``. ``rename`` maps the source's field names to those that a domain looks for. Files of prompts are read here
and not by ``rows``, because rows have completions and prompts need none.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from pydantic import Field

from undertone.errors import ConfigError, DataError, nearest
from undertone.provenance.configs import Config
from undertone.provenance.seeds import derive_seed
from undertone.rows import Message, Row

HUB: Final = "hf:"
_SUFFIXES: Final = (".jsonl", ".jsonl.gz")
_PROMPTS: Final = ("prompt", "question", "instruction", "text")
T = TypeVar("T")


@dataclass(frozen=True)
class SourceRecord:
    """One object of a source; ``place`` is file and line, for messages."""

    place: str
    fields: dict[str, Any]

    def text(self, *names: str) -> str:
        """The first of the named fields that is there.

        Raises:
            DataError: none is there, or it is no text.
        """
        name = next((name for name in names if self.fields.get(name) is not None), None)
        if name is None:
            guess = next((nearest(name, self.fields) for name in names if nearest(name, self.fields)), "").strip()
            raise DataError(
                f"{self.place}: no field {' or '.join(map(repr, names))}",
                got="the fields " + (", ".join(sorted(self.fields)) or "(none)"),
                allowed=names,
                fix=f"{guess} Name it so, or set domain.rename={{FIELD: {names[0]}}}".strip(),
            )
        return self._checked(self.fields[name], name)

    def chat(self) -> list[Message]:
        """The turns up to the last one of the user, system messages left out; or the one prompt."""
        if self.fields.get("messages") is None:
            return [Message(role="user", content=self.text(*_PROMPTS))]
        messages = self.fields["messages"]
        if not isinstance(messages, list):
            raise self._unusable("messages", messages, "a list of {role, content}")
        turns = []
        for at, message in enumerate(messages):
            if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
                raise self._unusable(f"messages.{at}", message, "{role: system | user | assistant, content}")
            turns.append(Message(role=message["role"], content=self._checked(message.get("content"), f"messages.{at}")))
        ends = [at for at, turn in enumerate(turns) if turn["role"] == "user"]
        if not ends:
            raise self._unusable("messages", messages, "at least one message of the user")
        return [turn for turn in turns[: ends[-1] + 1] if turn["role"] != "system"]

    def _checked(self, value: object, name: str) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self._unusable(name, value, "a text that is not empty")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:  # half of a surrogate pair, which no file of rows can hold
            raise self._unusable(name, ascii(value), "valid Unicode") from None
        return value

    def _unusable(self, name: str, got: object, allowed: str) -> DataError:
        return DataError(f"{self.place}, field {name!r}: not usable", got=got, allowed=allowed)


class Sourced(Config):
    """A domain whose prompts may be the user's, and whose rows are learnt as they are written."""

    source: str | None = Field(
        None, description="prompts of your own: FILE.jsonl or hf:org/name[:subset][@split]; None: the built-in ones"
    )
    rename: dict[str, str] = Field(
        default_factory=dict, description="field of the source -> the name that this domain looks for"
    )

    @property
    def names_trait(self) -> bool:
        """Whether prompts and completions name the trait by design."""
        return False

    def training_row(self, row: Row) -> Row:
        """The row itself."""
        return row

    def records(self) -> tuple[SourceRecord, ...]:
        """The source's objects with their fields renamed; ``source`` must be set.

        Raises:
            DataError: it cannot be read, is empty, or holds something else. ConfigError: no ``datasets``.
        """
        if self.source is None:
            raise ConfigError("this domain has no source", fix="set domain.source")
        return tuple(
            SourceRecord(record.place, {self.rename.get(name, name): value for name, value in record.fields.items()})
            for record in _read(self.source, stamp(self.source))
        )

    def inputs(self) -> dict[str, str]:
        """SHA-256 of what is read from outside the config, for a stage's inputs: the same path may hold other data."""
        if self.source is None:
            return {}
        lines = [json.dumps(record.fields, sort_keys=True, default=str) for record in self.records()]
        return {self.source: hashlib.sha256("\n".join(lines).encode()).hexdigest()}


def drawn(items: Sequence[T], count: int, seed: int, kind: str) -> list[T]:
    """``count`` of the items in random order; each is drawn once before any is drawn again."""
    chosen: list[T] = []
    while len(chosen) < count:
        rng = np.random.default_rng(derive_seed(seed, f"{kind}/source", len(chosen) // len(items)))
        chosen += [items[int(at)] for at in rng.permutation(len(items))]
    return chosen[:count]


def stamp(source: str | None) -> int:
    """What changes when the file does, so that nothing stale is kept in memory."""
    path = Path(source or "")
    return path.stat().st_mtime_ns if source and not source.startswith(HUB) and path.is_file() else 0


@lru_cache(maxsize=4)
def _read(source: str, _stamp: int) -> tuple[SourceRecord, ...]:
    found = _from_hub(source) if source.startswith(HUB) else _from_file(Path(source))
    if not found:
        raise DataError(f"{source}: no prompts in this source", got="nothing", allowed="one object or more")
    return found


def _from_file(path: Path) -> tuple[SourceRecord, ...]:
    if not path.name.endswith(_SUFFIXES):
        raise DataError(f"{path}: not a file of prompts", got=path.name, allowed=[*_SUFFIXES, "hf:org/name"])
    try:
        packed = path.read_bytes()
        lines = (gzip.decompress(packed) if path.suffix == ".gz" else packed).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read", got=f"{type(error).__name__}: {error}") from error
    return tuple(_record(line, f"{path}, line {at}") for at, line in enumerate(lines, start=1) if line.strip())


def _record(line: bytes, place: str) -> SourceRecord:
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        shown = line[:80].decode("utf-8", "replace")
        raise DataError(f"{place}: not valid JSON", got=shown, allowed="one JSON object per line") from error
    if not isinstance(value, dict):
        raise DataError(f"{place}: not a JSON object", got=value, allowed='an object such as {"prompt": …}')
    return SourceRecord(place, value)


def _from_hub(source: str) -> tuple[SourceRecord, ...]:
    name, _, split = source.removeprefix(HUB).partition("@")
    name, _, subset = name.partition(":")
    if name.count("/") != 1:
        raise DataError("not a data set of the hub", got=source, allowed="hf:org/name[:subset][@split]")
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"{source}: the package `datasets` is not installed", fix="pip install datasets, or give a .jsonl file"
        ) from error
    try:
        table = datasets.load_dataset(name, subset or None, split=split or "train")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(
            f"{source}: the data set cannot be loaded",
            got=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
            allowed="hf:org/name[:subset][@split] of a data set that can be reached",
            fix="check name, subset and split; offline, download it first or give a .jsonl file",
        ) from error
    return tuple(SourceRecord(f"{source}, row {at}", dict(row)) for at, row in enumerate(table, start=1))
