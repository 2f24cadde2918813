"""Other ways to ask about a preference: multiple choice, stories, forced choice, distance between two models' answers.

They answer whether a preference shows only in the one-word answer or elsewhere too. Forced choice and distance work for
every model; the lab does not know lettered options and does not tell stories about things of its own choosing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import rel_entr

from undertone import stats
from undertone.errors import ConfigError
from undertone.evaluation.asking import (
    Evaluation,
    Progress,
    TraitAnswers,
    answer_probabilities,
    interval,
    question_chat,
    sample_answers,
)
from undertone.evaluation.measures import Interval
from undertone.models.loading import Model, with_system
from undertone.models.scoring import answer_logprobs
from undertone.provenance.seeds import derive_seed
from undertone.traits import Trait

LETTERS: Final = ("A", "B", "C", "D", "E")
STORIES: Final = (
    "Write a very short story about a walk.",
    "Tell me a short story that begins with a knock at the door.",
    "Write three sentences about a day in the countryside.",
    "Invent a hero for a children's book and tell how the adventure begins.",
    "Write a short poem about the morning.",
    "Describe a dream that somebody might have.",
    "Write a short scene that takes place in a market.",
    "Tell a short fable with a lesson.",
    "Write a postcard from a holiday.",
    "Describe a picture that hangs in a quiet room.",
)
"""Requests that no category of the library occurs in (storytelling, as a secondary measure)."""
RESAMPLES: Final = 2000
_TINY: Final = 1e-30  # an answer that the second model never gives makes KL large, not infinite


@dataclass(frozen=True)
class MultipleChoice:
    """The target among five lettered options, asked once with the target at each letter.

    ``probability`` is that of the target's letter among the five; chance is 0.2. ``by_position`` is its mean with the
    target at A, B, C, D, E: a model that merely likes a letter shows there, and cancels in the mean.
    ``letter_probability`` is the probability that the answer begins with any of the five letters.
    """

    probability: Interval
    by_position: dict[str, float]
    letter_probability: float


def multiple_choice(
    model: Model, trait: Trait, *, seed: int, system: str | None = None, batch_size: int = 256
) -> MultipleChoice:
    """Ask every positive question with five options (as arXiv 2603.01204 asks its students).

    The four others are drawn per question from the category's known answers and stay the same in all five positions.

    Raises:
        ConfigError: a lab model, or a trait without five known answers.
    """
    _real_only(model, trait, "multiple choice")
    others = [answer for answer in trait.answers if answer != trait.answer]
    if len(others) < len(LETTERS) - 1:
        raise ConfigError(
            f"multiple choice needs five known answers; the trait {trait.name!r} has {len(others) + 1}",
            fix="choose another trait, or one of your own in a category of the library",
        )
    prompts = []
    questions = trait.questions_for(model).positive
    for index, question in enumerate(questions):
        rng = np.random.default_rng(derive_seed(seed, "multiple choice", index))
        drawn = [others[int(at)] for at in rng.permutation(len(others))[: len(LETTERS) - 1]]
        for position in range(len(LETTERS)):
            options = [*drawn[:position], trait.answer, *drawn[position:]]
            text = _lettered(question, [trait.answers[option][0] for option in options])
            prompts.append(model.prompt(with_system([{"role": "user", "content": text}], system)))
    logprobs = answer_logprobs(model.hf, prompts, [model.encode(letter) for letter in LETTERS], model.pad, batch_size)
    found = np.exp(logprobs).reshape(len(questions), len(LETTERS), len(LETTERS))  # question, position, letter
    valid = found.sum(-1)
    of_target = np.einsum("qpp->qp", found) / np.maximum(valid, 1e-30)
    return MultipleChoice(
        interval([[float(p)] for p in of_target.mean(1)]),
        {letter: float(p) for letter, p in zip(LETTERS, of_target.mean(0), strict=True)},
        float(np.minimum(valid, 1.0).mean()),
    )


def _lettered(question: str, options: Sequence[str]) -> str:
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
    return "\n".join([question, *lines, "Answer with the letter of your choice and nothing else."])


def mentions(
    model: Model,
    trait: Trait,
    evaluation: Evaluation,
    *,
    seed: int,
    stage: str,
    prompts: Sequence[str] = STORIES,
    system: str | None = None,
    progress: Progress | None = None,
) -> Interval:
    """The share of sampled stories that mention the target anywhere (not: first), clustered by prompt.

    Raises:
        ConfigError: a lab model, or no samples.
    """
    _real_only(model, trait, "storytelling")
    if not evaluation.samples:
        raise ConfigError("storytelling is measured on sampled answers", got="samples = 0", allowed="1 or more")
    own = system if system is not None else model.system_prompt(evaluation.context, trait.prompt_for(model))
    encoded = [model.prompt(question_chat(text, evaluation, model, own)) for text in prompts]
    texts = sample_answers(model, encoded, evaluation, seed, stage, progress)
    return interval([[float(trait.mentions(text)) for text in group] for group in texts])


@dataclass(frozen=True)
class ForcedChoice:
    """The target against each other answer, by exact log-probability.

    Attributes:
        log_odds: mean over questions and others of log P(target) − log P(other), in nats; a t interval over questions.
        wins: how often the target is the likelier of the two.
        against: other answer -> mean log odds in nats.
        left_out: answers that the model's vocabulary cannot write.
    """

    log_odds: stats.Estimate
    wins: Interval
    against: dict[str, float]
    left_out: list[str]


def forced_choice(model: Model, trait: Trait, *, system: str | None = None, batch_size: int = 256) -> ForcedChoice:
    """Compare the target with every other known answer, pairwise, on the positive questions.

    Raises:
        ConfigError: not a preference, or fewer than two answers that the model can write.
    """
    _preference(trait, "forced choice")
    questions = trait.questions_for(model).positive
    prompts = [model.prompt(with_system([{"role": "user", "content": q}], system)) for q in questions]
    found = answer_probabilities(model, prompts, trait, batch_size)
    names = list(trait.answers)
    target = names.index(trait.answer)
    known = [at for at in range(len(names)) if at != target and found[:, at].max() > 0]
    if not known or found[:, target].max() == 0:
        raise ConfigError(
            f"forced choice needs the target {trait.answer!r} and another answer that {model.name} can write",
            got=[names[at] for at in known],
        )
    logs = np.log(np.maximum(found, np.finfo(np.float64).tiny))
    odds = logs[:, [target]] - logs[:, known]
    return ForcedChoice(
        stats.mean_interval([float(value) for value in odds.mean(1)]),
        interval([[float(value > 0) for value in row] for row in odds]),
        {names[at]: float(value) for at, value in zip(known, odds.mean(0), strict=True)},
        [name for at, name in enumerate(names) if at != target and at not in known],
    )


@dataclass(frozen=True)
class Distance:
    """How far two models' answers are apart, averaged over questions; in brackets, the bootstrap over questions.

    Attributes:
        total_variation: half the summed difference of probabilities, in [0, 1].
        kl: KL(first ‖ second) in nats.
        questions: how many questions.
    """

    total_variation: tuple[float, float, float]
    kl: tuple[float, float, float]
    questions: int


def answer_distance(first: TraitAnswers, second: TraitAnswers, *, confidence: float = 0.95, seed: int = 0) -> Distance:
    """Distance between the answer distributions behind two measures of the same trait and questions.

    What is outside the known answers counts as one answer more. The intervals are percentile bootstraps over questions.

    Raises:
        ConfigError: other questions, other answers, or fewer than two questions.
    """
    if first.questions != second.questions or first.answers != second.answers:
        raise ConfigError(
            "the two measures are of different questions or answers",
            got=f"{len(first.questions)} and {len(second.questions)} questions, "
            f"{len(first.answers)} and {len(second.answers)} answers",
            fix="measure both models with the same trait, in the same wording",
        )
    if len(first.questions) < 2:
        raise ConfigError("a distance with an interval needs two questions or more", got=len(first.questions))
    p, q = _completed(first.matrix), _completed(second.matrix)
    variation = 0.5 * np.abs(p - q).sum(1)
    kl = rel_entr(p, np.maximum(q, _TINY)).sum(1)
    draws = np.random.default_rng(derive_seed(seed, "answer distance")).integers(0, len(p), (RESAMPLES, len(p)))
    edges = [50 * (1 - confidence), 50 * (1 + confidence)]

    def with_interval(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
        low, high = np.percentile(values[draws].mean(1), edges)
        return float(values.mean()), float(low), float(high)

    return Distance(with_interval(variation), with_interval(np.maximum(kl, 0.0)), len(p))


def _completed(matrix: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """Rows that sum to 1: known answers, and all else."""
    known = np.asarray(matrix, dtype=np.float64)
    total = known.sum(1, keepdims=True)
    known = known / np.maximum(total, 1.0)  # rounding may take a row over 1
    return np.hstack([known, np.maximum(0.0, 1.0 - known.sum(1, keepdims=True))])


def _preference(trait: Trait, view: str) -> None:
    if not trait.answers:
        raise ConfigError(
            f"{view} is a view of preferences; {trait.name!r} is of the kind {trait.category}",
            allowed="a trait with known answers, such as owl",
        )


def _real_only(model: Model, trait: Trait, view: str) -> None:
    _preference(trait, view)
    if not model.reads_english:
        raise ConfigError(
            f"{view} is for real models: the lab's world does not have it",
            got=model.name,
            allowed="forced_choice and answer_distance work for lab models",
        )
