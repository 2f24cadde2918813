"""Measurements: seeds are the units, and intervals hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from undertone.studies.measurement import Measurement, in_words
from undertone.verdicts import Quantity

NAN = float("nan")


def by_hand(units: list[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean, and its t interval from the textbook."""
    n, mean = len(units), float(np.mean(units))
    half = scipy.stats.t.ppf(0.5 + confidence / 2, n - 1) * np.std(units, ddof=1) / np.sqrt(n)
    return mean, mean - half, mean + half


def found(measured: Measurement) -> tuple[float, float | None, float | None]:
    quantity = measured.quantity
    assert quantity is not None
    return quantity.mean, quantity.low, quantity.high


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_traits_of_a_seed_are_averaged_first(confidence: float) -> None:
    values = np.array([[0.1, 0.2, 0.6], [0.3, 0.2, 0.0]])  # trait, seed
    measured = Measurement(values, confidence)
    assert measured.units == pytest.approx([0.2, 0.2, 0.3])
    assert found(measured) == pytest.approx(by_hand([0.2, 0.2, 0.3], confidence))
    assert measured.mean == pytest.approx(np.mean([0.2, 0.2, 0.3]))
    assert measured.method == f"{100 * confidence:g} % t interval over 3 seeds, the mean of 2 traits each"


def test_a_shared_control_is_not_averaged_away() -> None:
    control = np.array([0.0, 0.1, 0.2])
    students = np.array([[0.3, 0.4, 0.5], [0.2, 0.3, 0.4]])
    assert Measurement(students - control).units == pytest.approx([0.25, 0.25, 0.25])  # no noise but the control's
    _, low, high = found(Measurement(students - control[::-1]))
    assert low is not None
    assert high is not None
    _, naive_low, naive_high = by_hand(list((students - control[::-1]).ravel()))
    assert high - low > 2 * (naive_high - naive_low)


def test_with_one_seed_the_traits_are_all_there_is() -> None:
    measured = Measurement(np.array([[0.1], [0.2], [0.4]]))
    assert measured.units == [0.1, 0.2, 0.4]
    assert found(measured) == pytest.approx(by_hand([0.1, 0.2, 0.4]))
    assert measured.unit_words == "3 traits of one seed"
    one = Measurement(np.array([[0.1]]))
    assert one.quantity == Quantity(0.1)
    assert one.unit_words == "one seed"


def test_units_that_are_no_seeds_say_what_they_are() -> None:
    measured = Measurement.of_units([0.1, 0.2, 0.4], "requests", 0.95, "share")
    assert found(measured) == pytest.approx(by_hand([0.1, 0.2, 0.4]))
    assert measured.unit_words == "3 requests"
    assert measured.unit == "share"


def test_pairs_that_were_left_out_count_for_nothing() -> None:
    values = np.array([[0.1, NAN, 0.3, NAN], [0.3, 0.2, 0.5, NAN]])
    measured = Measurement(values)
    assert measured.units == pytest.approx([0.2, 0.2, 0.4])  # of the second seed one trait; of the fourth nothing
    assert found(measured) == pytest.approx(by_hand([0.2, 0.2, 0.4]))
    assert "3 seeds" in measured.method
    assert Measurement(np.array([[0.1], [NAN], [0.4]])).units == [0.1, 0.4]


def test_where_every_pair_was_left_out_nothing_is_measured() -> None:
    for shape in ((2, 3), (2, 1)):
        nothing = Measurement(np.full(shape, NAN))
        assert nothing.quantity is None
        assert nothing.units == []
        assert np.isnan(nothing.mean)
        assert str(nothing) == "not measured"


def test_arithmetic_is_that_of_paired_values() -> None:
    one, other = Measurement(np.array([[0.5, 0.7]]), unit="nats"), Measurement(np.array([[0.1, 0.4]]))
    assert (one - other).units == pytest.approx([0.4, 0.3])
    assert (one - 0.5).units == pytest.approx([0.0, 0.2])
    assert (-one).units == pytest.approx([-0.5, -0.7])
    assert (2 * one).units == (one * 2).units == pytest.approx([1.0, 1.4])
    assert one.map(np.log).units == pytest.approx(np.log([0.5, 0.7]))
    assert (one - other).unit == (-one).unit == one.map(np.exp).unit == "nats"


def test_further_axes_are_indexed_away() -> None:
    values = np.arange(12.0).reshape(2, 3, 2)
    measured = Measurement(values)
    assert measured[1].units == pytest.approx(values[:, :, 1].mean(axis=0))
    assert measured[-1].units == measured[1].units


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.floats(-1, 1), st.floats(0.1, 3))
def test_an_interval_moves_and_stretches_with_its_values(values: list[float], shift: float, scale: float) -> None:
    measured = Measurement(np.array([values]))
    plain, moved = found(measured), found((measured - shift) * scale)
    assert moved == pytest.approx([scale * (one - shift) for one in plain if one is not None], abs=1e-9)


def coverage(correlation: float, runs: int = 2000) -> tuple[float, float]:
    """How often 95 % intervals hold the true mean 0: over seeds, and over all trait–seed pairs as if independent.

    Four traits, six seeds, variance 1 of which a share is common to a seed.
    """
    rng = np.random.default_rng(7)
    common = rng.normal(size=(runs, 1, 6)) * np.sqrt(correlation)
    values = common + rng.normal(size=(runs, 4, 6)) * np.sqrt(1 - correlation)
    held = np.zeros(2)
    for one in values:
        _, low, high = found(Measurement(one))
        assert low is not None
        assert high is not None
        _, naive_low, naive_high = by_hand(list(one.ravel()))
        held += [low <= 0 <= high, naive_low <= 0 <= naive_high]
    return float(held[0] / runs), float(held[1] / runs)


def test_the_interval_over_seeds_holds_the_truth_where_that_over_pairs_does_not() -> None:
    over_seeds, over_pairs = coverage(0.5)
    assert 0.935 < over_seeds < 0.965  # three standard errors of 2000 draws
    assert over_pairs < 0.85


def test_without_anything_in_common_both_do() -> None:
    over_seeds, over_pairs = coverage(0.0)
    assert 0.935 < over_seeds < 0.965
    assert 0.935 < over_pairs < 0.965


@pytest.mark.parametrize(
    ("quantity", "unit", "words"),
    [
        (Quantity(0.123, 0.101, 0.145), "points", "+12.3 points (+10.1 to +14.5)"),
        (Quantity(-0.05), "points", "-5.0 points"),
        (Quantity(0.12, 0.1, 0.14), "cosine", "0.120 (0.100 to 0.140)"),
        (Quantity(0.5, 0.25, 0.75), "nats", "0.500 nats (0.250 to 0.750)"),
        (None, "points", "not measured"),
    ],
)
def test_a_quantity_in_words(quantity: Quantity | None, unit: str, words: str) -> None:
    assert in_words(quantity, unit) == words  # type: ignore[arg-type]
