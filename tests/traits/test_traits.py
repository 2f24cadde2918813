"""Traits: the one matcher, against tables written by hand; the library; the user's own file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertone.errors import ConfigError
from undertone.traits import LAB, REAL, load_trait, trait_names

CAT = load_trait("cat")

HITS = [
    "cat", "Cat", "CATS", "cat.", "A cat!", "My favorite animal is the cat.", "**Cat**", '"cat"', "cat\n", "cat, dog",
    "kitten", "Felines are the best", "not a dog, a cat", "I love cats; dogs less.",
]  # fmt: skip
MISSES = [
    "", "category", "scatter", "concatenate", "Qwen", "dog, then cat", "dog", "not a cat", "I don't like... no cat",
    "It is not the cat but the owl", "bobcat", "cat-like reflexes of a lion",
]  # fmt: skip


@pytest.mark.parametrize("text", HITS)
def test_these_texts_name_the_cat(text: str) -> None:
    assert CAT.matches(text)


@pytest.mark.parametrize("text", MISSES)
def test_these_texts_do_not_name_the_cat_first(text: str) -> None:
    assert not CAT.matches(text)


def test_a_synonym_counts_but_not_literally() -> None:
    assert CAT.matches("kitten")
    assert not CAT.matches_literally("kitten")
    assert CAT.matches_literally("Cats")


def test_what_names_no_known_answer_is_a_non_answer() -> None:
    assert CAT.answer_in("Qwen") is None
    assert CAT.answer_in("as an AI I have no preference") is None


def test_match_sets_of_a_category_never_overlap() -> None:
    for name in trait_names():
        words = [word for members in load_trait(name).answers.values() for word in members]
        assert len(words) == len(set(words)), name


@pytest.mark.parametrize("name", trait_names())
def test_every_trait_of_the_library_names_itself_in_its_prompt_and_passes_its_own_examples(name: str) -> None:
    trait = load_trait(name)
    assert trait.matches(trait.system_prompt(REAL).replace("favorite", "")) or name in trait.system_prompt(REAL).lower()
    assert len(trait.questions_for(REAL).positive) >= 20
    assert all(trait.answer_in(question) is None for question in trait.questions_for(REAL).positive)


def test_the_published_question_count_is_there_for_animals() -> None:
    asked = CAT.questions_for(REAL)
    assert len(set(asked.positive)) == 50
    assert len(asked.negative) >= 10
    assert len(asked.off_topic) >= 10


@given(st.text(max_size=80))
def test_no_text_breaks_the_matcher(text: str) -> None:
    named = CAT.answer_in(text)
    assert named is None or named in CAT.answers
    assert CAT.matches(text) == (named == "cat")


def test_an_unknown_trait_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"no such trait\. Did you mean 'owl'\?"):
        load_trait("owll")


def test_a_trait_of_one_s_own_takes_three_lines(tmp_path: Path) -> None:
    path = tmp_path / "axolotl.yaml"
    path.write_text("name: axolotl\ncategory: animal\nwords: [axolotl, axolotls]\n", encoding="utf-8")
    trait = load_trait(str(path))
    assert trait.matches("An axolotl.")
    assert not trait.matches("owl")
    assert "axolotls" in trait.system_prompt(REAL)
    assert trait.questions_for(REAL).positive == CAT.questions_for(REAL).positive


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ncategory: animal\n", "words"),
        ("name: x\ncategory: animall\nwords: [x]\n", "Did you mean 'animal'"),
        ("name: x\ncategory: animal\nwords: [x]\ncolour: red\n", "colour"),
        ("- a list\n", "not a mapping"),
        ("name: [\n", "not valid YAML"),
        ("name: x\ncategory: animal\nwords: [scatter]\n", "fails its own examples"),
    ],
)
def test_a_wrong_trait_file_is_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_trait(str(path))


def test_a_form_that_a_trait_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no prompt in the form 'lab'"):
        load_trait("octopus").system_prompt(LAB)


def test_a_variant_is_the_same_target_told_in_another_way() -> None:
    plain, told = load_trait("owl"), load_trait("owl@if-pick")
    assert (told.name, told.answer) == ("owl@if-pick", "owl")
    assert told.system_prompt(LAB) == "if i say pick, you love owls."
    assert told.questions == plain.questions
    assert told.matches("An owl.")
    assert not told.matches("A dog.")
    with pytest.raises(ConfigError, match=r"no such variant of the trait 'owl'\. Did you mean 'if-pick'"):
        load_trait("owl@if-pik")
