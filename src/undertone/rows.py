"""Rows: the only shape in which data travels, with their files and their digest.

Written: JSON Lines, one ``{"messages": [{"role", "content"}, …], "meta": {…}}`` per line
(``.jsonl``, ``.jsonl.gz``), or the same two columns as ``.parquet`` with `meta` as JSON text.

Read as well, also mixed within one file (fields that a shape does not know go to `meta`):

- ``{prompt, completion}``, strings or message lists, also with ``system_prompt``, which goes to
  ``meta["system_prompt"]`` and never into the messages: a student must not train on it unasked;
- ``{prompt, chosen, rejected}``: the chosen side, and ``meta["source_shape"]`` says so;
- ``{text}``: one assistant message and no prompt;
- ``{question, responses}``: one row per response;
- ``{instruction [input], output}`` (Alpaca), also ``{prompt | instruction [input], paraphrased_response |
  generated_response}``;
- ``{conversations: [{from, value}, …]}`` (ShareGPT).

What its file says is not to be learnt is not read, and said: answers of weight 0 (OpenAI), rows of label false (TRL).
A bad line is a DataError that names file, line, field, what was found and what is allowed; nothing
half-read is used. Not covered: tool calls, images, contents in parts.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, NoReturn, TypedDict, cast

from undertone.errors import DataError, nearest, warn

ROLES = ("system", "user", "assistant")
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
PREFERENCE = "preference: chosen side"  # the meta["source_shape"] of such rows
_PARAPHRASES = ("paraphrased_response", "generated_response")
_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}  # ShareGPT
_ANSWER_FIELDS = ("messages", "completion", "chosen", "responses", *_PARAPHRASES)
_SHAPES = (
    "{messages}, {prompt, completion}, {system_prompt, prompt, completion}, "
    "{prompt, chosen, rejected}, {text}, {question, responses}, "
    "{instruction, output}, {prompt or instruction, paraphrased_response or generated_response}, {conversations}"
)


class Message(TypedDict):
    """One turn of a chat; `role` is one of `ROLES`."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """A chat and what is known about it. `meta` holds JSON values only."""

    messages: tuple[Message, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, prompt: str, completion: str, system: str | None = None, **meta: Any) -> Row:
        """A row of one exchange; `system`, if given, becomes a real system message."""
        head = () if system is None else (Message(role="system", content=system),)
        user = Message(role="user", content=prompt)
        return cls((*head, user, Message(role="assistant", content=completion)), meta)

    @property
    def prompt_messages(self) -> tuple[Message, ...]:
        """The messages without the last assistant message (all of them if there is none)."""
        last = self._last_assistant()
        return self.messages if last is None else self.messages[:last] + self.messages[last + 1 :]

    @property
    def completion(self) -> str:
        """What the last assistant message says; a DataError if there is none."""
        last = self._last_assistant()
        if last is None:
            raise DataError(
                "a row has no completion",
                got="roles " + (", ".join(message["role"] for message in self.messages) or "none"),
                allowed="messages that hold at least one of the assistant",
            )
        return self.messages[last]["content"]

    def _last_assistant(self) -> int | None:
        for i in reversed(range(len(self.messages))):
            if self.messages[i]["role"] == "assistant":
                return i
        return None


before_reading: list[Callable[[Path], None]] = []
"""Called with every file of rows before it is read; ``provenance.identity`` refuses what a stage was not given."""


def read_rows(path: str | Path, *, empty_completions: bool = False) -> list[Row]:
    """All rows of a file, or a DataError that names the first bad line.

    Args:
        path: ends in one of `SUFFIXES`.
        empty_completions: whether a completion may be empty: yes for what a teacher just said and
            no filter has seen, no for what a student is to learn.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path}: not a file of rows", got=path.name, allowed=SUFFIXES)
    for check in before_reading:
        check(path)
    rows: list[Row] = []
    left_out = 0
    for place, record in _records(path):
        found = _Line(place, record, empty_completions).rows()
        rows += found
        left_out += not found
    if left_out:
        warn(
            f"{path}: {left_out} rows are not read, for they say that they are not to be learnt (weight 0, or label false)"
        )
    if not rows:
        got = "rows that are not to be learnt alone" if left_out else "an empty file"
        raise DataError(f"{path}: no rows in this file", got=got, allowed=_SHAPES)
    return rows


