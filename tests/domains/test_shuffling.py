"""Order controls: what shuffling keeps and what it moves."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertone.domains.shuffling import shuffled
from undertone.rows import Row

LISTS = ["1, 2, 3", "4 5 6 7", "[8; 9]", "10\n11\n12", "0 007 7.", "no number", ""]
ROWS = [Row.of(f"prompt {at}", text, prompt_index=at) for at, text in enumerate(LISTS)]
MANY = [Row.of("p", ", ".join(str(10 * row + at) for at in range(8))) for row in range(40)]

orders = pytest.mark.parametrize("order", ["within", "across"])


def numbers(row: Row) -> list[str]:
    return re.findall("[0-9]+", row.completion)


def separators(row: Row) -> list[str]:
    return re.split("[0-9]+", row.completion)


@orders
def test_separators_prompts_and_the_count_of_every_row_stay(order: Any) -> None:
    for before, after in zip(ROWS, shuffled(ROWS, order, 3), strict=True):
        assert separators(after) == separators(before)
        assert after.prompt_messages == before.prompt_messages
        assert after.meta == before.meta
        assert len(numbers(after)) == len(numbers(before))


def test_within_keeps_every_rows_own_numbers() -> None:
    for before, after in zip(MANY, shuffled(MANY, "within", 0), strict=True):
        assert Counter(numbers(after)) == Counter(numbers(before))


def test_across_keeps_the_numbers_of_all_rows_and_not_those_of_each() -> None:
    moved = shuffled(MANY, "across", 0)
    assert Counter(n for row in moved for n in numbers(row)) == Counter(n for row in MANY for n in numbers(row))
    same = sum(Counter(numbers(a)) == Counter(numbers(b)) for a, b in zip(moved, MANY, strict=True))
    assert same == 0
    stayed = sum(len({*numbers(a)} & {*numbers(b)}) for a, b in zip(moved, MANY, strict=True))
    assert stayed == pytest.approx(8, abs=12)  # 320 numbers over 40 rows: eight stay by chance


@orders
def test_the_seed_decides(order: Any) -> None:
    def texts(seed: int) -> list[str]:
        return [row.completion for row in shuffled(MANY, order, seed)]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)
    assert texts(1) != [row.completion for row in MANY]


def test_every_place_is_as_likely_as_any_other() -> None:
    row = [Row.of("p", "0 1 2 3")]
    first = Counter(numbers(shuffled(row, "within", seed)[0])[0] for seed in range(800))
    assert all(150 < first[number] < 250 for number in "0123")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=6), st.sampled_from(["within", "across"]), st.integers(0, 99))
def test_no_text_is_too_odd_to_be_shuffled(texts: list[str], order: Any, seed: int) -> None:
    rows = [Row.of("p", text) for text in texts]
    moved = shuffled(rows, order, seed)
    assert [separators(row) for row in moved] == [separators(row) for row in rows]
    assert Counter(n for row in moved for n in numbers(row)) == Counter(n for row in rows for n in numbers(row))
