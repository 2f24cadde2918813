"""Findings: every number that a verdict needs is in the record, and the record gives the verdict again."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from undertone.studies.claim import Aspect, Claim, finding, judge, valued
from undertone.studies.measurement import Measurement
from undertone.studies.results import Finding, Part
from undertone.verdicts import Rule, Unit

LOST = np.array([[0.30, 0.34, 0.26]])
RANDOM = np.array([[0.02, 0.01, 0.03]])


def claim(rule: Rule, unit: Unit = "points") -> Claim:
    return Claim("the-id", "What was claimed.", "2606.00995, Fig. 2", "0.4", rule, unit)


def interval(values: Any) -> tuple[float, float, float]:
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return float(np.mean(values)), float(low), float(high)


def test_every_field_of_a_finding() -> None:
    whole = Measurement(np.array([[0.4, 0.44, 0.42]]))
    found = finding(
        claim(Rule("above", beyond_baselines=True)), Measurement(LOST), quantity="what is lost",
        baselines={"a random direction": Measurement(RANDOM)},
        also={"more than half of the effect": Aspect(Rule("above"), Measurement(LOST) - 0.5 * whole)},
        note="eleven blocks",
    )  # fmt: skip
    mean, low, high = interval(LOST[0])
    assert (found.id, found.claim, found.source, found.published) == (
        "the-id", "What was claimed.", "2606.00995, Fig. 2", "0.4",
    )  # fmt: skip
    assert found.quantity == "what is lost"
    assert (found.value, found.low, found.high) == pytest.approx((mean, low, high))
    assert (found.unit, found.n, found.unless) == ("points", 3, None)
    assert found.method == "95 % t interval over 3 seeds"
    assert found.baseline == "a random direction +2.0 points (-0.5 to +4.5); eleven blocks"
    own, half = found.parts
    assert (own.name, own.holds, own.than, own.beyond_baselines) == ("", "above", 0.0, True)
    assert own.values == pytest.approx(LOST[0])
    assert (own.value, own.low, own.high) == (found.value, found.low, found.high)
    (baseline,) = own.baselines
    assert baseline.name == "a random direction"
    assert baseline.values == pytest.approx(list(RANDOM[0]))
    assert (baseline.value, baseline.low, baseline.high) == pytest.approx(interval(RANDOM[0]))
    gap = interval(LOST[0] - RANDOM[0])  # seed by seed, and not mean by mean
    assert (baseline.gap, baseline.gap_low, baseline.gap_high) == pytest.approx(gap)
    assert (half.name, half.baselines) == ("more than half of the effect", [])
    assert half.values == pytest.approx([0.10, 0.12, 0.05])
    assert found.verdict == "reproduced"
    assert "the effect: reproduced" in found.reason
    assert "more than half of the effect: reproduced" in found.reason
    assert valued(found) == "+30.0 points (+20.1 to +39.9)"


def test_a_claim_holds_in_part_where_a_further_part_does_not() -> None:
    also = {"all of it": Aspect(Rule("above"), Measurement(LOST - 0.9))}
    found = finding(claim(Rule("above")), Measurement(LOST), quantity="q", also=also)
    assert found.verdict == "partly"
    assert "all of it: not reproduced" in found.reason


def test_a_baseline_that_is_not_beaten_seed_by_seed_decides_only_where_the_rule_says_so() -> None:
    alike = {"the control": Measurement(LOST + np.array([[0.0, 0.001, -0.001]]))}
    beyond = finding(claim(Rule("above", beyond_baselines=True)), Measurement(LOST), quantity="q", baselines=alike)
    assert beyond.verdict == "not reproduced"
    assert beyond.reason.startswith("beyond the control: ")
    assert finding(claim(Rule("above")), Measurement(LOST), quantity="q", baselines=alike).verdict == "reproduced"


def test_what_was_not_measured_says_why() -> None:
    nothing = finding(claim(Rule("above")), None, quantity="q")
    assert (nothing.value, nothing.low, nothing.n, nothing.method) == (None, None, 0, "none")
    assert (nothing.verdict, nothing.reason) == ("not measured", "nothing was measured")
    failed = finding(claim(Rule("above")), Measurement(LOST), quantity="q", unless="students stopped answering")
    assert (failed.verdict, failed.reason) == ("not measured", "students stopped answering")
    assert failed.value == pytest.approx(0.3)  # the number is shown all the same
    left_out = finding(claim(Rule("above")), Measurement(np.full((2, 3), np.nan)), quantity="q")
    assert (left_out.value, left_out.n, left_out.verdict) == (None, 0, "not measured")
    one_seed = finding(claim(Rule("above")), Measurement(np.array([[0.4]])), quantity="q")
    assert (one_seed.value, one_seed.low, one_seed.verdict) == (0.4, None, "not measured")


def test_the_unit_of_the_claim_sets_the_smallest_effect() -> None:
    little = Measurement(np.array([[0.030, 0.031, 0.029]]))
    assert finding(claim(Rule("above"), "points"), little, quantity="q").verdict == "partly"
    assert finding(claim(Rule("above"), "nats"), little, quantity="q").verdict == "reproduced"
    assert finding(claim(Rule("none"), "points"), little, quantity="q").verdict == "reproduced"
    assert finding(claim(Rule("none"), "nats"), little, quantity="q").verdict == "not reproduced"


VALUES = st.lists(st.floats(-0.5, 0.5), min_size=3, max_size=3)


@given(
    st.sampled_from(["above", "below", "none"]), st.booleans(), st.sampled_from(["points", "cosine", "nats"]),
    VALUES, VALUES, VALUES, st.sampled_from(["", "a check failed"]),
)  # fmt: skip
def test_a_record_that_was_written_and_read_gives_the_same_verdict(
    holds: Any, beyond: bool, unit: Unit, own: list[float], other: list[float], part: list[float], unless: str
) -> None:
    found = finding(
        claim(Rule(holds, beyond_baselines=beyond), unit), Measurement(np.array([own]), unit=unit), quantity="q",
        baselines={"other": Measurement(np.array([other]), unit=unit)},
        also={"part": Aspect(Rule("below", 0.25), Measurement(np.array([part]), unit="share"))}, unless=unless,
    )  # fmt: skip
    read = Finding.model_validate(json.loads(json.dumps(found.model_dump(mode="json"))))
    assert read == found
    decision = judge(read.parts, read.unless)
    assert (decision.verdict, decision.reason) == (found.verdict, found.reason)


def test_a_verdict_that_is_none_of_ours_is_refused() -> None:
    found = finding(claim(Rule("above")), Measurement(LOST), quantity="q")
    with pytest.raises(ValidationError):
        Finding.model_validate({**found.model_dump(), "verdict": "confirmed"})
    with pytest.raises(ValidationError):
        Part.model_validate({**found.parts[0].model_dump(), "holds": "more"})
