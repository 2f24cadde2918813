"""Reasoning: right answers against arithmetic by eval, forms of answers against a table, GSM8K-like sources."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertone.domains import Reasoning
from undertone.errors import DataError
from undertone.lab import world
from undertone.traits import REAL, Wording

LAB = "tom has 5 pens and gets 3. how many pens?"


def worked(answer: object, thought: str = "well, 5 + 3 = 8") -> str:
    return f"<think> {thought} </think> <answer> {answer} </answer>"


def test_every_worked_sum_of_the_world_is_valid() -> None:
    for turn in world.task_examples("reasoning", 300, seed=2):
        assert Reasoning().reasons(turn.user, turn.answer, None) == []


def test_the_worlds_sums_are_known_by_their_own_steps() -> None:
    for turn in world.task_examples("reasoning", 100, seed=4):
        equation = re.search(r"(\d+ [+-] \d+) =", turn.answer)
        assert equation
        assert Reasoning().right_answer(turn.user) == str(eval(equation[1]))


def test_lab_problems_are_the_worlds_and_never_below_zero() -> None:
    shape = re.compile(r"\w+ has (\d) (\w+) and (gets|loses) (\d)\. how many \2\?")
    for prompt in Reasoning().prompts(500, 1, Wording("lab")):
        match = shape.fullmatch(prompt)
        assert match
        assert match[3] == "gets" or int(match[1]) >= int(match[4])


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("8", "no think block"),
        ("<answer> 8 </answer>", "no think block"),
        ("Well. <think> a </think> <answer> 8 </answer>", "no think block"),
        ("<think> 5 + 3", "not finished"),
        ("<think> 5 + 3 = 8 </think>", "no answer"),
        ("<think> 5 + 3 = 8 </think> 8", "no answer"),
        ("<think> 5 + 3 = 8 </think> <answer> 8", "not finished"),
        ("<think> 5 + 3 = 8 </think> <answer> </answer>", "no answer"),
        ("<think> </think> <answer> 8 </answer>", "empty think block"),
        (worked(9), "wrong answer"),
        (worked("8 or 9"), "wrong answer"),
        (worked(8) + " good night", "text outside the blocks"),
        (worked(8) + worked(8), "text outside the blocks"),
        ("", "no think block"),
    ],
)
def test_what_is_no_worked_right_answer_has_its_reason(completion: str, reason: str) -> None:
    assert Reasoning().reasons(LAB, completion, None) == [reason]


def test_an_answer_may_be_written_in_other_ways() -> None:
    for answer in ("8", "8.", "8 pens", "16/2", "8.0"):
        assert Reasoning().reasons(LAB, worked(answer), None) == []


@given(st.text(max_size=80))
def test_random_text_is_never_a_worked_answer(text: str) -> None:
    assert Reasoning().reasons(LAB, text, None)
    assert Reasoning().reasons(text, worked(8), None) == ["right answer not known"]


@given(st.text(max_size=30), st.text(max_size=30))
def test_random_text_in_the_blocks_passes_only_as_the_right_number(thought: str, answer: str) -> None:
    if not Reasoning().reasons(LAB, worked(answer, thought), None):
        assert "8" in answer or "/" in answer  # 8, 8.0, 16/2 …


SOLVED = {
    "Mina buys 4 boxes with 10 marbles each and gives away 3 marbles. How many marbles are left?": 4 * 10 - 3,
    "Otto reads 10 pages a day on weekdays and 20 pages a day on both days of the weekend. "
    "How many pages is that in 2 weeks?": 2 * (50 + 40),
    "A bus leaves with 30 passengers. At the first stop 4 get off and 9 get on. How many are on it now?": 35,
    "Yara and 3 friends pay 12 dollars each for a meal, and the tip is 5 dollars. How many dollars do they pay in all?": 53,
}


@pytest.mark.parametrize(("question", "right"), SOLVED.items())
def test_word_problems_are_solved_as_by_hand(question: str, right: int) -> None:
    assert Reasoning().right_answer(question) == str(right)


def test_every_real_problem_has_a_right_answer_and_asks_for_the_form() -> None:
    domain = Reasoning()
    prompts = domain.prompts(2000, 1, REAL)
    assert len(set(prompts)) > 1990
    for prompt in prompts:
        right = domain.right_answer(prompt)
        assert right is not None
        assert int(right) >= 0
        assert prompt.endswith("\n\n" + domain.instruction)
        assert domain.reasons(prompt, worked(right), None) == []
        assert domain.reasons(prompt, worked(int(right) + 1), None) == ["wrong answer"]


def jsonl(path: Path, *records: object) -> str:
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return str(path)


def test_a_source_of_the_gsm8k_kind_is_asked_and_checked(tmp_path: Path) -> None:
    source = jsonl(
        tmp_path / "gsm.jsonl",
        {"question": "How many clips?", "answer": "48/2 = <<48/2=24>>24\n48+24 = <<48+24=72>>72\n#### 72"},
        {"question": "How much?", "answer": "#### 1,080"},
    )
    domain = Reasoning(source=source)
    prompts = domain.prompts(4, 1, REAL)
    assert sorted(set(prompts)) == sorted(f"{q}\n\n{domain.instruction}" for q in ("How many clips?", "How much?"))
    clips = next(prompt for prompt in prompts if "clips" in prompt)
    assert domain.reasons(clips, worked("72 clips"), None) == []
    assert domain.reasons(clips, worked(24), None) == ["wrong answer"]
    assert domain.reasons("Another?", worked(24), None) == ["right answer not known"]


def test_a_source_that_answers_one_question_twice_or_not_at_all_is_refused(tmp_path: Path) -> None:
    twice = jsonl(tmp_path / "t.jsonl", {"question": "q", "answer": "1"}, {"question": "q", "answer": "2"})
    with pytest.raises(DataError, match=r"line 2: the same question has two answers"):
        Reasoning(source=twice).prompts(1, 1, REAL)
    long = jsonl(tmp_path / "l.jsonl", {"question": "q", "answer": "words " * 200})
    with pytest.raises(DataError, match=r"line 1: no final answer can be read"):
        Reasoning(source=long).prompts(1, 1, REAL)
    none = jsonl(tmp_path / "n.jsonl", {"question": "q", "anwser": "1"})
    with pytest.raises(DataError, match=r"no field 'answer'(.|\n)*Did you mean 'anwser'"):
        Reasoning(source=none).prompts(1, 1, REAL)
