"""``kind: chain``: a student becomes the teacher of the next, for several generations.

Every generation starts from the base and learns from rows that the previous generation's student wrote, without the trait. The
control is a chain of its own: its first teacher was never trait-conditioned. Treated minus control is followed over generations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from undertone import stats
from undertone.experiments.cells import Outcome, arms_of, model_identity
from undertone.experiments.compare import conclude
from undertone.experiments.conduct import Outcome as Found
from undertone.experiments.conduct import Study, student_runs
from undertone.experiments.config import Experiment, Setting
from undertone.experiments.pipeline import compute
from undertone.experiments.preflight import preflight
from undertone.experiments.results import Check, Results
from undertone.experiments.study import Figure, Finding, Judgement, Point, StudyTable, interval, per_seed, units
from undertone.experiments.workers import Workers
from undertone.provenance import configs
from undertone.provenance.runs import Run
from undertone.teachers import FinetunedTeacher


class Chain(Setting):
    """The transfer experiment, its students teaching the next."""

    kind: Literal["chain"] = "chain"
    generations: int = Field(4, ge=2, description="students after one another")

    @model_validator(mode="after")
    def _same_base(self) -> Chain:
        if self.teacher.model not in (None, self.model):
            raise ValueError("teacher.model must be the students' model: a chain has one base")
        return self

    def generation(self, number: int) -> Experiment:
        """The experiment of a generation; after the first, teachers are models that were trained."""
        fields = self.model_dump(mode="json", include=set(Setting.model_fields) - {"kind"})
        teacher = self.teacher if number == 0 else FinetunedTeacher(training=self.training)
        return configs.load(Experiment, {"kind": "transfer", **fields, "teacher": teacher.model_dump(mode="json")})


def chain(run: Run, config: Chain, pool: Workers, device: str) -> Found:
    """Generation after generation, then the decay."""
    outcomes: list[Outcome] = []
    results: list[Results] = []
    for number in range(config.generations):
        experiment = config.generation(number)
        students = {(cell.seed, cell.arm): cell.trained for cell in outcomes[-1].cells} if outcomes else None
        place = run.within(f"generation-{number + 1}")
        outcome = compute(place, experiment, arms_of(experiment), pool, device, taught_by=students)
        outcomes.append(outcome)
        results.append(conclude(experiment, outcome, replay=""))
    effects = np.array([per_seed(pairs_of(result), len(config.seeds)) for result in results]).T
    sound = _sound(results)
    decay = half_life(effects[:, :sound], config.confidence)
    finding = _finding(config, effects, decay, sound)
    return Found(
        model=config.model,
        sentence=_sentence(config, effects, decay, sound),
        findings=[finding],
        stages=[stage for outcome in outcomes for stage in outcome.stages()],
        figures=_figures(config, results, effects),
        tables=[_table(results)],
        checks=_checks(results),
        models={config.model: model_identity(config.model)},
        data={
            f"generation {number + 1}: {cell.generated.name}": cell.generated.summary["data"]
            for number, outcome in enumerate(outcomes)
            for cell in outcome.cells
        },
    )


def pairs_of(result: Results) -> list[float]:
    """Treated minus control of every (trait, seed) pair."""
    return [value for effect in result.effects if effect.arm == "treated" for value in effect.per_seed]


def _sound(results: Sequence[Results]) -> int:
    """Generations before the first in which a check failed: what comes after rests on students that do not answer."""
    failed = [number for number, result in enumerate(results) if any(check.status == "fail" for check in result.checks)]
    return failed[0] if failed else len(results)


def half_life(effects: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Generations after which the effect is halved, with its jackknife t interval over seeds (rows).

    Least squares of ``effect = a · 2^(−(g − 1) / h)`` on the mean over seeds, h in generations; infinite where the mean
    does not fall, NaN where there is nothing to halve or fewer than three generations. The interval is that of the decay
    rate (Efron & Tibshirani 1993, ch. 11: pseudo-values), NaN with fewer than three seeds. ``effects[seed, generation]``.
    """
    rate = _decay_rate(effects)
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


