"""``python -m benchmarks.stopping``: what the rule for adding seeds does, simulated. Prints the tables of docs/stopping.md.

Differences of seed pairs are drawn from normal distributions (one table: from skewed ones); runs look after every pair
from the third. Limits are taken from ``undertone.sequential.look_confidence`` and scipy's t quantiles; decisions are
made here, over all draws at once, and not by the code that ``undertone run --until decided`` calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import t

from undertone.sequential import MINIMUM, look_confidence

DRAWS = 200_000
MAXIMA = (6, 8, 10, 12)
EFFECTS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
"""True effects, in standard deviations between seed pairs."""
SPREADS = (0.1, 0.2, 0.3, 0.5, 1.0)
"""Standard deviations between seed pairs, in smallest effects of interest."""
CONFIDENCE = 0.95

Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]


class Outcome(NamedTuple):
    """Shares of runs that ended so, and the mean number of seed pairs at the end."""

    above: float
    below: float
    none: float
    pairs: float


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Mean 0, standard deviation 1."""
    return rng.normal(size=shape)


def skewed(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """The same with skewness 2: most seed pairs a little below the mean, a few far above."""
    return rng.exponential(size=shape) - 1.0


def skewed_arms(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Two arms of the same skewed distribution, as where no trait is passed on: heavy tails, but no skew is left."""
    differences: Floats = (skewed(rng, shape) - skewed(rng, shape)) * 0.5**0.5
    return differences


def reaches(maximum: int, *, naive: bool = False) -> dict[int, float]:
    """Look -> half the interval's width in standard errors; naive: of an ordinary interval at each look."""
    looks = range(MINIMUM, maximum + 1)
    each = {n: CONFIDENCE if naive else look_confidence(n, looks, CONFIDENCE) for n in looks}
    return {n: float(t.ppf(0.5 + confidence / 2, n - 1)) for n, confidence in each.items()}


def simulate(reach: dict[int, float], mean: float, spread: float, smallest: float, draw: Draw = normal) -> Outcome:
    """Runs with a true effect of ``mean`` that stop as soon as they may; ``smallest`` 0: never for want of an effect."""
    rng = np.random.default_rng(0)
    values = mean + spread * draw(rng, (DRAWS, max(reach)))
    ended, pairs = np.zeros(DRAWS, dtype=int), np.full(DRAWS, max(reach))
    for n, width in reach.items():
        seen = values[:, :n]
        centre, half = seen.mean(1), width * seen.std(1, ddof=1) / np.sqrt(n)
        inside = (centre - half > -smallest) & (centre + half < smallest)
        now = np.select([centre - half > 0, centre + half < 0, inside], [1, 2, 3], 0)
        fresh = (ended == 0) & (now > 0)
        ended[fresh], pairs[fresh] = now[fresh], n
    above, below, none = (float((ended == kind).mean()) for kind in (1, 2, 3))
    return Outcome(above, below, none, float(pairs.mean()))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table."""
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def errors(maximum: int) -> list[str]:
    """One row of the first table."""
    reach = reaches(maximum)
    used = ((reaches(maximum, naive=True), normal), (reach, normal), (reach, skewed_arms), (reach, skewed))
    seen = [simulate(width, 0.0, 1.0, 0.0, draw) for width, draw in used]
    false_none = max(simulate(reach, 1.0, spread, 1.0).none for spread in SPREADS)
    return [str(maximum), *(f"{share:.1%}" for share in [*(one.above + one.below for one in seen), false_none])]


def found(maximum: int) -> list[str]:
    """One row of the second: power and pairs by the size of the effect."""
    seen = [simulate(reaches(maximum), effect, 1.0, 0.0) for effect in EFFECTS]
    return [str(maximum), *(f"{one.above:.0%} · {one.pairs:.1f}" for one in seen)]


def cleared(maximum: int) -> list[str]:
    """One row of the third: how often no effect is called none, by the spread between pairs."""
    seen = [simulate(reaches(maximum), 0.0, spread, 1.0) for spread in SPREADS]
    return [str(maximum), *(f"{one.none:.0%} · {one.pairs:.1f}" for one in seen)]


def main() -> None:
    """Print the tables."""
    table(
        "Errors",
        ["at most", "an ordinary 95 % interval at each look", "this rule", "two skewed arms", "skewed", "false none"],
        [errors(maximum) for maximum in MAXIMA],
    )
    table(
        "Found · seed pairs, by true effect / standard deviation between pairs",
        ["at most", *map(str, EFFECTS)],
        [found(maximum) for maximum in MAXIMA],
    )
    table(
        "Without an effect: called none · seed pairs, by standard deviation between pairs / smallest effect",
        ["at most", *map(str, SPREADS)],
        [cleared(maximum) for maximum in MAXIMA],
    )
    everything = {n: [f"{value:.2f}" for value in reaches(n).values()] for n in MAXIMA}
    looks = range(MINIMUM, max(MAXIMA) + 1)
    table(
        "Half the interval's width in standard errors, by seed pairs",
        ["at most", *map(str, looks)],
        [[str(n), *row, *["–"] * (len(looks) - len(row))] for n, row in everything.items()],
    )


if __name__ == "__main__":
    main()
