from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from undertone.sequential import StoppingRule, look_confidence

DRAWS = 2000


def ends(rule: StoppingRule, differences: np.ndarray) -> tuple[str, int]:
    """How a run ends that has these differences to come, and after how many."""
    for n in range(1, rule.maximum + 1):
        decision = rule.decision(list(differences[:n]))
        if decision != "continue":
            return decision, n
    raise AssertionError("a rule ends at its maximum")


def within_chance(count: int, draws: int, share: float) -> bool:
    """Whether a count fits a share: the binomial test at one in 10,000."""
    return bool(scipy_stats.binomtest(count, draws, share).pvalue > 1e-4)


@pytest.mark.parametrize("maximum", [6, pytest.param(12, marks=pytest.mark.slow)])
def test_the_error_over_all_looks_is_the_one_asked_for(maximum: int) -> None:
    rule = StoppingRule(maximum=maximum, confidence=0.9, smallest_effect=1e-9)
    rng = np.random.default_rng(maximum)
    found = [ends(rule, row)[0] for row in rng.normal(size=(DRAWS, maximum))]
    assert within_chance(found.count("above"), DRAWS, 0.05)
    assert within_chance(found.count("below"), DRAWS, 0.05)


def test_an_ordinary_interval_at_each_look_would_err_more_often() -> None:
    """The same simulation with scipy's t test after each pair, to show that the test above can fail."""
    rows = np.random.default_rng(12).normal(size=(DRAWS, 12))
    wrong = np.zeros(DRAWS, dtype=bool)
    for n in range(3, 13):
        wrong |= scipy_stats.ttest_1samp(rows[:, :n], 0.0, axis=1).pvalue < 0.1
    assert not within_chance(int(wrong.sum()), DRAWS, 0.1)
    assert wrong.mean() > 0.25


@pytest.mark.parametrize("spread", [0.2, 0.5])
def test_an_effect_as_large_as_the_smallest_of_interest_is_hardly_ever_called_none(spread: float) -> None:
    rule = StoppingRule(maximum=8, smallest_effect=1.0)
    rng = np.random.default_rng(3)
    called = sum(ends(rule, row)[0] == "none" for row in rng.normal(1.0, spread, size=(DRAWS, 8)))
    assert scipy_stats.binomtest(called, DRAWS, 0.025, "greater").pvalue > 1e-4


def test_the_intervals_at_which_runs_stop_hold_the_truth() -> None:
    rule, held = StoppingRule(maximum=8, confidence=0.9, smallest_effect=0.01), 0
    rng = np.random.default_rng(4)
    for row in rng.normal(0.3, 0.25, size=(DRAWS, 8)):
        seen = rule.interval(list(row[: ends(rule, row)[1]]))
        held += seen.low <= 0.3 <= seen.high
    assert scipy_stats.binomtest(held, DRAWS, 0.9, "less").pvalue > 1e-4


@given(st.integers(2, 40), st.floats(0.5, 0.999))
def test_one_look_has_the_ordinary_interval(n: int, confidence: float) -> None:
    assert look_confidence(n, [n], confidence) == pytest.approx(confidence, abs=1e-9)
    values = np.random.default_rng(n).normal(size=n)
    seen = StoppingRule(n, n, confidence).interval(list(values))
    expected = scipy_stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    assert (seen.mean, seen.low, seen.high) == pytest.approx((values.mean(), expected.low, expected.high))


