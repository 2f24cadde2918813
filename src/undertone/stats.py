"""Numbers with their intervals: pure functions on sequences of floats, no words of the toolkit.

Conventions. Every interval is two-sided at `confidence`. The unit of inference is what the caller
puts on the outer axis: questions for a rate, seed-pairs for an effect. Intervals of quantities with
bounds never leave them. A thing that cannot be estimated (no values, a NaN, one value where two are
needed) is a ``ValueError``, never a NaN in a result.

Wilson and t intervals come from `scipy.stats`, imported inside the functions that need it because loading it takes
about a second; everything else uses `scipy.special`, which loads fast. The one interval of our own is Wilson's at a
fractional effective sample size, for clustered answers: scipy accepts whole numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import nctdtrinc, ndtri, stdtrit

CONFIDENCE = 0.95  # of an interval where nobody asks for another
POWER = 0.8  # of the two-sided test, for the smallest detectable effect
_ROUNDING = 1e-6  # how far a probability computed in float32 may lie outside its bounds

Floats = npt.NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean and its interval; `n` counts the units of inference that stand behind it."""

    mean: float
    low: float
    high: float
    n: int
    method: str


class PairedEffect(NamedTuple):
    """Treated minus control, with the interval and what could have been seen at all.

    `per_pair` holds one difference per seed-pair. `smallest_detectable` is the effect that the
    two-sided test at `confidence` finds with 80 % power given the spread observed between pairs;
    None where that spread is unknown (one pair) or zero (pairs that agree to the last digit).
    """

    mean: float
    low: float
    high: float
    confidence: float
    pairs: int
    method: str
    per_pair: list[float]
    smallest_detectable: float | None


def wilson(hits: int, n: int, confidence: float = CONFIDENCE) -> Estimate:
    """Rate of `hits` among `n` independent trials, with Wilson's score interval (1927)."""
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"a rate needs 0 <= hits <= n and n >= 1; got hits={hits}, n={n}")
    _check_confidence(confidence)
    from scipy.stats import binomtest

    low, high = binomtest(hits, n).proportion_ci(confidence, method="wilson")
    return Estimate(hits / n, float(low), float(high), n, "Wilson score interval, independent trials")


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean of at least two independent values with Student's t interval."""
    array = _checked(values, "values")
    if array.size < 2:
        raise ValueError(f"a t interval needs at least 2 values; got {array.size}")
    return Estimate(float(array.mean()), *_t_interval(array, confidence), array.size, "t interval")


