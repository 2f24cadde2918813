"""The one rule set that decides every finding: a rule, a measurement with its interval, its baselines, and a verdict.

A verdict is read from the interval and the smallest effect of interest of the measurement's unit (SESOI), never from a
mean or from "the interval includes 0" alone (equivalence testing, Lakens 2017; Schuirmann 1987):

==================  =====================================================================================
``reproduced``      the interval lies where the claim says
``partly``          the direction is as claimed, but the whole interval is below the smallest effect of
                    interest; of a claim in several parts: some hold and some do not
``not reproduced``  the interval excludes every effect of interest on the claimed side
``not measured``    the interval is too wide to tell, there is none, or a check failed
==================  =====================================================================================

So lack of evidence never reads as a failed replication. No other module writes a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Verdict = Literal["reproduced", "partly", "not reproduced", "not measured"]
VERDICTS: Final[tuple[Verdict, ...]] = ("reproduced", "partly", "not reproduced", "not measured")
REPRODUCED: Final[Verdict] = "reproduced"
NOT_MEASURED: Final[Verdict] = "not measured"
Unit = Literal["points", "cosine", "nats", "correlation", "share", "ratio", "accuracy", "count"]

SMALLEST_EFFECT: Final[Mapping[Unit, float]] = {
    "points": 0.05,
    "share": 0.05,
    "accuracy": 0.10,
    "cosine": 0.10,
    "nats": 0.02,
    "correlation": 0.20,
    "ratio": 0.10,
    "count": 0.5,
}
"""The smallest effect of interest of each unit.

