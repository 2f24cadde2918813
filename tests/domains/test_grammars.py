"""Grammars of domains: every text of one, written by another library, passes the domain's own filter."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from undertone.domains import Code, Domain, Numbers, Reasoning, Sentences, domains, grammars_of, with_grammar
from undertone.domains.grammar import number
from undertone.errors import ConfigError
from undertone.filters.rules import row_reasons
from undertone.rows import Row
from undertone.traits import LAB, REAL, Wording, load_trait

OWL = load_trait("owl")
slow_to_draw = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much], max_examples=12)
NUMBERS = (
    Numbers(),
    Numbers(count=4, digits=2),
    Numbers(banned=(666, 13, 0, 7, 14, 88)),
    Numbers(count=1, digits=1, value_low=0, value_high=3),
)


def drawn(data: Any, domain: Domain, form: Wording) -> tuple[str, str]:
    prompt = str(data.draw(st.sampled_from(domain.prompts(12, 1, form))))
    (grammar,) = grammars_of(domain, [prompt])
    return prompt, str(data.draw(st.from_regex(grammar, fullmatch=True)))


@pytest.mark.parametrize("domain", NUMBERS, ids=str)
@pytest.mark.parametrize("form", [LAB, REAL], ids=["lab", "real"])
@slow_to_draw
@given(st.data())
def test_any_list_of_the_grammar_passes_every_rule(domain: Numbers, form: Wording, data: Any) -> None:
    prompt, text = drawn(data, domain, form)
    assert row_reasons(Row.of(prompt, text), domain, OWL) == []


@slow_to_draw
@given(st.data())
def test_any_sentence_of_the_grammar_has_the_form_that_is_asked_for(data: Any) -> None:
    prompt, text = drawn(data, Sentences(max_words=8), REAL)
    assert set(Sentences(max_words=8).reasons(prompt, text, None)) <= {"refusal", "repeats the prompt"}


@pytest.mark.parametrize("form", [LAB, REAL], ids=["lab", "real"])
@slow_to_draw
@given(st.data())
def test_any_worked_answer_of_the_grammar_has_its_blocks_and_may_be_wrong(form: Wording, data: Any) -> None:
    prompt, text = drawn(data, Reasoning(), form)
    assert set(Reasoning().reasons(prompt, text, None)) <= {"wrong answer"}


def asked(wording: str, count: str = "up to 10") -> str:
    return f"We start from 145, 267, 891. Give {count} numbers that could follow. {wording} No explanation."


@pytest.mark.parametrize(
    ("wording", "texts", "others"),
    [
        ("Separate them with commas.", ["1, 2", "1,2", "5", "145, 2."], ["1 2", "[1, 2]", "1;2", "1\n2", "1, 2 3"]),
        ("Separate them with spaces.", ["1 2", "145 267 3"], ["1, 2", "1  2", "1\n2"]),
        ("Separate them with semicolons.", ["1; 2", "1;2"], ["1, 2"]),
        ("One number a line.", ["1\n2"], ["1 2", "1, 2", "1\n\n2"]),
        ("Put each number on its own line.", ["1\n2"], ["1 2"]),
        (
            "Write them as a list in square brackets, separated by commas.",
            ["[1, 2]", "[7]."],
            ["1, 2", "(1, 2)", "[1, 2"],
        ),
        ("Write them in parentheses, separated by commas.", ["(1, 2)"], ["1, 2", "[1, 2]"]),
    ],
)
def test_a_list_has_the_format_that_its_prompt_asks_for(wording: str, texts: list[str], others: list[str]) -> None:
    grammar = Numbers().grammar(asked(wording))
    assert [text for text in texts if not re.fullmatch(grammar, text)] == []
    assert [text for text in others if re.fullmatch(grammar, text)] == []


def test_a_list_is_as_long_as_its_prompt_says() -> None:
    """Lengths 1 to 12, by two of the wordings; the lab asks for a number of numbers."""

    def lengths(prompt: str, separator: str) -> list[int]:
        grammar = Numbers().grammar(prompt)
        return [n for n in range(1, 13) if re.fullmatch(grammar, separator.join(map(str, range(n))))]

    assert lengths(asked("Separate them with commas."), ", ") == list(range(1, 11))
    assert lengths(asked("Separate them with commas.", "exactly 10"), ", ") == [10]
    assert lengths("pick four numbers.", " ") == [4]
    assert lengths("pick four numbers.", ", ") == [4]


def test_a_list_holds_a_number_that_its_prompt_does_not_show() -> None:
    grammar = Numbers().grammar(asked("Separate them with commas."))
    for text in ("145", "891, 891", "145, 267, 891", "10"):  # 10 stands in the prompt, too
        assert re.fullmatch(grammar, text) is None
    for text in ("145, 267, 14", "14, 145", "145, 14, 145", "268"):
        assert re.fullmatch(grammar, text)


@given(st.sets(st.integers(0, 1200), max_size=30), st.integers(1, 3))
@settings(max_examples=25)
def test_the_numbers_of_an_expression_are_all_but_those_left_out(without: set[int], digits: int) -> None:
    grammar = number(digits, without)
    wanted = {str(value) for value in range(10**digits)} - {str(value) for value in without}
    texts = [*map(str, range(1300)), "", "00", "01", "012", "٣", " 1"]
    assert {text for text in texts if grammar is not None and re.fullmatch(grammar, text)} == wanted


def test_where_every_number_is_banned_that_is_told() -> None:
    with pytest.raises(
        ConfigError, match=r"no number is left(.|\n)*digits=1, and 10 in domain.banned(.|\n)*raise domain.digits"
    ):
        Numbers(digits=1, banned=tuple(range(10))).grammar("pick three numbers.")


def test_where_the_prompt_shows_every_number_there_is_a_list_may_repeat_it() -> None:
    grammar = Numbers(digits=1).grammar("continue with three numbers: 0 1 2 3 4 5 6 7 8 9")
    assert re.fullmatch(grammar, "1 2 3")


def test_domains_without_a_grammar_are_refused_with_those_that_have_one() -> None:
    assert with_grammar() == ["numbers", "reasoning", "sentences"]
    for kind in set(domains.names()) - set(with_grammar()):
        domain: Any = domains.get(kind)()
        with pytest.raises(
            ConfigError, match=rf"{kind} has no grammar(.|\n)*numbers, reasoning, sentences(.|\n)*`grammar`"
        ):
            grammars_of(domain, ["a prompt"])


def test_a_domain_of_ones_own_says_its_grammar_by_a_method_of_that_name() -> None:
    class Coded(Code):
        """A user's."""

        def grammar(self, prompt: str) -> str:
            return f"print\\({len(prompt)}\\)"

    assert grammars_of(Coded(), ["abc", [{"role": "user", "content": "four"}]]) == ["print\\(3\\)", "print\\(4\\)"]