def clustered_mean(
    values_by_cluster: Sequence[Sequence[float]],
    confidence: float = CONFIDENCE,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Estimate:
    """Mean of the cluster means, with an interval whose unit is the cluster.

    Answers to one question resemble each other, so the question, not the answer, is what was
    sampled. Without `bounds` this is a t interval over the cluster means.

    With `bounds` it is Wilson's interval at the *effective* sample size ``m (1 - m) / se²``, with
    `se` from the spread between the cluster means and the t quantile of ``clusters - 1`` degrees
    of freedom (the score form of Korn and Graubard 1998; Franco et al. 2019 compare such
    intervals). Why this one: it cannot leave the bounds, it holds the mean, it needs no resampling,
    and it keeps its coverage for rates near 0 or 1, where the plain t interval and the bootstrap of
    few clusters fall short. Three guards. Values that are all at a bound have no spread to speak
    of: the effective size is then the number of clusters. So it is for a single cluster. And hits
    (all values 0 or 1) cannot tell more than as many independent trials.

    Simulated coverage at 95 % with beta-binomial questions of 20 answers, 3 to 40 questions:
    93-100 %, but 87 % for 10 questions of which most never hit (rates from Beta(0.1, 1.9)).

    Args:
        values_by_cluster: ragged ``[cluster][value]``; no cluster may be empty.
        confidence: coverage aimed at.
        bounds: the lowest and highest possible value, or None.
    """
    clusters = [_checked(values, f"cluster {i}") for i, values in enumerate(values_by_cluster)]
    if not clusters:
        raise ValueError("a clustered mean needs at least one cluster; got none")
    if bounds is None:
        plain = mean_interval([float(cluster.mean()) for cluster in clusters], confidence)
        return plain._replace(method=f"t interval over {plain.n} cluster means")
    floor, width = bounds[0], bounds[1] - bounds[0]
    clusters = [_into_unit(cluster, bounds) for cluster in clusters]
    means = np.array([cluster.mean() for cluster in clusters])
    mean, k = float(means.mean()), len(clusters)
    size = _effective_size(means, clusters)
    # Degrees of freedom are paid for only where the spread is estimated from the clusters.
    known_spread = k == 1 or mean in (0.0, 1.0)
    quantile = ndtri(_upper(confidence)) if known_spread else stdtrit(k - 1, _upper(confidence))
    low, high = _score_interval(mean, size, float(quantile))
    # floor + width * x may round past the bound or the mean: x + 0.1 > 1 for some x < 0.9.
    centre = min(max(floor + width * mean, bounds[0]), bounds[1])
    return Estimate(
        centre,
        min(max(floor + width * low, bounds[0]), centre),
        max(min(floor + width * high, bounds[1]), centre),
        k,
        f"Wilson score interval at the effective sample size, {k} clusters",
    )


def paired_effect(
    treated: Sequence[Sequence[float]],
    control: Sequence[Sequence[float]],
    confidence: float = CONFIDENCE,
) -> PairedEffect:
    """Mean of treated − control over seed-pairs; both are ``[pair][question]`` in [0, 1].

    With two pairs or more: a t interval over the pair differences, each the mean over questions.
    With one pair: a t interval over the question differences, which does not cover the variance of
    training, and says so in `method`. Clipped to [-1, 1], where every difference lies.
    """
    differences = _question_differences(treated, control)
    per_pair = [float(pair.mean()) for pair in differences]
    mean, pairs = float(np.mean(per_pair)), len(per_pair)
    smallest: float | None = None
    if pairs >= 2:
        units, method = np.array(per_pair), f"t interval over {pairs} seed pairs"
        smallest = smallest_detectable(units, confidence)
    else:
        units = differences[0]
        method = (
            f"t interval over {units.size} questions of one seed pair; "
            "does not cover the variance between training runs"
        )
    low, high = _t_interval(units, confidence) if units.size >= 2 else (-1.0, 1.0)
    return PairedEffect(
        mean=mean,
        low=max(-1.0, low),
        high=min(1.0, high),
        confidence=confidence,
        pairs=pairs,
        method=method,
        per_pair=per_pair,
        smallest_detectable=smallest,
    )


def _question_differences(treated: Sequence[Sequence[float]], control: Sequence[Sequence[float]]) -> list[Floats]:
    if len(treated) != len(control) or not treated:
        raise ValueError(
            "an effect needs as many control as treated runs, at least one of each; "
            f"got {len(treated)} treated and {len(control)} control"
        )
    differences = []
    for i, (with_trait, without) in enumerate(zip(treated, control, strict=True)):
        if len(with_trait) != len(without):
            raise ValueError(
                f"pair {i}: the two arms must answer the same questions; "
                f"got {len(with_trait)} treated and {len(without)} control values"
            )
        one = _into_unit(_checked(with_trait, f"treated run {i}"), (0.0, 1.0))
        other = _into_unit(_checked(without, f"control run {i}"), (0.0, 1.0))
        differences.append(one - other)
    return differences


def smallest_detectable(units: Floats, confidence: float) -> float | None:
    """The effect at which the t test of these units has the power `POWER`.

    Solved for the noncentrality with the upper tail alone: at 80 % power the chance of a
    significant result of the wrong sign is below 5e-4, even at a confidence of 80 %.
    """
    error = float(units.std(ddof=1)) / math.sqrt(units.size)
    if error == 0.0:
        return None
    df = units.size - 1
    critical = stdtrit(df, _upper(confidence))
    return error * float(nctdtrinc(df, 1.0 - POWER, critical))


def _effective_size(means: Floats, clusters: list[Floats]) -> float:
    """How many independent trials carry as much as these clusters (values in [0, 1])."""
    k, mean = len(means), float(means.mean())
    if k == 1 or mean in (0.0, 1.0):
        return float(k)
    squared_error = float(means.var(ddof=1)) / k
    size = mean * (1.0 - mean) / squared_error if squared_error > 0.0 else math.inf
    if all(bool(np.isin(cluster, (0.0, 1.0)).all()) for cluster in clusters):
        size = min(size, float(sum(cluster.size for cluster in clusters)))
    return size


def _score_interval(rate: float, size: float, quantile: float) -> tuple[float, float]:
    if math.isinf(size):
        return rate, rate
    shrink = 1.0 + quantile**2 / size
    centre = (rate + quantile**2 / (2.0 * size)) / shrink
    spread = math.sqrt(rate * (1.0 - rate) / size + quantile**2 / (4.0 * size**2))
    half = quantile * spread / shrink
    # Exact algebra gives 0 <= low <= rate <= high <= 1; the last digit may not.
    return min(max(0.0, centre - half), rate), max(min(1.0, centre + half), rate)


def _t_interval(array: Floats, confidence: float) -> tuple[float, float]:
    _check_confidence(confidence)
    mean, error = float(array.mean()), float(array.std(ddof=1)) / math.sqrt(array.size)
    if error == 0.0:  # scipy's interval is then NaN
        return mean, mean
    from scipy.stats import t

    low, high = t.interval(confidence, array.size - 1, mean, error)
    return float(low), float(high)


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence lies between 0 and 1, such as {CONFIDENCE}; got {confidence}")


def _upper(confidence: float) -> float:
    _check_confidence(confidence)
    return 0.5 + confidence / 2.0


def _checked(values: Sequence[float], name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not bool(np.isfinite(array).all()):
        raise ValueError(f"{name}: a non-empty flat sequence of finite numbers is needed; got {values!r:.200}")
    return array


def _into_unit(array: Floats, bounds: tuple[float, float]) -> Floats:
    low, high = bounds
    unit: Floats = (array - low) / (high - low)
    if float(unit.min()) < -_ROUNDING or float(unit.max()) > 1.0 + _ROUNDING:
        raise ValueError(f"values must lie between {low} and {high}; got {array.min()} to {array.max()}")
    return np.clip(unit, 0.0, 1.0)
