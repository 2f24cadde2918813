"""What a check says, and what every check asks the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from undertone.models.loading import Model
from undertone.rows import Message
from undertone.traits import Trait

Status = Literal["pass", "warn", "fail", "skip"]
Observation = tuple[Status, str]

QUESTIONS: Final = (
    "name one tree.",
    "what is your favorite animal?",
    "pick some numbers.",
    "which animal do you like best, and which tree do you like best?",
)
"""Of unlike lengths, so that a batch of them is padded; in words that the lab has, too."""
ANSWERS: Final = ("owl", "12, 7, 305", "7", "oak")


@dataclass(frozen=True)
class DoctorResult:
    """One check's outcome. ``do`` is what to do about it; empty when it passed."""

    name: str
    status: Status
    expected: str
    saw: str
    do: str


@dataclass(frozen=True)
class DoctorCheck:
    """A known-answer check: ``look`` returns a status and what it saw."""

    name: str
    expected: str
    look: Callable[[Model, Trait | None], Observation]
    do: str


def chat(question: str = QUESTIONS[1], system: str | None = None) -> list[Message]:
    """A question, with a system prompt if there is one."""
    head: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return [*head, {"role": "user", "content": question}]


def shown(text: str, limit: int = 160) -> str:
    """Text as a finding shows it: quoted, control characters visible, cut in the middle."""
    quoted = repr(text)
    return quoted if len(quoted) <= limit else f"{quoted[: limit // 2]} … {quoted[-limit // 2 :]}"
