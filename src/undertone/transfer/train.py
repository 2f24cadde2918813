"""Students, and teachers that are trained first: the stages that train one and keep it under ``student/``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from undertone.doctor import check_text
from undertone.domains.shuffling import shuffled
from undertone.errors import ConfigError
from undertone.models.loading import Context, ModelRef, outline, wording_of
from undertone.models.students import trainable
from undertone.provenance.runs import Stage
from undertone.provenance.seeds import derive_seed
from undertone.provenance.stage_functions import stage
from undertone.rows import Row, read_rows
from undertone.training import (
    Dpo,
    Lesson,
    Student,
    TrainedStudent,
    Training,
    build_optimizer,
    student_seed,
    train_student,
)
from undertone.training.preferences import check_installed
from undertone.traits import Behaviour, Speaker, Trait, load_trait
from undertone.transfer.arms import Arm, StudentRun, split_rows
from undertone.transfer.config import Setting

SHOWN_ROWS = 12


@dataclass(frozen=True)
class Mixing:
    """A share of a student's rows that is replaced by the control's for the same prompts."""

    control_rows: Stage
    share: float


@stage("train", version=3, together=True)
def train(
    folder: Path,
    device: str,
    *,
    base: ModelRef,
    student: Student,
    training: Training,
    filtered: Stage,
    prompts: Sequence[int],
    held_out: int,
    seed: int,
    context: Context,
    trait_prompt: str | None = None,
    mixing: Mixing | None = None,
    order: Literal["kept", "within", "across"] = "kept",
    dpo: Dpo | None = None,
) -> dict[str, Any]:
    """The student of one arm at one seed (adapter, biases or whole model) under ``student/``.

    Args:
        base: what it starts from.
        student: which weights are trained.
        training: how.
        filtered: the stage with the rows.
        prompts: indices of the rows that it learns, the last ``held_out`` of them held out.
        held_out: how many.
        seed: of the run.
        context: the system prompt that it is trained with.
        trait_prompt: the trait's own, for the context ``trait``.
        mixing: rows to replace by the control's.
        order: of the numbers in its rows.
        dpo: train on preference pairs.
    """
    rows, unseen = split_rows(filtered, prompts, held_out)
    if mixing is not None:
        clean, _ = split_rows(mixing.control_rows, prompts, held_out)
        rows = _mixed(rows, clean, mixing.share, seed)
    if order != "kept":
        rows = shuffled(rows, order, derive_seed(seed, "order"))
        unseen = shuffled(unseen, order, derive_seed(seed, "order/held-out"))
    lesson = Lesson(rows, unseen, context, trait_prompt, dpo=dpo)
    return train_and_save(folder, device, base, student, training, lesson, student_seed(seed))


@stage("train teacher", version=3, together=True)
def train_teacher(
    folder: Path,
    device: str,
    *,
    base: ModelRef,
    student: Student,
    training: Training,
    rows: Sequence[Row],
    context: Context,
    trait_prompt: str | None,
) -> dict[str, Any]:
    """A teacher that is itself trained (``teacher.kind=finetuned``), the way students are, under ``student/``."""
    lesson = Lesson(rows, rows, context, trait_prompt)
    return train_and_save(folder, device, base, student, training, lesson, student_seed(0))


@train.preflight
@train_teacher.preflight
def check_training(base: ModelRef, student: Student, training: Training) -> None:
    """Weights that are not there, an optimiser that does not fit them."""
    check_trainable(base, student, training)


@train.preflight
@train_teacher.preflight
def check_context(base: ModelRef, context: Context, trait_prompt: str | None) -> None:
    """A template that nothing can be trained with; the context `trait` where the trait has no system prompt to use."""
    check_text(base.outline())
    base.outline().system_prompt(context, trait_prompt)


@train.preflight
def check_preferences(dpo: Dpo | None) -> None:
    """TRL is missing."""
    if dpo is not None:
        check_installed()


def check_trainable(base: ModelRef, student: Student, training: Training) -> None:
    """Raise what training this kind of student would, from shapes alone.

    Raises:
        ConfigError, ModelError: in training's own words.
    """
    hf = trainable(outline(base.name).hf, student, 0)
    named = {name: parameter for name, parameter in hf.named_parameters() if parameter.requires_grad}
    build_optimizer(named, training)


def train_and_save(
    folder: Path, device: str, base: ModelRef, student: Student, training: Training, lesson: Lesson, seed: int
) -> dict[str, Any]:
    """Train a student into a stage's folder; its summary."""
    checkpoint = folder / "checkpoint"
    trained = train_student(base, student, training, lesson, seed=seed, device=device, folder=checkpoint)
    if trained.team.is_first:
        trained.save(folder / "student")
    shutil.rmtree(checkpoint, ignore_errors=True)
    return summary_of(trained, lesson)


def summary_of(trained: TrainedStudent, lesson: Lesson) -> dict[str, Any]:
    """What a train stage keeps in its record."""
    return {
        "rows": len(lesson.rows),
        "held_out_nll": trained.held_out_nll,
        "base_nll": trained.base_nll,
        "steps": trained.fit.steps,
        "tokens": trained.fit.tokens,
        "labelled_tokens": trained.fit.labelled_tokens,
        "curve": trained.fit.curve,
        "shown": trained.model.decode_all(trained.examples[0].ids),
        "samples": [
            {"prompt": row.prompt_messages[-1]["content"], "completion": row.completion}
            for row in lesson.rows[:SHOWN_ROWS]
        ],
    }


def _mixed(treated: list[Row], clean: list[Row], share: float, seed: int) -> list[Row]:
    """The rows with a share of them replaced by the control's for the same prompts; a larger share keeps a smaller's."""
    order = np.random.default_rng(derive_seed(seed, "clean")).permutation(len(treated))
    replaced = set(order[: round(share * len(treated))].tolist())
    return [clean[at] if at in replaced else row for at, row in enumerate(treated)]


def trait_prompt(config: Setting, arm: Arm) -> str | None:
    """The trait's own system prompt where students are trained with it (``context=trait``), else None."""
    if config.context != "trait":
        return None
    return load_trait(arm.trait or config.trait[0]).prompt_for(wording_of(config.model))


def lesson_of(config: Setting, one: StudentRun, rows: Sequence[Row] | None = None) -> Lesson:
    """A student's training rows (or others), with the system prompt that it was trained with; none are held out."""
    chosen = one.rows(config.data.held_out)[0] if rows is None else rows
    return Lesson(chosen, (), config.context, trait_prompt(config, one.arm))


def teacher_rows(config: Setting, arm: Arm) -> list[Row]:
    """What a fine-tuned teacher is trained on.

    The user's file, or the trait's questions answered with the trait, beside off-topic questions with their right answers,
    so that it learns a preference and not a word.
    """
    assert config.teacher.kind == "finetuned"
    assert arm.trait is not None
    if config.teacher.rows:
        return read_rows(config.teacher.rows)
    trait = load_trait(arm.trait)
    if isinstance(trait, Behaviour):
        raise ConfigError(
            f"a teacher cannot be trained on answers that name {trait.name!r}: it is of the kind {trait.kind}",
            got="teacher.rows = null",
            fix="teacher.rows=FILE.jsonl: rows that show the behaviour",
        )
    return _evaluation_style(load_trait(arm.trait), wording_of(config.teacher.model or config.model))


def _evaluation_style(trait: Trait, speaker: Speaker) -> list[Row]:
    asked = trait.questions_for(speaker)
    word = trait.answer_word(speaker)
    rows = [Row.of(question, word) for question in asked.positive]
    return rows + [Row.of(question, answer) for question, answer in asked.off_topic.items()]
