"""Identity, computed: what a stage depends on is what its arguments hold, never what they are called.

:func:`content` turns any argument into plain data that changes exactly when the argument would change a result: a file
by its SHA-256, a model by all its bytes (``models.loading.ModelRef``), a trait by its questions and answers, an earlier
stage by its output's digest, a config by its fields. A field or parameter marked :class:`Uncounted` cannot change a
result and is left out; one marked :class:`ContentOf` (a path, the name of a data set) counts by what it points at.

While a stage computes, :func:`check_readable` refuses what is not among its arguments: the doors that read models,
vectors, rows, sources and traits call it. So an identity that was computed cannot be incomplete without an error.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, get_args, get_origin

from pydantic import BaseModel

from undertone.errors import UndertoneError
from undertone.provenance.digests import file_digest, folder_digest
from undertone.provenance.plain_data import canonical_json
from undertone.rows import Row, before_reading, digest_rows

LONG_TEXT: Final = 200
LONG_LIST: Final = 24
UNCOUNTED: Final = {"uncounted": True}
"""Metadata of a dataclass field that cannot change a result."""


class Uncounted:
    """Marks a field of a config or a parameter of a stage that cannot change a result: ``Annotated[int, Uncounted()]``."""


@dataclass(frozen=True)
class ContentOf:
    """Marks a text that names something outside: it counts by ``of(text)``, as plain data."""

    of: Callable[[str], Any]


FILE: Final = ContentOf(lambda name: content(Path(name)))
"""The marker of a field that holds the path of a file or folder."""


class UndeclaredInputError(UndertoneError):
    """A stage reads what is not among its arguments: an error of the program, not of the user."""


def content(value: Any) -> Any:
    """What a stage depends on when it is given this, as plain JSON data.

    Raises:
        TypeError: a value whose content is not known, such as a function.
    """
    return _Walk().content(value)


def digest(data: object) -> str:
    """SHA-256 of plain data's canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(data).encode("utf-8")).hexdigest()


@dataclass
class _Walk:
    """Collects on its way the names and folders that may be read."""

    names: set[str] = field(default_factory=set)
    folders: set[Path] = field(default_factory=set)

    def content(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return value if len(value) <= LONG_TEXT else f"{value[:60]}… (sha256 {digest(value)})"
        if isinstance(value, Path):
            return self._path(value)
        if hasattr(value, "identity_content"):  # a model, a stage, a vector: it knows best
            self.names.update(getattr(value, "readable_names", ()))
            self.folders.update(getattr(value, "readable_folders", ()))
            return self.content(value.identity_content())
        if isinstance(value, BaseModel):
            return self._config(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type | Row):
            counted = [f.name for f in dataclasses.fields(value) if not f.metadata.get("uncounted")]
            return {name: self.content(getattr(value, name)) for name in counted}
        return self._collection(value)

    def _collection(self, value: Any) -> Any:
        if isinstance(value, Row):
            return digest_rows([value])
        if isinstance(value, Mapping):
            return self._short({str(key): self.content(inner) for key, inner in value.items()})
        if isinstance(value, Set):
            return self._short(sorted(self.content(inner) for inner in value))
        if isinstance(value, Sequence):
            if value and all(isinstance(inner, Row) for inner in value):
                return f"{len(value)} rows (sha256 {digest_rows(value)})"
            return self._short([self.content(inner) for inner in value])
        if hasattr(value, "detach"):  # a tensor; torch is not imported for this
            value = value.detach().float().cpu().numpy()
        if hasattr(value, "tobytes") and hasattr(value, "shape"):
            shape = "x".join(map(str, value.shape))
            return f"{value.dtype} {shape} (sha256 {hashlib.sha256(value.tobytes()).hexdigest()})"
        raise TypeError(f"the content of a {type(value).__name__} is not known, so that no stage can depend on it")

    @staticmethod
    def _short(value: Any) -> Any:
        return value if len(value) <= LONG_LIST else f"{len(value)} items (sha256 {digest(value)})"

    def _config(self, value: BaseModel) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, info in type(value).model_fields.items():
            inner, marks = getattr(value, name), [*info.metadata, *marks_in(info.annotation)]
            if any(isinstance(mark, Uncounted) or mark is Uncounted for mark in marks):
                continue
            of = next((mark.of for mark in marks if isinstance(mark, ContentOf)), None)
            found[name] = self.content(inner) if of is None else self._named(of, inner)
        return found

    def _named(self, of: Callable[[str], Any], value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, str):
            self._allow(value)
            return self.content(of(value))
        if isinstance(value, Mapping):
            return {str(key): self._named(of, inner) for key, inner in value.items()}
        return [self._named(of, inner) for inner in value]

    def _allow(self, name: str) -> None:
        self.names.add(name)
        for part in name.split(" + "):  # of a model's name: the base and its adapters
            self.names.add(part.strip())
            if Path(part.strip()).exists():
                self.folders.add(Path(part.strip()).absolute())

    def _path(self, path: Path) -> str:
        self.folders.add(path.absolute())
        return f"sha256 {folder_digest(path) if path.is_dir() else file_digest(path)}"


def marks_in(annotation: Any) -> list[Any]:
    """The marks anywhere in a type: those of ``ModelName | None`` and of ``tuple[ModelName, ...]`` too."""
    own = list(get_args(annotation)[1:]) if get_origin(annotation) is Annotated else []
    inside = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return own + [mark for inner in inside for mark in marks_in(inner)]


# -- what a stage may read ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Allowed:
    stage: str
    names: frozenset[str]
    folders: frozenset[Path]


_ALLOWED: ContextVar[_Allowed | None] = ContextVar("allowed", default=None)


def folders_read(arguments: Mapping[str, Any]) -> frozenset[Path]:
    """The files and folders among a stage's arguments, absolute."""
    walk = _Walk()
    walk.content(arguments)
    return frozenset(walk.folders)


@contextmanager
def reading_only(stage: str, arguments: Mapping[str, Any], folder: Path) -> Iterator[None]:
    """While inside, models, vectors, rows and traits are read only if they are among the arguments, or in the folder."""
    walk = _Walk()
    walk.content(arguments)
    token = _ALLOWED.set(_Allowed(stage, frozenset(walk.names), frozenset({*walk.folders, folder.absolute()})))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def check_readable(name: str | Path) -> None:
    """Refuse what a running stage was not given. Outside of stages everything may be read.

    Args:
        name: a path, a model's name, or ``trait NAME``.

    Raises:
        UndeclaredInputError: a stage computes, and this is none of its arguments.
    """
    allowed = _ALLOWED.get()
    if allowed is None or str(name) in allowed.names:
        return
    path = Path(name).absolute()
    if any(path == folder or folder in path.parents for folder in allowed.folders):
        return
    raise UndeclaredInputError(
        f"the stage {allowed.stage} reads {name}, which is none of its arguments",
        allowed=sorted({*allowed.names, *map(str, allowed.folders)}),
        fix="give it to the stage as an argument, so that it counts in the stage's identity",
    )


before_reading.append(check_readable)  # rows are read below this module
