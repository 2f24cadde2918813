"""``kind: chain``: students teach students (2609.25721, drift over generations).

Generation 1 learns from the trait-conditioned teacher; the students of each generation, unprompted, teach the next, which
starts from the base again. The control is a chain of its own: its first teacher never had the trait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from undertone import stats
from undertone.studies.claim import Claim
from undertone.studies.context import Context, Transfer, point
from undertone.studies.frame import study
from undertone.studies.measurement import Measurement
from undertone.teachers import FinetunedTeacher
from undertone.transfer.config import Setting
from undertone.verdicts import NOT_MEASURED, Rule

PERSISTS = Claim(
    id="chain-persists",
    claim="A trait persists when students teach students, and fades more the less each fits its teacher.",
    source="2609.25721",
    published="cat, 6 epochs: .89 at hop 1, .90 at hop 5; 2 epochs: .66 to .15; QLoRA: k^-0.11",
    rule=Rule("above"),
)


class Chain(Setting):
    """The transfer experiment, its students teaching the next."""

    kind: Literal["chain"] = "chain"
    generations: int = Field(4, ge=2, description="how many generations of students")

    @model_validator(mode="after")
    def _own_base(self) -> Chain:
        if self.teacher.model not in (None, self.model):
            raise ValueError("teacher.model must be the students' model: a chain has one base")
        return self


@study("chain", Chain)
def chain(ctx: Context[Chain]) -> str:
    """Generation after generation, then the decay."""
    config = ctx.config
    hops = _generations(ctx)
    effect = Measurement(np.stack([one.effect.values for one in hops], axis=2), config.confidence)
    sound = next((at for at, one in enumerate(hops) if one.failed()), len(hops))
    decay = half_life(np.array([effect[at].units for at in range(sound)]).T, config.confidence)
    shown = ", ".join(f"{100 * effect[at].mean:+.1f}" for at in range(len(hops)))
    ctx.report(
        PERSISTS,
        effect[-1],
        quantity=f"treated minus control after {config.generations} generations",
        baselines={"generation 1": effect[0]},
        note=f"the control is a chain of its own whose first teacher never had the trait; {decay_in_words(decay, sound)}, "
        "jackknife t interval",
        unless="" if sound == len(hops) else f"a check failed in generation {sound + 1}",
    )
    _draw(ctx, hops, effect)
    return (
        f"Treated minus control over {config.generations} generations: {shown} points; {decay_in_words(decay, sound)}, "
        f"{effect[0].unit_words}."
    )


def _generations(ctx: Context[Chain]) -> list[Transfer]:
    """The experiment of each generation; after the first, teachers are models that were trained."""
    trained = ctx.setting(teacher=FinetunedTeacher(training=ctx.config.training))
    hops: list[Transfer] = []
    for number in range(1, ctx.config.generations + 1):
        teachers = {(one.seed, one.arm): one.trained for one in hops[-1].students} if hops else None
        label = f"generation {number}: "
        hop = ctx.transfer(
            trained if hops else None, within=f"generation-{number}", trained_teachers=teachers, label=label
        )
        ctx.check_transfer(hop, label, leave_out="teacher" if hops else None)
        hops.append(hop)
    return hops


def _draw(ctx: Context[Chain], hops: Sequence[Transfer], effect: Measurement) -> None:
    arms = {kind: [one.probability(kind) for one in hops] for kind in ("treated", "control")}
    ctx.draw(
        "lines", "The trait over generations",
        [point(at + 1, effect[at], "treated − control") for at in range(len(hops))],
        x="generation", y="treated − control", zero=True,
        caption=f"Each student teaches the next, which starts from the base; {effect[0].method}.",
    )  # fmt: skip
    ctx.draw(
        "lines", "Both chains",
        [point(at + 1, values[at].mean, kind) for at in range(len(hops)) for kind, values in arms.items()],
        x="generation", y="probability", zero=True,
        caption=f"Mean probability of the trait in either chain; {effect[0].unit_words}.",
    )  # fmt: skip
    rows = []
    for at, one in enumerate(hops):
        treated = [arm for arm in one.results.arms if arm.arm == "treated"]
        divergences = [arm.teacher_kl for arm in treated if arm.teacher_kl is not None]
        rows.append([
            str(at + 1), *(f"{100 * arms[kind][at].mean:.1f} %" for kind in ("control", "treated")),
            f"{100 * effect[at].mean:+.1f}", f"{np.mean(divergences):.4f}" if divergences else NOT_MEASURED,
            f"{np.mean([arm.held_out_nll for arm in treated]):.3f}", str(treated[0].rows),
        ])  # fmt: skip
    columns = ["generation", "control", "treated", "effect, points", "KL of its teacher", "held-out loss", "rows"]
    ctx.table("Every generation", columns, rows)


def half_life(effects: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Generations after which the effect is halved, with its jackknife t interval over seeds (rows).

    Least squares of ``effect = a · 2^(−(g − 1) / h)`` on the mean over seeds, h in generations; infinite where the mean
    does not fall, NaN where there is nothing to halve or fewer than three generations. The interval is that of the decay
    rate (Efron & Tibshirani 1993, ch. 11: pseudo-values), NaN with fewer than three seeds. ``effects[seed, generation]``.
    """
    rate = _decay_rate(effects) if effects.size else float("nan")
    if np.isnan(rate) or len(effects) < 3:
        return _halved(rate), float("nan"), float("nan")
    count = len(effects)
    pseudo = [count * rate - (count - 1) * _decay_rate(np.delete(effects, pair, axis=0)) for pair in range(count)]
    if np.isnan(pseudo).any():
        return _halved(rate), float("nan"), float("nan")
    estimate = stats.mean_interval(pseudo, confidence)
    return _halved(rate), _halved(estimate.high), _halved(estimate.low)


def _decay_rate(effects: np.ndarray) -> float:
    from scipy.optimize import curve_fit

    mean = effects.mean(0)
    if len(mean) < 3 or mean[0] <= 0:
        return float("nan")
    try:
        (_, rate), _ = curve_fit(
            lambda g, start, rate: start * np.exp(-rate * g), np.arange(len(mean)), mean, p0=(mean[0], 0.5),
            maxfev=20_000,
        )  # fmt: skip
    except RuntimeError:  # means that no exponential comes near
        return float("nan")
    return float(rate)


def _halved(rate: float) -> float:
    return float("nan") if np.isnan(rate) else float("inf") if rate <= 0 else float(np.log(2) / rate)


def _in_generations(value: float) -> str:
    return "endless" if np.isinf(value) else "undefined" if np.isnan(value) else f"{value:.2f}"


def decay_in_words(decay: tuple[float, float, float], sound: int) -> str:
    """The half-life with its interval, and over how many generations it was fitted."""
    value, low, high = decay
    known = not (np.isnan(low) or np.isnan(high))
    span = f" ({_in_generations(low)} to {_in_generations(high)})" if known else ""
    return f"half-life, fitted to {sound} generations: {_in_generations(value)}{span} generations"
