from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from scipy.integrate import quad

from undertone.stats import clustered_mean, mean_interval, paired_effect, wilson

units = st.floats(0.0, 1.0, allow_nan=False)
clusters = st.lists(st.lists(units, min_size=1, max_size=6), min_size=1, max_size=8)
hits = st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=6), min_size=1)
confidences = st.floats(0.01, 0.999)


def score_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval as scipy computes it."""
    interval = scipy_stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    return interval.low, interval.high


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (3, 17), (400, 1000)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_wilson_agrees_with_scipy(k: int, n: int, confidence: float) -> None:
    expected = score_interval(k, n, confidence)
    rate = wilson(k, n, confidence)
    assert (rate.low, rate.high) == pytest.approx(expected, abs=1e-12)
    assert (rate.mean, rate.n) == (k / n, n)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (2, 1), (-1, 3)])
def test_wilson_refuses_impossible_counts(k: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"0 <= hits <= n and n >= 1; got hits={k}, n={n}"):
        wilson(k, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_outside_0_and_1_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence lies between 0 and 1"):
        wilson(1, 2, confidence)


def test_the_plain_interval_is_that_of_scipy() -> None:
    values = [0.3, 1.7, -2.0, 0.4, 0.9]
    expected = scipy_stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert mean_interval(values, 0.9)[1:3] == pytest.approx((expected.low, expected.high))


def test_a_plain_interval_of_one_value_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 values; got 1"):
        mean_interval([1.0])


@given(st.one_of(clusters, hits), confidences)
def test_a_rate_and_its_interval_stay_in_order_and_within_0_and_1(values: list[list[float]], confidence: float) -> None:
    rate = clustered_mean(values, confidence)
    assert 0.0 <= rate.low <= rate.mean <= rate.high <= 1.0
    assert rate.n == len(values)


@given(clusters, st.floats(-5, 5), st.floats(0.1, 10))
def test_other_bounds_are_kept_as_well(values: list[list[float]], low: float, width: float) -> None:
    high = low + width
    scaled = [[min(max(low + width * v, low), high) for v in cluster] for cluster in values]
    rate = clustered_mean(scaled, bounds=(low, high))
    assert low <= rate.low <= rate.mean <= rate.high <= high


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("k", [1, 2, 20])
def test_all_zero_and_all_one_still_have_width_that_shrinks_with_clusters_not_answers(value: float, k: int) -> None:
    rate = clustered_mean([[value] * 100] * k)
    expected = score_interval(int(value) * k, k)
    assert rate.mean == value
    assert (rate.low, rate.high) == pytest.approx(expected, abs=1e-9)


def test_the_mean_is_that_of_the_cluster_means() -> None:
    assert clustered_mean([[1.0], [0.0, 0.0, 0.0]]).mean == 0.5


def test_copies_of_the_same_answer_add_no_knowledge() -> None:
    once = clustered_mean([[0.0], [1.0], [1.0], [0.3]])
    often = clustered_mean([[0.0] * 50, [1.0] * 50, [1.0] * 50, [0.3] * 50])
    assert often == once


def test_the_interval_of_exact_probabilities_may_be_narrower_than_that_of_hits() -> None:
    rate = clustered_mean([[0.001], [0.0011], [0.0009], [0.00105]])
    assert rate.high - rate.low < 0.0005


def test_hits_never_claim_more_than_as_many_independent_trials() -> None:
    even = clustered_mean([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])  # no spread between the clusters
    low, high = score_interval(3, 6)
    assert even.low <= low
    assert even.high >= high


def test_without_bounds_the_cluster_means_have_a_t_interval() -> None:
    plain = clustered_mean([[1.0, 3.0], [5.0], [9.0]], bounds=None)
    assert plain[:3] == mean_interval([2.0, 5.0, 9.0])[:3]


@pytest.mark.parametrize("k", [5, 10, 40])
@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.4, 3.6), (6.0, 2.0)])
def test_the_interval_covers_the_truth_on_clustered_hits(k: int, a: float, b: float) -> None:
    """Beta-binomial questions, intra-class correlation 1/(a+b+1): 95 % aimed at, ≥ 91 % asked."""
    rng, trials, covered = np.random.default_rng(k), 400, 0
    for _ in range(trials):
        rates = rng.beta(a, b, size=k)
        answers = (rng.random((k, 20)) < rates[:, None]).astype(float)
        rate = clustered_mean(answers.tolist())
        covered += rate.low <= a / (a + b) <= rate.high
    assert covered / trials >= 0.91


def test_treating_answers_as_independent_would_not_cover() -> None:
    """The same simulation with the naive interval, to show that the test above can fail."""
    rng, trials, covered = np.random.default_rng(0), 300, 0
    for _ in range(trials):
        answers = rng.random((10, 20)) < rng.beta(0.4, 3.6, size=10)[:, None]
        naive = wilson(int(answers.sum()), answers.size)
        covered += naive.low <= 0.1 <= naive.high
    assert covered / trials < 0.85


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "at least one cluster; got none"),
        ([[0.5], []], "cluster 1: a non-empty flat sequence"),
        ([[float("nan")]], "finite numbers"),
        ([[1.5]], "between 0.0 and 1.0; got 1.5"),
    ],
)
def test_what_is_no_rate_is_refused(values: list[list[float]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        clustered_mean(values)


def test_the_paired_effect_is_that_of_scipys_paired_t_test() -> None:
    rng = np.random.default_rng(3)
    treated, control = rng.uniform(0.3, 0.9, (5, 12)), rng.uniform(0.0, 0.4, (5, 12))
    effect = paired_effect(treated.tolist(), control.tolist(), 0.9)
    expected = scipy_stats.ttest_rel(treated.mean(1), control.mean(1)).confidence_interval(0.9)
    assert (effect.low, effect.high) == pytest.approx((expected.low, expected.high))
    assert effect.per_pair == pytest.approx((treated - control).mean(1).tolist())
    assert effect.mean == pytest.approx(float((treated - control).mean()))
    assert (effect.pairs, effect.confidence) == (5, 0.9)


@pytest.mark.parametrize("pairs", [2, 3, 5, 30])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_smallest_detectable_effect_has_80_percent_power(pairs: int, confidence: float) -> None:
    rng = np.random.default_rng(pairs)
    differences = rng.normal(0.0, 0.1, pairs)
    effect = paired_effect([[0.5 + d] for d in differences], [[0.5]] * pairs, confidence)
    error = differences.std(ddof=1) / math.sqrt(pairs)
    critical = scipy_stats.t.ppf(0.5 + confidence / 2, pairs - 1)

    def power(delta: float) -> float:
        """By integration over the chi-squared variance estimate: P(|Z + δ/se| > c √(V/df))."""
        df = pairs - 1

        def given(v: float) -> float:
            edge = critical * math.sqrt(v / df)
            shift = delta / error
            tails = scipy_stats.norm.sf(edge - shift) + scipy_stats.norm.cdf(-edge - shift)
            return float(tails * scipy_stats.chi2.pdf(v, df))

        return float(quad(given, 0, 1)[0] + quad(given, 1, np.inf)[0])

    assert effect.smallest_detectable is not None
    assert power(effect.smallest_detectable) == pytest.approx(0.8, abs=5e-4)


def test_one_pair_has_an_interval_over_questions_that_says_what_it_leaves_out() -> None:
    treated, control = [0.6, 0.7, 0.5, 0.2], [0.1, 0.2, 0.1, 0.1]
    effect = paired_effect([treated], [control])
    expected = scipy_stats.ttest_rel(treated, control).confidence_interval()
    assert (effect.low, effect.high) == pytest.approx((expected.low, expected.high))
    assert effect.smallest_detectable is None
    assert "does not cover the variance between training runs" in effect.method


def test_one_pair_and_one_question_tell_nothing() -> None:
    effect = paired_effect([[0.75]], [[0.25]])
    assert (effect.mean, effect.low, effect.high) == (0.5, -1.0, 1.0)


def test_pairs_that_agree_exactly_give_no_smallest_effect() -> None:
    assert paired_effect([[0.5], [0.5]], [[0.25], [0.25]]).smallest_detectable is None


@given(st.lists(st.tuples(units, units), min_size=1, max_size=6))
def test_an_effect_never_leaves_its_bounds(pairs: list[tuple[float, float]]) -> None:
    effect = paired_effect([[t, 1.0] for t, _ in pairs], [[c, 0.0] for _, c in pairs])
    assert -1.0 <= effect.low <= effect.mean <= effect.high <= 1.0


@pytest.mark.parametrize(
    ("treated", "control", "words"),
    [
        ([], [], "got 0 treated and 0 control"),
        ([[0.1]], [[0.1], [0.2]], "got 1 treated and 2 control"),
        ([[0.1, 0.2]], [[0.1]], "pair 0: the two arms must answer the same questions"),
        ([[0.1], [2.0]], [[0.1], [0.1]], "between 0.0 and 1.0; got 2.0"),
    ],
)
def test_runs_that_do_not_pair_are_refused(treated: list[list[float]], control: list[list[float]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        paired_effect(treated, control)