def _finding(config: Chain, effects: np.ndarray, decay: tuple[float, float, float], sound: int) -> Finding:
    last = list(effects[:, -1])
    mean, low, high = interval(last, config.confidence)
    verdict: Judgement = "not measured"
    why = "one pair has no interval; add seeds"
    if low is not None:
        verdict = "reproduced" if low > 0 else "partly" if mean > 0.05 else "not reproduced"
        first = 100 * effects[:, 0].mean()
        why = f"generation {config.generations} has {100 * mean:+.1f} points, generation 1 {first:+.1f}"
    if sound < config.generations:
        verdict, why = "not measured", f"a check failed in generation {sound + 1}"
    return Finding(
        id="chain-persists",
        claim="A trait persists when students teach students, and fades more the less each fits its teacher.",
        source="2609.25721",
        published="cat, 6 epochs: .89 at hop 1, .90 at hop 5; 2 epochs: .66 to .15; QLoRA: k^-0.11",
        quantity=f"treated minus control after {config.generations} generations",
        value=mean,
        low=low,
        high=high,
        unit="points",
        pairs=len(config.trait) * len(config.seeds),
        method=f"{100 * config.confidence:.0f} % t interval over {units(len(config.trait), len(config.seeds))}; "
        f"{_decay_in_words(decay, sound)}, jackknife t interval",
        baseline="a chain of its own whose first teacher was never trait-conditioned",
        verdict=verdict,
        why=why,
    )


def _generations(value: float) -> str:
    return "endless" if np.isinf(value) else "undefined" if np.isnan(value) else f"{value:.2f}"


def _decay_in_words(decay: tuple[float, float, float], sound: int) -> str:
    value, low, high = decay
    known = not (np.isnan(low) or np.isnan(high))
    span = f" ({_generations(low)} to {_generations(high)})" if known else ""
    return f"half-life, fitted to {sound} generations: {_generations(value)}{span} generations"


def _sentence(config: Chain, effects: np.ndarray, decay: tuple[float, float, float], sound: int) -> str:
    means = ", ".join(f"{100 * value:+.1f}" for value in effects.mean(0))
    return (
        f"Treated minus control over {config.generations} generations: {means} points; {_decay_in_words(decay, sound)}, "
        f"{units(len(config.trait), len(config.seeds))}."
    )


def _figures(config: Chain, results: Sequence[Results], effects: np.ndarray) -> list[Figure]:
    points, rates = [], []
    for number, result in enumerate(results):
        mean, low, high = interval(list(effects[:, number]), config.confidence)
        points.append(Point(x=number + 1, y=mean, low=low, high=high, series="treated − control"))
        for arm in ("treated", "control"):
            mean = float(np.mean([one.probability for one in result.arms if one.arm == arm]))
            rates.append(Point(x=number + 1, y=mean, series=arm))
    shown = f"{len(config.trait)} trait{'s' if len(config.trait) > 1 else ''}, {len(config.seeds)} seeds"
    return [
        Figure(
            kind="lines", title="The trait over generations", x="generation", y="treated − control", points=points,
            zero=True, caption=f"Each student teaches the next, which starts from the base. {shown}; "
            f"{100 * config.confidence:.0f} % intervals over {units(len(config.trait), len(config.seeds))}.",
        ),
        Figure(
            kind="lines", title="Both chains", x="generation", y="probability", points=rates, zero=True,
            caption=f"Mean probability of the trait in either chain; {shown}.",
        ),
    ]  # fmt: skip


def _table(results: Sequence[Results]) -> StudyTable:
    rows = []
    for number, result in enumerate(results):
        treated = [arm for arm in result.arms if arm.arm == "treated"]
        divergences = [arm.teacher_kl for arm in treated if arm.teacher_kl is not None]
        rows.append(
            [
                str(number + 1),
                f"{100 * float(np.mean([a.probability for a in result.arms if a.arm == 'control'])):.1f} %",
                f"{100 * float(np.mean([a.probability for a in treated])):.1f} %",
                f"{100 * float(np.mean(pairs_of(result))):+.1f}",
                f"{float(np.mean(divergences)):.4f}" if divergences else "not measured",
                f"{float(np.mean([a.held_out_nll for a in treated])):.3f}",
                str(treated[0].rows),
            ]
        )
    columns = ["generation", "control", "treated", "effect, points", "KL of its teacher", "held-out loss", "rows"]
    return StudyTable(title="Every generation", columns=columns, rows=rows)


def _checks(results: Sequence[Results]) -> list[Check]:
    return [
        check.model_copy(update={"name": f"generation {number + 1}: {check.name}"})
        for number, result in enumerate(results)
        for check in result.checks
        if check.status != "pass" and (number == 0 or "teacher" not in check.name)
    ]


CHAIN = Study(chain, preflight, student_runs)
