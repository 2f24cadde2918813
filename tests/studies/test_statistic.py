"""A rank correlation with its bootstrap interval, and findings that rest on one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from undertone.studies.claim import Claim, finding
from undertone.studies.measurement import Measurement, Statistic
from undertone.verdicts import Rule

CLAIM = Claim("share-predicts", "What is explained passes.", "nowhere", None, Rule("above"), "correlation")


def correlation(first: Any, second: Any, confidence: float = 0.95) -> Statistic:
    return Statistic.rank_correlation(list(first), list(second), over="traits", confidence=confidence, seed=7)


@pytest.fixture
def planted() -> tuple[np.ndarray, np.ndarray]:
    """Thirty units, the second value the first with noise of its own size: a rank correlation of about 0.7."""
    generator = np.random.default_rng(3)
    first = generator.normal(size=30)
    return first, first + generator.normal(size=30)


def test_a_rank_correlation_knows_nothing_of_the_scale(planted: Any) -> None:
    first, second = planted
    found = correlation(first, second).quantity
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < found.mean < found.high < 1
    assert correlation(np.exp(first), second**3).quantity == found
    assert correlation(first, -second).quantity.mean == pytest.approx(-found.mean)


def test_it_is_spearmans_also_with_ties() -> None:
    from scipy.stats import spearmanr

    first, second = np.random.default_rng(5).integers(0, 4, (2, 20))
    assert correlation(first, second).quantity.mean == pytest.approx(spearmanr(first, second).statistic)


def test_a_wider_interval_at_more_confidence(planted: Any) -> None:
    narrow, wide = correlation(*planted, confidence=0.8), correlation(*planted, confidence=0.99)
    assert wide.quantity.low < narrow.quantity.low < narrow.quantity.high < wide.quantity.high  # type: ignore[operator]
    assert wide.method == "Spearman, 99 % BCa bootstrap over traits"


def test_fewer_than_five_units_have_no_interval() -> None:
    found = correlation([1, 2, 3, 4], [1, 2, 4, 3])
    assert found.quantity.mean == pytest.approx(0.8)
    assert found.quantity.low is None
    assert finding(CLAIM, found, quantity="q").verdict == "not measured"


def test_a_finding_counts_the_units_of_a_statistic(planted: Any) -> None:
    found = finding(CLAIM, correlation(*planted), quantity="q")
    assert (found.n, found.verdict, found.unit) == (30, "reproduced", "correlation")
    none = finding(CLAIM, correlation(planted[0], np.random.default_rng(11).normal(size=30)), quantity="q")
    assert none.verdict != "reproduced"


def test_some_traits_of_a_measurement_keep_their_seeds() -> None:
    whole = Measurement(np.array([[0.1, 0.2], [0.3, 0.4], [0.9, 0.9]]))
    assert whole.of_traits(slice(2)).units == pytest.approx([0.2, 0.3])
    assert whole.of_traits([2, 0]).values.tolist() == [[0.9, 0.9], [0.1, 0.2]]
    assert whole.count == 2


def test_a_geometric_mean_has_the_interval_of_its_logarithm_over_seeds() -> None:
    from scipy import stats

    logs = np.log([[2.0, 4.0, 2.0], [2.0, 1.0, 8.0]])  # traits of a seed are averaged: 2, 2, 4
    found = Statistic.geometric_mean(Measurement(logs, 0.9, "ratio"))
    seeds = logs.mean(0)
    expected = np.exp([*stats.t.interval(0.9, 2, seeds.mean(), stats.sem(seeds))])
    assert found.quantity.mean == pytest.approx(16 ** (1 / 3))
    assert (found.quantity.low, found.quantity.high) == pytest.approx(expected)
    assert (found.count, found.method) == (3, "90 % t interval over 3 seeds, the mean of 2 traits each, of the logarithm")
