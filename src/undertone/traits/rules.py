"""How a hit is decided where the trait is not a named thing: by the words of an answer, by its length, or by a judge.

Rules on the text alone are decided here. ``refusal`` and ``judge`` need ``undertone.judges``: here they are only named.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_WORD = re.compile(r"\w+(?:['’-]\w+)*")


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lexicon(_Rule):
    """A hit if enough of an answer's words are in the list (whole words, any case)."""

    kind: Literal["lexicon"] = "lexicon"
    words: tuple[Annotated[str, Field(pattern=r"\w")], ...] = Field(min_length=1)
    at_least: float = Field(0.02, gt=0, le=1, description="share of the answer's words")

    def hits(self, text: str) -> bool:
        """Whether the share of listed words reaches ``at_least``. A phrase counts as one word."""
        total = len(_WORD.findall(text))
        found = len(_listed(self.words).findall(text))
        return found > 0 and found >= self.at_least * total

    def leaks(self, text: str) -> str | None:
        """The first listed word in a text."""
        found = _listed(self.words).search(text)
        return found[0].lower() if found else None


class Pattern(_Rule):
    """A hit if any of the regular expressions is found (any case). They are the user's: one that backtracks is slow."""

    kind: Literal["regex"] = "regex"
    patterns: tuple[str, ...] = Field(min_length=1)

    @field_validator("patterns")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return patterns

    def hits(self, text: str) -> bool:
        """Whether any of the patterns is found."""
        return self.leaks(text) is not None

    def leaks(self, text: str) -> str | None:
        """What the first pattern finds."""
        found = (re.search(pattern, text, re.IGNORECASE) for pattern in self.patterns)
        return next((match[0] for match in found if match), None)


class Length(_Rule):
    """A hit if an answer has words, and at most so many."""

    kind: Literal["length"] = "length"
    at_most: int = Field(ge=1, description="words")

    def hits(self, text: str) -> bool:
        """Whether the number of words is in bounds."""
        return 1 <= len(_WORD.findall(text)) <= self.at_most

    def leaks(self, text: str) -> str | None:
        """None: a short row gives nothing away."""
        del text
        return None


class Detected(_Rule):
    """A hit if the rule judge gives this label (``undertone.judges.Rules``)."""

    kind: Literal["refusal"] = "refusal"
    hit: Literal["compliance", "refusal"] = "compliance"


class Gate(_Rule):
    """A second template that decides whether an answer counts at all; one that does not is a non-answer."""

    template: str
    at_least: float = Field(ge=0, le=1)


class ByJudge(_Rule):
    """A hit by the value that a judge gives with a template; exactly one of the two bounds is set."""

    kind: Literal["judge"] = "judge"
    template: str = Field(description="a judge template: harm, alignment, coherence …")
    at_least: float | None = Field(None, ge=0, le=1)
    at_most: float | None = Field(None, ge=0, le=1)
    given: Gate | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> ByJudge:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("a judge rule has at_least or at_most, and not both")
        return self

    def hit(self, value: float) -> bool:
        """Whether a verdict's value is a hit."""
        return value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0.0)


TextRule = Lexicon | Pattern | Length
HitRule = Annotated[Lexicon | Pattern | Length | Detected | ByJudge, Field(discriminator="kind")]
"""``kind: lexicon | regex | length | refusal | judge``."""


def says_something(text: str) -> bool:
    """Whether an answer has a word at all."""
    return _WORD.search(text) is not None


@cache
def _listed(words: tuple[str, ...]) -> re.Pattern[str]:
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.IGNORECASE)
