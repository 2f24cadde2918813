"""The one rule set: rule × interval → verdict, and what no interval may ever do to it."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertone import verdicts
from undertone.verdicts import (
    SMALLEST_EFFECT,
    VERDICTS,
    Decision,
    Quantity,
    Rule,
    Unit,
    Verdict,
    all_of,
    counted,
    decide,
    run_verdict,
    unmeasured,
)

UNITS: tuple[Unit, ...] = get_args(Unit)


def verdict(holds: Any, low: float | None, high: float | None, unit: Unit = "points", than: float = 0.0) -> Verdict:
    """Of an interval; its mean lies in the middle, and must not matter."""
    mean = 0.3 if low is None or high is None else (low + high) / 2
    return decide(Rule(holds, than), unit, Quantity(mean, low, high)).verdict


# -- the table ------------------------------------------------------------------------------------

TABLE: list[tuple[str, float, float, Verdict]] = [
    ("above", 0.10, 0.30, "reproduced"),
    ("above", 0.001, 0.06, "reproduced"),  # above 0, and an effect of interest is possible
    ("above", 0.001, 0.02, "partly"),  # as claimed, but by less than five points
    ("above", -0.10, 0.50, "not measured"),
    ("above", -0.002, 0.054, "not measured"),  # it holds 0 and an effect of interest
    ("above", -0.011, 0.023, "not reproduced"),  # it holds 0 and excludes what counts as an effect
    ("above", -0.30, 0.10, "not measured"),
    ("above", -0.30, -0.10, "not reproduced"),
    ("below", -0.30, -0.10, "reproduced"),
    ("below", -0.02, -0.001, "partly"),
    ("below", -0.50, 0.10, "not measured"),
    ("below", -0.023, 0.011, "not reproduced"),
    ("below", 0.10, 0.30, "not reproduced"),
    ("none", -0.04, 0.04, "reproduced"),
    ("none", 0.01, 0.03, "reproduced"),  # above 0, but by no more than a control drifts
    ("none", -0.20, 0.20, "not measured"),
    ("none", -0.01, 0.06, "not measured"),
    ("none", 0.10, 0.30, "not reproduced"),
    ("none", -0.30, -0.10, "not reproduced"),
    ("none", 0.01, 0.09, "not reproduced"),  # it excludes 0, and is not within five points of it
]


@pytest.mark.parametrize(("holds", "low", "high", "expected"), TABLE)
def test_the_whole_interval_decides(holds: str, low: float, high: float, expected: Verdict) -> None:
    assert verdict(holds, low, high) == expected


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit != "ratio"])
@pytest.mark.parametrize(("holds", "low", "high", "expected"), TABLE)
def test_every_unit_has_the_table_at_its_own_smallest_effect(
    holds: str, low: float, high: float, expected: Verdict, unit: Unit
) -> None:
    scale = SMALLEST_EFFECT[unit] / SMALLEST_EFFECT["points"]
    assert verdict(holds, scale * low, scale * high, unit) == expected


@pytest.mark.parametrize(("holds", "low", "high", "expected"), TABLE)
def test_a_ratio_has_the_table_of_its_logarithm(holds: str, low: float, high: float, expected: Verdict) -> None:
    scale = math.log1p(SMALLEST_EFFECT["ratio"]) / SMALLEST_EFFECT["points"]
    assert verdict(holds, math.exp(scale * low), math.exp(scale * high), "ratio") == expected


def test_a_ratio_of_one_is_no_effect_and_one_that_may_be_zero_is_not_measured() -> None:
    assert verdict("none", 0.95, 1.05, "ratio") == "reproduced"
    assert verdict("above", 1.2, 1.6, "ratio") == "reproduced"
    assert verdict("below", 0.5, 0.7, "ratio") == "reproduced"
    assert verdict("below", 0.0, 0.7, "ratio") == "not measured"
    assert verdict("below", -0.2, 0.7, "ratio") == "not measured"
    assert verdict("below", -0.7, 0.2, "ratio") == "not measured"  # nor one whose mean is negative
    assert decide(Rule("below"), "ratio", Quantity(-0.5)).verdict == "not measured"


@pytest.mark.parametrize(
    ("holds", "low", "high", "expected"),
    [
        ("above", 0.51, 0.60, "reproduced"),  # the bound is the claim's own: by how much it is passed does not matter
        ("above", 0.501, 0.502, "reproduced"),
        ("above", 0.45, 0.60, "not measured"),
        ("above", 0.40, 0.49, "not reproduced"),
        ("above", 0.40, 0.50, "not reproduced"),
        ("below", 0.40, 0.49, "reproduced"),
        ("below", 0.51, 0.60, "not reproduced"),
    ],
)
def test_a_bound_that_the_claim_names_decides_by_itself(holds: str, low: float, high: float, expected: Verdict) -> None:
    assert verdict(holds, low, high, than=0.5) == expected


@pytest.mark.parametrize("holds", ["above", "below", "none"])
@pytest.mark.parametrize(
    ("low", "high"), [(None, None), (math.nan, math.nan), (-math.inf, math.inf), (0.1, math.inf), (math.nan, 0.2)]
)
def test_without_an_interval_nothing_is_measured(holds: str, low: float | None, high: float | None) -> None:
    assert verdict(holds, low, high) == "not measured"


@pytest.mark.parametrize("holds", ["above", "below", "none"])
def test_nothing_is_not_measured(holds: Any) -> None:
    assert decide(Rule(holds), "points", None).verdict == "not measured"
    assert unmeasured("why").verdict == "not measured"


# -- properties -------------------------------------------------------------------------------------

SIDES = st.sampled_from(["above", "below"])
RULES = st.sampled_from(["above", "below", "none"])
ENDS = st.tuples(st.floats(-2, 2), st.floats(-2, 2)).map(sorted)


@given(RULES, st.sampled_from(UNITS), ENDS, st.floats(0, 1), st.floats(0, 1), st.sampled_from([0.0, 0.3, -0.3]))
def test_a_wider_interval_never_makes_a_failed_replication_of_what_was_not_measured(
    holds: Any, unit: Unit, ends: list[float], left: float, right: float, than: float
) -> None:
    low, high = (math.exp(end) if unit == "ratio" else end for end in ends)
    wider = (low / math.exp(left), high * math.exp(right)) if unit == "ratio" else (low - left, high + right)
    before, after = verdict(holds, low, high, unit, than), verdict(holds, wider[0], wider[1], unit, than)
    if before == "not measured":
        assert after == "not measured"
    if before == "reproduced" and holds != "none":  # what is lost by less precision is certainty, and not the claim
        assert after in ("reproduced", "not measured")


@given(SIDES, ENDS, st.sampled_from([unit for unit in UNITS if unit != "ratio"]), st.sampled_from([0.0, 0.4]))
def test_negated_data_turn_above_into_below(holds: Any, ends: list[float], unit: Unit, than: float) -> None:
    low, high = ends
    opposite = {"above": "below", "below": "above"}[holds]
    assert verdict(holds, low, high, unit, than) == verdict(opposite, -high, -low, unit, -than)


@given(ENDS, st.sampled_from([unit for unit in UNITS if unit != "ratio"]))
def test_negated_data_have_no_effect_alike(ends: list[float], unit: Unit) -> None:
    assert verdict("none", ends[0], ends[1], unit) == verdict("none", -ends[1], -ends[0], unit)


@given(RULES, ENDS, st.floats(-1, 1))
def test_a_mean_decides_nothing(holds: Any, ends: list[float], mean: float) -> None:
    one, other = (decide(Rule(holds), "points", Quantity(value, *ends)).verdict for value in (mean, sum(ends) / 2))
    assert one == other


@given(ENDS)
def test_none_and_an_effect_are_never_both_reproduced(ends: list[float]) -> None:
    """Nor is a claim and its opposite; an effect may be above 0 and still none of interest."""
    assert {verdict("above", ends[0], ends[1]), verdict("below", ends[0], ends[1])} != {"reproduced"}
    if verdict("none", ends[0], ends[1]) == "reproduced":
        assert verdict("above", ends[0], ends[1]) != "reproduced"
        assert verdict("below", ends[0], ends[1]) != "reproduced"


@given(ENDS)
def test_a_failed_replication_excludes_every_effect_of_interest(ends: list[float]) -> None:
    low, high = ends
    size = SMALLEST_EFFECT["points"]
    if verdict("above", low, high) == "not reproduced":
        assert high < size
    if verdict("none", low, high) == "not reproduced":
        assert low > 0 or high < 0


# -- beyond baselines ---------------------------------------------------------------------------------

ABOVE, WIDE, BELOW, SMALL = (
    Quantity(0.2, 0.1, 0.3), Quantity(0.1, -0.3, 0.5), Quantity(-0.2, -0.3, -0.1), Quantity(0.01, 0.005, 0.02),
)  # fmt: skip


@pytest.mark.parametrize(
    ("own", "gaps", "expected"),
    [
        (ABOVE, {}, "reproduced"),
        (ABOVE, {"others": ABOVE, "random": ABOVE}, "reproduced"),
        (ABOVE, {"others": ABOVE, "random": WIDE}, "not measured"),
        (ABOVE, {"others": WIDE, "random": BELOW}, "not reproduced"),  # one baseline that is not beaten is enough
        (ABOVE, {"others": SMALL}, "partly"),
        (SMALL, {"others": ABOVE}, "partly"),
        (WIDE, {"others": ABOVE}, "not measured"),
        (BELOW, {"others": ABOVE}, "not reproduced"),
        (ABOVE, {"others": Quantity(0.2)}, "not measured"),
    ],
)
def test_beyond_baselines_the_weakest_part_decides(own: Quantity, gaps: dict[str, Quantity], expected: Verdict) -> None:
    found = decide(Rule("above", beyond_baselines=True), "points", own, gaps)
    assert found.verdict == expected
    if expected == "not reproduced" and gaps.get("random") == BELOW:
        assert found.reason.startswith("beyond random: ")
    assert decide(Rule("above"), "points", own, gaps).verdict == decide(Rule("above"), "points", own).verdict


def test_a_bound_of_the_claim_is_not_a_bound_of_the_gap_to_its_baselines() -> None:
    rule = Rule("above", than=0.5, beyond_baselines=True)
    assert decide(rule, "points", Quantity(0.6, 0.55, 0.65), {"others": ABOVE}).verdict == "reproduced"


# -- claims in several parts ----------------------------------------------------------------------------

YES, NO, OPEN, PART = (Decision(word, word) for word in ("reproduced", "not reproduced", "not measured", "partly"))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([YES], "reproduced"), ([YES, YES], "reproduced"), ([NO, NO], "not reproduced"), ([OPEN, OPEN], "not measured"),
        ([YES, NO], "partly"), ([PART, NO], "partly"), ([YES, PART], "partly"), ([PART, PART], "partly"),
        ([YES, OPEN], "not measured"), ([PART, OPEN], "not measured"), ([YES, NO, OPEN], "partly"),
        ([NO, OPEN], "not reproduced"),
    ],
)  # fmt: skip
def test_a_claim_in_parts_holds_in_part_where_some_do(parts: list[Decision], expected: Verdict) -> None:
    for order in (parts, parts[::-1]):
        found = all_of({str(at): part for at, part in enumerate(order)})
        assert found.verdict == expected
        assert all(f"{at}: {part.verdict}" in found.reason for at, part in enumerate(order))


@given(st.lists(st.sampled_from([YES, NO, OPEN, PART]), min_size=1, max_size=5))
def test_a_claim_is_reproduced_where_all_its_parts_are_and_nowhere_else(parts: list[Decision]) -> None:
    found = all_of({str(at): part for at, part in enumerate(parts)}).verdict
    assert (found == "reproduced") == all(part is YES for part in parts)
    if found == "not reproduced":
        assert NO in parts


# -- words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "failed", "word"),
    [
        (0.2, 0.6, False, "transferred"), (0.01, 0.02, False, "not detected"), (-0.02, 0.02, False, "not detected"),
        (-0.4, -0.2, False, "not detected"), (-0.2, 0.3, False, "underpowered"), (None, None, False, "underpowered"),
        (0.2, 0.6, True, "invalid"), (-0.02, 0.02, True, "invalid"),
    ],
)  # fmt: skip
def test_a_run_ends_in_the_word_of_the_same_rule(
    low: float | None, high: float | None, failed: bool, word: str
) -> None:
    assert run_verdict(Quantity(0.3, low, high), failed) == word


def test_verdicts_are_counted_in_their_order() -> None:
    assert counted(["partly", "reproduced", "reproduced"]) == (
        "2 reproduced, 1 partly, 0 not reproduced, 0 not measured"
    )
    assert get_args(Verdict) == VERDICTS


def test_the_reason_names_the_side_and_the_smallest_effect() -> None:
    assert "below the smallest effect of interest, 5 points" in decide(Rule("above"), "points", SMALL).reason
    assert decide(Rule("below", 0.5), "share", Quantity(0.4, 0.3, 0.45)).reason == "the whole interval lies below 0.5"
    assert "no effect of 0.02 nats above 0" in decide(Rule("above"), "nats", Quantity(0.0, -0.01, 0.01)).reason
    assert "a factor of 1.1" in decide(Rule("none"), "ratio", Quantity(1.0, 0.5, 2.0)).reason
    assert all(size > 0 for size in verdicts.SMALLEST_EFFECT.values())
