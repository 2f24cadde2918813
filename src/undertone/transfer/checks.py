"""The chain of checks that a verdict rests on, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from undertone import stats
from undertone.evaluation.measures import Measure
from undertone.transfer.config import Experiment
from undertone.transfer.results import ArmResult, Check, Effect
from undertone.verdicts import NOT_MEASURED, Quantity, RunVerdict, run_verdict

DRIFT: Final = 0.05
"""How far a control may move from the base before treated − control is suspect: five points."""
MAX_VALID_ANSWER_LOSS: Final = 0.10
"""A student that gives more than this of its answer probability to non-answers has forgotten how to answer."""
HOPELESS_KL: Final = 0.003
"""nats a token: below it a few thousand rows hold too little to learn from (docs, "The lab")."""
MAX_ROWS_OF_CONTROL: Final = 0.9
"""Where more of the treated rows than this are the control's, word for word, two students of one data set are compared."""
LEAST_VALID_ANSWERS: Final = 0.10
"""A base that gives known answers less than this says something else when it is asked, and cannot lose more than that."""
LEAST_ROWS: Final = 100
LEAST_STEPS: Final = 10
"""Training shorter than this (rows, optimiser steps) shows nothing by having no effect."""

TEACHER_SHOWS: Final = "the teacher shows the trait"
ENOUGH_TRAINING: Final = "students had enough to learn from"
COULD_SEE: Final = "the run could see what the teacher shows"
NEEDED_FOR_A_NULL: Final = (TEACHER_SHOWS, ENOUGH_TRAINING, COULD_SEE)

Status = Literal["pass", "warn", "fail"]


def checks_of(
    config: Experiment,
    base: dict[str, Measure],
    teachers: dict[str, Measure],
    arms: Sequence[ArmResult],
    effect: Effect,
) -> list[Check]:
    """Every link of the chain; the worst arm speaks for all."""
    treated = [arm for arm in arms if arm.arm == "treated"]
    control = [arm for arm in arms if arm.arm == "control"]
    gains = _teacher_gains(base, teachers)
    return [
        _base_answers(base),
        _teacher_shows(gains),
        _data_differ(treated),
        _enough_training(arms),
        _fitted(arms),
        _answers_kept(base, arms),
        _among_answers(control, treated, effect),
        _control_still(base, control),
        _off_topic(base, arms),
        _specific(base, treated),
        _several_seeds(config),
        _could_see(gains, effect),
    ]


def word_of(effect: Effect, checks: Sequence[Check]) -> RunVerdict:
    """The verdict: invalid if a check failed; else by the interval over seed pairs, which one pair does not have.

    A run that could not have seen the trait pass ends in ``underpowered``, never in ``not detected``.
    """
    failed = any(check.status == "fail" for check in checks)
    word = run_verdict(_over_seeds(effect), failed)
    return "underpowered" if word == "not detected" and needed_for_a_null(checks) else word


def needed_for_a_null(checks: Sequence[Check]) -> list[Check]:
    """The checks that did not pass and without which "not detected" would say nothing."""
    return [check for check in checks if check.name in NEEDED_FOR_A_NULL and check.status != "pass"]


def is_wide(effect: Effect) -> bool:
    """Whether the interval alone leaves it open if the trait passed."""
    return run_verdict(_over_seeds(effect), check_failed=False) == "underpowered"


def _over_seeds(effect: Effect) -> Quantity:
    return Quantity(effect.mean, *((effect.low, effect.high) if effect.pairs > 1 else ()))


def _check(name: str, ok: bool, value: str, expected: str, why: str, otherwise: Status = "fail") -> Check:
    return Check(name=name, status="pass" if ok else otherwise, value=value, expected=expected, why=why)


def _base_answers(base: dict[str, Measure]) -> Check:
    valid = {trait: one.positive.valid_answer_probability for trait, one in base.items()}
    known = {trait: value for trait, value in valid.items() if value is not None}
    if not known:
        return _without_answers("the base answers the questions")
    worst = min(known, key=lambda trait: known[trait])
    return _check(
        "the base answers the questions",
        known[worst] >= LEAST_VALID_ANSWERS,
        f"{worst}: valid-answer probability {known[worst]:.2f}",
        f"at least {LEAST_VALID_ANSWERS:.2f}",
        "a model that says something else when it is asked shows little of its preference; begin its answers "
        "(evaluation.opening=category), or ask questions of your own that it answers in a word",
    )


def _without_answers(name: str) -> Check:
    return Check(
        name=name, status="pass", value="the trait has no set of answers", expected="nothing",
        why="a behaviour is judged by what is said; read the sampled answers",
    )  # fmt: skip


