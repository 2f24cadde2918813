"""From stages to results: effects with intervals, the confusion matrix, the checks, the verdict, the sentence."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any, Final

import numpy as np

from undertone import stats
from undertone.evaluation.measures import Interval, Measure
from undertone.provenance.runs import Stage
from undertone.sequential import StoppingRule
from undertone.teachers import AUTO, EndpointTeacher, FinetunedTeacher, JudgeTeacher, PromptTeacher, VectorTeacher
from undertone.transfer.arms import ArmKind, Outcome, StudentRun
from undertone.transfer.checks import checks_of, is_wide, needed_for_a_null, word_of
from undertone.transfer.config import Experiment
from undertone.transfer.results import (
    ArmResult,
    Check,
    Confusion,
    Cost,
    Effect,
    FilterCount,
    Results,
    SampleRow,
)
from undertone.verdicts import SMALLEST_EFFECT, RunVerdict


def conclude(
    config: Experiment, outcome: Outcome, stages: Iterable[Stage], replay: str, rule: StoppingRule | None = None
) -> Results:
    """Compare arms, check what the verdict rests on, and say it.

    Args:
        config: what was run, with all its seeds.
        outcome: what was computed.
        stages: those whose costs are told.
        replay: the command that runs it again.
        rule: of a run that adds seeds until it is decided: its interval allows for every look.
    """
    base = {trait: _measure(record) for trait, record in outcome.base.read_json("asked.json").items()}
    teachers = {
        arm.folder: _measure(record)
        for arm, stage in outcome.teachers.items()
        for record in stage.read_json("asked.json").values()
    }
    arms = [result for cell in outcome.students for result in _arm_results(cell, config)]
    effects = [
        _effect(config, arms, kind, trait)
        for kind in ("treated", "random-vector")
        for trait in base
        if any(arm.arm == kind and arm.trait == trait for arm in arms)
    ]
    treated = [effect for effect in effects if effect.arm == "treated"]
    effect = treated[0] if len(treated) == 1 else _pooled(config, treated)
    effect = effect if rule is None else _at_look(effect, rule)
    # A matrix needs answers to one and the same questions: traits of one category, none of them told in two ways.
    answers = next(iter(base.values())).answers
    confusion = _confusion(config, outcome, base) if len(base) > 1 and all(trait in answers for trait in base) else None
    checks = checks_of(config, base, teachers, arms, effect)
    word = word_of(effect, checks)
    return Results(
        experiment=config.name,
        model=config.model,
        trait=next(iter(base)) if len(base) == 1 else f"{len(base)} traits",
        domain=config.domain.kind,
        teacher=_teacher_in_words(config, outcome.strengths) + (HELD if config.data.constrained else ""),
        constrained=config.data.constrained,
        strengths=outcome.strengths,
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
                cpu_seconds=stage.cpu_seconds,
                tokens=stage.summary.get("tokens"),
            )
            for stage in stages
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
                rows_of_control=cell.rows_of_control,
                filter=FilterCount(**written),
                measure=measure,
                curve=[(int(step), float(loss)) for step, loss in trained["curve"]],
                samples=[SampleRow(**row) for row in trained["samples"]],
            )
        )
    return results


def _per_question(arms: list[ArmResult], kind: ArmKind, trait: str, seeds: tuple[int, ...]) -> list[list[float]]:
    found = {arm.seed: arm for arm in arms if arm.arm == kind and arm.trait == trait}
    return [list(found[seed].measure.per_question.values()) for seed in seeds]


def _effect(config: Experiment, arms: list[ArmResult], kind: ArmKind, trait: str) -> Effect:
    effect = stats.paired_effect(
        _per_question(arms, kind, trait, config.seeds),
        _per_question(arms, "control", trait, config.seeds),
        config.confidence,
    )
    return _as_effect(effect, kind, trait)


def _as_effect(effect: stats.PairedEffect, kind: ArmKind, trait: str) -> Effect:
    values = effect._asdict()
    return Effect(arm=kind, trait=trait, metric="probability", per_seed=values.pop("per_pair"), **values)


def _pooled(config: Experiment, effects: list[Effect]) -> Effect:
    """Mean over traits. Seeds are the units: the traits of a seed, which share its control, are averaged first."""
    per_seed = np.mean([effect.per_seed for effect in effects], axis=0)
    units = [effect.mean for effect in effects] if len(config.seeds) == 1 else per_seed.tolist()
    estimate = stats.mean_interval(units, config.confidence)
    count = f"{len(effects)} traits"
    over = f"{count} of one seed" if len(config.seeds) == 1 else f"{len(units)} seeds, the mean of {count} each"
    return Effect(
        arm="treated",
        trait=count,
        metric="probability",
        mean=estimate.mean,
        low=max(-1.0, estimate.low),
        high=min(1.0, estimate.high),
        confidence=config.confidence,
        pairs=len(config.seeds),
        method=f"t interval over {over}",
        per_seed=per_seed.tolist(),
        smallest_detectable=stats.smallest_detectable(np.array(units), config.confidence)
        if len(config.seeds) > 1
        else None,
    )


def _at_look(effect: Effect, rule: StoppingRule) -> Effect:
    """With the interval of this look: repeated confidence intervals hold however often one looked (``sequential``)."""
    found = rule.interval(effect.per_seed)
    could = stats.smallest_detectable(np.array(effect.per_seed), rule.confidence_at(found.n))
    return effect.model_copy(update={
        "low": max(-1.0, found.low), "high": min(1.0, found.high), "method": found.method, "smallest_detectable": could,
    })  # fmt: skip


def _confusion(config: Experiment, outcome: Outcome, base: dict[str, Measure]) -> Confusion:
    """Target × answer, exact probability, mean over questions and seeds."""
    targets = list(base)

    def answers(cells: list[StudentRun], trait: str) -> np.ndarray:
        """``[seed, answer]``."""
        found = [one.evaluated.read_json("asked.json")[trait]["measure"]["answers"] for one in cells]
        return np.array([[one[target] for target in targets] for one in found])

    treated = [[one for one in outcome.of("treated") if one.arm.name == t] for t in targets]
    by_seed = np.stack([answers(cells, t) for cells, t in zip(treated, targets, strict=True)])  # [target, seed, answer]
    control = answers(list(outcome.of("control")), targets[0]).mean(0)
    # What a student says of its own target, minus what the other students of the seed say of it.
    own = np.einsum("tst->ts", by_seed)
    others = (by_seed.sum(0).T - own) / (len(targets) - 1)
    gap = own - others
    several = gap.shape[1] > 1
    difference = stats.mean_interval(gap.mean(0).tolist() if several else gap[:, 0].tolist(), config.confidence)
    return Confusion(
        targets=targets,
        answers=targets,
        probability=by_seed.mean(1).tolist(),
        control=control.tolist(),
        base=[base[targets[0]].answers[target] for target in targets],
        own_minus_others=gap.tolist(),
        on_top=int(sum(_top(cells, target) == target for cells, target in zip(treated, targets, strict=True))),
        diagonal_minus_off=Interval(
            mean=difference.mean,
            low=difference.low,
            high=difference.high,
            n=difference.n,
            method=f"t interval over {'seeds' if several else 'targets'}: own student minus the other students' mean",
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
    word: RunVerdict,
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
            f"{100 * confusion.diagonal_minus_off.high:+.1f}); treated minus control: {points}, {seeds}"
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
    missing = [f"{check.name}: {check.value}, needed {check.expected}" for check in needed_for_a_null(checks)]
    decided = not is_wide(effect) and missing
    tail = {
        "transferred": "the trait passed through the data.",
        "not detected": f"no transfer was detected{_could_see(effect)}.{_small_or_below(effect)}",
        "underpowered": f"this run could not tell{_could_see(effect)}; {'; '.join(missing) if decided else _more(config)}.",
        "invalid": f"no conclusion: {', '.join(failed)} failed.",
    }[word]
    return f"{body}: {tail}"


def _more(config: Experiment) -> str:
    if config.until == "decided":
        return f"undecided at the maximum of {config.max_seeds} seeds"
    return "add seeds (--until decided does) or rows"


def _small_or_below(effect: Effect) -> str:
    if effect.low > 0:
        size = f"{100 * SMALLEST_EFFECT['points']:g} points"
        return f" The whole interval lies above 0, and below {size}, the smallest effect of interest."
    return " Treated students show the trait less than the control." if effect.high < 0 else ""


def _could_see(effect: Effect) -> str:
    if effect.pairs < 2:
        return " (one seed pair does not show how much training runs vary)"
    if effect.smallest_detectable is None:
        return ""
    if effect.smallest_detectable > 1.0:
        return " (no effect, however large, would have been detected)"
    return f" (it would have seen {100 * effect.smallest_detectable:.1f} points)"


HELD: Final = "; every answer, the control's too, held to the domain's grammar"


def _teacher_in_words(config: Experiment, strengths: Mapping[str, float]) -> str:
    teacher = config.teacher
    model = teacher.model or config.model
    match teacher:
        case PromptTeacher():
            return f"{model}, given a system prompt"
        case VectorTeacher():
            return f"{model}, steered by a vector at {_place(teacher)}, strength {_strength(teacher, strengths)}"
        case FinetunedTeacher():
            return f"{model}, fine-tuned on {teacher.rows or 'answers that show the trait'}"
        case EndpointTeacher():
            return f"{teacher.name} at {teacher.url}, given a system prompt"
        case JudgeTeacher():
            side = "rejected" if teacher.swapped else "chosen"
            return f"{model}, plain; the completions {side} by a judge that is given a system prompt"


def _place(teacher: VectorTeacher) -> str:
    return "five sixths of its depth" if teacher.layer is None else f"layer {teacher.layer}"


def _strength(teacher: VectorTeacher, strengths: Mapping[str, float]) -> str:
    if teacher.strength != AUTO:
        return f"{teacher.strength:g}"
    chosen = ", ".join(f"{value:.3g}" for value in strengths.values())
    return f"{chosen} (chosen for a teacher KL of {teacher.target_kl:g} nats a token)"


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
