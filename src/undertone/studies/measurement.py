"""Measurements: a quantity of every trait at every seed, and the interval over its units of inference.

Seeds are the units (DESIGN §3.6): the traits of a seed share its control, so they are averaged first. What has no seeds,
such as a rank correlation over traits, says over what its interval is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from undertone import stats
from undertone.verdicts import NOT_MEASURED, Quantity, Unit

BOOTSTRAP_NEEDS = 5
"""Units of inference: of fewer, resampling draws the same few sets again and again."""


@dataclass(frozen=True)
class Measurement:
    """``values[trait, seed, …]``; further axes (doses, steps) are indexed away before an interval is made.

    NaN stands for a pair that was left out, such as one whose students stopped answering.

    Attributes:
        values: the quantity, float.
        confidence: of the interval.
        unit: of the quantity; sets the smallest effect of interest.
        over: what the second axis is, in the plural; a measurement whose first axis is the unit has one "seed" a trait.
    """

    values: np.ndarray
    confidence: float = stats.CONFIDENCE
    unit: Unit = "points"
    over: str = "seeds"

    @classmethod
    def of_units(cls, values: Sequence[float], over: str, confidence: float, unit: Unit = "points") -> Measurement:
        """One value a unit of inference that is no seed: a teacher, a trait, a request."""
        return cls(np.asarray(values, dtype=float)[None, :], confidence, unit, over)

    def __getitem__(self, at: int) -> Measurement:
        return replace(self, values=self.values[:, :, at])

    def of_traits(self, at: slice | Sequence[int]) -> Measurement:
        """Of some traits, by their places on the first axis."""
        return replace(self, values=self.values[at])

    def __sub__(self, other: Measurement | float) -> Measurement:
        return replace(self, values=self.values - (other.values if isinstance(other, Measurement) else other))

    def __neg__(self) -> Measurement:
        return replace(self, values=-self.values)

    def __mul__(self, factor: float) -> Measurement:
        return replace(self, values=self.values * factor)

    __rmul__ = __mul__

    def like(self, values: object) -> Measurement:
        """Other values over the same units, in the same unit."""
        return replace(self, values=np.asarray(values, dtype=float))

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Measurement:
        """With a function of the values, such as ``np.log``."""
        return replace(self, values=function(self.values))

    @property
    def units(self) -> list[float]:
        """One value a unit of inference: a seed's mean over traits, which share the seed's control."""
        kept = self.values[:, ~np.isnan(self.values).all(axis=0)]
        return [float(value) for value in np.nanmean(kept, axis=0)] if kept.size else []

    @property
    def count(self) -> int:
        """How many units of inference there are."""
        return len(self.units)

    @property
    def mean(self) -> float:
        """Over the units; NaN where there is none."""
        return float(np.mean(self.units)) if self.units else float("nan")

    @property
    def quantity(self) -> Quantity | None:
        """Mean with its t interval; one unit has none; None where there is no unit."""
        units = self.units
        if not units:
            return None
        if len(units) < 2:
            return Quantity(units[0])
        found = stats.mean_interval(units, self.confidence)
        return Quantity(found.mean, found.low, found.high)

    @property
    def unit_words(self) -> str:
        """What the interval rests on: ``3 seeds, the mean of 2 traits each``."""
        traits, seeds = self.values.shape[:2]
        if traits == seeds == 1:
            return f"one {self.over.removesuffix('s')}"
        if seeds == 1:
            return f"one {self.over.removesuffix('s')}, the mean of {traits} traits"
        each = f", the mean of {traits} traits each" if traits > 1 else ""
        return f"{len(self.units)} {self.over}{each}"

    @property
    def method(self) -> str:
        """How the interval was made, in words."""
        return f"{100 * self.confidence:g} % t interval over {self.unit_words}"

    def __str__(self) -> str:
        """``+12.3 points (+10.1 to +14.5)``; ``0.12 (0.10 to 0.14)``."""
        return in_words(self.quantity, self.unit)


@dataclass(frozen=True)
class Statistic:
    """A statistic of all units together, such as a rank correlation, whose interval is no t interval of a mean.

    Attributes:
        quantity: its value and interval.
        count: independent units that it rests on.
        method: how the interval was made, in words.
        unit: of the quantity; sets the smallest effect of interest.
    """

    quantity: Quantity
    count: int
    method: str
    unit: Unit

    @classmethod
    def rank_correlation(
        cls, first: Sequence[float], second: Sequence[float], *, over: str, confidence: float, seed: int
    ) -> Statistic:
        """Spearman's correlation of two values a unit, with a BCa bootstrap over units; none of fewer than five, or of
        units that are alike."""
        from scipy.stats import bootstrap, rankdata

        def statistic(one: np.ndarray, other: np.ndarray, axis: int = -1) -> np.ndarray:
            ranks = [rankdata(values, axis=axis) for values in (one, other)]
            a, b = (rank - rank.mean(axis=axis, keepdims=True) for rank in ranks)
            with np.errstate(invalid="ignore"):  # units that are all alike have no correlation
                found: np.ndarray = (a * b).sum(axis) / np.sqrt((a**2).sum(axis) * (b**2).sum(axis))
            return found

        pair = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
        method = f"Spearman, {100 * confidence:g} % BCa bootstrap over {over}"
        found = Quantity(float(statistic(*pair)))
        if len(first) >= BOOTSTRAP_NEEDS:
            limits = bootstrap(
                pair, statistic, paired=True, vectorized=True, n_resamples=2000, confidence_level=confidence,
                rng=np.random.default_rng(seed),
            ).confidence_interval  # fmt: skip
            if np.isfinite([limits.low, limits.high]).all():
                found = Quantity(found.mean, float(limits.low), float(limits.high))
        return cls(found, len(first), method, "correlation")

    @classmethod
    def geometric_mean(cls, logs: Measurement) -> Statistic:
        """Of ratios whose natural logarithms these are: the t interval is that of the logarithm over its units."""
        found = logs.quantity or Quantity(float("nan"))
        low, high = (None if limit is None else float(np.exp(limit)) for limit in (found.low, found.high))
        return cls(
            Quantity(float(np.exp(found.mean)), low, high), logs.count, f"{logs.method}, of the logarithm", "ratio"
        )

    @classmethod
    def rate(cls, clusters: Sequence[Sequence[float]], *, confidence: float) -> Statistic:
        """The mean of values in [0, 1], the clusters being the units; unlike a t interval it stays in [0, 1]."""
        found = stats.clustered_mean(clusters, confidence)
        method = f"{100 * confidence:g} % {found.method}"
        return cls(Quantity(found.mean, found.low, found.high), found.n, method, "share")

    def __str__(self) -> str:
        """As of a :class:`Measurement`."""
        return in_words(self.quantity, self.unit)


def in_words(quantity: Quantity | None, unit: Unit) -> str:
    """A quantity with its interval, in its unit."""
    if quantity is None:
        return NOT_MEASURED
    sign, scale, digits = ("+", 100, 1) if unit == "points" else ("", 1, 3)
    name = f" {unit}" if unit in ("points", "nats") else ""
    body = f"{scale * quantity.mean:{sign}.{digits}f}{name}"
    if quantity.low is None or quantity.high is None:
        return body
    return f"{body} ({scale * quantity.low:{sign}.{digits}f} to {scale * quantity.high:{sign}.{digits}f})"
