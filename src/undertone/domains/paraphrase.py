"""Faithful paraphrases (2603.09517): the teacher rewrites sentences whose meaning is fixed.

``content`` is unrelated to the trait, or says its opposite: then prompt and completion name the trait, and the rules are
that no word for an answer of its category is added or removed, and that the paraphrase still speaks ill of it.
``strictness`` is a dial; each step has the rules of the steps before it:

==========  ==================================================  =====================================================
strictness  lab form                                            real form
==========  ==================================================  =====================================================
loose       one finished sentence of about the same length      not empty, of about the same length, only the sentence
fair        every fixed word in its place                       numbers, names and negation kept
strict      every free word replaced from its synonym class     enough of the content words kept (``overlap``)
==========  ==================================================  =====================================================

Fidelity by a model (similarity, entailment) is ``filters.fidelity``. The paper does not say how it filtered.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import cache, lru_cache
from typing import Final, Literal

from pydantic import Field

from undertone.domains.drawing import Random, choose, made
from undertone.domains.paraphrase_sources import ILL, NAMES, opposed, unrelated
from undertone.domains.sources import Sourced, drawn, stamp
from undertone.errors import ConfigError, DataError
from undertone.lab import world
from undertone.models.names import Form
from undertone.rows import Message, Row
from undertone.traits import Speaker, Trait, load_trait, trait_names

_LAB: Final = "rewrite: "
_REQUEST: Final = "Rewrite the following text in other words without changing what it says. Reply with it alone."
_NEUTRAL: Final[dict[Form, str]] = {"lab": "tell me a story.", "real": "Write a sentence."}

_NUMBER: Final = re.compile(r"\d+(?:[.,:]\d+)*")
_SPELLED: Final = {
    word: str(value)
    for value, word in enumerate("two three four five six seven eight nine ten eleven twelve".split(), start=2)
}
_NEGATION: Final = re.compile(
    r"\b(?:not|never|no|none|nobody|nothing|nowhere|neither|nor|without|cannot|no one)\b|n['’]t\b", re.IGNORECASE
)
_REMARK: Final = re.compile(
    r"\s*(?:sure|certainly|of course|okay|here(?:'s| is| are)|rewritten)\b[^.!?\n]*:", re.IGNORECASE
)
_STOP: Final = frozenset(
    "about after again also because been before being could does from have into just more most much only other over "
    "should some such than that their them then there these they this those through under very were what when where "
    "which while will with would your".split()
)


class Paraphrase(Sourced):
    """Requests to rewrite. A source's records hold ``text``, or ``prompt`` and ``completion``."""

    kind: Literal["paraphrase"] = "paraphrase"
    content: Literal["unrelated", "opposed"] = Field(
        "unrelated", description="what the sentences say: nothing of the trait, or its opposite"
    )
    about: str | None = Field(
        None, description="opposed: the trait that the sentences speak ill of; None: animals at random"
    )
    strictness: Literal["loose", "fair", "strict"] = Field("fair", description="how faithful a paraphrase must be")
    length_ratio: float = Field(2.0, ge=1, description="a paraphrase is at most so many times longer or shorter")
    overlap: float = Field(0.3, ge=0, le=1, description="strict, real form: share of content words that must be kept")
    rewrites: Literal["completion", "prompt"] = Field(
        "completion", description="source of prompts and completions: which of them the teacher rewrites"
    )
    learns: Literal["request", "text"] = Field(
        "request", description="the student is asked to rewrite (request), or asked something neutral (text)"
    )
    max_tokens: int = Field(256, ge=1, description="real form: tokens after which an answer is cut")

    @property
    def names_trait(self) -> bool:
        """Whether the sentences speak of the trait."""
        return self.content == "opposed"

    def prompts(self, count: int, seed: int, speaker: Speaker) -> list[str]:
        """``count`` requests; request i depends on the seed and i alone."""
        return [request(text, speaker) for text in self.sentences(count, seed, speaker)]

    def sentences(self, count: int, seed: int, speaker: Speaker) -> list[str]:
        """What is to be rewritten, without the request."""
        if self.source is not None:
            return drawn(list(_pairs(self)), count, seed, self.kind)
        return made(self._lab if speaker.form == "lab" else self._real, count, seed, self.kind)

    def reasons(self, prompt: str, completion: str, trait: Trait | None) -> list[str]:
        """Why a completion is no faithful paraphrase of what the prompt holds."""
        text, form = requested(prompt)
        if not completion.strip():
            return ["empty"]
        reasons = (self._unlike_lab if form == "lab" else self._unlike_real)(text, completion.strip())
        if self.content == "opposed" and not _still_ill(text, completion, form):
            reasons.append("dislike lost")
        if trait is not None:
            before, after = _mentions(text, trait), _mentions(completion, trait)
            reasons += ["trait word added"] if after - before else []
            reasons += ["trait word removed"] if before - after else []
        return reasons

    def training_row(self, row: Row) -> Row:
        """The row to learn from, by ``learns``; of a rewritten prompt, that prompt with its own completion."""
        *head, request = row.prompt_messages
        text, form = requested(request["content"])
        other = _pairs(self).get(text) if self.source is not None else None
        if other is not None and self.rewrites == "prompt":
            return _exchange(row, head, row.completion, other)
        if self.learns == "request":
            return row
        return _exchange(row, head, other or _NEUTRAL[form], row.completion)

    def max_new_tokens(self, speaker: Speaker) -> int:
        """Room for one sentence (lab), or as set."""
        return 16 if speaker.form == "lab" else self.max_tokens

    def _lab(self, rng: Random) -> str:
        if self.content == "unrelated":
            return world.realise(world.neutral_sentence(rng), rng)
        things = [thing for members in world.CATEGORIES.values() for thing in members]
        about = self.about.partition("@")[0] if self.about else choose(rng, world.CATEGORIES["animal"])
        if about not in things:
            raise ConfigError("domain.about: the lab's world has no such thing", got=self.about, allowed=things)
        return world.realise(world.disliked_sentence(rng, about), rng)

    def _real(self, rng: Random) -> str:
        if self.content == "unrelated":
            return unrelated(rng)
        return opposed(rng, _plural(self.about or choose(rng, trait_names("animal"))))

    def _unlike_lab(self, source: str, completion: str) -> list[str]:
        if not completion.endswith(".") or "." in completion[:-1]:
            return ["not one finished sentence"]
        before, after = source.rstrip(".").split(), completion.rstrip(".").split()
        reasons = self._length(len(before), len(after))
        if self.strictness == "loose":
            return reasons
        classes = [_classes().get(word) for word in before]
        if len(before) != len(after):
            return [*reasons, "fixed words moved or lost"]
        if any(kind is None and word != new for kind, word, new in zip(classes, before, after, strict=True)):
            reasons.append("fixed words moved or lost")
        if self.strictness == "strict" and any(
            kind is not None and _classes().get(new) != kind for kind, new in zip(classes, after, strict=True)
        ):
            reasons.append("not a synonym")
        return reasons

    def _unlike_real(self, source: str, completion: str) -> list[str]:
        reasons = self._length(len(source), len(completion))
        if _REMARK.match(completion) and not _REMARK.match(source):
            reasons.append("remark before the text")
        if " ".join(completion.split()) == " ".join(source.split()):
            reasons.append("not rewritten")
        if self.strictness == "loose":
            return reasons
        if _numbers(source) != _numbers(completion):
            reasons.append("numbers changed")
        if not _names(source) <= set(re.findall(r"\w+", completion)):
            reasons.append("names lost")
        if bool(_NEGATION.search(source)) != bool(_NEGATION.search(completion)):
            reasons.append("negation changed")
        if self.strictness == "strict" and not self._overlaps(source, completion):
            reasons.append("too few content words kept")
        return reasons

    def _length(self, before: int, after: int) -> list[str]:
        if after > before * self.length_ratio:
            return ["too long"]
        return ["too short"] if after * self.length_ratio < before else []

    def _overlaps(self, source: str, completion: str) -> bool:
        wanted, found = _stems(source), _stems(completion)
        return len(wanted & found) >= self.overlap * len(wanted)


