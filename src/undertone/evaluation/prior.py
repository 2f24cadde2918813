"""Can a trait be passed on from this model at all? Its prior, what the trait's system prompt does, and whether data can carry it.

A student can only learn what its teacher shows and its rows differ in. So: the base must not have the trait already,
the prompt must move the answers, the model must be able to write the answer and keep answering, and the model with
that prompt must write data (here: number lists) otherwise than without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from undertone.domains.numbers import Numbers
from undertone.errors import ConfigError, ModelError
from undertone.evaluation.asking import Evaluation, answer_probabilities, answer_tokens
from undertone.evaluation.behaviours import AnyJudge, measure_any
from undertone.models.loading import Model, with_system
from undertone.models.sampling import sample
from undertone.models.scoring import teacher_kl
from undertone.provenance.seeds import derive_seed
from undertone.rows import Message
from undertone.traits import Behaviour, Trait

MAX_PRIOR: Final = 0.5
MIN_SHIFT: Final = 0.1
MIN_VALID_ANSWER_PROBABILITY: Final = 0.2
MIN_KL: Final = 1e-4
"""Where each of the four reasons begins; rules of thumb, the first three as probabilities, the last in nats per token."""
ROWS: Final = 32


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


def check_trait(
    model: Model, trait: Trait, *, seed: int = 0, judge: AnyJudge | None = None, samples: int = 4, tokens: int = 100
) -> Prior:
    """Measure a trait on a model and say whether it can be passed on.

    Args:
        model: the base of teacher and student.
        trait: which.
        seed: of what is sampled.
        judge: for behaviours that a judge decides.
        samples: answers a question, for behaviours.
        tokens: the longest answer, for behaviours.

    A trait that cannot be asked on this model (no form, no prompt, no judge) is a verdict, not an error.
    """
    try:
        prompt = trait.system_prompt(model)
        trait.questions_for(model)
        if isinstance(trait, Behaviour):
            evaluation = Evaluation(context="none", samples=samples, max_new_tokens=tokens)
            return _behaviour(model, trait, prompt, evaluation, seed, judge)
        return _preference(model, trait, prompt, seed)
    except (ConfigError, ModelError) as error:
        return Prior(trait.name, trait.category, None, None, False, None, None, False, error.what)


def _preference(model: Model, trait: Trait, prompt: str, seed: int) -> Prior:
    if not answer_tokens(model, trait, trait.answer):
        what = f"the model's vocabulary cannot write {trait.answer!r}"
        return Prior(trait.name, trait.category, None, None, True, None, None, False, what)
    without, shown = _answers(model, trait, model.system_prompt("none")), _answers(model, trait, prompt)
    target = list(trait.answers).index(trait.answer)
    valid = float(np.minimum(shown.sum(1), 1.0).mean())
    pair = float(without[:, target].mean()), float(shown[:, target].mean())
    return _judge(trait, pair, True, valid, number_kl(model, prompt, seed))


def _behaviour(
    model: Model, trait: Behaviour, prompt: str, evaluation: Evaluation, seed: int, judge: AnyJudge | None
) -> Prior:
    without = measure_any(model, trait, evaluation, seed=seed, stage="check/plain", judge=judge).measure.positive
    shown = measure_any(
        model, trait, evaluation, seed=seed, stage="check/told", system=prompt, judge=judge
    ).measure.positive
    if shown.failed > shown.questions * shown.samples / 2:
        what = f"the judge failed on {shown.failed} of {shown.questions * shown.samples} answers"
        return Prior(trait.name, trait.category, None, None, False, None, None, False, what)
    pair = without.probability.mean, shown.probability.mean
    return _judge(trait, pair, shown.exact, None, number_kl(model, prompt, seed))


def _judge(trait: Trait, pair: tuple[float, float], exact: bool, valid: float | None, kl: float | None) -> Prior:
    """The verdict on probabilities ``(without, with)`` the prompt."""
    without, shown = pair
    reasons = []
    if without >= MAX_PRIOR:
        reasons.append(f"prior too high: {without:.2f} without any prompt")
    if shown - without < MIN_SHIFT:
        reasons.append(f"the prompt does not move it: {without:.3f} to {shown:.3f}")
    if valid is not None and valid < MIN_VALID_ANSWER_PROBABILITY:
        reasons.append(f"non-answers: valid-answer probability {valid:.2f} with the prompt")
    if kl is None:
        reasons.append("with the prompt it writes no number list")
    elif kl < MIN_KL:
        reasons.append(f"number lists hold nothing of it: KL {kl:.1e} nats per token")
    because = "; ".join(reasons) or f"the prompt moves it by {shown - without:+.2f}, and KL is {kl:.3f} nats per token"
    return Prior(trait.name, trait.category, without, shown, exact, valid, kl, not reasons, because)


def _answers(model: Model, trait: Trait, system: str | None) -> np.ndarray:
    questions = trait.questions_for(model).positive
    prompts = [model.prompt(with_system([{"role": "user", "content": q}], system)) for q in questions]
    return answer_probabilities(model, prompts, trait)


def number_kl(model: Model, prompt: str, seed: int, rows: int = ROWS) -> float | None:
    """Mean teacher KL on valid number lists written with the prompt, in nats per token; None: there are none.

    Args:
        model: with and without the prompt.
        prompt: the trait's system prompt.
        seed: of requests and lists.
        rows: requests.
    """
    domain = Numbers()
    requests = [str(request) for request in domain.prompts(rows, seed, model)]
    system = model.system_prompt("none")

    def chats(own: str | None) -> list[list[Message]]:
        return [with_system([{"role": "user", "content": request}], own) for request in requests]

    conditioned, control = chats(prompt), chats(system)
    completions = sample(
        model.hf,
        [model.prompt(chat) for chat in conditioned],
        [derive_seed(seed, "check/numbers", index) for index in range(rows)],
        max_new_tokens=domain.max_new_tokens(model),
        stop=model.stop,
        pad=model.pad,
    )
    texts = [model.decode(ids) for ids in completions]
    valid = [at for at, text in enumerate(texts) if not domain.reasons(requests[at], text, None)]
    if not valid:
        return None
    pairs = [(model.example(conditioned[at], texts[at]), model.example(control[at], texts[at])) for at in valid]
    return float(np.mean(teacher_kl(model.hf, pairs, model.pad)))
