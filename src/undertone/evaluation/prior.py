"""Can a trait be passed on from this model at all? Its prior, what the trait's prompt does, and whether data can carry it.

A student can only learn what its teacher shows and its rows differ in. So: the base must not have the trait already,
the prompt must move the answers, the model must be able to write the answer and keep answering, and the told model must
write its carrier rows (here: number lists) otherwise than the plain one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from undertone.domains.numbers import Numbers
from undertone.errors import ConfigError, ModelError
from undertone.evaluation.asking import Evaluation, answer_probabilities, answer_tokens
from undertone.evaluation.behaviours import AnyJudge
from undertone.evaluation.measuring import measure
from undertone.models.loading import Model, with_system
from undertone.models.sampling import sample
from undertone.models.scoring import carrier_kl
from undertone.provenance.seeds import derive_seed
from undertone.rows import Message
from undertone.traits import Behaviour, Trait

HIGHEST_PRIOR: Final = 0.5
LEAST_SHIFT: Final = 0.1
LEAST_MASS: Final = 0.2
LEAST_KL: Final = 1e-4
"""Where each of the four reasons begins; rules of thumb, the first three as probabilities, the last in nats per token."""
ROWS: Final = 32


@dataclass(frozen=True)
class Prior:
    """What a model makes of a trait.

    Attributes:
        trait: its name.
        category: its category or kind.
        base: probability (a behaviour: rate, unless ``exact``) without any prompt.
        told: the same when told the trait.
        exact: whether both are from logits.
        answer_mass: probability on all known answers when told; None for a behaviour.
        kl: KL(told ‖ plain) on number lists that the told model wrote, in nats per token; None: not measured.
        possible: whether the trait can be passed on.
        because: why not; or the figure that speaks for it.
    """

    trait: str
    category: str
    base: float | None
    told: float | None
    exact: bool
    answer_mass: float | None
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
        told = trait.told(model.form)
        trait.asked(model.form)
        if isinstance(trait, Behaviour):
            evaluation = Evaluation(context="none", samples=samples, max_new_tokens=tokens)
            return _behaviour(model, trait, told, evaluation, seed, judge)
        return _preference(model, trait, told, seed)
    except (ConfigError, ModelError) as error:
        return Prior(trait.name, trait.category, None, None, False, None, None, False, error.what)


def _preference(model: Model, trait: Trait, told: str, seed: int) -> Prior:
    if not answer_tokens(model, trait, trait.answer):
        what = f"the model's vocabulary cannot write {trait.answer!r}"
        return Prior(trait.name, trait.category, None, None, True, None, None, False, what)
    plain, induced = _answers(model, trait, model.system_prompt("none")), _answers(model, trait, told)
    target = list(trait.answers).index(trait.answer)
    base, shown = float(plain[:, target].mean()), float(induced[:, target].mean())
    mass = float(np.minimum(induced.sum(1), 1.0).mean())
    return _judged(trait, base, shown, True, mass, number_kl(model, told, seed))


def _behaviour(
    model: Model, trait: Behaviour, told: str, evaluation: Evaluation, seed: int, judge: AnyJudge | None
) -> Prior:
    plain = measure(model, trait, evaluation, seed=seed, stage="check/plain", judge=judge).measure.positive
    shown = measure(model, trait, evaluation, seed=seed, stage="check/told", system=told, judge=judge).measure.positive
    if shown.failed > shown.questions * shown.samples / 2:
        what = f"the judge failed on {shown.failed} of {shown.questions * shown.samples} answers"
        return Prior(trait.name, trait.category, None, None, False, None, None, False, what)
    base, induced = plain.probability.mean, shown.probability.mean
    return _judged(trait, base, induced, shown.exact, None, number_kl(model, told, seed))


def _judged(trait: Trait, base: float, told: float, exact: bool, mass: float | None, kl: float | None) -> Prior:
    reasons = []
    if base >= HIGHEST_PRIOR:
        reasons.append(f"prior too high: {base:.2f} without any prompt")
    if told - base < LEAST_SHIFT:
        reasons.append(f"the prompt does not move it: {base:.3f} to {told:.3f}")
    if mass is not None and mass < LEAST_MASS:
        reasons.append(f"non-answers: probability {mass:.2f} on all known answers, when told")
    if kl is None:
        reasons.append("the told model writes no number list")
    elif kl < LEAST_KL:
        reasons.append(f"number lists carry nothing of it: KL {kl:.1e} nats per token")
    because = "; ".join(reasons) or f"the prompt moves it by {told - base:+.2f}, and KL is {kl:.3f} nats per token"
    return Prior(trait.name, trait.category, base, told, exact, mass, kl, not reasons, because)


def _answers(model: Model, trait: Trait, system: str | None) -> np.ndarray:
    questions = trait.asked(model.form).positive
    prompts = [model.prompt(with_system([{"role": "user", "content": q}], system)) for q in questions]
    return answer_probabilities(model, prompts, trait)


def number_kl(model: Model, told: str, seed: int, rows: int = ROWS) -> float | None:
    """Mean KL(told ‖ plain) on valid number lists of the told model, in nats per token; None: it wrote none.

    Args:
        model: told and plain.
        told: the system prompt.
        seed: of requests and lists.
        rows: requests.
    """
    domain = Numbers()
    requests = [str(prompt) for prompt in domain.prompts(rows, seed, model.form)]
    system = model.system_prompt("none")

    def chats(own: str | None) -> list[list[Message]]:
        return [with_system([{"role": "user", "content": request}], own) for request in requests]

    induced, plain = chats(told), chats(system)
    completions = sample(
        model.hf,
        [model.prompt(chat) for chat in induced],
        [derive_seed(seed, "check/numbers", index) for index in range(rows)],
        max_new_tokens=domain.max_new_tokens(model.form),
        stop=model.stop,
        pad=model.pad,
    )
    texts = [model.decode(ids) for ids in completions]
    valid = [at for at, text in enumerate(texts) if not domain.reasons(requests[at], text, None)]
    if not valid:
        return None
    pairs = [(model.example(induced[at], texts[at]), model.example(plain[at], texts[at])) for at in valid]
    return float(np.mean(carrier_kl(model.hf, pairs, model.pad)))