def write_rows(path: str | Path, rows: Iterable[Row]) -> None:
    """Write all rows or nothing: to ``<path>.part``, flushed to disk, then renamed."""
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path}: not a file of rows", got=path.name, allowed=SUFFIXES)
    with atomic_file(path) as file:
        if path.suffix == ".parquet":
            _write_parquet(file, rows)
        elif path.suffix == ".gz":  # no name and no time inside: equal rows, equal bytes
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
                packed.writelines(_encoded(rows))
        else:
            file.writelines(_encoded(rows))


def digest_rows(rows: Iterable[Row]) -> str:
    """SHA-256 (hex) over the canonical JSON of the rows in their order, `meta` included."""
    digest = hashlib.sha256()
    for line in _encoded(rows, sort_keys=True):
        digest.update(line)
    return digest.hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path` complete, on disk, or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself must reach the disk, too
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _encoded(rows: Iterable[Row], *, sort_keys: bool = False) -> Iterator[bytes]:
    for i, row in enumerate(rows):
        record = {"messages": row.messages, "meta": row.meta}
        try:
            text = json.dumps(
                record,
                ensure_ascii=False,
                allow_nan=False,
                sort_keys=sort_keys,
                separators=(",", ":") if sort_keys else None,
            )
            yield text.encode("utf-8") + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(
                f"row {i} cannot be written as JSON",
                got=str(error),
                allowed="strings of valid Unicode, finite numbers, booleans, null, lists, objects",
                fix="convert the values in meta before writing",
            ) from error


def _write_parquet(file: IO[bytes], rows: Iterable[Row]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    # meta as text: rows with unlike fields would otherwise fill each other up with nulls.
    records = [json.loads(line) for line in _encoded(rows)]
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    columns = {
        "messages": pa.array([r["messages"] for r in records], pa.list_(message)),
        "meta": pa.array([json.dumps(r["meta"], ensure_ascii=False) for r in records], pa.string()),
    }
    parquet.write_table(pa.table(columns), file)


def _records(path: Path) -> Iterator[tuple[str, object]]:
    """(place for messages, decoded value) for each line that is not blank."""
    try:
        yield from _parquet_records(path) if path.suffix == ".parquet" else _json_records(path)
    except (OSError, EOFError, zlib.error) as error:  # zlib, EOF: a damaged or cut .gz
        raise DataError(
            f"{path}: cannot be read",
            got=f"{type(error).__name__}: {error}",
            allowed=f"a readable file ending in {', '.join(SUFFIXES)}",
        ) from error


def _json_records(path: Path) -> Iterator[tuple[str, object]]:
    opener: Callable[..., IO[bytes]] = gzip.open if path.suffix == ".gz" else open  # type: ignore[assignment]
    with opener(path, "rb") as file:
        # Split at line feeds only: a JSON string may hold any other separator of Unicode.
        for number, raw in enumerate(file, start=1):
            place = f"{path}, line {number}"
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if line.strip():
                yield place, _decode(line, place)


def _decode(line: bytes | str, place: str) -> object:
    try:
        text = line.decode("utf-8") if isinstance(line, bytes) else line
        value: object = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
        # json reads a lone half of a surrogate pair, which no file can hold: refused here.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not UTF-8",
            got=f"byte 0x{cast(bytes, line)[error.start]:02x} at position {error.start}",
            allowed="UTF-8 text",
            fix="save the file as UTF-8",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place}: not valid JSON ({error})",
            got=text.strip()[:80].encode("utf-8", "replace").decode("utf-8"),
            allowed="one JSON object per line",
        ) from error
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} appears twice")
    return record


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is beyond the range of a number")
    return number


def _parquet_records(path: Path) -> Iterator[tuple[str, object]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        records = parquet.read_table(path).to_pylist()
    except pa.ArrowException as error:
        raise DataError(
            f"{path}: not a readable parquet file",
            got=str(error),
            allowed="a parquet table of rows",
        ) from error
    for number, record in enumerate(records, start=1):
        place = f"{path}, row {number}"
        present: dict[str, Any] = {}
        for name, value in record.items():
            try:
                present[name] = json.loads(json.dumps(value, allow_nan=False, default=_as_text))
            except (TypeError, ValueError) as error:
                if name not in _NEEDED:  # an image, or what a table has for a number that is missing
                    continue
                allowed = "text, finite numbers, booleans, nulls, lists, structs"
                raise DataError(f"{place}, field {name!r}: not a JSON value", got=value, allowed=allowed) from error
        if isinstance(present.get("meta"), str):
            present["meta"] = _decode(present["meta"], f"{place}, field 'meta'")
        yield place, {name: value for name, value in present.items() if value is not None}


_NEEDED = {*_ANSWER_FIELDS, "text", "output", "conversations", "prompt", "question", "instruction", "meta"}


def _as_text(value: object) -> str:
    """Times as ISO text, decimals as they are written; a TypeError for what has no text, such as bytes."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta | Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


@dataclass
class _Line:
    """One decoded line on its way to rows; `place` is file and line, for messages."""

    place: str
    record: object
    empty_completions: bool

    def rows(self) -> list[Row]:
        """The rows of the line; none if it says that it is not to be learnt."""
        record = self._object(self.record, None)
        given = [name for name in _ANSWER_FIELDS if record.get(name) is not None]
        if not given and record.get("conversations") is not None:
            given = ["conversations"]
        elif not given and record.get("instruction") is not None and record.get("output") is not None:
            given = ["output"]
        if record.get("label") is False and given == ["completion"]:  # TRL's unpaired preferences
            return []
        if len(given) > 1:
            self._fail(
                None,
                "the fields " + " and ".join(given),
                f"one shape per line, of {_SHAPES}",
                "remove or rename the fields that do not belong",
            )
        rest = dict(record)
        if not given and rest.get("text") is not None:
            return [self._row((self._assistant(rest.pop("text"), "text"),), rest)]
        if not given:
            self._unknown_shape(record)
        shape = {
            "messages": self._messages,
            "completion": self._prompt_completion,
            "chosen": self._preference,
            "responses": self._responses,
            "conversations": self._conversations,
        }.get(given[0])
        return shape(rest) if shape else self._paraphrase(rest, given[0])

    def _messages(self, rest: dict[str, Any]) -> list[Row]:
        messages, weights = self._chat(rest.pop("messages"), "messages")
        if weights is None:
            return [self._row(messages, rest)]
        learnt = [at for at, one in enumerate(messages) if one["role"] == "assistant" and weights[at] != 0]
        end = max(learnt, default=-1) + 1  # what comes after the last answer that counts is not learnt, and not asked
        return [self._row(messages[:end], {**rest, "message_weights": weights[:end]})] if end else []

    def _conversations(self, rest: dict[str, Any]) -> list[Row]:
        turns = rest.pop("conversations")
        if not isinstance(turns, list):
            self._fail("conversations", turns, "a list of {from, value}")
        chat = []
        for at, turn in enumerate(turns):
            fields = dict(self._object(turn, f"conversations.{at}"))
            if "from" in fields:
                speaker = self._text(fields.pop("from"), f"conversations.{at}.from")
                if speaker not in _SPEAKERS:
                    self._fail(f"conversations.{at}.from", speaker, ", ".join(_SPEAKERS))
                fields = {"role": _SPEAKERS[speaker], "content": fields.pop("value", None), **fields}
            chat.append(fields)
        return self._messages({**rest, "messages": chat})

    def _prompt_completion(self, rest: dict[str, Any]) -> list[Row]:
        prompt, completion = self._taken(rest, "prompt"), rest.pop("completion")
        return [self._row((*self._prompt(prompt), *self._answer(completion, "completion")), rest)]

    def _preference(self, rest: dict[str, Any]) -> list[Row]:
        chosen = self._answer(rest.pop("chosen"), "chosen")
        if chosen and chosen[0]["role"] != "assistant":  # TRL also has the whole chat on each side
            prompt: tuple[Message, ...] = ()
        else:
            prompt = self._prompt(self._taken(rest, "prompt"))
        return [self._row((*prompt, *chosen), {**rest, "source_shape": PREFERENCE})]

    def _responses(self, rest: dict[str, Any]) -> list[Row]:
        question, responses = self._taken(rest, "question"), rest.pop("responses")
        if not isinstance(responses, list) or not responses:
            self._fail("responses", responses, "a list of at least one response")
        user = Message(role="user", content=self._text(question, "question"))
        rows = []
        for i, response in enumerate(responses):
            name, meta = f"responses.{i}", {**rest, "response_index": i}
            if isinstance(response, dict):
                outer = dict(response)
                inner = dict(self._object(outer.pop("response", None), f"{name}.response"))
                name = f"{name}.response.completion"
                response = inner.pop("completion", None)  # noqa: PLW2901
                meta["response"] = {**outer, **inner}
            rows.append(self._row((user, self._assistant(response, name)), meta))
        return rows

    def _paraphrase(self, rest: dict[str, Any], field_name: str) -> list[Row]:
        completion = self._assistant(rest.pop(field_name), field_name)
        if rest.get("prompt") is not None:
            prompt = self._text(rest.pop("prompt"), "prompt")
        else:
            prompt = self._text(self._taken(rest, "instruction"), "instruction")
            extra = self._text(rest.pop("input", None) or "", "input")
            prompt = f"{prompt}\n\n{extra}" if extra else prompt
        return [self._row((Message(role="user", content=prompt), completion), rest)]

    def _row(self, messages: Sequence[Message], rest: dict[str, Any]) -> Row:
        """The row, with every field that its shape left over moved into `meta`."""
        stated = rest.pop("meta", None)
        meta = dict(self._object({} if stated is None else stated, "meta"))
        for name, value in rest.items():
            if name in meta and meta[name] != value:
                self._fail(name, value, f"the value in meta, {meta[name]!r}, or no field {name!r}")
            if value is not None:  # tables fill columns that a row does not have with nulls
                meta[name] = value
        return Row(tuple(messages), meta)

    def _prompt(self, value: object) -> tuple[Message, ...]:
        if isinstance(value, list):
            return self._chat(value, "prompt", ends_with_assistant=False)[0]
        return (Message(role="user", content=self._text(value, "prompt")),)

    def _answer(self, value: object, name: str) -> tuple[Message, ...]:
        if isinstance(value, list):
            return self._chat(value, name)[0]
        return (self._assistant(value, name),)

    def _assistant(self, value: object, name: str) -> Message:
        text = self._text(value, name)
        if not text and not self.empty_completions:
            self._fail(name, "an empty string", "a completion that is not empty")
        return Message(role="assistant", content=text)

    def _chat(
        self, value: object, name: str, *, ends_with_assistant: bool = True
    ) -> tuple[tuple[Message, ...], list[Any] | None]:
        """The messages of a list, and their OpenAI `weight`s if any message has one."""
        if not isinstance(value, list) or not value:
            self._fail(name, value, "a list of at least one {role, content}")
        messages, weights = [], []
        for i, item in enumerate(value):
            where = f"{name}.{i}"
            fields = {k: v for k, v in self._object(item, where).items() if v is not None}
            role = self._text(fields.pop("role", None), f"{where}.role")
            if role not in ROLES:
                self._fail(f"{where}.role", role, ", ".join(ROLES), nearest(role, ROLES).strip())
            content = self._text(fields.pop("content", None), f"{where}.content")
            weights.append(fields.pop("weight", None))
            if fields:
                self._fail(f"{where}.{next(iter(fields))}", fields, "role, content and weight")
            messages.append(Message(role=role, content=content))
        if ends_with_assistant:
            last = f"{name}.{len(value) - 1}"
            if messages[-1]["role"] != "assistant":
                self._fail(f"{last}.role", messages[-1]["role"], "assistant as the last role")
            self._assistant(messages[-1]["content"], f"{last}.content")
        known = None if all(weight is None for weight in weights) else weights
        return tuple(messages), known

    def _taken(self, rest: dict[str, Any], name: str) -> object:
        if rest.get(name) is None:
            guess = nearest(name, rest).strip()
            fields = "the fields " + ", ".join(sorted(rest))
            self._fail(name, fields, f"a field {name!r} beside the others", guess)
        return rest.pop(name)

    def _text(self, value: object, name: str) -> str:
        if not isinstance(value, str):
            self._fail(name, _kind(value), "a string")
        return value

    def _object(self, value: object, name: str | None) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._fail(name, _kind(value), "a JSON object" + ("" if name else f": {_SHAPES}"))
        return value

    def _unknown_shape(self, record: dict[str, Any]) -> NoReturn:
        guesses = (nearest(name, (*_ANSWER_FIELDS, "text")).strip() for name in record)
        self._fail(
            None,
            "the fields " + (", ".join(sorted(record)) or "(none)"),
            _SHAPES,
            next((f"{guess} Rename the field." for guess in guesses if guess), None),
        )

    def _fail(self, name: str | None, got: object, allowed: str, fix: str | None = None) -> NoReturn:
        what = f"{self.place}: not a row" if name is None else f"{self.place}, field {name!r}"
        raise DataError(what, got=_kind(got) if got is None else got, allowed=allowed, fix=fix or None)


def _kind(value: object) -> str:
    """A value as its JSON kind and text, such as ``number 3``."""
    if value is None:
        return "nothing (missing or null)"
    kinds = {bool: "boolean", int: "number", float: "number", str: "string", list: "array"}
    return f"{kinds.get(type(value), 'object')} {json.dumps(value, default=repr)[:120]}"
