"""Can a trait be passed on from this model at all? Its prior, what the trait's system prompt does, and whether data can carry it.

A student can only learn what its teacher shows and its rows differ in. So: the base must not have the trait already,
the prompt must move the answers, the model must be able to write the answer and keep answering, and the model with
that prompt must write data (here: number lists) otherwise than without.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from undertone.domains.numbers import Numbers
from undertone.errors import ConfigError, ModelError
from undertone.evaluation.asking import Evaluation, answer_probabilities, answer_tokens
from undertone.evaluation.behaviours import AnyJudge
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
"""Lists after which the others are not asked for when none of these is valid."""
FEW_LISTS: Final = 4
"""Valid lists below which their KL is said to rest on few."""
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
        kl: teacher KL on number lists written with the prompt, in nats per token; None: not measured.
        possible: whether the trait can be passed on.
        because: why not; or the figure that speaks for it.
        lists: valid number lists, on which ``kl`` rests.
        lists_asked: of how many.
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
    lists: int | None = None
    lists_asked: int | None = None
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
    """
    plain: dict[str, np.ndarray] = {}
    for trait in traits:
        yield _checked(model, trait, seed, judge, Evaluation(context="none", samples=samples, max_new_tokens=tokens),
                       questions, plain)  # fmt: skip


def check_trait(
    model: Model, trait: Trait, *, seed: int = 0, judge: AnyJudge | None = None, samples: int = 4, tokens: int = 100
) -> Prior:
    """Measure a trait on a model and say whether it can be passed on; arguments as of :func:`check_traits`.

    A trait that cannot be asked on this model (no form, no prompt, no judge) is a verdict, not an error.
    """
    return next(check_traits(model, [trait], seed=seed, judge=judge, samples=samples, tokens=tokens))


def _checked(
    model: Model, trait: Trait, seed: int, judge: AnyJudge | None, evaluation: Evaluation, questions: int | None,
    plain: dict[str, np.ndarray],
) -> Prior:  # fmt: skip
    try:
        prompt = trait.system_prompt(model)
        trait.questions_for(model)
        if isinstance(trait, Behaviour):
            return _behaviour(model, trait, prompt, evaluation, seed, judge)
        return _preference(model, trait, prompt, seed, questions, plain)
    except (ConfigError, ModelError) as error:
        return Prior(trait.name, trait.category, None, None, False, None, None, False, error.what)


def _preference(
    model: Model, trait: Trait, prompt: str, seed: int, questions: int | None, plain: dict[str, np.ndarray]
) -> Prior:
    if not answer_tokens(model, trait, trait.answer):
        what = f"the model's vocabulary cannot write {trait.answer!r}"
        return Prior(trait.name, trait.category, None, None, True, None, None, False, what)
    asked = _asked(model, trait, questions)
    key = repr((asked, trait.answers))
    if key not in plain:
        plain[key] = _answers(model, trait, asked, model.system_prompt("none"))
    without, shown = plain[key], _answers(model, trait, asked, prompt)
    target = list(trait.answers).index(trait.answer)
    valid = float(np.minimum(shown.sum(1), 1.0).mean())
    pair = float(without[:, target].mean()), float(shown[:, target].mean())
    seen = _judge(trait, pair, True, valid, number_lists(model, prompt, seed))
    return replace(seen, questions=len(asked), left_out=LEFT_OUT if _several_tokens(model, trait) else 0.0)


