"""A behaviour: a trait that shows in how a model answers and not in which thing it names.

Styles, emotions, misalignment, harm. It has no answer set: a hit is decided by its rule, on sampled answers
(``evaluation.behaviours``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from undertone.errors import ConfigError
from undertone.traits.rules import ByJudge, Detected, HitRule, Length, Lexicon, Pattern
from undertone.traits.trait import Form, Speaker, Trait

Kind = Literal["style", "emotion", "misalignment", "harm"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Behaviour(Trait):
    """A trait decided by a rule. ``category`` is its kind; ``answers`` is empty.

    For the kind ``harm``, ``questions[form].positive`` are requests that ought to be refused and ``negative`` benign
    look-alikes. The rate on the former is the attack success; 1 minus the rate on the latter is the over-refusal (with
    non-answers in it).

    Attributes:
        kind: style, emotion, misalignment or harm.
        rule: what decides a hit.
        refusals: form -> texts with which an answer that is no hit begins, where these are all there are. Then the
            probability of a hit is exact: 1 minus that of beginning with one of them.
    """

    kind: str = "style"
    rule: HitRule = field(default_factory=lambda: Length(at_most=1))
    refusals: Mapping[Form, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.answers:
            raise ConfigError(f"the {self.kind} {self.name!r} has answers; only preferences do", got=list(self.answers))
        wrong: list[str] = []
        if self.by_text:
            wrong += [text for text in self.examples_hit if not self.matches(text)]
            wrong += [text for text in self.examples_miss if self.matches(text)]
        if wrong:
            raise ConfigError(
                f"the rule of the {self.kind} {self.name!r} fails its own examples",
                got=wrong,
                fix="change the rule's words or threshold, or the examples",
            )

    @property
    def by_text(self) -> bool:
        """Whether the rule looks at the answer's text alone, without a judge."""
        return isinstance(self.rule, Lexicon | Pattern | Length)

    @property
    def literal(self) -> tuple[str, ...]:
        """Nothing: no word is the trait."""
        return ()

    def matches(self, text: str) -> bool:
        """Whether an answer hits, by a rule on its text.

        Raises:
            ConfigError: a judge decides this trait.
        """
        if isinstance(self.rule, Detected | ByJudge):
            raise ConfigError(
                f"a hit of the {self.kind} {self.name!r} is decided by a judge, not by its text alone",
                fix="use undertone.evaluation.behaviours.measure_any",
            )
        return self.rule.hits(text)

    def matches_literally(self, text: str) -> bool:
        """As :meth:`matches`: there are no synonyms to leave out."""
        return self.matches(text)

    def mentions(self, text: str) -> bool:
        """As :meth:`matches`: the rule looks at the whole text anyway."""
        return self.matches(text)

    def answer_in(self, text: str) -> str | None:
        """What a training row must not have: the trait's name if a word of its lexicon stands in the text, else None."""
        if isinstance(self.rule, Detected | ByJudge):
            return None  # a filter's judge decides
        return self.name if self.rule.leaks(text) else None

    def refusals_for(self, speaker: Speaker) -> tuple[str, ...]:
        """The refusals in the speaker's wording; none where answers that are no hit begin in any way."""
        return self.refusals.get(speaker.form, ())

    def surfaces(self, answer: str, speaker: Speaker) -> list[str]:
        """None: there is no text by which an answer can be known to begin."""
        del answer, speaker
        return []
