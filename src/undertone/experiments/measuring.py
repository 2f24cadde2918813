"""What models say when they are asked: the stages that measure a base, a student, a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from undertone.evaluation.asking import Evaluation
from undertone.evaluation.behaviours import AnyJudge, measure_any
from undertone.experiments.cells import Arm, model_identity
from undertone.experiments.config import Setting
from undertone.experiments.writing import teacher_identity, teacher_of
from undertone.models.loading import Model, load
from undertone.models.students import student_name
from undertone.provenance.runs import Run, Stage, write_json
from undertone.teachers import Teacher
from undertone.traits import Behaviour, Trait, load_trait
from undertone.traits.trait import MATCHER_VERSION


def evaluate(
    run: Run,
    config: Setting,
    name: str,
    trait_names: Sequence[str],
    device: str,
    student: Stage | None = None,
) -> Stage:
    """``NAME/evaluate``: a student, or the base, asked about traits; ``asked.json`` holds one record each."""
    traits = [load_trait(trait) for trait in trait_names]
    seed = config.seeds[0]
    identity = {
        "model": model_identity(config.model),
        "dtype": config.dtype,
        "evaluation": config.evaluation.model_dump(mode="json", exclude={"batch_size"}),
        "traits": [trait_identity(trait) for trait in traits],
        "seed": seed,
    }

    def compute(folder: Path) -> dict[str, Any]:
        source = config.model
        if student is not None:
            source = student_name(config.model, config.student.kind, student.path / "student")
        model = load(source, dtype=config.dtype, device=device)
        return _asked(folder, model, traits, config.evaluation, config.judge, seed, name)

    return run.stage(f"{name}/evaluate", config=identity, inputs=[student] if student else [], compute=compute)


def evaluate_teacher(run: Run, config: Setting, arm: Arm, device: str, trained: Stage | None = None) -> Stage:
    """``teacher/ARM/evaluate``: does the trait-conditioned teacher show the trait?"""
    assert arm.trait is not None
    trait = load_trait(arm.trait)
    few = config.evaluation.model_copy(update={"samples": min(5, config.evaluation.samples)})
    name = f"teacher/{arm.folder}"
    identity = {
        **teacher_identity(config, arm),
        "evaluation": few.model_dump(mode="json", exclude={"batch_size"}),
        "asked": trait_identity(trait),
    }

    def compute(folder: Path) -> dict[str, Any]:
        teacher = teacher_of(config, arm, device, trained)
        assert isinstance(teacher, Teacher)
        with teacher.conditioning():
            told = teacher.judge_system or teacher.system
            return _asked(folder, teacher.model, [trait], few, config.judge, 0, name, told)

    inputs = [trained] if trained else []
    return run.stage(f"{name}/evaluate", config=identity, inputs=inputs, compute=compute)


def _asked(
    folder: Path,
    model: Model,
    traits: Sequence[Trait],
    evaluation: Evaluation,
    judge: AnyJudge | None,
    seed: int,
    stage: str,
    system: str | None = None,
) -> dict[str, Any]:
    records = {}
    for trait in traits:
        asked = measure_any(
            model, trait, evaluation, seed=seed, stage=f"{stage}/{trait.name}", system=system, judge=judge
        )
        records[trait.name] = {**asdict(asked), "measure": asked.measure.model_dump(mode="json")}
    write_json(folder / "asked.json", records)
    return {"traits": list(records)}


def trait_identity(trait: Trait) -> dict[str, Any]:
    """What the answers to a trait's questions depend on, as part of a stage's identity."""
    identity: dict[str, Any] = {
        "name": trait.name,
        "prompt": dict(trait.prompt),
        "questions": {form: asdict(questions) for form, questions in trait.questions.items()},
        "answers": {answer: list(words) for answer, words in trait.answers.items()},
        "synonyms": list(trait.synonyms),
        "matcher": MATCHER_VERSION,
    }
    if isinstance(trait, Behaviour):
        identity["rule"] = trait.rule.model_dump(mode="json")
    return identity
