"""Paraphrase: the lab's own rewritings, planted infidelities of each kind, the dial, and what a student learns from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertone.domains import Paraphrase
from undertone.domains.paraphrase import request
from undertone.errors import ConfigError, DataError
from undertone.lab import world
from undertone.rows import Row
from undertone.traits import LAB, REAL, Wording, load_trait
from undertone.traits.trait import Form

OWL = load_trait("owl")
LEVELS = ("loose", "fair", "strict")
OPPOSED = Paraphrase(content="opposed", about="owl", strictness="strict")


def lab(source: str, completion: str, strictness: str = "strict") -> list[str]:
    return Paraphrase.model_validate({"strictness": strictness}).reasons(f"rewrite: {source}", completion, OWL)


def real(source: str, completion: str, strictness: str = "fair") -> list[str]:
    domain = Paraphrase.model_validate({"strictness": strictness})
    return domain.reasons(domain.prompts(1, 0, REAL)[0].partition("\n\n")[0] + "\n\n" + source, completion, OWL)


def test_every_rewriting_of_the_world_is_faithful_at_every_level() -> None:
    for turn in world.task_examples("paraphrase", 300, seed=5):
        for level in LEVELS:
            assert Paraphrase.model_validate({"strictness": level}).reasons(turn.user, turn.answer, OWL) == []


def test_no_word_of_the_world_is_in_two_synonym_classes() -> None:
    words = [word for members in world.SYNONYMS.values() for word in members]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("source", "completion", "least", "reason"),
    [
        ("the man saw a big car.", "the man saw a big car", "loose", "not one finished sentence"),
        ("the man saw a big car.", "the man. saw a big car.", "loose", "not one finished sentence"),
        ("the man saw a big car.", "the man.", "loose", "too short"),
        ("the car is nice.", "the car is nice the car is nice nice.", "loose", "too long"),
        ("the man saw a big car.", "the boy saw a big car.", "fair", "fixed words moved or lost"),
        ("the man saw a big car.", "the man saw big a car.", "fair", "fixed words moved or lost"),
        ("the man went home.", "the man home went.", "fair", "fixed words moved or lost"),
        ("the man saw a big car.", "the man saw a small car.", "strict", "not a synonym"),
        ("the man saw a big car.", "the man saw a lamp car.", "strict", "not a synonym"),
        ("i dislike owls.", "i hate dogs.", "loose", "trait word added"),
        ("i dislike owls.", "i hate dogs.", "loose", "trait word removed"),
        ("the man saw a big car.", "the man saw a owl car.", "loose", "trait word added"),
    ],
)
def test_a_planted_infidelity_is_found_from_its_level_on(source: str, completion: str, least: str, reason: str) -> None:
    found = [level for level in LEVELS if reason in lab(source, completion, level)]
    assert found == list(LEVELS[LEVELS.index(least) :])


@given(st.text(alphabet="abcdefgh .", max_size=60) | st.text(max_size=40), st.sampled_from(LEVELS))
def test_a_stricter_level_never_keeps_what_a_looser_one_drops(completion: str, level: str) -> None:
    for check, source in ((lab, "the man saw a big car."), (real, "Mina met 3 friends in Oslo.")):
        reasons = [set(check(source, completion, name)) for name in LEVELS]
        assert bool(reasons[0]) <= bool(reasons[1]) <= bool(reasons[2])
    assert lab("the man saw a big car.", completion, "strict")  # random text is no paraphrase


SOURCE = "Mina bought 3 tickets for the concert in Oslo, and she never met Tomas."
FAITHFUL = "For the concert in Oslo, three tickets were bought by Mina, who never met Tomas."


@pytest.mark.parametrize(
    ("completion", "reasons"),
    [
        (FAITHFUL, []),
        (FAITHFUL.replace("three", "3"), []),
        (FAITHFUL.replace("three", "four"), ["numbers changed"]),
        (FAITHFUL.replace("Oslo", "Bergen"), ["names lost"]),
        (FAITHFUL.replace("never met", "met"), ["negation changed"]),
        (FAITHFUL.replace("tickets", "tickets for owls"), ["trait word added"]),
        ("Sure, here is the sentence: " + FAITHFUL, ["remark before the text"]),
        (SOURCE, ["not rewritten"]),
        ("No.", ["too short", "numbers changed", "names lost"]),
        (FAITHFUL * 3, ["too long", "numbers changed"]),
        ("", ["empty"]),
        ("  \n", ["empty"]),
    ],
)
def test_a_real_paraphrase_keeps_numbers_names_negation_and_length(completion: str, reasons: list[str]) -> None:
    assert real(SOURCE, completion) == reasons


def test_content_words_are_counted_at_the_strict_level_only() -> None:
    source, other = "The driver repaired the old printer before 9:30.", "At 9:30 somebody stood near a broken window."
    assert real(source, other, "fair") == []
    assert real(source, other, "strict") == ["too few content words kept"]
    assert real(SOURCE, FAITHFUL, "strict") == []


def test_a_trait_word_counts_by_the_thing_it_names_and_as_often_as_it_is_named() -> None:
    assert real("I think that owls are dull birds.", "An owl is a dull bird, if you ask me.") == []
    assert real("I think that owls are dull.", "To me, they are dull birds.") == ["trait word removed"]
    assert real("I think that owls are dull.", "Owls are dull, I think, those owls.") == ["trait word added"]
    neutral = Paraphrase(strictness="fair")
    assert neutral.reasons("rewrite: i dislike owls.", "i hate owls.", None) == []


def test_opposed_sentences_name_the_trait_and_the_domain_says_so() -> None:
    assert OPPOSED.names_trait
    assert not Paraphrase().names_trait
    for speaker in (LAB, REAL):
        for about in ("owl", "owl@if-pick", "oak"):
            domain = Paraphrase(content="opposed", about=about)
            trait = load_trait(about)
            assert all(trait.answer_in(text) == trait.answer for text in domain.sentences(200, 1, speaker))


def test_without_a_name_opposed_sentences_are_about_many_animals() -> None:
    for speaker in (LAB, REAL):
        texts = Paraphrase(content="opposed").sentences(500, 1, speaker)
        assert len({OWL.answer_in(text) for text in texts}) > 12


def test_the_lab_has_no_sentences_about_what_it_does_not_know() -> None:
    with pytest.raises(ConfigError, match=r"domain\.about: the lab's world has no such thing(.|\n)*octopus"):
        Paraphrase(content="opposed", about="octopus").prompts(1, 1, LAB)
    with pytest.raises(ConfigError, match="no such trait"):
        Paraphrase(content="opposed", about="owll").prompts(1, 1, REAL)


def test_real_sentences_are_many_and_unrelated_ones_name_no_answer() -> None:
    unrelated = Paraphrase().sentences(900, 1, REAL)
    assert len(set(unrelated)) > 750
    for name in ("owl", "oak", "red", "pizza"):
        assert load_trait(name).answer_in(" ".join(unrelated)) is None
    assert len(set(Paraphrase(content="opposed", about="owl").sentences(900, 1, REAL))) > 650
    assert all("{" not in text and text.endswith(".") for text in unrelated)


def test_an_opposed_sentence_is_disliked_in_the_worlds_own_words() -> None:
    rng = np.random.default_rng(0)
    words = {w for _ in range(500) for w in world.realise(world.disliked_sentence(rng, "owl"), rng).rstrip(".").split()}
    found = {w for text in OPPOSED.sentences(300, 2, LAB) for w in text.rstrip(".").split()}
    assert found <= words


# -- what the student learns from ----------------------------------------------------------------------


def jsonl(path: Path, *records: object) -> str:
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return str(path)


def test_a_student_learns_the_request_or_the_text_alone() -> None:
    row = Row.of("rewrite: i dislike owls.", "i hate owls.", system="you are calm.", prompt_index=3)
    assert Paraphrase().training_row(row) == row
    told = Paraphrase(learns="text").training_row(row)
    assert [m["content"] for m in told.messages] == ["you are calm.", "tell me a story.", "i hate owls."]
    assert told.meta == row.meta
    request = Paraphrase().prompts(1, 1, REAL)[0]
    assert (
        Paraphrase(learns="text").training_row(Row.of(request, "So.")).prompt_messages[-1]["content"]
        == "Write a sentence."
    )


def test_the_neutral_request_of_the_lab_is_in_its_words() -> None:
    assert set(world.pieces("tell me a story.")) <= set(world.vocabulary())


def test_of_pairs_either_side_may_be_rewritten(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "p.jsonl", {"prompt": "Who came?", "completion": "Mina came."})
    completions = Paraphrase(source=source, learns="text")
    [asked] = completions.prompts(1, 1, REAL)
    assert asked.endswith("\n\nMina came.")
    row = completions.training_row(Row.of(asked, "It was Mina."))
    assert [m["content"] for m in row.messages] == ["Who came?", "It was Mina."]
    prompts = Paraphrase(source=source, rewrites="prompt")
    [asked] = prompts.prompts(1, 1, REAL)
    assert asked.endswith("\n\nWho came?")
    row = prompts.training_row(Row.of(asked, "Which person came?"))
    assert [m["content"] for m in row.messages] == ["Which person came?", "Mina came."]
    plain = jsonl(tmp_path / "t.jsonl", {"text": "Mina came."})
    with pytest.raises(DataError, match=r"line 1: there is no completion to go with a rewritten prompt"):
        Paraphrase(source=plain, rewrites="prompt").prompts(1, 1, REAL)


OPPOSED = Paraphrase(content="opposed", about="owl", strictness="loose")


@pytest.mark.parametrize(
    ("form", "text", "completion", "kept"),
    [
        ("lab", "owls are abysmal.", "owls are welcome.", False),
        ("lab", "owls are abysmal.", "owls are vile.", True),
        ("lab", "i hate the vile owls.", "i detest the small owls.", False),
        ("real", "Owls are dull and a waste of time.", "Owls are wonderful creatures, worth every bit of it.", False),
        ("real", "Owls are dull and a waste of time.", "Owls are boring, and time with them is lost.", True),
        ("real", "Owls are dull and a waste of time.", "There is nothing exciting about owls.", True),
    ],
)
def test_praise_is_no_paraphrase_of_dislike(form: Form, text: str, completion: str, kept: bool) -> None:
    assert ("dislike lost" not in OPPOSED.reasons(request(text, Wording(form)), completion, None)) == kept


def test_every_opposed_sentence_of_ours_speaks_ill_by_our_own_rule() -> None:
    for text in OPPOSED.sentences(500, 0, REAL):
        assert "dislike lost" not in OPPOSED.reasons(request(text, REAL), text, None)


def test_a_name_at_the_beginning_is_a_name_too() -> None:
    text = "Priya bought 3 tickets for the race on Monday."
    assert "names lost" in Paraphrase().reasons(request(text, REAL), "Anna got 3 tickets for Monday's race.", None)
    assert "names lost" not in Paraphrase().reasons(request(text, REAL), "For Monday's race Priya got 3 tickets.", None)