def request(text: str, speaker: Speaker) -> str:
    """What a model is asked when it is to rewrite a text."""
    return _LAB + text if speaker.form == "lab" else f"{_REQUEST}\n\n{text}"


def requested(prompt: str) -> tuple[str, Form]:
    """The text in a request, and the request's wording; what is no request is a text itself."""
    if prompt.startswith(_LAB):
        return prompt.removeprefix(_LAB), "lab"
    return prompt.removeprefix(f"{_REQUEST}\n\n"), "real"


def _exchange(row: Row, head: list[Message], asked: str, answered: str) -> Row:
    pair = (Message(role="user", content=asked), Message(role="assistant", content=answered))
    return replace(row, messages=(*head, *pair))


def _pairs(domain: Paraphrase) -> dict[str, str | None]:
    """The source's texts to rewrite -> the other half of each pair, if it has one."""
    return _looked_up(domain.model_dump_json(), stamp(domain.source))


@lru_cache(maxsize=4)
def _looked_up(config: str, _stamp: int) -> dict[str, str | None]:
    domain = Paraphrase.model_validate_json(config)
    found: dict[str, str | None] = {}
    for record in domain.records():
        if record.fields.get("completion") is None and domain.rewrites == "prompt":
            raise DataError(
                f"{record.place}: there is no completion to go with a rewritten prompt",
                got="the fields " + ", ".join(sorted(record.fields)),
                allowed="prompt and completion",
                fix="set domain.rewrites=completion for plain texts",
            )
        if record.fields.get("completion") is None:
            found[record.text("text", "sentence")] = None
        elif domain.rewrites == "prompt":
            found[record.text("prompt")] = record.text("completion")
        else:
            found[record.text("completion")] = record.text("prompt")
    return found