def test_the_second_look_of_two_is_that_of_an_integral_over_the_sphere() -> None:
    """Of three values only the direction matters, and without an effect it is uniform on the sphere."""
    assert look_confidence(2, [2, 3], 0.9) == pytest.approx(1 - 0.1 * 2 / 3)
    theta = (np.arange(1500) + 0.5) / 1500 * 2 * math.pi
    height = ((np.arange(1500) + 0.5) / 750 - 1)[:, None]  # of equal areas
    flat = np.sqrt(1 - height**2)
    points = np.stack([flat * np.cos(theta), flat * np.sin(theta), height + 0 * theta])
    kept = np.ones((1500, 1500), dtype=bool)
    for n in (2, 3):
        found = scipy_stats.ttest_1samp(points[:n], 0.0)
        kept &= found.pvalue > 1 - look_confidence(n, [2, 3], 0.9)
    assert kept.mean() == pytest.approx(0.9, abs=5e-4)


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=12))
def test_a_decision_is_what_the_interval_says(values: list[float]) -> None:
    rule = StoppingRule()
    seen, decision = rule.interval(values), rule.decision(values)
    assert (decision == "above") == (seen.low > 0)
    assert (decision == "below") == (seen.high < 0)
    assert rule.decision([-value for value in values]) == {"above": "below", "below": "above"}.get(decision, decision)
    if decision == "none":
        assert max(abs(seen.low), abs(seen.high)) < 0.05
    assert (decision == "continue") <= (len(values) < 12)
    assert (decision == "undecided at maximum") <= (len(values) == 12)


@pytest.mark.parametrize(
    ("values", "decision"),
    [
        ([], "continue"),
        ([0.5, 0.5], "continue"),
        ([0.35, 0.31, 0.4], "above"),
        ([-0.35, -0.31, -0.4], "below"),
        ([0.001, -0.002, 0.0], "none"),
        ([0.3, 0.0, 0.1], "continue"),
        ([0.3, -0.2, 0.1, -0.3, 0.2, 0.1], "undecided at maximum"),
    ],
)
def test_decisions(values: list[float], decision: str) -> None:
    assert StoppingRule(maximum=6).decision(values) == decision


def test_a_higher_maximum_makes_early_looks_stricter() -> None:
    assert look_confidence(3, range(3, 13)) > look_confidence(3, range(3, 7)) > look_confidence(3, [3])


def test_the_interval_says_at_which_look_it_was_taken() -> None:
    seen = StoppingRule(maximum=6).interval([0.1, 0.2, 0.3, 0.2])
    assert (seen.n, seen.method) == (4, "t interval at look 2 of 4 allowed, 4 seed pairs")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: StoppingRule(1, 5), "at least 2 seed pairs up to the maximum; got 1 to 5"),
        (lambda: StoppingRule(6, 5), "got 6 to 5"),
        (lambda: StoppingRule(smallest_effect=0.0), r"above 0, such as 0\.05; got 0\.0"),
        (lambda: StoppingRule(confidence=95.0), r"between 0\.5 and 1, such as 0\.95; got 95"),
        (lambda: StoppingRule().interval([0.1, 0.2]), "looks at 3 to 12 seed pairs; got 2"),
        (lambda: StoppingRule().decision([0.0] * 13), "looks at 3 to 12 seed pairs; got 13"),
        (lambda: StoppingRule().decision([0.1, math.nan, 0.2]), "must be finite; got"),
        (lambda: look_confidence(3, [4, 3]), r"rising numbers of seed pairs, from 2; got \[4, 3\]"),
        (lambda: look_confidence(5, [3, 4]), r"one of \[3, 4\]; got 5"),
    ],
)
def test_what_is_no_rule_or_no_look_is_refused(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]


def test_the_page_has_the_tables_that_its_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Widths to the last digit; shares to rounding and to the chance of fewer draws."""
    from benchmarks import stopping

    monkeypatch.setattr(stopping, "DRAWS", 2000)
    stopping.main()
    page = (Path(__file__).parents[1] / "docs" / "stopping.md").read_text("utf-8")
    shown, printed = (
        [line.strip("|").split("|") for line in text.splitlines() if re.match(r"\| (6|8|10|12) ", line)]
        for text in (page, capsys.readouterr().out)
    )
    widths = [row for row in shown if len(row) == 11]
    assert widths == [row for row in printed if len(row) == 11]
    shares, again = ([row for row in rows if len(row) < 11] for rows in (shown, printed))
    assert len(shares) == 12
    for one, other in zip(shares, again, strict=True):
        for ours, theirs in zip(one, other, strict=True):
            share, found = (float(cell.split("·")[0].strip(" %")) / 100 for cell in (ours, theirs))
            assert (
                abs(share - found) < 0.011 + 4 * math.sqrt(share * (1 - share) / 2000)
                if "%" in ours
                else ours == theirs
            )
