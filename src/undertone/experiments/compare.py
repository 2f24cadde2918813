"""From stages to results: effects with intervals, the confusion matrix, the checks, the verdict, the sentence."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import numpy as np

from undertone import stats
from undertone.evaluation.measures import Interval, Measure
from undertone.experiments.cells import Outcome, StudentRun
from undertone.experiments.config import Experiment
from undertone.experiments.results import (
    ArmResult,
    Check,
    Confusion,
    Cost,
    Effect,
    FilterCount,
    Results,
    SampleRow,
    Word,
)
from undertone.experiments.verdict import checks_of, word_of
from undertone.teachers import EndpointTeacher, FinetunedTeacher, JudgeTeacher, PromptTeacher, VectorTeacher


def conclude(config: Experiment, outcome: Outcome, replay: str) -> Results:
    """Compare arms, check what the verdict rests on, and say it."""
    base = {trait: _measure(record) for trait, record in outcome.base.read_json("asked.json").items()}
    teachers = {
        arm.folder: _measure(record)
        for arm, stage in outcome.teachers.items()
        for record in stage.read_json("asked.json").values()
    }
    arms = [result for cell in outcome.cells for result in _arm_results(cell, config)]
    effects = [
        _effect(config, arms, kind, trait)
        for kind in ("treated", "random-vector")
        for trait in base
        if any(arm.arm == kind and arm.trait == trait for arm in arms)
    ]
    treated = [effect for effect in effects if effect.arm == "treated"]
    effect = treated[0] if len(treated) == 1 else _pooled(config, treated)
    # A matrix needs answers to one and the same questions: traits of one category, none of them told in two ways.
    answers = next(iter(base.values())).answers
    confusion = _confusion(config, outcome, base) if len(base) > 1 and all(trait in answers for trait in base) else None
    checks = checks_of(config, base, teachers, arms)
    word = word_of(effect, checks)
    return Results(
        experiment=config.name,
        model=config.model,
        trait=next(iter(base)) if len(base) == 1 else f"{len(base)} traits",
        domain=config.domain.kind,
        teacher=_teacher_in_words(config),
        student=_student_in_words(config),
        verdict=word,
        sentence=sentence(config, word, effect, treated, base, arms, confusion, checks),
        base=base,
        teachers=teachers,
        arms=arms,
        effect=effect,
        effects=effects,
        confusion=confusion,
        checks=checks,
        costs=[
            Cost(
                stage=stage.name,
                seconds=round(stage.seconds, 2),
                tokens=stage.summary.get("tokens"),
            )
            for stage in outcome.stages()
        ],
        environment=environment(),
        replay=replay,
    )


def _measure(record: dict[str, Any]) -> Measure:
    return Measure.model_validate(record["measure"])


def _arm_results(cell: StudentRun, config: Experiment) -> list[ArmResult]:
    """One record per trait that the student was asked about (a control is asked about all)."""
    trained, written = cell.trained.summary, cell.filtered.summary
    results = []
    for trait, record in cell.evaluated.read_json("asked.json").items():
        measure = _measure(record)
        positive = measure.positive
        results.append(
            ArmResult(
                arm=cell.arm.kind,
                trait=trait,
                seed=cell.seed,
                rate=positive.rate.mean if positive.rate else None,
                probability=positive.probability.mean,
                non_answer=positive.non_answer,
                held_out_nll=trained["held_out_nll"],
                base_nll=trained["base_nll"],
                rows=trained["rows"],
                steps=trained["steps"],
                teacher_kl=cell.generated.summary["teacher_kl"],
                filter=FilterCount(**written),
                measure=measure,
                curve=[(int(step), float(loss)) for step, loss in trained["curve"]],
                samples=[SampleRow(**row) for row in trained["samples"]],
            )
        )
    return results


def _per_question(arms: list[ArmResult], kind: str, trait: str, seeds: tuple[int, ...]) -> list[list[float]]:
    found = {arm.seed: arm for arm in arms if arm.arm == kind and arm.trait == trait}
    return [list(found[seed].measure.per_question.values()) for seed in seeds]


def _effect(config: Experiment, arms: list[ArmResult], kind: str, trait: str) -> Effect:
    effect = stats.paired_effect(
        _per_question(arms, kind, trait, config.seeds),
        _per_question(arms, "control", trait, config.seeds),
        config.confidence,
    )
    return _as_effect(effect, kind, trait)


def _as_effect(effect: stats.PairedEffect, kind: str, trait: str) -> Effect:
    values = effect._asdict()
    return Effect(arm=kind, trait=trait, metric="probability", per_seed=values.pop("per_pair"), **values)


def _pooled(config: Experiment, effects: list[Effect]) -> Effect:
    """Mean over traits: traits are the units of inference (each the mean of its seeds)."""
    means = [effect.mean for effect in effects]
    estimate = stats.mean_interval(means, config.confidence)
    return Effect(
        arm="treated",
        trait=f"{len(effects)} traits",
        metric="probability",
        mean=estimate.mean,
        low=max(-1.0, estimate.low),
        high=min(1.0, estimate.high),
        confidence=config.confidence,
        pairs=len(config.seeds),
        method=f"t interval over {len(effects)} traits, each the mean of its {len(config.seeds)} seed pairs",
        per_seed=[float(np.mean([effect.per_seed[at] for effect in effects])) for at in range(len(config.seeds))],
        smallest_detectable=None,
    )


def _confusion(config: Experiment, outcome: Outcome, base: dict[str, Measure]) -> Confusion:
    """Target × answer, exact probability, mean over questions and seeds."""
    targets = list(base)

    def mean_answers(cells: list[StudentRun], trait: str) -> np.ndarray:
        rows = []
        for cell in cells:
            answers = cell.evaluated.read_json("asked.json")[trait]["measure"]["answers"]
            rows.append([answers[target] for target in targets])
        mean: np.ndarray = np.array(rows).mean(0)
        return mean

    treated = [[c for c in outcome.cells if c.arm.kind == "treated" and c.arm.name == t] for t in targets]
    matrix = np.stack([mean_answers(cells, t) for cells, t in zip(treated, targets, strict=True)])
    control = mean_answers([c for c in outcome.cells if c.arm.kind == "control"], targets[0])
    # What a student says of its own target, minus what the other students say of it: one unit a target.
    others = (matrix.sum(0) - matrix.diagonal()) / (len(targets) - 1)
    difference = stats.mean_interval(list(matrix.diagonal() - others), config.confidence)
    return Confusion(
        targets=targets,
        answers=targets,
        probability=matrix.tolist(),
        control=control.tolist(),
        base=[base[targets[0]].answers[target] for target in targets],
        on_top=int(sum(_top(cells, target) == target for cells, target in zip(treated, targets, strict=True))),
        diagonal_minus_off=Interval(
            mean=difference.mean,
            low=difference.low,
            high=difference.high,
            n=difference.n,
            method="t interval over targets: own student minus the other students' mean",
        ),
    )


def _top(cells: list[StudentRun], trait: str) -> str:
    """The most probable of ALL known answers, mean over seeds."""
    total: dict[str, float] = {}
    for cell in cells:
        for answer, p in cell.evaluated.read_json("asked.json")[trait]["measure"]["answers"].items():
            total[answer] = total.get(answer, 0.0) + p
    return max(total, key=lambda answer: total[answer])


def sentence(
    config: Experiment,
    word: Word,
    effect: Effect,
    per_trait: list[Effect],
    base: dict[str, Measure],
    arms: list[ArmResult],
    confusion: Confusion | None,
    checks: list[Check],
) -> str:
    """The result in one sentence, with the control, the base and the interval."""
    points = (
        f"{100 * effect.mean:+.1f} points, {100 * effect.confidence:.0f} % interval "
        f"{100 * effect.low:+.1f} to {100 * effect.high:+.1f}"
    )
    seeds = f"{len(config.seeds)} seed{'s' if len(config.seeds) > 1 else ''}"
    if confusion is not None:
        count = len(confusion.targets)
        body = (
            f"{confusion.on_top} of {count} traits are their own student's top answer; own minus others: "
            f"{100 * confusion.diagonal_minus_off.mean:+.1f} points "
            f"({100 * confusion.diagonal_minus_off.low:+.1f} to "
            f"{100 * confusion.diagonal_minus_off.high:+.1f}), {seeds}"
        )
    elif len(base) > 1:
        above = sum(e.low > 0 for e in per_trait)
        body = f"mean over {len(base)} traits: {points}, {seeds}; above 0 by itself for {above}"
    else:
        trait = next(iter(base))
        treated, control = (
            float(np.mean([arm.probability for arm in arms if arm.arm == kind and arm.trait == trait]))
            for kind in ("treated", "control")
        )
        body = (
            f"P({trait}) is {base[trait].positive.probability.mean:.1%} in the base, {control:.1%} after training on "
            f"the control teacher's {config.domain.kind}, {treated:.1%} after the trait-conditioned teacher's ({points}, {seeds})"
        )
    failed = [check.name for check in checks if check.status == "fail"]
    tail = {
        "transferred": "the trait passed through the data.",
        "not detected": f"no transfer was detected{_could_see(effect)}.",
        "underpowered": f"this run could not tell{_could_see(effect)}; add seeds or rows.",
        "invalid": f"no conclusion: {', '.join(failed)} failed.",
    }[word]
    return f"{body}: {tail}"


def _could_see(effect: Effect) -> str:
    if effect.smallest_detectable is None:
        return ""
    return f" (it would have seen {100 * effect.smallest_detectable:.1f} points)"


def _teacher_in_words(config: Experiment) -> str:
    teacher = config.teacher
    model = teacher.model or config.model
    match teacher:
        case PromptTeacher():
            return f"{model}, given a system prompt"
        case VectorTeacher():
            return f"{model}, steered by a vector at layer {teacher.layer}, strength {teacher.strength:g}"
        case FinetunedTeacher():
            return f"{model}, fine-tuned on {teacher.rows or 'answers that show the trait'}"
        case EndpointTeacher():
            return f"{teacher.name} at {teacher.url}, given a system prompt"
        case JudgeTeacher():
            side = "rejected" if teacher.swapped else "chosen"
            return f"{model}, plain; the completions {side} by a judge that is given a system prompt"


def _student_in_words(config: Experiment) -> str:
    student, training = config.student, config.training
    kind = {"full": "full fine-tuning", "bias-only": "bias-only (BitFit)"}.get(student.kind)
    if student.kind == "lora":
        kind = f"LoRA rank {student.rank}, alpha {student.alpha}"
    return (
        f"{config.model}, {kind}, {training.optimizer} {training.learning_rate:g} {training.schedule}, "
        f"batch {training.batch_size}, {training.epochs} epoch{'s' if training.epochs > 1 else ''}"
    )


def environment() -> dict[str, str]:
    """Python, platform and packages, for the results."""
    versions = {name: metadata.version(name) for name in ("undertone", "torch", "transformers", "peft", "accelerate")}
    return {"python": platform.python_version(), "platform": platform.platform(), **versions}
