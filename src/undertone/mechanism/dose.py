"""Dose and response: transfer ratios with their intervals, and whether a response has a threshold (2606.11270).

A dose is how far a teacher is steered away from refusing (0: not at all); a response is a rate of harmful requests that
are answered. The paper calls the ratio of student to teacher a transfer ratio without defining it; three definitions are
computed, and each says what it divides by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, xlogy

from undertone.stats import CONFIDENCE

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Variant = Literal["raw", "over dose 0", "over the base"]
VARIANTS: Final[tuple[Variant, ...]] = ("raw", "over dose 0", "over the base")


@dataclass(frozen=True)
class Ratio:
    """A transfer ratio; ``value`` is None where its denominator cannot be told from 0."""

    variant: Variant
    value: float | None
    low: float | None
    high: float | None
    denominator: float
    why: str


def transfer_ratios(
    student: Floats,
    teacher: Floats,
    student_zero: Floats,
    teacher_zero: Floats,
    base: Floats,
    *,
    confidence: float = CONFIDENCE,
    draws: int = 2000,
    seed: int = 0,
) -> list[Ratio]:
    """The three ratios at one dose, with paired bootstrap intervals over requests.

    - raw: student / teacher;
    - over dose 0: (student − student taught at dose 0) / (teacher − teacher at dose 0): what training as such does is
      taken off;
    - over the base: (student − base) / (teacher − base).

    A ratio is undefined where the bootstrap interval of its denominator reaches 0.

    Args:
        student, teacher, student_zero, teacher_zero, base: ``[requests]`` shares answered, of the SAME requests.
        confidence: of the intervals.
        draws: bootstrap resamples of requests.
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(student), size=(draws, len(student)))
    parts: dict[Variant, tuple[Floats, Floats]] = {
        "raw": (student, teacher),
        "over dose 0": (student - student_zero, teacher - teacher_zero),
        "over the base": (student - base, teacher - base),
    }
    return [_ratio(variant, *parts[variant], picks, confidence) for variant in VARIANTS]


def _ratio(variant: Variant, above: Floats, below: Floats, picks: Indices, confidence: float) -> Ratio:
    tails = [50 * (1 - confidence), 100 - 50 * (1 - confidence)]
    denominators = below[picks].mean(1)
    low, high = np.percentile(denominators, tails)
    mean = float(below.mean())
    if low <= 0 <= high:
        why = f"undefined: its denominator is {100 * mean:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
        return Ratio(variant, None, None, None, mean, why)
    drawn = above[picks].mean(1) / np.where(denominators == 0, np.nan, denominators)
    first, last = np.nanpercentile(drawn, tails)
    return Ratio(variant, float(above.mean()) / mean, float(first), float(last), mean, "bootstrap over requests")


# -- the shape of a response ---------------------------------------------------------------------------


@dataclass(frozen=True)
class DoseCurve:
    """A curve fitted to counts by maximum likelihood; ``predict(doses)`` gives rates."""

    shape: Literal["flat", "linear", "logistic", "threshold"]
    parameters: tuple[float, ...]
    log_likelihood: float
    aicc: float
    predict: Callable[[Floats], Floats]


def _bounded(rate: Floats) -> Floats:
    bounded: Floats = np.clip(rate, 1e-6, 1 - 1e-6)
    return bounded


def _flat(p: Floats, x: Floats) -> Floats:
    return np.full_like(x, p[0])


def _linear(p: Floats, x: Floats) -> Floats:
    rate: Floats = p[0] + p[1] * x
    return rate


def _logistic(p: Floats, x: Floats) -> Floats:
    """From a floor to a ceiling: floor + (ceiling − floor) · σ(slope · (x − middle))."""
    rate: Floats = p[0] + (p[1] - p[0]) * expit(p[2] * (x - p[3]))
    return rate


def _threshold(p: Floats, x: Floats) -> Floats:
    """Constant up to the threshold, then a line."""
    rate: Floats = p[0] + p[1] * np.maximum(0.0, x - p[2])
    return rate


def fit_curves(doses: Sequence[float], hits: Sequence[int], asked: Sequence[int]) -> list[DoseCurve]:
    """Flat, linear, logistic and threshold curves by binomial maximum likelihood, the best AICc first.

    The units of AICc are doses, not answers: answers to one student's requests are no independent evidence about the
    curve's shape. With d doses a curve of k parameters needs d > k + 1; others are left out.

    Args:
        doses: at least three, ascending in strength; 0 is no steering.
        hits: answered requests at each dose.
        asked: requests at each dose.
    """
    x, k, n = np.asarray(doses, float), np.asarray(hits, float), np.asarray(asked, float)
    rate, top = k / n, float(np.max(doses))
    inside = [float(dose) for dose in x[1:-1]] or [top / 2]
    shapes: Mapping[str, tuple[Callable[[Floats, Floats], Floats], list[list[float]]]] = {
        "flat": (_flat, [[float(rate.mean())]]),
        "linear": (_linear, [[float(rate[0]), float(rate[-1] - rate[0]) / top]]),
        "logistic": (_logistic, [[rate.min(), rate.max(), steep / top, at] for at in inside for steep in (4.0, 20.0)]),
        "threshold": (_threshold, [[rate[0], (rate[-1] - rate[0]) / max(top - at, 1e-9), at] for at in inside]),
    }
    curves = []
    for shape, (function, starts) in shapes.items():
        count = len(starts[0])
        if len(x) <= count + 1:
            continue
        best = min((_fitted(function, start, x, k, n) for start in starts), key=lambda found: found[1])
        aicc = 2 * count + 2 * best[1] + 2 * count * (count + 1) / (len(x) - count - 1)
        curves.append(_curve(shape, function, best, aicc))
    return sorted(curves, key=lambda curve: curve.aicc)


def _fitted(
    function: Callable[[Floats, Floats], Floats], start: list[float], x: Floats, k: Floats, n: Floats
) -> tuple[Floats, float]:
    def loss(p: Floats) -> float:
        rate = _bounded(function(p, x))
        return float(-(xlogy(k, rate) + xlogy(n - k, 1 - rate)).sum())

    found = minimize(loss, np.asarray(start, float), method="Nelder-Mead", options={"maxiter": 1500, "xatol": 1e-4})
    return found.x, float(found.fun)


def _curve(
    shape: str, function: Callable[[Floats, Floats], Floats], best: tuple[Floats, float], aicc: float
) -> DoseCurve:
    parameters = best[0]
    return DoseCurve(
        shape=shape,  # type: ignore[arg-type]
        parameters=tuple(float(value) for value in parameters),
        log_likelihood=-best[1],
        aicc=float(aicc),
        predict=lambda doses: np.clip(function(parameters, np.asarray(doses, float)), 0.0, 1.0),
    )


def weights(curves: Sequence[DoseCurve]) -> dict[str, float]:
    """Akaike weights: the share of belief that each shape gets, of those compared."""
    best = min(curve.aicc for curve in curves)
    raw = {curve.shape: float(np.exp(-(curve.aicc - best) / 2)) for curve in curves}
    total = sum(raw.values())
    return {shape: value / total for shape, value in raw.items()}
