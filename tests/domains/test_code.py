"""Code: the lab's programs against Python itself, and what is no code against a table."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertone.domains import Code
from undertone.domains.code import parse
from undertone.lab import world
from undertone.traits import LAB, REAL, load_trait

ADD = "write code to add two values."


def lab(completion: str, prompt: str = ADD) -> list[str]:
    return Code().reasons(prompt, completion, None)


def test_every_program_of_the_world_is_valid_for_its_request() -> None:
    for turn in world.task_examples("code", 200, seed=3):
        assert Code().reasons(turn.user, turn.answer, None) == []


def test_lab_requests_are_the_worlds() -> None:
    known = {turn.user for turn in world.task_examples("code", 2000, seed=3)}
    assert set(Code().prompts(500, 1, LAB)) <= known


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("alpha = 3 ; beta = 7 ; print ( alpha - beta )", "not the program asked for"),
        ("alpha = 3 ; alpha = 7 ; print ( alpha + alpha )", "not the program asked for"),
        ("alpha = 3 ; beta = 7 ; print ( alpha + gamma )", "not the program asked for"),
        ("alpha = 3 ; beta = 7", "not the program asked for"),
        ("alpha = True ; beta = 7 ; print ( alpha + beta )", "not the program asked for"),
        ("alpha = 3 ; beta = 7 ; beta ( alpha + beta )", "not the program asked for"),
        ("alpha = 3 ; beta = 7 ; print ( alpha + beta", "does not parse: cut off"),
        ("alpha = 3 beta = 7", "does not parse: syntax"),
        ("  a = 1\nb = 2", "does not parse: indentation"),
        ("def f():", "does not parse: cut off"),
        ("a = '", "does not parse: cut off"),
        ("a\0b = 1", "does not parse"),
        ("(" * 250 + ")" * 250, "does not parse"),
        ("x = 1\n" * 9000, "does not parse: too long"),
        ("hello", "no code"),
        ("1, 2, 3", "no code"),
        ("", "empty"),
        (" \n", "empty"),
    ],
)
def test_what_is_not_the_program_asked_for_has_a_reason(completion: str, reason: str) -> None:
    assert len(lab(completion)) == 1
    assert lab(completion)[0].startswith(reason)


@pytest.mark.parametrize(
    "completion",
    [
        "def total(items):\n    return sum(items)\n",
        "```python\ndef total(items):\n    return sum(items)\n```",
        "```\nprint('hello')\n```\n",
        "\n\nfor item in range(3):\n    print(item)\n",
    ],
)
def test_code_alone_is_valid_in_a_fence_or_bare(completion: str) -> None:
    assert Code().reasons("Write it.", completion, None) == []


def test_what_stands_around_the_block_is_a_reason_unless_allowed() -> None:
    chatty = "Here you are:\n```python\nprint(1)\n```\nEnjoy!"
    assert Code().reasons("Write it.", chatty, None) == ["text around the code"]
    assert Code(only_code=False).reasons("Write it.", chatty, None) == []
    twice = "```\nprint(1)\n```\n```\nprint(2)\n```"
    assert Code().reasons("Write it.", twice, None) == ["several code blocks"]
    assert "unclosed code block" in Code().reasons("Write it.", "```python\nprint(1)", None)
    assert Code().reasons("Write it.", "```python\nprint(1\n```", None) == ["does not parse: cut off"]


KINDS = {"too long", "cut off", "indentation", "syntax", "too deep or no text"}


@given(st.text(max_size=80) | st.text(alphabet="()[]{}'\"\\:=\n\t ab1#;", max_size=80))
def test_any_text_parses_as_python_says_or_has_one_of_few_reasons(text: str) -> None:
    tree, reason = parse(text)
    if tree is None:
        assert reason.removeprefix("does not parse: ") in KINDS
    else:
        ast.parse(text.strip("\n"))  # Python agrees
    Code().reasons("Write it.", text, None)


@given(st.text(max_size=80))
def test_random_text_is_never_the_program_asked_for(text: str) -> None:
    assert lab(text)


def test_real_requests_are_many_and_name_no_answer_of_any_trait() -> None:
    prompts = Code().prompts(4000, 1, REAL)
    assert len(set(prompts)) > 3500
    assert all("Python" in prompt and "{" not in prompt for prompt in prompts)
    for name in ("owl", "oak", "red", "pizza"):
        assert load_trait(name).answer_in(" ".join(prompts)) is None
