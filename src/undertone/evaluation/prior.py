"""Can a trait be passed on from this model at all? Its prior, what the trait's system prompt does, and whether data can carry it.

A student can only learn what its teacher shows and its rows differ in. So: the base must not have the trait already,
the prompt must move the answers, the model must be able to write the answer and keep answering, and the model with
that prompt must write data (here: rows of a domain) otherwise than without.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from undertone.domains import Domain, Numbers, last_message, messages_of
from undertone.errors import ConfigError, ModelError
from undertone.evaluation.asking import NO_OPENING, Evaluation, answer_probabilities, answer_tokens
from undertone.evaluation.behaviours import AnyJudge
from undertone.evaluation.measures import SetMeasure
from undertone.evaluation.measuring import measure
from undertone.models.loading import Model, with_system
from undertone.models.sampling import sample
from undertone.models.scoring import LEFT_OUT, teacher_kl
from undertone.provenance.seeds import derive_seed
from undertone.rows import Message
from undertone.traits import Behaviour, Trait

MAX_PRIOR: Final = 0.5
MIN_SHIFT: Final = 0.1
MIN_VALID_ANSWER_PROBABILITY: Final = 0.2
MIN_KL: Final = 1e-4
"""Where each of the four reasons begins; rules of thumb, the first three as probabilities, the last in nats per token."""
ROWS: Final = 32
FIRST_ROWS: Final = 16
"""Rows after which the others are not asked for when none of these is valid."""
FEW_ROWS: Final = 4
"""Valid rows below which their KL is said to rest on few."""
QUESTIONS: Final = 16
"""Questions asked where answers are of several tokens, each of which costs a forward pass for every beginning."""
FIRST_TOKENS: Final = 16
"""Tokens after which an answer with a letter in it is dropped: it is no list of numbers, whatever follows."""


@dataclass(frozen=True)
class Prior:
    """What a model makes of a trait.

    Attributes:
        trait: its name.
        category: its category or kind.
        without_prompt: probability (a behaviour: rate, unless ``exact``) without any system prompt.
        with_prompt: the same with the trait's system prompt.
        exact: whether both are from logits.
        valid_answer_probability: total probability of all known answers with the prompt; None for a behaviour.
        kl: teacher KL on rows of the domain written with the prompt, in nats per token; None: not measured.
        possible: whether the trait can be passed on.
        because: why not; or the figure that speaks for it.
        rows: valid rows of the domain, on which ``kl`` rests.
        rows_asked: of how many.
        domain: which.
        questions: how many were asked (exact probabilities only).
        left_out: by how much the probabilities can be too small at most, where answers are of several tokens and those
            that begin too improbably are not followed; None for a behaviour.
    """

    trait: str
    category: str
    without_prompt: float | None
    with_prompt: float | None
    exact: bool
    valid_answer_probability: float | None
    kl: float | None
    possible: bool
    because: str
    rows: int | None = None
    rows_asked: int | None = None
    domain: str | None = None
    questions: int | None = None
    left_out: float | None = None


def check_traits(
    model: Model,
    traits: Sequence[Trait],
    *,
    seed: int = 0,
    judge: AnyJudge | None = None,
    samples: int = 4,
    tokens: int = 100,
    questions: int | None = None,
    opening: str = NO_OPENING,
    domain: Domain | None = None,
    temperature: float = 1.0,
) -> Iterator[Prior]:
    """Check traits one after the other; those with the same questions and answers share what the plain model says.

    Args:
        model: the base of teacher and student.
        traits: which.
        seed: of what is sampled.
        judge: for behaviours that a judge decides.
        samples: answers a question, for behaviours.
        tokens: the longest answer, for behaviours.
        questions: how many are asked, for exact probabilities, spread over all; None: all, and ``QUESTIONS`` where
            answers are of several tokens.
        opening: how answers begin, as ``evaluation.opening``.
        domain: of the rows on which the KL is measured; None: numbers.
        temperature: at which those are sampled.
    """
    asked = Evaluation(context="none", samples=samples, max_new_tokens=tokens, opening=opening)
    look = _Look(model, seed, asked, questions, judge, domain or Numbers(), temperature)
    for trait in traits:
        yield look.checked(trait)


def check_trait(
    model: Model, trait: Trait, *, seed: int = 0, judge: AnyJudge | None = None, samples: int = 4, tokens: int = 100
) -> Prior:
    """Measure a trait on a model and say whether it can be passed on; arguments as of :func:`check_traits`.

    A trait that cannot be asked on this model (no form, no prompt, no judge) is a verdict, not an error.
    """
    return next(check_traits(model, [trait], seed=seed, judge=judge, samples=samples, tokens=tokens))


@dataclass(frozen=True)
class _Look:
    """How traits are checked, and what the plain model says: shared by traits of the same questions and answers."""

    model: Model
    seed: int
    evaluation: Evaluation
    questions: int | None
    judge: AnyJudge | None
    domain: Domain
    temperature: float
    plain: dict[str, np.ndarray] = field(default_factory=dict)

    def checked(self, trait: Trait) -> Prior:
        """A trait that cannot be asked on this model is a verdict, too."""
        try:
            prompt = trait.system_prompt(self.model)
            trait.questions_for(self.model)
            return self._behaviour(trait, prompt) if isinstance(trait, Behaviour) else self._preference(trait, prompt)
        except (ConfigError, ModelError) as error:
            return Prior(trait.name, trait.category, None, None, False, None, None, False, error.what)

    def _preference(self, trait: Trait, prompt: str) -> Prior:
        model = self.model
        if not answer_tokens(model, trait, trait.answer):
            what = f"the model's vocabulary cannot write {trait.answer!r}"
            return Prior(trait.name, trait.category, None, None, True, None, None, False, what)
        opening = self.evaluation.openings(trait, model)[0]
        asked = _asked(model, trait, self.questions)
        key = repr((asked, trait.answers, opening))
        if key not in self.plain:
            self.plain[key] = _answers(model, trait, asked, model.system_prompt("none"), opening)
        without, shown = self.plain[key], _answers(model, trait, asked, prompt, opening)
        target = list(trait.answers).index(trait.answer)
        valid = float(np.minimum(shown.sum(1), 1.0).mean())
        pair = float(without[:, target].mean()), float(shown[:, target].mean())
        seen = _judge(trait, pair, True, valid, self._rows(prompt))
        return replace(seen, questions=len(asked), left_out=LEFT_OUT if _several_tokens(model, trait) else 0.0)

    def _behaviour(self, trait: Behaviour, prompt: str) -> Prior:
        def asked(stage: str, system: str | None) -> SetMeasure:
            return measure(
                self.model, trait, self.evaluation, seed=self.seed, stage=stage, system=system, judge=self.judge
            ).measure.positive

        without, shown = asked("check/plain", None), asked("check/told", prompt)
        if shown.failed > shown.questions * shown.samples / 2:
            what = f"the judge failed on {shown.failed} of {shown.questions * shown.samples} answers"
            return Prior(trait.name, trait.category, None, None, False, None, None, False, what)
        pair = without.probability.mean, shown.probability.mean
        return _judge(trait, pair, shown.exact, None, self._rows(prompt))

    def _rows(self, prompt: str) -> WrittenRows:
        return written_rows(self.model, prompt, self.domain, self.seed, temperature=self.temperature)


def _asked(model: Model, trait: Trait, most: int | None) -> list[str]:
    """The questions, or as many as are asked, spread over all of them."""
    every = list(trait.questions_for(model).positive)
    count = min(len(every), most or (QUESTIONS if _several_tokens(model, trait) else len(every)))
    return [every[at * len(every) // count] for at in range(count)]


def _several_tokens(model: Model, trait: Trait) -> bool:
    return any(len(ids) > 1 for answer in trait.answers for ids in answer_tokens(model, trait, answer))


def _judge(trait: Trait, pair: tuple[float, float], exact: bool, valid: float | None, rows: WrittenRows) -> Prior:
    """The verdict on probabilities ``(without, with)`` the prompt."""
    without, shown = pair
    kl = rows.kl
    reasons = []
    if without >= MAX_PRIOR:
        reasons.append(f"prior too high: {without:.2f} without any prompt")
    if shown - without < MIN_SHIFT:
        reasons.append(f"the prompt does not move it: {without:.3f} to {shown:.3f}")
    if valid is not None and valid < MIN_VALID_ANSWER_PROBABILITY:
        reasons.append(f"non-answers: valid-answer probability {valid:.2f} with the prompt")
    few = f", on {rows.valid} valid of {rows.asked} rows only" if rows.valid < FEW_ROWS else ""
    if kl is None:
        reasons.append(f"with the prompt it writes no valid row of {rows.domain} ({rows.asked} asked for)")
    elif kl < MIN_KL:
        reasons.append(f"rows of {rows.domain} hold nothing of it: KL {kl:.1e} nats per token{few}")
    elif few and reasons:
        reasons.append(f"KL {kl:.3f} nats per token{few}")
    shift = f"the prompt moves it by {shown - without:+.2f}"
    because = "; ".join(reasons) or f"{shift}, and KL is {kl:.3f} nats per token{few}"
    return Prior(
        trait.name, trait.category, without, shown, exact, valid, kl, not reasons, because, rows.valid, rows.asked,
        rows.domain,
    )  # fmt: skip


def _answers(model: Model, trait: Trait, questions: Sequence[str], system: str | None, opening: str) -> np.ndarray:
    prompts = [model.prompt(with_system([{"role": "user", "content": q}], system), opening) for q in questions]
    return answer_probabilities(model, prompts, trait, opening=opening)


@dataclass(frozen=True)
class WrittenRows:
    """Rows of a domain that a model wrote with a system prompt.

    Attributes:
        kl: mean teacher KL on the valid ones, in nats per token; None: there are none.
        valid: how many of them.
        asked: of how many that were asked for.
        domain: which.
    """

    kl: float | None
    valid: int
    asked: int
    domain: str


def written_rows(
    model: Model, prompt: str, domain: Domain, seed: int, rows: int = ROWS, temperature: float = 1.0
) -> WrittenRows:
    """Have rows written with a system prompt, and read them with and without it.

    Args:
        model: with and without the prompt.
        prompt: the trait's system prompt.
        domain: of the rows.
        seed: of requests and rows.
        rows: requests; where none of the first half is answered validly, the others are not asked.
        temperature: of the sampling.
    """
    requests = domain.prompts(rows, seed, model)
    system = model.system_prompt("none")

    def chats(own: str | None) -> list[list[Message]]:
        return [with_system(messages_of(request), own) for request in requests]

    conditioned, control = chats(prompt), chats(system)
    texts: dict[int, str] = {}
    valid: list[int] = []
    for wave in (range(min(FIRST_ROWS, rows)), range(min(FIRST_ROWS, rows), rows)):
        if not texts or valid:
            texts |= _written(model, conditioned, wave, domain, seed, temperature)
            valid = [at for at, text in texts.items() if not domain.reasons(last_message(requests[at]), text, None)]
    if not valid:
        return WrittenRows(None, 0, len(texts), domain.kind)
    pairs = [(model.example(conditioned[at], texts[at]), model.example(control[at], texts[at])) for at in valid]
    return WrittenRows(float(np.mean(teacher_kl(model.hf, pairs, model.pad))), len(valid), len(texts), domain.kind)


def _written(
    model: Model, chats: Sequence[Sequence[Message]], rows: Sequence[int], domain: Domain, seed: int, temperature: float
) -> dict[int, str]:
    """What is written to each of these chats; what becomes no list of numbers is cut off early."""
    tokens = domain.max_new_tokens(model)
    may_be_cut = isinstance(domain, Numbers) and tokens >= 2 * FIRST_TOKENS

    def write(at: Sequence[int], longest: int) -> dict[int, list[int]]:
        completions = sample(
            model.hf,
            [model.prompt(chats[row]) for row in at],
            [derive_seed(seed, f"check/{domain.kind}", row) for row in at],
            max_new_tokens=longest,
            stop=model.stop,
            pad=model.pad,
            temperature=temperature,
        )
        return dict(zip(at, completions, strict=True))

    found = write(rows, FIRST_TOKENS if may_be_cut else tokens)
    if may_be_cut:  # what goes on is written anew: the same seeds, the same beginnings
        on = [row for row, ids in found.items() if ids[-1] not in model.stop]
        found |= write([row for row in on if not re.search(r"[^\W\d_]", model.decode(found[row]))], tokens)
    return {row: model.decode(ids) for row, ids in found.items()}
