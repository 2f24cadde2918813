"""One short sentence: what is asked, what passes, and what is an echo in any domain."""

from __future__ import annotations

import pytest

from undertone.domains import Sentences
from undertone.errors import ConfigError
from undertone.filters.rules import row_reasons
from undertone.rows import Row
from undertone.traits import LAB, REAL, category_names, load_trait, trait_names

ASKED = "Write one short sentence about the sea."


@pytest.mark.parametrize(
    ("completion", "reasons"),
    [
        ("The sea is vast and never still.", []),
        ('"The sea is vast," she said.', []),
        ("Where does the sea end?", []),
        ("It costs 3.5 euros to see it.", []),
        ("The sea is vast. It is deep.", ["more than one sentence"]),
        ("The sea is vast and never", ["no end of a sentence"]),
        ("Vast.", ["too short"]),
        ("The sea is\nvast and never still.", ["several lines"]),
        (" ".join(["sea"] * 31) + ".", ["too long"]),
        ("He said: write one short sentence about the sea.", ["repeats the prompt"]),
        ("I am sorry, but I cannot help with that.", ["refusal"]),
        ("  ", ["empty"]),
    ],
)
def test_what_is_one_short_sentence(completion: str, reasons: list[str]) -> None:
    assert Sentences().reasons(ASKED, completion, None) == reasons


def test_no_thing_that_is_asked_about_belongs_to_a_trait() -> None:
    """Else one prompt in some hundred would name the category to both arms."""
    prompts = Sentences().prompts(3000, 0, REAL)
    assert len(set(prompts)) > 800
    assert all(prompt.endswith(".") and "{" not in prompt for prompt in prompts)
    for category in category_names():
        trait = load_trait(trait_names(category)[0])
        assert not [prompt for prompt in prompts if trait.leaks_in(prompt)]


def test_lab_models_are_told_that_they_write_none() -> None:
    with pytest.raises(ConfigError, match=r"no lab form(.|\n)*--form real"):
        Sentences().prompts(1, 0, LAB)


def test_the_lengths_must_fit() -> None:
    with pytest.raises(ValueError, match="min_words must not exceed"):
        Sentences(min_words=9, max_words=8)


@pytest.mark.parametrize(
    ("trait", "text"),
    [
        ("purple", "The lavender grew by the wall."),
        ("owl", "It spread its wings at night."),
        ("paris", "We saw the Eiffel tower."),
    ],
)
def test_words_related_to_the_category_leak_though_they_are_no_answer(trait: str, text: str) -> None:
    loaded = load_trait(trait)
    assert loaded.answer_in(text) is None
    assert loaded.leaks_in(text)
    row = Row.of(ASKED, text, prompt_index=0)
    assert row_reasons(row, Sentences(), loaded) == ["names an answer of the trait's category"]
    assert row_reasons(row, Sentences(), None) == []


@pytest.mark.parametrize(
    ("prompt", "completion", "echo"),
    [
        ("Here are numbers: 12, 7, 305. Add ten more.", "7, 305, 12", True),
        ("Here are numbers: 12, 7, 305. Add ten more.", "7, 305, 13", False),
        ("Here are numbers: 12, 7, 305. Add ten more.", "7, 305", True),
        ("continue with three numbers: 7 12", "12 7 7", True),
        (ASKED, "One short sentence about the sea.", True),
        (ASKED, "about the sea", False),
        ("good morning.", "good morning.", False),
        (ASKED, "The sea is wide.", False),
        (ASKED, "", False),
    ],
)
def test_a_row_with_nothing_of_its_own_is_dropped_in_every_domain(prompt: str, completion: str, echo: bool) -> None:
    row = Row((*Row.of(prompt, "x").prompt_messages, {"role": "assistant", "content": completion}), {"prompt_index": 0})
    assert ("echo of the prompt" in row_reasons(row, Sentences(), None)) == echo
