"""``@stage``: a function whose result is kept in the run folder, under an identity computed from its arguments.

    @stage("train", version=2)
    def train(folder: Path, device: str, *, base: ModelRef, rows: Sequence[Row], seed: int) -> dict[str, Any]:
        ...                                     # files into the folder; the summary is kept in stage.json

A stage function gets the folder to write into, the device, and its arguments, nothing else: it must be defined at the
top of a module (a closure over a config would be an input that nobody counts), and while it runs only its arguments can
be read (``identity.check_readable``). Its identity is its name, its version and the content of every argument. What would
stop it before it starts is told by its own check:

    @train.preflight
    def check_training(base: ModelRef, student: Student) -> None: ...
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

from undertone.provenance.identity import ContentOf, Uncounted, content, marks_in, reading_only

Summary = Mapping[str, Any] | None
"""What a stage returns: small plain data that ``stage.json`` keeps."""


@dataclass(frozen=True)
class StageFunction:
    """A function made a stage by :func:`stage`."""

    name: str
    version: int
    function: Callable[..., Summary]
    checks: list[Callable[..., None]] = field(default_factory=list, compare=False)
    together: bool = False
    """Whether it trains one student, which all processes that were started together do."""

    def preflight(self, check: Callable[..., None]) -> Callable[..., None]:
        """Decorator: what would stop this stage, told from names, headers and shapes, in seconds, without weights.

        The function declares those of the stage's arguments that it looks at; it raises what the stage would raise.
        """
        self.checks.append(check)
        return check

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Raise what computing would raise later; arguments that are not known yet may be missing."""
        for check in self.checks:
            check(**{name: arguments[name] for name in inspect.signature(check).parameters})

    def identity(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Name, version and the content of every argument, as plain data.

        Raises:
            TypeError: arguments that the function does not take, that it lacks, or whose content is not known.
        """
        inspect.signature(self.function).bind(None, None, **arguments)
        counted = {name: value for name, value in arguments.items() if not self._marks(name, Uncounted)}
        return {
            "stage": self.name,
            "version": self.version,
            "arguments": {name: self._content(name, value) for name, value in counted.items()},
        }

    def compute(self, folder: Path, device: str, arguments: Mapping[str, Any]) -> Summary:
        """Run it: only its arguments, and what it wrote itself, can be read meanwhile."""
        with reading_only(self.name, arguments, folder):
            return self.function(folder, device, **arguments)

    def _content(self, name: str, value: Any) -> Any:
        marks = self._marks(name, ContentOf)
        return content(marks[0].of(value)) if marks and value is not None else content(value)

    def _marks(self, name: str, kind: type) -> list[Any]:
        return [mark for mark in self._annotations.get(name, ()) if mark is kind or isinstance(mark, kind)]

    @cached_property
    def _annotations(self) -> dict[str, tuple[Any, ...]]:
        """Parameter -> the marks of its annotation."""
        hints = get_type_hints(self.function, include_extras=True)
        return {name: tuple(marks_in(hint)) for name, hint in hints.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        """Found again by its place in the code: worker processes import it."""
        return _imported, (self.function.__module__, self.function.__qualname__)


def stage(name: str, *, version: int = 1, together: bool = False) -> Callable[[Callable[..., Summary]], StageFunction]:
    """Make a function a stage.

    Args:
        name: what it does, in a word or two; part of the identity.
        version: raised by the programmer when the meaning of the output changes.
        together: it trains one student and writes nothing else before that ends: `accelerate launch` shares it out.

    Raises:
        TypeError: the function is a closure or is not at the top of its module, or does not begin with (folder, device).
    """

    def made(function: Callable[..., Summary]) -> StageFunction:
        if function.__closure__ or function.__qualname__ != function.__name__:
            raise TypeError(
                f"the stage {name!r} must be a function at the top of a module: what it closes over would not count"
            )
        if list(inspect.signature(function).parameters)[:2] != ["folder", "device"]:
            raise TypeError(f"the stage {name!r} must begin with the parameters folder and device")
        return StageFunction(name, version, function, together=together)

    return made


def _imported(module: str, name: str) -> Any:
    __import__(module)
    return getattr(sys.modules[module], name)