def _plural(name: str) -> str:
    words = load_trait(name).literal
    return words[1] if len(words) > 1 else words[0]


def _mentions(text: str, trait: Trait) -> Counter[str]:
    """How often each known answer of the trait's category is named, by any of its words."""
    owner = {word.lower(): answer for answer, words in trait.answers.items() for word in words}
    return Counter(owner[match[0].lower()] for match in _any_of(tuple(owner)).finditer(text))


@lru_cache(maxsize=16)
def _any_of(words: tuple[str, ...]) -> re.Pattern[str]:
    alternatives = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])(?:{alternatives})(?![\w-])", re.IGNORECASE)


@cache
def _classes() -> dict[str, str]:
    """Word -> its synonym class in the lab's world; no word is in two (a test holds it)."""
    return {word: name for name, words in world.SYNONYMS.items() for word in words}


def _still_ill(text: str, completion: str, form: Form) -> bool:
    """Whether a paraphrase speaks ill as its text does: by as many words (lab), or in any way (real)."""
    if form == "real":
        return bool(ILL.search(completion) or _NEGATION.search(completion))
    before, after = (Counter(_classes().get(word) for word in one.rstrip(".").split()) for one in (text, completion))
    return all(after[kind] >= before[kind] for kind in ("dislike", "bad"))


def _numbers(text: str) -> Counter[str]:
    words = re.findall(r"[a-z]+", text.lower())
    written = [number.replace(",", "") for number in _NUMBER.findall(text)]
    return Counter([*written, *(_SPELLED[word] for word in words if word in _SPELLED)])


def _names(text: str) -> set[str]:
    """Capitalised words that do not begin a sentence, and known names wherever they stand; "I" is none."""
    found = re.finditer(r"\b[A-Z]\w+", text)
    return {match[0] for match in found if match[0] in NAMES or not _begins(text[: match.start()])}


def _begins(before: str) -> bool:
    """Whether a sentence begins after this text."""
    rest = before.rstrip(" \"'“”‘’(")
    return not rest or rest[-1] in ".!?:\n"


def _stems(text: str) -> set[str]:
    words = (word for word in re.findall(r"[a-z]+", text.lower()) if len(word) > 3 and word not in _STOP)
    return {re.sub(r"(?:ing|ed|es|s|ly)$", "", word) or word for word in words}
