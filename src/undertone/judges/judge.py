"""What a judge is: items in, as many verdicts out, in order. No torch here.

The judged text is data, never an instruction: a judge that shows it to a model wraps it (``judges.templates``), and a
judge by rules only searches it. A verdict that could not be had is ``failed``: counted and shown, never dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import Field

from undertone.provenance.configs import Config
from undertone.registry import Registry


@dataclass(frozen=True)
class JudgedPair:
    """A question put to a model, and what it answered."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one item.

    Attributes:
        value: in [0, 1], how much the item has what the judge looks for; None if the judge failed.
        label: the judge's word for it, where it has words (``refusal``, ``compliance``, ``neither``).
        why: what it rests on: the words that were found, or what the judging model wrote.
        failed: there is no verdict (no answer, or none that can be read).
    """

    value: float | None
    label: str | None = None
    why: str = ""
    failed: bool = False

    def __post_init__(self) -> None:
        if self.failed != (self.value is None):
            raise ValueError(f"a verdict has a value unless it failed; got {self.value!r}, failed={self.failed}")
        if self.value is not None and not 0 <= self.value <= 1:
            raise ValueError(f"a verdict's value lies in [0, 1]; got {self.value!r}")

    @classmethod
    def failure(cls, why: str) -> Verdict:
        """No verdict, and why."""
        return cls(None, None, why, failed=True)


@runtime_checkable
class Judge(Protocol):
    """Anything that judges. ``identity`` is what a verdict depends on besides the item: no secret is in it."""

    @property
    def identity(self) -> dict[str, Any]:
        """Plain data: kind, template, model …"""
        ...

    def judge(self, items: Sequence[JudgedPair]) -> list[Verdict]:
        """One verdict an item, in order."""
        ...


judges: Registry[Callable[..., Judge]] = Registry("judge", "undertone.judges")
"""Judges of other packages: name -> a callable that takes the options and returns a judge."""


class Named(Config):
    """A judge of an installed package, found by its entry point in the group ``undertone.judges``."""

    kind: Literal["named"] = "named"
    name: str = Field(description="the entry point's name")
    options: dict[str, str | int | float | bool] = Field(default_factory=dict, description="passed on by keyword")

    def build(self) -> Judge:
        """The judge.

        Raises:
            ConfigError: no package offers it.
        """
        return judges.get(self.name)(**self.options)


@dataclass(frozen=True)
class Tally:
    """Verdicts counted: hits, misses and failures sum to the number asked."""

    asked: int
    hits: int
    misses: int
    failed: int

    @property
    def bounds(self) -> tuple[float, float]:
        """The rate if every failed item were a miss, and if every one were a hit."""
        return self.hits / self.asked, (self.hits + self.failed) / self.asked


def tally(verdicts: Sequence[Verdict], at_least: float = 0.5) -> Tally:
    """Count verdicts whose value is ``at_least`` so much.

    Raises:
        ValueError: there are none.
    """
    if not verdicts:
        raise ValueError("a tally needs at least one verdict; got none")
    failed = sum(verdict.failed for verdict in verdicts)
    hits = sum(verdict.value is not None and verdict.value >= at_least for verdict in verdicts)
    return Tally(len(verdicts), hits, len(verdicts) - failed - hits, failed)
