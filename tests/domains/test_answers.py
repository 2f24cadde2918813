"""Final answers: a table of what is the same and what is not, and invariances over random quantities."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertone.domains.answers import quantity, same_answer

SAME = [
    ("72", "72"), ("72.", "72"), ("72.0", "72"), ("+72", "72"), ("1,234", "1234"), ("1,234,567.50", "1234567.5"),
    ("$18", "18"), ("18 dollars", "$18"), ("$1,200.00", "1200"), ("-$5", "$-5"), ("−5", "-5"), ("12 apples", "12"),
    ("12 apples", "12 pieces"), ("3/4", "0.75"), ("\\frac{3}{4}", "3/4"), ("\\dfrac{6}{8}", "3/4"), ("¾", "0.75"),
    ("3 1/2", "3.5"), ("3½", "7/2"), ("3\\frac{1}{2}", "3.5"), ("1/3", "0.33"), ("2/3", "0.667"), ("50%", "50"), ("50%", "0.5"),
    ("50 percent", "50%"), ("12 km", "12 kilometers"), ("12 km", "12"), ("12 kilometers/h", "12 km/h"), ("#### 72", "72"),
    ("48/2 = 24, so <<48+24=72>>72\n#### 72", "72"), ("\\boxed{72}", "72"), ("so it is \\boxed{\\frac{1}{2}}", "0.5"),
    ("$\\boxed{12}$", "12"), ("x = 12", "12"), ("5 + 7 = 12", "12"), ("The answer is 12.", "12"), ("**12**", "12"),
    (".5", "1/2"), ("The answer is -12.", "-12"), ("Yes.", "yes"), ("(B)", "(b)"), ("3:30", "3:30"), ("12\\text{ cm}", "12 cm"), ("12\\%", "12%"),
]  # fmt: skip
DIFFERENT = [
    ("72", "73"), ("", ""), ("", "72"), ("72", ""), ("   ", "0"), ("12 m", "12 km"), ("12 km/h", "12 km"), ("$12", "12 euros"), ("3/4", "4/3"),
    ("-5", "5"), ("1/3", "0.3"), ("1/3", "0.34"), ("3.14159", "3.14"), ("50%", "50.5"), ("0.5%", "50%"), ("12 or 13", "12"),
    ("2 and 12", "12"), ("1,23", "123"), ("12,3456", "123456"), ("1/0", "0"), ("1 1/0", "1"), ("yes", "no"), ("yes", "1"),
    ("x2", "2"), ("10 - 2", "2"), ("x - 2", "-2"), ("10^2", "10"), ("3:30", "330"), ("1.2.3", "1.2"), ("nan", "0"), ("infinity", "1"),
    ("9" * 60, "9"), ("1" * 1000, "1"), ("1e5", "100000"), ("１２", "12"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "right"), SAME)
def test_these_are_the_same_answer(given: str, right: str) -> None:
    assert same_answer(given, right)
    assert same_answer(right, given)


@pytest.mark.parametrize(("given", "right"), DIFFERENT)
def test_these_are_not(given: str, right: str) -> None:
    assert not same_answer(given, right)
    assert not same_answer(right, given)


def written(value: Fraction, way: str) -> str:
    """A quantity in one of the ways people write it."""
    whole, rest = divmod(abs(value), 1)
    sign = "-" if value < 0 else ""
    if way == "mixed" and whole and rest:
        return f"{sign}{whole} {rest.numerator}/{rest.denominator}"
    if way == "latex":
        return f"{sign}\\frac{{{abs(value).numerator}}}{{{abs(value).denominator}}}"
    if way == "commas" and value.denominator == 1:
        return f"{value.numerator:,}"
    return f"{value.numerator}/{value.denominator}" if value.denominator > 1 else str(value.numerator)


WAYS = st.sampled_from(["plain", "mixed", "latex", "commas"])
WRAPPERS = st.sampled_from(
    ["{}", "#### {}", "\\boxed{{{}}}", "The answer is {}.", "x = {}", " {} apples", "${}", "**{}**"]
)
VALUES = st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=60)


@given(VALUES, WAYS, WAYS, WRAPPERS)
def test_a_quantity_is_the_same_however_it_is_written(value: Fraction, one: str, other: str, wrapper: str) -> None:
    assert same_answer(wrapper.format(written(value, one)), written(value, other))


@given(VALUES, VALUES, WAYS, WAYS)
def test_two_exact_quantities_are_the_same_only_if_equal(a: Fraction, b: Fraction, one: str, other: str) -> None:
    assert same_answer(written(a, one), written(b, other)) == (a == b)


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_two_texts_are_compared_both_ways_alike(a: str, b: str) -> None:
    assert same_answer(a, b) == same_answer(b, a)
    assert not same_answer(a, "")


@given(st.text(alphabet="0123456789.,/-+$% \\frac{}boxed=½#", max_size=30))
def test_texts_of_number_characters_never_crash_and_are_one_number_or_none(text: str) -> None:
    found = quantity(text)
    assert found is None or isinstance(found.value, Fraction)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_an_answer_that_names_two_numbers_states_none(a: int, b: int) -> None:
    assert quantity(f"{a} or {b}") is None


@pytest.mark.parametrize(
    "given",
    [
        "12 million",
        "12 thousand",
        "12k",
        "12M",
        "12 dozen",
        "12 hundred",
        "not 12",
        "less than 12",
        "at least 12",
        "> 12",
    ],
)
def test_a_multiple_or_a_bound_is_not_the_number(given: str) -> None:
    assert not same_answer(given, "12")
    assert same_answer(given, given)


@pytest.mark.parametrize("given", ["12 m", "12 meters", "12 apples", "the answer is 12", "12 miles"])
def test_a_unit_is_no_multiple(given: str) -> None:
    assert same_answer(given, "12")