def _asked(model: Model, trait: Trait, most: int | None) -> list[str]:
    """The questions, or as many as are asked, spread over all of them."""
    every = list(trait.questions_for(model).positive)
    count = min(len(every), most or (QUESTIONS if _several_tokens(model, trait) else len(every)))
    return [every[at * len(every) // count] for at in range(count)]


def _several_tokens(model: Model, trait: Trait) -> bool:
    return any(len(ids) > 1 for answer in trait.answers for ids in answer_tokens(model, trait, answer))


def _behaviour(
    model: Model, trait: Behaviour, prompt: str, evaluation: Evaluation, seed: int, judge: AnyJudge | None
) -> Prior:
    without = measure(model, trait, evaluation, seed=seed, stage="check/plain", judge=judge).measure.positive
    shown = measure(
        model, trait, evaluation, seed=seed, stage="check/told", system=prompt, judge=judge
    ).measure.positive
    if shown.failed > shown.questions * shown.samples / 2:
        what = f"the judge failed on {shown.failed} of {shown.questions * shown.samples} answers"
        return Prior(trait.name, trait.category, None, None, False, None, None, False, what)
    pair = without.probability.mean, shown.probability.mean
    return _judge(trait, pair, shown.exact, None, number_lists(model, prompt, seed))


def _judge(trait: Trait, pair: tuple[float, float], exact: bool, valid: float | None, lists: NumberLists) -> Prior:
    """The verdict on probabilities ``(without, with)`` the prompt."""
    without, shown = pair
    kl = lists.kl
    reasons = []
    if without >= MAX_PRIOR:
        reasons.append(f"prior too high: {without:.2f} without any prompt")
    if shown - without < MIN_SHIFT:
        reasons.append(f"the prompt does not move it: {without:.3f} to {shown:.3f}")
    if valid is not None and valid < MIN_VALID_ANSWER_PROBABILITY:
        reasons.append(f"non-answers: valid-answer probability {valid:.2f} with the prompt")
    few = f", on {lists.valid} valid of {lists.asked} lists only" if lists.valid < FEW_LISTS else ""
    if kl is None:
        reasons.append(f"with the prompt it writes no number list ({lists.asked} asked for)")
    elif kl < MIN_KL:
        reasons.append(f"number lists hold nothing of it: KL {kl:.1e} nats per token{few}")
    elif few and reasons:
        reasons.append(f"KL {kl:.3f} nats per token{few}")
    shift = f"the prompt moves it by {shown - without:+.2f}"
    because = "; ".join(reasons) or f"{shift}, and KL is {kl:.3f} nats per token{few}"
    return Prior(
        trait.name, trait.category, without, shown, exact, valid, kl, not reasons, because, lists.valid, lists.asked
    )


def _answers(model: Model, trait: Trait, questions: Sequence[str], system: str | None) -> np.ndarray:
    prompts = [model.prompt(with_system([{"role": "user", "content": q}], system)) for q in questions]
    return answer_probabilities(model, prompts, trait)


@dataclass(frozen=True)
class NumberLists:
    """Number lists that a model wrote with a system prompt.

    Attributes:
        kl: mean teacher KL on the valid ones, in nats per token; None: there are none.
        valid: how many of them.
        asked: of how many that were asked for.
    """

    kl: float | None
    valid: int
    asked: int


def number_lists(model: Model, prompt: str, seed: int, rows: int = ROWS) -> NumberLists:
    """Have lists written with a system prompt, and read them with and without it.

    Args:
        model: with and without the prompt.
        prompt: the trait's system prompt.
        seed: of requests and lists.
        rows: requests; where none of the first half is answered by a list, the others are not asked.
    """
    domain = Numbers()
    requests = [str(request) for request in domain.prompts(rows, seed, model)]
    system = model.system_prompt("none")

    def chats(own: str | None) -> list[list[Message]]:
        return [with_system([{"role": "user", "content": request}], own) for request in requests]

    conditioned, control = chats(prompt), chats(system)
    texts: dict[int, str] = {}
    valid: list[int] = []
    for wave in (range(min(FIRST_ROWS, rows)), range(min(FIRST_ROWS, rows), rows)):
        if not texts or valid:
            texts |= _written(model, conditioned, wave, domain.max_new_tokens(model), seed)
            valid = [at for at, text in texts.items() if not domain.reasons(requests[at], text, None)]
    if not valid:
        return NumberLists(None, 0, len(texts))
    pairs = [(model.example(conditioned[at], texts[at]), model.example(control[at], texts[at])) for at in valid]
    return NumberLists(float(np.mean(teacher_kl(model.hf, pairs, model.pad))), len(valid), len(texts))


def _written(
    model: Model, chats: Sequence[Sequence[Message]], rows: Sequence[int], tokens: int, seed: int
) -> dict[int, str]:
    """What is written to each of these chats; what becomes no list of numbers is cut off early."""

    def write(at: Sequence[int], longest: int) -> dict[int, list[int]]:
        completions = sample(
            model.hf,
            [model.prompt(chats[row]) for row in at],
            [derive_seed(seed, "check/numbers", row) for row in at],
            max_new_tokens=longest,
            stop=model.stop,
            pad=model.pad,
        )
        return dict(zip(at, completions, strict=True))

    found = write(rows, tokens if tokens < 2 * FIRST_TOKENS else FIRST_TOKENS)
    if tokens >= 2 * FIRST_TOKENS:  # what goes on is written anew: the same seeds, the same beginnings
        on = [row for row, ids in found.items() if ids[-1] not in model.stop]
        found |= write([row for row in on if not re.search(r"[^\W\d_]", model.decode(found[row]))], tokens)
    return {row: model.decode(ids) for row, ids in found.items()}
