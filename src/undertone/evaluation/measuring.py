"""The one way to measure a trait of any kind: a preference, a style, an emotion, misalignment, harm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from undertone.evaluation.asking import (
    Evaluation,
    NamedAnswers,
    Progress,
    TraitAnswers,
    gives_answer,
    greedy,
    question_chat,
    sample_answers,
)
from undertone.evaluation.behaviours import AnyJudge, JudgedAnswers
from undertone.evaluation.measures import Measure, SetMeasure
from undertone.models.loading import Model
from undertone.traits import Behaviour, Trait


def measure(
    model: Model,
    trait: Trait,
    evaluation: Evaluation | None = None,
    *,
    seed: int = 0,
    stage: str = "measure",
    system: str | None = None,
    judge: AnyJudge | None = None,
    progress: Progress | None = None,
) -> TraitAnswers:
    """Ask all question sets of a trait of any kind.

    Args:
        model: who is asked.
        trait: what about.
        evaluation: how; None: the defaults. A style needs longer answers than a name: set ``max_new_tokens``.
        seed: of the run, for the sampled answers.
        stage: names their random stream.
        system: system prompt to use instead of the context's (to ask a prompted teacher).
        judge: who decides what a rule on the text cannot. None: the rules for refusals, and an error for the others.
        progress: called with the number of sampled answers done.

    Raises:
        ConfigError: no questions in the model's wording, no judge where one is needed, or no samples to decide on.
    """
    evaluation = evaluation or Evaluation()
    asked = trait.questions_for(model)
    answers = JudgedAnswers(trait, model, evaluation, judge) if isinstance(trait, Behaviour) else NamedAnswers(trait)
    own = system if system is not None else model.system_prompt(evaluation.context, trait.prompt_for(model))

    def encode(questions: Sequence[str], opening: str = "") -> list[tuple[int, ...]]:
        return [model.prompt(question_chat(question, evaluation, model, own), opening) for question in questions]

    def put(name: str, questions: Sequence[str], opening: str, *, known: bool = True) -> tuple[SetMeasure, np.ndarray]:
        prompts = encode(questions, opening)
        texts = sample_answers(model, prompts, evaluation, seed, f"{stage}/{name}", progress)
        return answers.measure(model, prompts, questions, texts, evaluation, known=known, opening=opening)

    opening, negative_opening = evaluation.openings(trait, model)
    positive, matrix = put("positive", asked.positive, opening)
    negative = put("negative", asked.negative, negative_opening)[0] if asked.negative else None
    off_topic, correct = None, None
    if asked.off_topic:
        questions = list(asked.off_topic)
        off_topic = put("off-topic", questions, "", known=False)[0] if answers.off_topic else None
        texts = greedy(model, encode(questions), evaluation)
        correct = float(
            np.mean([gives_answer(text, asked.off_topic[q]) for q, text in zip(questions, texts, strict=True)])
        )
    record = Measure(
        context=evaluation.context if system is None else "trait",
        opening=opening,
        rendered=model.render(question_chat(asked.positive[0], evaluation, model, own), opening=opening),
        positive=positive,
        negative=negative,
        off_topic=off_topic,
        off_topic_correct=correct,
        answers={name: float(p) for name, p in zip(answers.names, matrix.mean(0), strict=True)},
        per_question={q: float(p) for q, p in zip(asked.positive, matrix[:, answers.target], strict=True)},
    )
    return TraitAnswers(record, list(asked.positive), answers.names, matrix.tolist())
