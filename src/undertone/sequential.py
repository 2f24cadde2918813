"""When to stop adding seeds: a group-sequential rule for the mean over seed pairs, treated − control.

Who looks at a 95 % interval after every new pair and stops at the first that excludes 0 is wrong far more often than
one time in twenty. Here every look has an interval of its own, wider than that of a fixed number of pairs, such that
**all of them together** hold the true mean with the confidence asked for, whatever it is: repeated confidence intervals
(Jennison and Turnbull 1989). It follows that a run that stops early says "above" or "below" wrongly in no more than
1 − confidence of all cases, that "none" is wrong in no more than half of that, and that the interval at which a run
stopped needs no correction.

The error is spent in equal parts a pair: after n of N, n / N of it (the linear member of the family of Lan and DeMets
1983, Kim and DeMets 1987). Limits are those of Student's t with the spread estimated anew at each look, and exact for
normal differences: with U = (sum of differences) / (root of the sum of their squares), the next U depends on the past
by U alone, as U' = (U + y) / √(1 + y²) where √n · y has Student's distribution with n degrees of freedom. So the share
of runs that have not yet stopped is a density on a line, carried from look to look on a grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit

from undertone.stats import CONFIDENCE, Estimate

Decision = Literal["above", "below", "none", "continue", "undecided at maximum"]

MINIMUM: Final = 3
"""Seed pairs before the first look: of two, no interval that allows for further looks says anything."""
CELLS: Final = 240
"""Of the grid: errors agree with simulated ones to 0.0005, and all limits up to twelve pairs take a second."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StoppingRule:
    """Look after ``minimum`` seed pairs and after each further one; stop when decided, or at ``maximum``.

    ``maximum`` is chosen before the first look: limits depend on it. ``smallest_effect`` is in the unit of the
    differences (0.05: five points of a probability).
    """

    minimum: int = MINIMUM
    maximum: int = 12
    confidence: float = CONFIDENCE
    smallest_effect: float = 0.05

    def __post_init__(self) -> None:
        if not 2 <= self.minimum <= self.maximum:
            raise ValueError(
                f"looks go from at least 2 seed pairs up to the maximum; got {self.minimum} to {self.maximum}"
            )
        if not self.smallest_effect > 0:
            raise ValueError(f"the smallest effect of interest is above 0, such as 0.05; got {self.smallest_effect}")
        _checked(self.confidence)

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of seed pairs after which it may stop."""
        return tuple(range(self.minimum, self.maximum + 1))

    def interval(self, differences: Sequence[float]) -> Estimate:
        """Mean of the differences so far, with the interval of this look.

        Raises:
            ValueError: fewer than the first look's, more than the maximum, or not finite.
        """
        n = len(differences)
        if not self.minimum <= n <= self.maximum:
            raise ValueError(f"this rule looks at {self.minimum} to {self.maximum} seed pairs; got {n}")
        values = np.asarray(differences, dtype=np.float64)
        if not bool(np.isfinite(values).all()):
            raise ValueError(f"differences must be finite; got {list(differences)!r:.200}")
        mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n)
        half = error * _limits(self.looks, self.confidence)[n]
        method = f"t interval at look {n - self.minimum + 1} of {len(self.looks)} allowed, {n} seed pairs"
        return Estimate(mean, mean - half, mean + half, n, method)

    def confidence_at(self, pairs: int) -> float:
        """Of the ordinary t interval that the look after so many seed pairs takes."""
        return look_confidence(pairs, self.looks, self.confidence)

    def decision(self, differences: Sequence[float]) -> Decision:
        """What these seed pairs, one difference each in the order in which they came, allow to say.

        "above" or "below": the interval excludes 0. "none": it does not, and lies within ± ``smallest_effect``. Else
        "continue", and at the maximum "undecided at maximum". An effect that is both above 0 and smaller than the
        smallest of interest is "above".
        """
        if len(differences) < self.minimum:
            return "continue"
        seen = self.interval(differences)
        if seen.low > 0:
            return "above"
        if seen.high < 0:
            return "below"
        if -self.smallest_effect < seen.low and seen.high < self.smallest_effect:
            return "none"
        return "continue" if len(differences) < self.maximum else "undecided at maximum"


def look_confidence(look: int, looks: Sequence[int], confidence: float = CONFIDENCE) -> float:
    """The confidence of the ordinary t interval to be taken after ``look`` seed pairs, one of ``looks``.

    Args:
        look: seed pairs so far.
        looks: all numbers of seed pairs after which one may stop, rising, from 2; the last is the maximum.
        confidence: of all looks together.

    Raises:
        ValueError: looks that do not rise or begin below 2, or a look that is none of them.
    """
    wanted = tuple(looks)
    if not wanted or wanted[0] < 2 or any(b <= a for a, b in pairwise(wanted)):
        raise ValueError(f"looks are rising numbers of seed pairs, from 2; got {list(wanted)}")
    if look not in wanted:
        raise ValueError(f"a look of this rule is one of {list(wanted)}; got {look}")
    return float(2 * stdtr(look - 1, _limits(wanted, _checked(confidence))[look]) - 1)


def _checked(confidence: float) -> float:
    if not 0.5 <= confidence < 1.0:
        raise ValueError(f"confidence lies between 0.5 and 1, such as 0.95; got {confidence}")
    return confidence


@cache
def _limits(looks: tuple[int, ...], confidence: float) -> dict[int, float]:
    """Look -> how many standard errors its interval reaches to either side."""
    error, last = 1.0 - confidence, looks[-1]
    n, spent = looks[0], (1.0 - confidence) * looks[0] / looks[-1]
    found = {n: float(stdtrit(n - 1, 1.0 - spent / 2.0))}
    edges = np.linspace(0.0, _u(found[n], n), CELLS + 1)
    density = np.diff(2.0 * stdtr(n - 1, _t(edges, n)) - 1.0)  # of |U|, among runs that have not stopped
    for n in range(looks[0] + 1, last + 1):
        here = (edges[1:] + edges[:-1]) / 2.0
        reach = math.sqrt(n)  # |U| of n values is at most that: all are equal
        if n in looks:
            due, spent = error * n / last - spent, error * n / last
            reach = brentq(_overspent, 0.0, reach, args=(density, here, n - 1, due), xtol=1e-12)
            found[n] = float(_t(np.array(reach), n))
        edges = np.linspace(0.0, reach, CELLS + 1)
        density = np.diff(density @ _within(edges[None, :], here[:, None], n - 1))
    return found


def _overspent(reach: float, density: Floats, here: Floats, n: int, due: float) -> float:
    """The share of runs that leave ± reach with the next value, less the share that may."""
    return float(density.sum() - density @ _within(np.array(reach), here, n)) - due


def _within(edge: Floats, u: Floats, n: int) -> Floats:
    """P(|U'| ≤ edge) where U of n values is u and one more comes: with y = tan ψ, U' = √(1 + u²) sin(ψ + atan u)."""
    turn, radius = np.arctan(u), np.sqrt(1.0 + u * u)

    def below(level: Floats) -> Floats:
        angle = np.arcsin(np.clip(level / radius, -1.0, 1.0))
        rising, falling = (
            stdtr(n, math.sqrt(n) * np.tan(np.clip(at - turn, -math.pi / 2, math.pi / 2)))
            for at in (angle, math.pi - angle)
        )
        share: Floats = rising + 1.0 - falling
        return share

    return below(edge) - below(-edge)


def _u(t: float, n: int) -> float:
    return t * math.sqrt(n) / math.hypot(math.sqrt(n - 1.0), t)


def _t(u: Floats, n: int) -> Floats:
    t: Floats = u * np.sqrt((n - 1.0) / np.maximum(n - u * u, 1e-300))
    return t