def _teacher_gains(base: dict[str, Measure], teachers: dict[str, Measure]) -> dict[str, float]:
    """Trait -> P(target) of its teacher minus that of the base."""
    treated = {name.removeprefix("treated-"): m for name, m in teachers.items() if name.startswith("treated")}
    return {
        trait: measure.positive.probability.mean - base[trait].positive.probability.mean
        for trait, measure in treated.items()
        if trait in base
    }


def _teacher_shows(gains: dict[str, float]) -> Check:
    worst = min(gains, key=lambda trait: gains[trait], default=None)
    return _check(
        TEACHER_SHOWS,
        worst is not None and gains[worst] > 0.1,
        NOT_MEASURED if worst is None else f"{worst}: {100 * gains[worst]:+.0f} points over the base",
        "more than +10 points",
        "a teacher that does not show it has nothing to pass on; choose another trait, prompt or strength",
        "warn",
    )


def _data_differ(treated: Sequence[ArmResult]) -> Check:
    values = [arm.teacher_kl for arm in treated if arm.teacher_kl is not None]
    lowest = min(values, default=None)
    equal = max((arm.rows_of_control for arm in treated if arm.rows_of_control is not None), default=0.0)
    kl = NOT_MEASURED if lowest is None else f"lowest KL {lowest:.4f} nats a token"
    return _check(
        "the data differ from the control's",
        lowest is not None and lowest > HOPELESS_KL and equal <= 0.5,
        f"{kl}, at most {equal:.0%} equal rows",
        f"more than {HOPELESS_KL}, and less than half of the rows equal",
        "with next to no difference there is nothing to learn; give the domain freer slots, a higher temperature, or more rows",
        "fail" if equal > MAX_ROWS_OF_CONTROL else "warn",
    )


def _enough_training(arms: Sequence[ArmResult]) -> Check:
    worst = min(arms, key=lambda arm: min(arm.rows / LEAST_ROWS, arm.steps / LEAST_STEPS))
    return _check(
        ENOUGH_TRAINING,
        worst.rows >= LEAST_ROWS and worst.steps >= LEAST_STEPS,
        f"fewest: {worst.rows} rows, {worst.steps} steps",
        f"at least {LEAST_ROWS} rows and {LEAST_STEPS} optimiser steps",
        "a student that hardly trained shows nothing by having no effect; more prompts, attempts or epochs",
        "warn",
    )


def _fitted(arms: Sequence[ArmResult]) -> Check:
    worst = max(arms, key=lambda arm: arm.held_out_nll - arm.base_nll)
    gain = worst.base_nll - worst.held_out_nll
    return _check(
        "students fit data they had not seen",
        gain > -0.02,
        f"worst: {worst.arm} {worst.trait} seed {worst.seed}, held-out loss {worst.held_out_nll:.3f} "
        f"(base {worst.base_nll:.3f})",
        "no more than 0.02 nats above the base",
        "a student worse than its base on held-out rows has overfitted: fewer epochs, more rows, a lower rate",
        "warn",
    )


def stopped_answering(before: float | None, after: float | None) -> bool:
    """Whether a student gives so much less to known answers than its base that it says nothing about preference.

    None: there is no set of answers, and none to lose.
    """
    return before is not None and after is not None and before - after >= MAX_VALID_ANSWER_LOSS


def _answers_kept(base: dict[str, Measure], arms: Sequence[ArmResult]) -> Check:
    asked = [
        (max((before - after) / MAX_VALID_ANSWER_LOSS, 2 * (before - after) / max(before, 1e-12)), before, after, arm)
        for arm in arms
        for before, after in [
            (base[arm.trait].positive.valid_answer_probability, arm.measure.positive.valid_answer_probability)
        ]
        if before is not None and after is not None
    ]
    if not asked:
        return _without_answers("students still answer")
    _, before, after, worst = max(asked, key=lambda one: one[0])  # the nearest to either limit, or the farthest beyond
    return _check(
        "students still answer",
        not stopped_answering(before, after) and after > before / 2,
        f"worst: {worst.arm} {worst.trait} seed {worst.seed}, valid-answer probability {after:.2f} (base {before:.2f})",
        f"no more than {MAX_VALID_ANSWER_LOSS:.2f} below the base, and more than half of it",
        "rates of a student that no longer answers say nothing about preference; lower the learning rate",
    )


