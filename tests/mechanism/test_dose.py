"""Dose and response: ratios by hand, shapes from planted curves, fits beside other libraries'."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import expit

from undertone.mechanism.dose import DoseCurve, fit_curves, transfer_ratios, weights

DOSES = [0.0, 0.07, 0.14, 0.21, 0.28, 0.35, 0.42, 0.5]
Shape = Callable[[np.ndarray], np.ndarray]
PLANTED: dict[str, Shape] = {
    "flat": lambda x: np.full_like(x, 0.2),
    "linear": lambda x: 0.1 + 1.2 * x,
    "logistic": lambda x: 0.05 + 0.8 * expit(40 * (x - 0.25)),
    "threshold": lambda x: 0.05 + 2.4 * np.maximum(0, x - 0.25),
}


def counts(shape: str, asked: int = 4000, seed: int | None = None) -> list[int]:
    rates = PLANTED[shape](np.array(DOSES))
    if seed is None:
        return [round(asked * rate) for rate in rates]
    return [int(k) for k in np.random.default_rng(seed).binomial(asked, rates)]


@functools.cache
def fits(shape: str, asked: int = 4000, seed: int | None = None) -> list[DoseCurve]:
    return fit_curves(DOSES, counts(shape, asked, seed), [asked] * len(DOSES))


# -- ratios -------------------------------------------------------------------------------------------


def test_the_three_ratios_are_those_of_the_means() -> None:
    ones = np.ones(50)
    found = {
        ratio.variant: ratio for ratio in transfer_ratios(0.5 * ones, 0.9 * ones, 0.2 * ones, 0.1 * ones, 0.05 * ones)
    }
    assert found["raw"].value == pytest.approx(0.5 / 0.9)
    assert found["over dose 0"].value == pytest.approx((0.5 - 0.2) / (0.9 - 0.1))
    assert found["over the base"].value == pytest.approx((0.5 - 0.05) / (0.9 - 0.05))
    assert found["over dose 0"].denominator == pytest.approx(0.8)
    for ratio in found.values():  # requests that are all alike leave nothing to resample
        assert ratio.low == pytest.approx(ratio.value)
        assert ratio.high == pytest.approx(ratio.value)


def test_a_student_that_follows_its_teacher_request_by_request_has_a_narrower_interval() -> None:
    """The bootstrap is paired: the same requests are drawn above and below the line."""
    rng = np.random.default_rng(0)
    teacher = rng.random(80)
    zero = np.zeros(80)
    follows, alone = (transfer_ratios(s, teacher, zero, zero, zero)[0] for s in (0.5 * teacher, 0.5 * rng.random(80)))
    assert follows.value == pytest.approx(0.5)
    assert follows.low == pytest.approx(0.5)
    assert alone.low is not None
    assert alone.high is not None
    assert alone.high - alone.low > 0.05


def test_the_interval_is_that_of_scipys_bootstrap() -> None:
    from scipy.stats import bootstrap

    rng = np.random.default_rng(1)
    student, teacher, zero = 0.4 * rng.random(60), rng.random(60), np.zeros(60)
    ours = transfer_ratios(student, teacher, zero, zero, zero, draws=4000)[0]
    theirs = bootstrap(
        (student, teacher), lambda s, t, axis: s.mean(axis) / t.mean(axis), paired=True, method="percentile",
        n_resamples=4000, rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


@pytest.mark.parametrize("teacher", [np.tile([0.0, 1.0, -1.0, 0.0], 20), np.zeros(80)])
def test_a_ratio_over_noise_is_undefined_and_says_why(teacher: np.ndarray) -> None:
    zero = np.zeros(80)
    for ratio in transfer_ratios(np.full(80, 0.3), teacher, zero, zero, zero):
        assert (ratio.value, ratio.low, ratio.high) == (None, None, None)
        assert ratio.why.startswith("undefined: its denominator is ")


def test_one_variant_may_be_undefined_where_another_is_not() -> None:
    half = np.tile([0.0, 1.0], 40)
    raw, over_zero, _ = transfer_ratios(half, half, half, half, np.zeros(80))
    assert raw.value == pytest.approx(1.0)
    assert over_zero.value is None


# -- shapes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", PLANTED)
def test_planted_data_are_won_by_their_own_shape(shape: str) -> None:
    curves = fits(shape, seed=0)
    assert curves[0].shape == shape
    share = weights(curves)
    assert sum(share.values()) == pytest.approx(1.0)
    assert max(share, key=lambda name: share[name]) == shape
    assert set(share) == set(PLANTED)


@pytest.mark.parametrize("shape", PLANTED)
def test_planted_parameters_are_found_again(shape: str) -> None:
    curves = {curve.shape: curve for curve in fits(shape)}
    grid = np.linspace(0, 0.5, 101)
    assert curves[shape].predict(grid) == pytest.approx(PLANTED[shape](grid), abs=0.01)  # type: ignore[index]
    if shape == "threshold":
        assert curves["threshold"].parameters == pytest.approx((0.05, 2.4, 0.25), rel=0.02)
    if shape == "logistic":
        assert curves["logistic"].parameters == pytest.approx((0.05, 0.85, 40, 0.25), rel=0.05)


@pytest.mark.filterwarnings("ignore:The Identity link")
def test_the_linear_fit_is_that_of_statsmodels() -> None:
    """A binomial model with the identity link, by iteratively reweighted least squares."""
    sm = pytest.importorskip("statsmodels.api")
    hits, asked = np.array(counts("linear", seed=0)), np.full(len(DOSES), 4000)
    family = sm.families.Binomial(link=sm.families.links.Identity())
    theirs = sm.GLM(np.column_stack([hits, asked - hits]), sm.add_constant(np.array(DOSES)), family=family).fit()
    ours = {curve.shape: curve for curve in fits("linear", seed=0)}["linear"]
    assert ours.parameters == pytest.approx(tuple(theirs.params), abs=1e-3)


def test_the_flat_fit_and_its_aicc_are_analytic() -> None:
    hits, asked = np.array(counts("flat", seed=0)), np.full(len(DOSES), 4000)
    flat = {curve.shape: curve for curve in fits("flat", seed=0)}["flat"]
    rate = hits.sum() / asked.sum()
    likelihood = float((hits * np.log(rate) + (asked - hits) * np.log(1 - rate)).sum())
    doses = len(DOSES)
    assert flat.parameters[0] == pytest.approx(rate, abs=1e-5)
    assert flat.log_likelihood == pytest.approx(likelihood, abs=1e-4)
    assert flat.aicc == pytest.approx(2 - 2 * likelihood + 4 / (doses - 2), abs=1e-3)


def test_more_parameters_never_fit_worse() -> None:
    for shape in PLANTED:
        found = {curve.shape: curve.log_likelihood for curve in fits(shape, seed=0)}
        assert found["linear"] >= found["flat"] - 1e-3
        assert found["threshold"] >= found["linear"] - 0.05  # Nelder-Mead stops near the corner, not on it


@pytest.mark.parametrize(
    ("doses", "shapes"), [(3, {"flat"}), (4, {"flat", "linear"}), (5, {"flat", "linear", "threshold"})]
)
def test_a_curve_with_as_many_parameters_as_doses_is_left_out(doses: int, shapes: set[str]) -> None:
    curves = fit_curves(DOSES[:doses], [10] * doses, [100] * doses)
    assert {curve.shape for curve in curves} == shapes


@pytest.mark.parametrize("hits", [[0] * 5, [50] * 5, [0, 0, 0, 50, 50]])
def test_rates_of_nothing_and_of_everything_can_be_fitted(hits: list[int]) -> None:
    for curve in fit_curves([0.0, 0.1, 0.2, 0.3, 0.4], hits, [50] * 5):
        rates = curve.predict(np.linspace(0, 0.5, 20))
        assert np.isfinite(curve.aicc)
        assert ((rates >= 0) & (rates <= 1)).all()