points, share: five of a hundred, about the drift of control students. accuracy: ten of a hundred, a class of the digits.
cosine: 0.1, what published control students align with the teacher's vector (2606.00995, Fig. 2). nats per token: 0.02, by
which a held-out loss may rise before a student counts as overfitted. correlation: 0.2, between Cohen's small and medium.
ratio: a tenth more or less. count: half of one.
"""


@dataclass(frozen=True)
class Quantity:
    """A number with its interval; None: there is no interval (one unit of inference)."""

    mean: float
    low: float | None = None
    high: float | None = None

    def __neg__(self) -> Quantity:
        flip = None if self.low is None or self.high is None else (-self.high, -self.low)
        return Quantity(-self.mean, *(flip or (None, None)))

    def minus(self, value: float) -> Quantity:
        """Shifted by a constant."""
        if self.low is None or self.high is None:
            return Quantity(self.mean - value)
        return Quantity(self.mean - value, self.low - value, self.high - value)


@dataclass(frozen=True)
class Decision:
    """A verdict and why, in one sentence without a full stop."""

    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Rule:
    """How a claim is held against its measurement.

    ``above``, ``below``: than ``than``; 0 (of a ratio: 1) stands for no effect, and then the smallest effect of interest
    counts; any other bound is what the claim itself says. ``none``: no effect of interest on either side. With
    ``beyond_baselines`` the difference to every baseline, seed by seed, must lie on the claimed side as well.
    """

    holds: Literal["above", "below", "none"]
    than: float = 0.0
    beyond_baselines: bool = False


def decide(
    rule: Rule, unit: Unit, quantity: Quantity | None, baselines: Mapping[str, Quantity] | None = None
) -> Decision:
    """The verdict of one measurement.

    Args:
        rule: what is claimed.
        unit: of the measurement; sets the smallest effect of interest.
        quantity: what was measured; None: nothing.
        baselines: name -> measurement minus that baseline, paired.
    """
    if quantity is None:
        return Decision("not measured", "nothing was measured")
    own = _one(rule, unit, quantity)
    if not rule.beyond_baselines:
        return own
    parts = {"": own} | {name: _one(Rule(rule.holds), unit, gap) for name, gap in (baselines or {}).items()}
    return _beyond(parts)


def all_of(parts: Mapping[str, Decision]) -> Decision:
    """The verdict of a claim that says several things: partly where some hold and some do not.

    Args:
        parts: what each part is about -> its decision.
    """
    verdicts = {part.verdict for part in parts.values()}
    said = "; ".join(f"{name}: {part.verdict}, {part.reason}" for name, part in parts.items())
    if len(verdicts) == 1:
        return Decision(verdicts.pop(), said)
    if "not reproduced" in verdicts:
        return Decision("partly" if verdicts & {"reproduced", "partly"} else "not reproduced", said)
    return Decision("not measured" if "not measured" in verdicts else "partly", said)


def unmeasured(reason: str) -> Decision:
    """The verdict where a check failed or nothing is left to compare."""
    return Decision("not measured", reason)


RunVerdict = Literal["transferred", "not detected", "underpowered", "invalid"]
"""What a transfer experiment ends in: the claim that treated minus control is above 0, in words of its own."""


def run_verdict(effect: Quantity, check_failed: bool) -> RunVerdict:
    """The verdict of a transfer experiment, by the same rule set.

    ``not detected`` only where the interval excludes an effect of interest; ``underpowered`` where it is too wide to tell.
    """
    if check_failed:
        return "invalid"
    words: Mapping[Verdict, RunVerdict] = {
        "reproduced": "transferred",
        "partly": "not detected",  # above 0, and all of it too small to be of interest: the drift of a control is as large
        "not reproduced": "not detected",
        "not measured": "underpowered",
    }
    return words[decide(Rule("above"), "points", effect).verdict]


def counted(verdicts: Sequence[Verdict]) -> str:
    """``3 reproduced, 0 partly, …``."""
    return ", ".join(f"{verdicts.count(word)} {word}" for word in VERDICTS)


# -- the rules -----------------------------------------------------------------------------------------


def _one(rule: Rule, unit: Unit, quantity: Quantity) -> Decision:
    size = SMALLEST_EFFECT[unit]
    gap = quantity.minus(rule.than)
    if rule.than:  # a bound that the claim names is its own smallest effect of interest
        size = 0.0
    elif unit == "ratio":  # multiplicative: distances are those of logarithms
        if quantity.mean <= 0 or (quantity.low is not None and quantity.low <= 0):
            return Decision(
                "not measured", "the interval of the ratio reaches 0: what it is compared with may be nothing"
            )
        gap, size = _logarithm(quantity), math.log1p(size)
    if gap.low is None or gap.high is None or not math.isfinite(gap.low + gap.high):
        return Decision("not measured", "one unit has no interval: add seeds")
    if rule.holds == "none":
        return _none(gap.low, gap.high, size, _shown(size, unit))
    side = gap if rule.holds == "above" else -gap
    assert side.low is not None
    assert side.high is not None
    return _above(side.low, side.high, size, _place(rule, unit), _shown(size, unit))


def _above(low: float, high: float, size: float, place: str, shown: str) -> Decision:
    """On the claimed side of a bound, distances counted along the claimed direction."""
    if low > 0 and high < size:
        return Decision(
            "partly", f"the interval lies {place}, and all of it below the smallest effect of interest, {shown}"
        )
    if low > 0:
        return Decision("reproduced", f"the whole interval lies {place}")
    if high < size or high <= 0:
        what = f"effect of {shown}" if size else "value"
        return Decision("not reproduced", f"the interval holds no {what} {place}")
    return Decision("not measured", f"the interval is too wide to tell: only a part of it lies {place}")


def _none(low: float, high: float, size: float, shown: str) -> Decision:
    if -size < low and high < size:
        return Decision("reproduced", f"the whole interval lies within {shown} of none")
    if low > 0 or high < 0:
        return Decision("not reproduced", "the interval excludes no effect at all")
    return Decision("not measured", f"the interval is too wide to tell: it holds none, and effects of {shown}")


def _beyond(parts: Mapping[str, Decision]) -> Decision:
    """Above, and beyond every baseline: the weakest part decides."""
    for word in ("not reproduced", "not measured", "partly"):
        for name, part in parts.items():
            if part.verdict == word:
                about = f"beyond {name}: " if name else ""
                return Decision(part.verdict, f"{about}{part.reason}")
    names = " and ".join(name for name in parts if name)
    return Decision("reproduced", f"{parts[''].reason}" + (f", and beyond {names}" if names else ""))


def _logarithm(quantity: Quantity) -> Quantity:
    if quantity.low is None or quantity.high is None:
        return Quantity(math.log(quantity.mean))
    return Quantity(math.log(quantity.mean), math.log(quantity.low), math.log(quantity.high))


def _place(rule: Rule, unit: Unit) -> str:
    bound = 1.0 if unit == "ratio" and not rule.than else rule.than
    scaled = f"{100 * bound:g} points" if unit == "points" and bound else f"{bound:g}"
    return f"{rule.holds} {scaled}"


def _shown(size: float, unit: Unit) -> str:
    if unit == "points":
        return f"{100 * size:g} points"
    if unit == "ratio":
        return f"a factor of {math.exp(size):.2g}"
    return f"{size:g}" + (" nats" if unit == "nats" else "")