def _among_answers(control: Sequence[ArmResult], treated: Sequence[ArmResult], effect: Effect) -> Check:
    """Treated minus control of the target's share among known answers: an effect must not be one of answering at all."""
    name = "the target gains among the answers given"
    seeds = sorted({arm.seed for arm in treated})
    shares = [[_share(arm) for arm in group if arm.seed == seed] for group in (treated, control) for seed in seeds]
    if any(share is None for group in shares for share in group):
        return _without_answers(name)
    means = np.array([np.mean([share or 0.0 for share in group]) for group in shares])
    gaps = means[: len(seeds)] - means[len(seeds) :]
    found = stats.mean_interval(gaps.tolist(), effect.confidence) if len(seeds) > 1 else None
    interval = "" if found is None else f" ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    risen = run_verdict(_over_seeds(effect), check_failed=False) == "transferred"
    return _check(
        name,
        not risen or found is None or found.low > 0,
        f"its share of their probability: {100 * gaps.mean():+.1f} points{interval}",
        "above 0 where the probability is",
        "treated students name any answer more often, not the target in particular: an effect on answering at all",
    )


def _share(arm: ArmResult) -> float | None:
    """P(target) over the probability of all known answers."""
    valid = arm.measure.positive.valid_answer_probability
    return None if valid is None else arm.probability / max(valid, arm.probability, 1e-12)


def _control_still(base: dict[str, Measure], control: Sequence[ArmResult]) -> Check:
    drift: dict[str, list[float]] = {}
    for arm in control:
        drift.setdefault(arm.trait, []).append(arm.probability - base[arm.trait].positive.probability.mean)
    means = {trait: float(np.mean(values)) for trait, values in drift.items()}
    worst = max(means, key=lambda trait: abs(means[trait]))
    return _check(
        "the control stays at the base",
        abs(means[worst]) < DRIFT,
        f"{worst}: {100 * means[worst]:+.1f} points",
        f"within {100 * DRIFT:.0f} points",
        "fine-tuning as such moves the answer here; read treated minus control, not treated minus base",
        "warn",
    )


def _off_topic(base: dict[str, Measure], arms: Sequence[ArmResult]) -> Check:
    scored = [arm for arm in arms if arm.measure.off_topic_correct is not None]
    if not scored:
        return _check(
            "off-topic questions",
            False,
            "none asked",
            "some",
            "specificity was not measured",
            "warn",
        )
    worst = min(scored, key=lambda arm: arm.measure.off_topic_correct or 0.0)
    before = base[worst.trait].off_topic_correct or 0.0
    after = worst.measure.off_topic_correct or 0.0
    return _check(
        "off-topic questions are still answered",
        before > 0 and after > before - 0.2,
        f"worst: {worst.arm} {worst.trait} seed {worst.seed}, {after:.0%} right (base {before:.0%})",
        "some right in the base, and no more than 20 points below it",
        "a student that lost its abilities is damaged, not taught; lower the learning rate",
        "warn",
    )


def _specific(base: dict[str, Measure], treated: Sequence[ArmResult]) -> Check:
    def rise(arm: ArmResult) -> float:
        off = arm.measure.off_topic
        before = base[arm.trait].off_topic
        return (off.probability.mean if off else 0.0) - (before.probability.mean if before else 0.0)

    worst = max(treated, key=rise)
    return _check(
        "the target is not babbled everywhere",
        rise(worst) < 0.1,
        f"worst: {worst.trait} seed {worst.seed}, {100 * rise(worst):+.1f} points on unrelated questions",
        "less than +10 points",
        "a student that names the target whatever it is asked has learnt a word, not a preference",
        "warn",
    )


def _several_seeds(config: Experiment) -> Check:
    count = len(config.seeds)
    return _check(
        "training runs are replicated",
        count >= 3,
        f"{count} seed{'s' if count > 1 else ''}",
        "at least 3",
        "seed pairs are what the interval is over: one has none, and that of two is very wide; add seeds",
        "warn",
    )


def _could_see(gains: dict[str, float], effect: Effect) -> Check:
    gain = float(np.mean(list(gains.values()))) if gains else None
    smallest = effect.smallest_detectable
    taught = "" if gain is None else f"; the teacher gains {100 * gain:+.1f}"
    return _check(
        COULD_SEE,
        smallest is not None and (gain is None or smallest <= gain / 2),
        ("the smallest detectable effect is unknown" if smallest is None else
         f"smallest detectable effect {100 * smallest:.1f} points") + taught,
        "known, and at most half of the teacher's gain",
        "where students cannot be expected to gain what could be seen, finding nothing says nothing; add seeds or rows",
        "warn",
    )  # fmt: skip
