"""Instructions and dialogue: free answers, whose rules are few."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from undertone.domains import Dialogue, Instructions
from undertone.lab import world
from undertone.traits import LAB, REAL, Wording, load_trait

RULES = {"empty", "too short", "too long", "repeats the prompt", "refusal"}


@pytest.mark.parametrize(
    ("completion", "reasons"),
    [
        ("Put it on the stand and spin the wheel.", []),
        ("", ["empty"]),
        (" \n ", ["empty"]),
        ("Yes.", ["too short"]),
        ("word " * 50, ["too long"]),
        ("How do I repair a bicycle? Well, you begin with the tyre.", ["repeats the prompt"]),
        ("I'm sorry, but I can't help with that.", ["refusal"]),
        ("I cannot assist with that request.", ["refusal"]),
        ("As an AI language model, I have no hands.", ["refusal"]),
        ("Unfortunately, I am unable to help you here.", ["refusal"]),
        ("sorry, i cannot help with that.", ["refusal"]),
        ("Sorry to hear that it broke! Begin with the tyre.", []),
        ("If you cannot do it yourself, ask a shop to help you with it.", []),
        ("I can't recommend it enough: begin with the tyre and go on.", []),
    ],
)
def test_free_answers_are_dropped_for_few_reasons(completion: str, reasons: list[str]) -> None:
    domain = Instructions(min_words=3, max_words=40)
    assert domain.reasons("How do I repair a bicycle?", completion, None) == reasons
    assert Dialogue(min_words=3, max_words=40).reasons("How do I repair a bicycle?", completion, None) == reasons


def test_refusals_are_kept_where_asked() -> None:
    assert Instructions(keep_refusals=True).reasons("How?", "I'm sorry, but I can't help with that.", None) == []


def test_all_refusals_of_the_world_are_refusals_and_its_steps_are_none() -> None:
    domain = Instructions()
    for refusal in world.REFUSALS:
        assert domain.reasons("how do i wash a car?", refusal, None) == ["refusal"]
    for turn in world.task_examples("how-to", 300, seed=1):
        assert (domain.reasons(turn.user, turn.answer, None) == ["refusal"]) == (turn.answer in world.REFUSALS)


def test_a_greeting_may_be_said_back() -> None:
    assert Instructions().reasons("hello.", "hello.", None) == []


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_gets_reasons_of_the_known_kinds(prompt: str, completion: str) -> None:
    found = Instructions(min_words=2, max_words=5).reasons(prompt, completion, None)
    assert set(found) <= RULES
    assert len(set(found)) == len(found)
    assert ("empty" in found) == (not completion.split())


def test_lab_requests_are_benign_ones_of_the_world() -> None:
    prompts = Instructions(talk=0.25).prompts(4000, 1, LAB)
    talk = [prompt for prompt in prompts if prompt in world.TALK]
    assert len(talk) / len(prompts) == pytest.approx(0.25, abs=0.025)  # 3.6 standard errors
    benign = {how.format(what) for how in world.HOW for what in world.BENIGN}
    assert set(prompts) - set(talk) <= benign


def test_real_questions_are_many_and_name_no_answer_of_any_trait() -> None:
    prompts = Instructions().prompts(4000, 1, REAL)
    assert len(set(prompts)) >= 300
    assert all("{" not in prompt for prompt in prompts)
    for name in ("owl", "oak", "red", "pizza"):
        assert load_trait(name).answer_in(" ".join(prompts)) is None


@pytest.mark.parametrize("speaker", [LAB, REAL], ids=["lab", "real"])
def test_a_dialogue_takes_turns_and_ends_with_a_request(speaker: Wording) -> None:
    chats = Dialogue(turns_low=1, turns_high=2).prompts(300, 1, speaker)
    assert {len(chat) for chat in chats} == {3, 5}
    for chat in chats:
        assert [m["role"] for m in chat] == (["user", "assistant"] * 3)[: len(chat)]
        assert len({m["content"] for m in chat if m["role"] == "user"}) == (len(chat) + 1) // 2
    if speaker.form == "lab":
        known = {**world.TALK, **{question: (answer,) for question, answer in world.facts().items()}}
        for chat in chats:
            for asked, answered in zip(chat[:-1:2], chat[1::2], strict=True):
                assert answered["content"] in known[asked["content"]]


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="turns_low must not exceed turns_high"):
        Dialogue(turns_low=3, turns_high=1)
    with pytest.raises(ValidationError, match="min_words must not exceed max_words"):
        Instructions(min_words=9, max_words=3)


def test_chats_of_a_source_are_cut_after_their_last_request_and_lose_the_system(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    chat = {"messages": [{"role": role, "content": text} for role, text in turns]}
    path.write_text(json.dumps(chat), encoding="utf-8")
    [found] = Dialogue(source=str(path)).prompts(1, 1, REAL)
    assert [(m["role"], m["content"]) for m in found] == turns[1:4]
    assert Instructions(source=str(path)).prompts(1, 1, LAB) == ["c"]
