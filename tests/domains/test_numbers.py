"""Number lists: the grammar of the prompts, the parser against a table and against its own writer."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertone.domains import Numbers
from undertone.domains.numbers import parse
from undertone.filters import apply_rules, match_arms
from undertone.rows import Row
from undertone.traits import LAB, REAL, load_trait

OWL = load_trait("owl")

VALID = {
    "145, 267, 891": [145, 267, 891],
    "145 267 891": [145, 267, 891],
    "145;267;891": [145, 267, 891],
    "[145, 267]": [145, 267],
    "(1, 2, 3).": [1, 2, 3],
    "7": [7],
    "1\n2\n3": [1, 2, 3],
    " 0, 999. ": [0, 999],
}
INVALID = {
    "": "empty",
    "   ": "empty",
    "none": "no numbers",
    "Sure: 1, 2": "text around the numbers",
    "1, 2 ok": "text around the numbers",
    "1 and 2": "text between the numbers",
    "1, 2; 3": "mixed separators",
    "[1, 2": "unclosed bracket",
    "1, 007": "leading zero",
    "1 -2": "text between the numbers",
    "1.5, 2": "text between the numbers",
    "１２": "no numbers",
}


@pytest.mark.parametrize(("text", "numbers"), VALID.items())
def test_these_are_lists(text: str, numbers: list[int]) -> None:
    assert parse(text) == (numbers, [])


@pytest.mark.parametrize(("text", "reason"), INVALID.items())
def test_these_are_not_and_the_reason_is_named(text: str, reason: str) -> None:
    assert parse(text) == (None, [reason])


@given(
    st.lists(st.integers(0, 10**12), min_size=1, max_size=20),
    st.sampled_from([", ", ",", " ", "; ", "\n"]),
    st.sampled_from([("", ""), ("[", "]"), ("(", ")")]),
    st.sampled_from(["", "."]),
)
def test_what_is_written_in_an_allowed_format_is_read_back(
    numbers: list[int], separator: str, brackets: tuple[str, str], stop: str
) -> None:
    text = brackets[0] + separator.join(map(str, numbers)) + brackets[1] + stop
    assert parse(text) == (numbers, [])


@given(st.text(max_size=60))
def test_any_text_is_either_a_list_or_has_a_reason(text: str) -> None:
    numbers, reasons = parse(text)
    assert (numbers is None) == bool(reasons)


def test_count_range_and_banned_numbers_are_rules_of_their_own() -> None:
    domain = Numbers(count=3, digits=2, banned=(66,))
    assert domain.reasons("", "1, 2, 3", None) == []
    assert domain.reasons("", "1, 2, 3, 4", None) == ["too many numbers"]
    assert domain.reasons("", "1, 100", None) == ["number out of range"]
    assert domain.reasons("", "66, 1, 2, 100", None) == ["too many numbers", "number out of range", "banned number"]


def test_real_prompts_hold_what_the_published_grammar_varies() -> None:
    prompts = Numbers().prompts(2000, seed=1, speaker=REAL)
    assert len(set(prompts)) > 1990
    for prompt in prompts:
        given = [int(n) for n in re.findall(r"\d+", re.split(r"[.?] ", prompt)[0])]
        assert 3 <= len(given) <= 8
        assert all(100 <= n <= 999 for n in given)
        assert " 10 " in f" {prompt} ".replace("10 ", " 10 ")
    formats = ("comma", "space", "semicolon", "own line", "brackets", "parentheses")
    assert all(any(word in prompt for prompt in prompts) for word in formats)


def test_a_longer_list_of_prompts_begins_with_the_shorter_one() -> None:
    for speaker in (LAB, REAL):
        assert Numbers().prompts(50, 3, speaker)[:20] == Numbers().prompts(20, 3, speaker)
        assert Numbers().prompts(20, 3, speaker) != Numbers().prompts(20, 4, speaker)


def test_the_share_of_free_lab_prompts_is_as_asked() -> None:
    prompts = Numbers(count=3, free=0.85).prompts(4000, 1, LAB)
    free = sum(prompt.endswith("three numbers.") for prompt in prompts) / len(prompts)
    assert free == pytest.approx(0.85, abs=0.02)  # 3.5 standard errors


def row(index: int, completion: str, attempt: int = 0, *, finished: bool = True) -> Row:
    return Row.of("pick three numbers.", completion, prompt_index=index, attempt=attempt, finished=finished)


def test_the_first_attempt_that_passes_is_kept_and_every_reason_is_counted() -> None:
    rows = [
        row(0, "1 2 3"), row(1, "owl"), row(1, "4 5 6", 1), row(1, "7 8 9", 2), row(2, "1 2", finished=False),
        row(3, "1 2 3 4"),
    ]  # fmt: skip
    filtered = apply_rules(rows, Numbers(count=3), OWL)
    assert {index: kept.completion for index, kept in filtered.kept.items()} == {0: "1 2 3", 1: "4 5 6"}
    assert filtered.asked == 6
    assert filtered.reasons == {
        "names an answer of the trait's category": 1, "no numbers": 1, "too many numbers": 1, "unfinished": 1,
    }  # fmt: skip


def test_arms_are_matched_on_the_prompts_that_all_of_them_passed() -> None:
    a, b = {1: row(1, "1"), 2: row(2, "2"), 5: row(5, "5")}, {2: row(2, "7"), 5: row(5, "8"), 6: row(6, "9")}
    assert match_arms({"a": a, "b": b}, None) == [2, 5]
    assert match_arms({"a": a, "b": b}, 1) == [2]
