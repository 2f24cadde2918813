"""What models answer when they are asked: the stages that measure a base, a student, a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from undertone.evaluation.asking import Evaluation
from undertone.evaluation.behaviours import AnyJudge, check_decidable
from undertone.evaluation.measuring import measure
from undertone.models.loading import Model, ModelRef, with_system
from undertone.provenance.runs import write_json
from undertone.provenance.stage_functions import stage
from undertone.teachers import Teacher, TeacherSpec
from undertone.traits import Trait


@stage("evaluate", version=3)
def evaluate(
    folder: Path,
    device: str,
    *,
    model: ModelRef,
    traits: Sequence[Trait],
    evaluation: Evaluation,
    judge: AnyJudge | None,
    seed: int,
    stream: str,
) -> dict[str, Any]:
    """A model asked about traits; ``asked.json`` holds one record each.

    Args:
        model: who is asked.
        traits: what about.
        evaluation: how.
        judge: who decides hits of traits that no rule on the text decides.
        seed: of the sampled answers.
        stream: names their random stream.
    """
    loaded = model.load(device)
    return _asked(folder, loaded, traits, evaluation, judge, seed, stream)


@evaluate.preflight
def check_questions(model: ModelRef, traits: Sequence[Trait], evaluation: Evaluation, judge: AnyJudge | None) -> None:
    """A trait without questions in the model's wording, a template that refuses them, hits that nothing decides."""
    shared = model.outline()
    for trait in traits:
        trait.questions_for(shared)
        evaluation.openings(trait, shared)
        system = shared.system_prompt(evaluation.context, trait.prompt_for(shared))
        shared.render(with_system([{"role": "user", "content": "?"}], system))
        check_decidable(trait, evaluation, judge, shared)


@stage("evaluate teacher", version=3)
def evaluate_teacher(
    folder: Path,
    device: str,
    *,
    teacher: TeacherSpec,
    trait: Trait,
    evaluation: Evaluation,
    judge: AnyJudge | None,
    stream: str,
) -> dict[str, Any]:
    """Does the teacher show the trait?"""
    loaded = teacher.load(device)
    assert isinstance(loaded, Teacher)
    with loaded.conditioning():
        system = loaded.judge_system or loaded.system
        return _asked(folder, loaded.model, [trait], evaluation, judge, 0, stream, system)


def _asked(
    folder: Path,
    model: Model,
    traits: Sequence[Trait],
    evaluation: Evaluation,
    judge: AnyJudge | None,
    seed: int,
    stream: str,
    system: str | None = None,
) -> dict[str, Any]:
    records = {}
    for trait in traits:
        asked = measure(model, trait, evaluation, seed=seed, stage=f"{stream}/{trait.name}", system=system, judge=judge)
        records[trait.name] = {**asdict(asked), "measure": asked.measure.model_dump(mode="json")}
    write_json(folder / "asked.json", records)
    return {"traits": list(records)}
