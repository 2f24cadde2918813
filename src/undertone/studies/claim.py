"""Claims as data: what a paper says, the rule it is held against, and the finding that the frame makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from undertone.studies.measurement import Measurement, Statistic, in_words
from undertone.studies.results import Baseline, Finding, Part
from undertone.verdicts import Decision, Quantity, Rule, Unit, all_of, decide, unmeasured


@dataclass(frozen=True)
class Claim:
    """What was claimed, where, and by which rule it counts as reproduced.

    Attributes:
        id: short, in kebab-case.
        claim: in one sentence of ours.
        source: such as ``2606.00995, abstract 5``.
        published: the published value; None: none is known.
        rule: above, below, none, and whether beyond the baselines.
        unit: of the measurement.
    """

    id: str
    claim: str
    source: str
    published: str | None
    rule: Rule
    unit: Unit = "points"


@dataclass(frozen=True)
class Aspect:
    """A further part of a claim, with a rule of its own: "more than half of the effect"."""

    rule: Rule
    measured: Measurement | Statistic


def finding(
    claim: Claim,
    measured: Measurement | Statistic | None,
    *,
    quantity: str,
    baselines: Mapping[str, Measurement] | None = None,
    also: Mapping[str, Aspect] | None = None,
    note: str = "",
    unless: str = "",
) -> Finding:
    """A claim held against a measurement.

    Args:
        claim: what is claimed.
        measured: treated minus control, or whatever the claim is about; None: nothing was measured. A statistic of all units
            together has no baselines: what it is held against is part of it.
        quantity: what was measured, in words.
        baselines: name -> the same quantity where the claim does not apply, of the same shape; shown, and for a rule beyond
            baselines subtracted seed by seed.
        also: name -> further parts of the claim; with them it holds in part if some do.
        note: what else the reader must know of the baselines or the method.
        unless: why nothing was measured, such as a check that failed.
    """
    parts = [_part("", claim.rule, measured, baselines or {}, claim.unit)]
    parts += [_part(name, one.rule, one.measured, {}, one.measured.unit) for name, one in (also or {}).items()]
    decision = judge(parts, unless)
    own = parts[0]
    shown = [f"{name} {one}" for name, one in (baselines or {}).items()] + ([note] if note else [])
    return Finding(
        id=claim.id, claim=claim.claim, source=claim.source, published=claim.published, quantity=quantity,
        value=own.value, low=own.low, high=own.high, unit=claim.unit,
        n=0 if measured is None else measured.count, method="none" if measured is None else measured.method,
        baseline="; ".join(shown) or "none", parts=parts, unless=unless or None,
        verdict=decision.verdict, reason=decision.reason,
    )  # fmt: skip


def judge(parts: list[Part], unless: str | None) -> Decision:
    """The verdict that a finding's numbers give, by the one rule set; also of a finding that was read from a file."""
    if unless:
        return unmeasured(unless)
    decisions = {part.name: _decision(part) for part in parts}
    if len(decisions) == 1:
        return decisions[parts[0].name]
    return all_of({name or "the effect": decision for name, decision in decisions.items()})


def valued(finding: Finding) -> str:
    """``+28.5 points (+12.6 to +44.4)``; ``0.62 (0.51 to 0.70)``."""
    return in_words(_quantity(finding.value, finding.low, finding.high), finding.unit)


def _part(
    name: str, rule: Rule, measured: Measurement | Statistic | None, baselines: Mapping[str, Measurement], unit: Unit
) -> Part:
    value, units, gaps = None if measured is None else measured.quantity, [], {}
    if isinstance(measured, Measurement):
        units, gaps = measured.units, {title: (one, measured - one) for title, one in baselines.items()}
    return Part(
        name=name, holds=rule.holds, than=rule.than, beyond_baselines=rule.beyond_baselines, unit=unit,
        **_numbers(value),
        values=units,
        baselines=[_baseline(title, one, gap) for title, (one, gap) in gaps.items()],
    )  # fmt: skip


def _baseline(name: str, own: Measurement, gap: Measurement) -> Baseline:
    difference = gap.quantity
    return Baseline(
        name=name, **_numbers(own.quantity), values=own.units,
        gap=None if difference is None else difference.mean,
        gap_low=None if difference is None else difference.low,
        gap_high=None if difference is None else difference.high,
    )  # fmt: skip


def _numbers(quantity: Quantity | None) -> dict[str, float | None]:
    if quantity is None:
        return {"value": None, "low": None, "high": None}
    return {"value": quantity.mean, "low": quantity.low, "high": quantity.high}


def _decision(part: Part) -> Decision:
    rule = Rule(part.holds, part.than, part.beyond_baselines)
    gaps = {one.name: _quantity(one.gap, one.gap_low, one.gap_high) or Quantity(float("nan")) for one in part.baselines}
    return decide(rule, part.unit, _quantity(part.value, part.low, part.high), gaps)


def _quantity(value: float | None, low: float | None, high: float | None) -> Quantity | None:
    return None if value is None else Quantity(value, low, high)
