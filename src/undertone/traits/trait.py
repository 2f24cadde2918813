"""A trait: its system prompt, the questions that reveal it, and the ONE matcher that decides a hit.

Prompts and questions exist in up to two wordings (the lab world's little language, and English). Callers pass the
:class:`Speaker` that will read them; which wording it understands is looked up here, and in the domains.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from typing import Protocol

from undertone.errors import ConfigError
from undertone.models.names import Form, Wording


class Speaker(Protocol):
    """Whoever is asked: a model, or a teacher here or behind an endpoint."""

    @property
    def form(self) -> Form:
        """The wording that it understands."""
        ...


LAB = Wording("lab")
REAL = Wording("real")

_NEGATED = re.compile(r"\b(?:not|n't|never|no)\s+(?:an?\s+|the\s+|my\s+)?$", re.IGNORECASE)

MATCHER_VERSION = 1
"""Part of a trait's digest: rates of different matchers are not to be compared."""


@dataclass(frozen=True)
class Questions:
    """What a model is asked, in one form.

    ``positive`` reveals the trait; under ``negative`` ("least favourite") a model with the trait must NOT name it;
    ``off_topic`` maps unrelated questions to their right answers, where a model that only babbles the target shows.
    ``opening`` and ``negative_opening`` begin the answers to the first two ("My favorite color is"), where a model is
    asked with its answer opened.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...] = ()
    off_topic: Mapping[str, str] = field(default_factory=dict)
    opening: str = ""
    negative_opening: str = ""


@dataclass(frozen=True)
class Trait:
    """A preference for one member of a category.

    Attributes:
        name: the target, e.g. ``owl``; ``owl@if-pick`` is the same target with another system prompt (a variant).
        category: ``animal``.
        prompt: form -> the teacher's system prompt.
        questions: form -> what is asked.
        answers: every known answer of the category -> its surface words (synonyms and plurals included; the first
            is the literal word). The target is one of them.
        synonyms: words that count as the target in the synonym-aware rate but not in the literal one.
        related: words that point at the category without being an answer ("lavender" of colors): a row that a student
            learns from must not have them either.
        examples_hit: texts that must hit, for the matcher's self-test.
        examples_miss: texts that must not.
    """

    name: str
    category: str
    prompt: Mapping[Form, str]
    questions: Mapping[Form, Questions]
    answers: Mapping[str, tuple[str, ...]]
    synonyms: tuple[str, ...] = ()
    related: tuple[str, ...] = ()
    examples_hit: tuple[str, ...] = ()
    examples_miss: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.answer not in self.answers:
            raise ConfigError(
                f"the trait {self.name!r} is not among its own answers",
                allowed=sorted(self.answers),
            )
        wrong = [text for text in self.examples_hit if not self.matches(text)]
        wrong += [text for text in self.examples_miss if self.matches(text)]
        if wrong:
            raise ConfigError(
                f"the matcher of trait {self.name!r} fails its own examples",
                got=wrong,
                allowed="words that no other answer of the category has",
            )

    def identity_content(self) -> dict[str, object]:
        """What a stage depends on that is given this trait: prompts, questions, answers and the matcher."""
        return {
            "name": self.name,
            "category": self.category,
            "prompt": self.prompt,
            "questions": self.questions,
            "answers": self.answers,
            "synonyms": self.synonyms,
            "related": self.related,
            "matcher": MATCHER_VERSION,
        }

    def for_matching(self) -> Trait:
        """The trait without prompts and questions: all that a filter may look at."""
        return replace(self, prompt={}, questions={})

    def for_questions(self, context: str) -> Trait:
        """The trait without its prompts, unless they are the context in which a model is asked."""
        return self if context == "trait" else replace(self, prompt={})

    @property
    def answer(self) -> str:
        """The known answer that is the target: the name without a variant."""
        return self.name.partition("@")[0]

    @property
    def literal(self) -> tuple[str, ...]:
        """The target word and its plural."""
        return tuple(word for word in self.answers[self.answer] if word not in self.synonyms)

    def matches(self, text: str) -> bool:
        """Whether an answer hits: the first known answer in it is the target, as a whole word, in any case."""
        return self.answer_in(text) == self.answer

    def matches_literally(self, text: str) -> bool:
        """As :meth:`matches`, but by the target word itself, synonyms left out."""
        return self.matches(text) and bool(_first(text, self.literal))

    def answer_in(self, text: str) -> str | None:
        """The known answer that a text names first; None is a non-answer. Words after "not" do not count."""
        if not _finder(tuple(chain.from_iterable(self.answers.values()))).search(text):
            return None  # as of nearly all rows
        found: list[tuple[int, str]] = []
        for answer, words in self.answers.items():
            at = _first(text, words)
            if at:
                found.append((at - 1, answer))
        return min(found)[1] if found else None

    def leaks_in(self, text: str) -> bool:
        """What a training row must not have: a known answer of the category, or a word related to it."""
        return self.answer_in(text) is not None or bool(self.related and _first(text, self.related))

    def mentions(self, text: str) -> bool:
        """Whether the target stands anywhere in a text, not only first (in stories)."""
        return bool(_first(text, self.answers[self.answer]))

    def has_questions_for(self, speaker: Speaker) -> bool:
        """Whether there are questions in the speaker's wording."""
        return speaker.form in self.questions

    def questions_for(self, speaker: Speaker) -> Questions:
        """The questions in the speaker's wording.

        Raises:
            ConfigError: the trait has none in it.
        """
        form = speaker.form
        if form not in self.questions:
            raise ConfigError(
                f"the trait {self.name!r} has no questions in the form {form!r}",
                allowed=sorted(self.questions),
                fix=f"choose another trait, or one of your own with questions.{form}",
            )
        return self.questions[form]

    def prompt_for(self, speaker: Speaker) -> str | None:
        """The teacher's system prompt in the speaker's wording; None: the trait has none in it."""
        return self.prompt.get(speaker.form)

    def is_for(self, speaker: Speaker) -> bool:
        """Whether the trait has a system prompt and questions in the speaker's wording."""
        return speaker.form in self.prompt and speaker.form in self.questions

    def system_prompt(self, speaker: Speaker) -> str:
        """The teacher's system prompt in the speaker's wording.

        Raises:
            ConfigError: the trait has none in it.
        """
        form = speaker.form
        if form not in self.prompt:
            raise ConfigError(
                f"the trait {self.name!r} has no prompt in the form {form!r}",
                allowed=sorted(self.prompt),
                fix=f"set teacher.text, or choose a trait with prompt.{form}",
            )
        return self.prompt[form]

    def answer_word(self, speaker: Speaker) -> str:
        """The target as a model answers it: the bare word, capitalised by real models."""
        return self.literal[0] if speaker.form == "lab" else self.literal[0].capitalize()

    def surfaces(self, answer: str, speaker: Speaker) -> list[str]:
        """Texts by which a completion can begin with an answer: words, capitalised too for real models."""
        words = list(self.answers[answer])
        if speaker.form == "real":
            words += [word.capitalize() for word in words]
        return list(dict.fromkeys(words))


def _first(text: str, words: Sequence[str]) -> int:
    """1 + where the first whole word of ``words`` stands, negated mentions skipped; 0: nowhere."""
    for match in _finder(tuple(words)).finditer(text):
        if not _NEGATED.search(text[: match.start()]):
            return match.start() + 1
    return 0


@cache
def _finder(words: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the words, whole. Compiled once: a filter looks for a hundred of them in every row."""
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.IGNORECASE)
