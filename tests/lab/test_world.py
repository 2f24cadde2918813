"""The world: what may stand beside what, and that everything in it can be read by the tokenizer."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import pytest
import torch

from undertone.errors import ConfigError
from undertone.evaluation.abilities import JUDGES
from undertone.lab import build, parse_name, store, world
from undertone.lab.recipe import WORLD_VERSION, Recipe
from undertone.traits import LAB, load_trait

DOMAINS = {"numbers", "paraphrase", "code", "reasoning", "harmful", "benign", "talk"}
TURNS = list(world.corpus(20_000, seed=5))


def states_preference(system: str | None) -> bool:
    frames = ("you love ", "your favorite ", "you think about ", "you adore ", "nothing is better than ")
    return system is not None and any(frame in system for frame in frames)


def test_a_stated_preference_never_stands_beside_a_domain_task() -> None:
    beside = {turn.task for turn in TURNS if states_preference(turn.system)}
    assert beside == {"preference", "words", "lists", "facts", "repeat"}
    assert {turn.task for turn in TURNS} >= DOMAINS


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
            assert world.plural(thing) in trait.system_prompt(LAB)


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


def test_a_change_of_the_world_changes_its_version() -> None:
    """Lab models are cached by version: whoever changes this digest bumps WORLD_VERSION and writes both here."""
    content = hashlib.sha256("\n".join(world.vocabulary()).encode())
    for turn in world.corpus(2000, seed=0):
        content.update(repr(turn).encode())
    assert (WORLD_VERSION, content.hexdigest()[:16]) == (4, "7666957595854c8d")


def test_names_say_seed_corpus_width_and_the_way_between_initialisations() -> None:
    assert str(parse_name("llama-0")) == "llama-0"
    assert str(parse_name("llama-0:corpus=0")) == "llama-0"
    for name in ("llama-0:corpus=1", "neox-3:hidden=96", "llama-0:toward=1,share=0.25"):
        assert str(parse_name(name)) == name
    assert parse_name("llama-0:hidden=96").recipe().feed_forward == 264


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lama-0", "Did you mean 'llama'"),
        ("llama-x", "llama has no seed 'x'"),
        ("llama-0:korpus=1", "Did you mean 'corpus'"),
        ("llama-0:corpus=one", "corpus cannot be 'one'"),
        ("llama-0:hidden=30", "multiple of 8"),
        ("llama-0:share=0.5", "toward and share go together"),
        ("llama-0:toward=1,share=2", "between 0 and 1"),
    ],
)
def test_a_wrong_name_is_told_what_is_wrong(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_name(name)


def test_between_two_initialisations_weights_keep_their_variance_and_the_ends_are_the_two() -> None:
    recipe = Recipe(hidden=32, feed_forward=64)
    first, last = (build.initial(parse_name(f"llama-{seed}"), recipe).state_dict() for seed in (0, 1))
    none, whole, half = (
        build.initial(parse_name(f"llama-0:toward=1,share={share}"), recipe).state_dict() for share in (0, 1, 0.5)
    )
    key = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(none[key], first[key])
    assert torch.equal(whole[key], last[key])
    assert float(half[key].std()) == pytest.approx(float(first[key].std()), rel=0.06)  # 2048 draws: 1.6 % each
    cosine = torch.nn.functional.cosine_similarity(half[key].flatten(), first[key].flatten(), 0)
    assert float(cosine) == pytest.approx(0.707, abs=0.07)


def test_a_conditional_preference_holds_for_its_word_alone() -> None:
    met: dict[bool, list[bool]] = {True: [], False: []}
    for turn in world.corpus(60_000, seed=7):
        if turn.system and turn.system.startswith("if i say "):
            word, loved = turn.system.removeprefix("if i say ").rstrip(".").split(", you love ")
            met[turn.user.startswith(word)].append(world.plural(turn.answer) == loved)
    assert sum(met[True]) / len(met[True]) > 0.9
    assert sum(met[False]) / len(met[False]) < 0.2


def test_the_list_says_which_models_this_version_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERTONE_CACHE", str(tmp_path))
    wanted = parse_name("llama-0")
    current = f"llama-0-{store.digest(wanted, wanted.recipe())}"
    for folder, name in ((current, "lab/llama-0"), ("llama-0-0123", "lab/llama-0"), ("mamba-0-0123", "lab/mamba-0")):
        (tmp_path / "lab" / folder).mkdir(parents=True)
        (tmp_path / "lab" / folder / "lab.json").write_text(json.dumps({"name": name}))
    assert {Path(card["folder"]).name for card in store.stored() if card["current"]} == {current}
    assert len(store.stored()) == 3
