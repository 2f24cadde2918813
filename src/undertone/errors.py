"""What goes wrong, told so that the reader can act.

Every error of undertone says what happened, what was got, what is allowed, and what to do. Each
class is also the standard class it stands in for, so ``except ValueError`` keeps working, and each
carries the exit code of the command line: 2 the user's input is wrong, 3 data, model or run folder
unusable. All of them survive pickling, because they cross process boundaries.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, ClassVar

_LONGEST_SHOWN = 300  # characters of a value that are worth printing


class UndertoneError(Exception):
    """The root of all errors that undertone raises on purpose.

    Args:
        what: one sentence: which thing is wrong, and where.
        got: the value met; strings are shown as they are, anything else by ``repr``.
        allowed: what would have been accepted: a sentence or the list of names.
        fix: what the user can do now.
    """

    exit_code: ClassVar[int] = 3

    def __init__(
        self,
        what: str,
        *,
        got: object | None = None,
        allowed: str | Sequence[str] | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        # Kept as text: a live object might not pickle, and must not be kept alive by an error.
        self.got = None if got is None else _shown(got)
        self.allowed = allowed if allowed is None or isinstance(allowed, str) else ", ".join(allowed)
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        for label, text in (("got", self.got), ("allowed", self.allowed), ("do", self.fix)):
            if text is not None:
                lines.append(f"  {label}: " + text.replace("\n", "\n    "))
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Callable[..., UndertoneError], tuple[object, ...]]:
        return _rebuild, (type(self), self.what, self.got, self.allowed, self.fix)


class ConfigError(UndertoneError, ValueError):
    """A config field, an override, a name or an argument is wrong (exit code 2)."""

    exit_code = 2


class DataError(UndertoneError, ValueError):
    """Rows or another data file cannot be used as they are (exit code 3)."""


class ModelError(UndertoneError, RuntimeError):
    """A model, adapter, tokenizer or chat template cannot be used as it is (exit code 3)."""


class RunError(UndertoneError, RuntimeError):
    """A run folder cannot be opened, continued or trusted (exit code 3)."""


_LIBRARIES = r"(?:transformers|peft|torch|accelerate|trl|datasets|huggingface_hub)(?:\.|$)"


class ModelWarning(UserWarning):
    """What can be used as it is, and changes what a result means: each text is said once a process."""


def warn(text: str) -> None:
    """Say something about a model that its user should know."""
    warnings.warn(text, ModelWarning, stacklevel=3)


def show_warnings_plainly() -> None:
    """From now on, in this process, a :class:`ModelWarning` is one line on stderr, without the place in the code.

    What libraries warn each other of (names that they will drop) does not reach the user, who can do nothing about it.
    """
    for kind in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=kind, module=_LIBRARIES)
    usual = warnings.formatwarning

    def plainly(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> str:
        return (
            f"warning: {message}\n" if issubclass(category, ModelWarning) else usual(message, category, *place, **more)
        )

    warnings.formatwarning = plainly


def check_packages(reason: str, extra: str, *modules: str) -> None:
    """Refuse to go on without the packages of an extra.

    Raises:
        ConfigError: the reason, and how they are installed.
    """
    try:
        for module in modules:
            import_module(module)
    except ImportError as error:
        raise ConfigError(reason, got=str(error), fix=f"pip install 'undertone[{extra}]'") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the known name closest to `name`, or ``""`` if none is close."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""


def _shown(value: object) -> str:
    """A value in words; a text of several lines (a diff, a list of stages) is cut line by line."""
    text = value if isinstance(value, str) and value.strip() else repr(value)
    return "\n".join(
        line if len(line) <= _LONGEST_SHOWN else line[: _LONGEST_SHOWN - 1] + "…" for line in text.split("\n")
    )


def _rebuild(
    kind: type[UndertoneError], what: str, got: str | None, allowed: str | None, fix: str | None
) -> UndertoneError:
    return kind(what, got=got, allowed=allowed, fix=fix)
