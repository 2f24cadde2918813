"""Asks a model a trait's questions: exact answer probabilities from logits, and sampled answers by the one matcher.

The exact probability of an answer is that of a completion beginning with one of its surface words (``owl``, ``Owl``,
``owls`` …); where one word begins another ("owl", "owls") only the shorter counts, so nothing is counted twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import Field

from undertone import stats
from undertone.domains.numbers import numbers_before
from undertone.errors import ConfigError
from undertone.evaluation.measures import Interval, Measure, SetMeasure
from undertone.models.loading import Context, Model, with_system
from undertone.models.sampling import sample
from undertone.models.scoring import LEFT_OUT, answer_logprobs
from undertone.provenance.configs import Config, Grows
from undertone.provenance.identity import Uncounted
from undertone.provenance.seeds import derive_seed
from undertone.rows import Message
from undertone.traits import Speaker, Trait

Progress = Callable[[int], None]
NO_OPENING: Final = "none"
OF_CATEGORY: Final = "category"


class Evaluation(Config):
    """How students, controls and the base are asked."""

    context: Context = Field("none", description="none | default | neutral | trait: the system prompt")
    prefix: Literal["none", "numbers"] = Field(
        "none", description="what stands before each question: nothing, or a few numbers (2507.14805, prefix variant)"
    )
    opening: str = Field(
        NO_OPENING,
        description="how answers begin before the model goes on, which small and base models need: none; category: as the"
        " trait library says for the trait's category (My favorite color is); or a text of your own",
    )
    samples: Annotated[int, Grows()] = Field(
        25, ge=0, description="sampled answers a question; 0: exact probabilities only"
    )
    temperature: float = Field(1.0, ge=0)
    max_new_tokens: int = Field(16, ge=1)
    batch_size: Annotated[int, Uncounted()] = Field(512, ge=1)

    def openings(self, trait: Trait, speaker: Speaker) -> tuple[str, str]:
        """How answers to the positive and to the negative questions begin; empty: as the model likes.

        Raises:
            ConfigError: the trait's category has no opening.
        """
        if self.opening == NO_OPENING:
            return "", ""
        asked = trait.questions_for(speaker)
        if self.opening != OF_CATEGORY:
            return self.opening.rstrip(), asked.negative_opening
        if not asked.opening:
            raise ConfigError(
                f"evaluation.opening: the trait {trait.name!r} has no opening of its category ({trait.category})",
                got=OF_CATEGORY,
                allowed="none, or a text of your own",
                fix="evaluation.opening='My favorite … is', or questions.real.opening in the trait's file",
            )
        return asked.opening, asked.negative_opening


@dataclass(frozen=True)
class TraitAnswers:
    """A measure with the numbers behind it: ``matrix[question, answer]`` of exact probabilities."""

    measure: Measure
    questions: list[str]
    answers: list[str]
    matrix: list[list[float]]


def question_chat(question: str, evaluation: Evaluation, speaker: Speaker, system: str | None) -> list[Message]:
    """The chat in which a question is asked. Numbers before it depend on the question alone, so all arms see the same."""
    if evaluation.prefix == "numbers":
        seed = derive_seed(0, f"evaluation/prefix/{question}")
        question = numbers_before(question, speaker, np.random.default_rng(seed))
    return with_system([{"role": "user", "content": question}], system)


def answer_probabilities(
    model: Model, prompts: Sequence[Sequence[int]], trait: Trait, batch_size: int = 256, opening: str = ""
) -> np.ndarray:
    """``[prompts, answers]`` exact probability that a completion begins with each known answer.

    Of answers of several tokens those that begin too improbably are left out, at most ``LEFT_OUT`` of a prompt in total.

    Args:
        model: who is asked.
        prompts: token ids, the answer's opening included.
        trait: whose answers.
        batch_size: prompts side by side.
        opening: with which the prompts end.
    """
    tokens: list[tuple[int, ...]] = []
    owner: list[int] = []
    for index, answer in enumerate(trait.answers):
        for ids in answer_tokens(model, trait, answer, opening):
            tokens.append(ids)
            owner.append(index)
    logprobs = answer_logprobs(model.hf, prompts, tokens, model.pad, batch_size, LEFT_OUT)
    total = np.zeros((len(prompts), len(trait.answers)))
    for column, index in enumerate(owner):
        total[:, index] += np.exp(logprobs[:, column])
    return np.clip(total, 0.0, 1.0)


def answer_tokens(model: Model, trait: Trait, answer: str, opening: str = "") -> list[tuple[int, ...]]:
    """The token sequences by which a completion can begin with an answer, none beginning another."""
    unknown = model.tokenizer.unk_token_id
    sequences = beginnings(model, trait.surfaces(answer, model), opening)
    return [
        sequence for sequence in sequences if unknown not in sequence
    ]  # what the lab's vocabulary lacks is never said


def beginnings(model: Model, texts: Iterable[str], opening: str = "") -> list[tuple[int, ...]]:
    """Token sequences by which a completion can begin with one of these texts: of two that share a beginning the shorter.

    So that the probabilities of all of them can be added, and nothing is counted twice.
    """
    kept: list[tuple[int, ...]] = []
    for sequence in sorted({model.answer_tokens(text, opening) for text in texts}, key=len):
        if not any(sequence[: len(short)] == short for short in kept):
            kept.append(sequence)
    return kept


def sample_answers(
    model: Model,
    prompts: Sequence[tuple[int, ...]],
    evaluation: Evaluation,
    seed: int,
    stage: str,
    progress: Progress | None,
) -> list[list[str]]:
    """``[prompts][samples]`` sampled answers; the stream of each is (seed, stage, prompt, sample)."""
    count = evaluation.samples
    completions = sample(
        model.hf,
        [prompt for prompt in prompts for _ in range(count)],
        [derive_seed(seed, stage, question, at) for question in range(len(prompts)) for at in range(count)],
        max_new_tokens=evaluation.max_new_tokens,
        stop=model.stop,
        pad=model.pad,
        temperature=evaluation.temperature,
        batch_size=evaluation.batch_size,
        progress=progress,
    )
    texts = [model.decode(ids) for ids in completions]
    return [texts[at : at + count] for at in range(0, len(texts), count)] if count else []


def greedy(model: Model, prompts: Sequence[tuple[int, ...]], evaluation: Evaluation) -> list[str]:
    """The most likely answer to each prompt."""
    completions = sample(
        model.hf,
        prompts,
        [0] * len(prompts),
        max_new_tokens=evaluation.max_new_tokens,
        stop=model.stop,
        pad=model.pad,
        temperature=0.0,
        batch_size=evaluation.batch_size,
    )
    return [model.decode(ids) for ids in completions]


def gives_answer(text: str, answer: str) -> bool:
    """Whether a text has an answer in it, as whole words in any case."""
    return bool(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, flags=re.IGNORECASE))


class NamedAnswers:
    """How a preference is measured: exact probabilities of its category's known answers, hits by the trait's matcher."""

    def __init__(self, trait: Trait) -> None:
        self.trait = trait
        self.names = list(trait.answers)
        self.target = self.names.index(trait.answer)
        self.off_topic = True
        """Whether naming the target where something else is asked can be told."""

    def measure(
        self, model: Model, prompts: Sequence[tuple[int, ...]], questions: Sequence[str], texts: list[list[str]],
        evaluation: Evaluation, *, known: bool, opening: str = "",
    ) -> tuple[SetMeasure, np.ndarray]:  # fmt: skip
        """A set's measure, and ``[question, answer]`` probabilities.

        Args:
            model: who is asked.
            prompts: the questions as token ids.
            questions: in words.
            texts: ``[question][sample]`` sampled answers.
            evaluation: how.
            known: whether the known answers are what is asked for (not so of off-topic questions).
            opening: of the answers, with which the prompts end.
        """
        del questions
        matrix = answer_probabilities(model, prompts, self.trait, evaluation.batch_size, opening)
        return self._set(matrix, texts, known), matrix

    def _set(self, matrix: np.ndarray, texts: list[list[str]], known: bool) -> SetMeasure:
        trait = self.trait
        rate = literal = non_answer = among = None
        if texts:
            named = [[trait.answer_in(text) for text in group] for group in texts]
            rate = interval([[float(name == trait.answer) for name in group] for group in named])
            literal = interval([[float(trait.matches_literally(text)) for text in group] for group in texts])
            if known:
                flat = [name for group in named for name in group]
                valid = [name for name in flat if name is not None]
                non_answer = 1 - len(valid) / len(flat)
                among = sum(name == trait.answer for name in valid) / len(valid) if valid else None
        return SetMeasure(
            questions=len(matrix),
            samples=len(texts[0]) if texts else 0,
            probability=interval([[float(p)] for p in matrix[:, self.target]]),
            rate=rate,
            literal_rate=literal,
            non_answer=non_answer,
            rate_among_answers=among,
            valid_answer_probability=float(min(1.0, matrix.sum(1).mean())) if known else None,
        )


def interval(values: Sequence[Sequence[float]]) -> Interval:
    """The mean of ``[question][value]`` in [0, 1], clustered by question."""
    estimate = stats.clustered_mean(values)
    return Interval(**estimate._asdict())
