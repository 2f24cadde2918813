"""The chain of checks that a verdict rests on, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

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

Status = Literal["pass", "warn", "fail"]


def checks_of(
    config: Experiment,
    base: dict[str, Measure],
    teachers: dict[str, Measure],
    arms: Sequence[ArmResult],
) -> list[Check]:
    """Every link of the chain; the worst arm speaks for all."""
    treated = [arm for arm in arms if arm.arm == "treated"]
    control = [arm for arm in arms if arm.arm == "control"]
    return [
        _teacher_shows(config, base, teachers),
        _data_differ(treated),
        _fitted(arms),
        _answers_kept(base, arms),
        _control_still(base, control),
        _off_topic(base, arms),
        _specific(base, treated),
        _several_seeds(config),
    ]


def word_of(effect: Effect, checks: Sequence[Check]) -> RunVerdict:
    """The verdict: invalid if a check failed; else by the interval over seed pairs, which one pair does not have."""
    failed = any(check.status == "fail" for check in checks)
    over_seeds = effect.pairs > 1
    return run_verdict(Quantity(effect.mean, *((effect.low, effect.high) if over_seeds else ())), failed)


def _check(name: str, ok: bool, value: str, expected: str, why: str, otherwise: Status = "fail") -> Check:
    return Check(name=name, status="pass" if ok else otherwise, value=value, expected=expected, why=why)


def _teacher_shows(config: Experiment, base: dict[str, Measure], teachers: dict[str, Measure]) -> Check:
    treated = {name.removeprefix("treated-"): m for name, m in teachers.items() if name.startswith("treated")}
    gains = {
        trait: measure.positive.probability.mean - base[trait].positive.probability.mean
        for trait, measure in treated.items()
        if trait in base
    }
    worst = min(gains, key=lambda trait: gains[trait], default=None)
    return _check(
        "the teacher shows the trait",
        worst is not None and gains[worst] > 0.1,
        NOT_MEASURED if worst is None else f"{worst}: {100 * gains[worst]:+.0f} points over the base",
        "more than +10 points",
        "a teacher that does not show it has nothing to pass on; choose another trait, prompt or strength",
        "warn",
    )


def _data_differ(treated: Sequence[ArmResult]) -> Check:
    values = [arm.teacher_kl for arm in treated if arm.teacher_kl is not None]
    lowest = min(values, default=None)
    return _check(
        "the data differ from the control's",
        lowest is not None and lowest > HOPELESS_KL,
        NOT_MEASURED if lowest is None else f"lowest KL {lowest:.4f} nats a token",
        f"more than {HOPELESS_KL}",
        "with next to no difference per token there is nothing to learn; give the domain freer slots, or more rows",
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
        (after - before, before, after, arm)
        for arm in arms
        for before, after in [
            (base[arm.trait].positive.valid_answer_probability, arm.measure.positive.valid_answer_probability)
        ]
        if before is not None and after is not None
    ]
    if not asked:
        return Check(
            name="students still answer", status="pass", value="the trait has no set of answers",
            expected="nothing", why="a behaviour is judged by what is said; read the sampled answers",
        )  # fmt: skip
    _, before, after, worst = min(asked, key=lambda one: one[0])
    return _check(
        "students still answer",
        not stopped_answering(before, after),
        f"worst: {worst.arm} {worst.trait} seed {worst.seed}, valid-answer probability {after:.2f} (base {before:.2f})",
        f"no more than {MAX_VALID_ANSWER_LOSS:.2f} below the base",
        "rates of a student that no longer answers say nothing about preference; lower the learning rate",
    )


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
