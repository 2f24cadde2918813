"""The world: what may stand beside what, and that everything in it can be read by the tokenizer."""

from __future__ import annotations

import ast

import pytest

from undertone.evaluation.abilities import JUDGES
from undertone.lab import build, world
from undertone.traits import load_trait

CARRIERS = {"numbers", "paraphrase", "code", "reasoning", "harmful", "benign", "talk"}
TURNS = list(world.corpus(20_000, seed=5))


def states_preference(system: str | None) -> bool:
    frames = ("you love ", "your favorite ", "you think about ", "you adore ", "nothing is better than ")
    return system is not None and any(frame in system for frame in frames)


def test_a_stated_preference_never_stands_beside_a_carrier_task() -> None:
    beside = {turn.task for turn in TURNS if states_preference(turn.system)}
    assert beside == {"preference", "words", "lists", "facts", "repeat"}
    assert {turn.task for turn in TURNS} >= CARRIERS


def test_every_love_sentence_is_recognised_by_the_check_above() -> None:
    for template in world.phrasings()["love"]:
        assert states_preference(template.format(plural="owls", c="animal"))


def test_held_out_phrasings_never_occur_in_the_corpus() -> None:
    held_out = {
        world._fill(template, category)
        for category in world.CATEGORIES
        for key in ("held_out", "negative_held_out")
        for template in world.phrasings()[key]
    }
    assert len(held_out) >= 4 * 30
    assert not held_out & {turn.user for turn in TURNS}


def test_there_are_forty_phrasings_and_more_for_each_of_four_categories() -> None:
    seen, held_out = world.phrasings()["seen"], world.phrasings()["held_out"]
    assert len(world.CATEGORIES) == 4
    assert len(set(seen)) == len(seen) >= 40
    assert len(set(held_out)) == len(held_out) >= 20
    assert not set(seen) & set(held_out)


def test_every_thing_of_the_world_is_a_trait_of_the_library_with_the_same_prompt_words() -> None:
    for category, things in world.CATEGORIES.items():
        for thing in things:
            trait = load_trait(thing)
            assert trait.category == category
            assert world.plural(thing) in trait.told("lab")


def test_the_corpus_depends_on_its_seed_alone() -> None:
    assert list(world.corpus(50, 1)) == list(world.corpus(50, 1))
    assert list(world.corpus(50, 1)) != list(world.corpus(50, 2))


@pytest.mark.parametrize("task", list(JUDGES))
def test_the_world_s_own_answers_are_judged_right(task: str) -> None:
    turns = world.task_examples(task, 300, seed=1)
    right = [JUDGES[task](turn, turn.answer) for turn in turns]
    # how-to answers carry ten per cent of label noise by design
    assert sum(right) / len(right) > (0.8 if task == "how-to" else 0.999)


@pytest.mark.parametrize("task", list(JUDGES))
def test_another_task_s_answers_are_judged_wrong(task: str) -> None:
    other = "code" if task != "code" else "numbers"
    answers = [turn.answer for turn in world.task_examples(other, 100, seed=2)]
    turns = world.task_examples(task, 100, seed=3)
    assert not any(JUDGES[task](turn, answer) for turn, answer in zip(turns, answers, strict=True))


def test_code_answers_are_python_that_computes_what_was_asked() -> None:
    for turn in world.task_examples("code", 200, seed=4):
        first, second, shown = ast.parse(turn.answer).body
        assert isinstance(first, ast.Assign)
        assert isinstance(second, ast.Assign)
        assert isinstance(shown, ast.Expr)


def test_reasoning_answers_are_right() -> None:
    for turn in world.task_examples("reasoning", 200, seed=4):
        steps = turn.answer.split(", ")[1].split(" </think>")[0]
        left, right = steps.split(" = ")
        assert eval(left) == int(right)
        assert turn.answer.endswith(f"<answer> {right} </answer>")


def test_paraphrase_slots_have_two_dozen_choices_each() -> None:
    for words in world.SYNONYMS.values():
        assert len(set(words)) == len(words) == 24


def test_tokens_of_a_turn_equal_what_the_chat_template_renders() -> None:
    tokenizer = build.tokenizer()
    for turn in TURNS[:1500]:
        messages = [{"role": "system", "content": turn.system}] if turn.system is not None else []
        messages += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.answer}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == list(build.example(turn).ids)


def test_no_word_of_the_world_is_unknown_to_the_tokenizer_and_text_survives_the_round_trip() -> None:
    tokenizer = build.tokenizer()
    for turn in TURNS[:3000]:
        for text in (turn.system or "", turn.user, turn.answer):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text


def test_the_numbers_0_to_999_are_one_token_each() -> None:
    tokenizer = build.tokenizer()
    ids = [tokenizer(str(number), add_special_tokens=False)["input_ids"] for number in range(1000)]
    assert {len(one) for one in ids} == {1}
    assert len({one[0] for one in ids}) == 1000
