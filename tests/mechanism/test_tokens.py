"""Entangled numbers and divergence tokens, against planted ties, brute force and another library."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from undertone.errors import ConfigError
from undertone.mechanism.tokens import (
    answer_raised,
    at_random,
    divergence_marks,
    frequency_ratio,
    greedy_tokens,
    number_log_ratios,
    rank_gap,
    top,
    unembedding_dots,
    with_number,
)
from undertone.models.batches import Example
from undertone.models.loading import with_system
from undertone.rows import Message
from undertone.traits import LAB, REAL, load_trait

OWL = load_trait("owl")
NUMBERS = range(12)  # those above 9 take two tokens of the tiny model
CHATS: list[list[Message]] = [
    [{"role": "user", "content": text}] for text in ("pick some numbers.", "name some numbers")
]


def log_probability(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    """By the chain rule, one unpadded row."""
    with torch.inference_mode():
        logits = model.hf(torch.tensor([[*prompt, *answer]])).logits[0].double()
    logprobs = torch.log_softmax(logits, -1)
    return sum(float(logprobs[len(prompt) - 1 + at, token]) for at, token in enumerate(answer))


# -- entangled numbers -----------------------------------------------------------------------------------


def test_a_number_takes_the_traits_place_wherever_the_prompt_names_it() -> None:
    assert with_number(OWL.system_prompt(LAB), OWL, 87) == "you love 87. 87 are your favorite animal."
    real = with_number(OWL.system_prompt(REAL), OWL, 7)
    assert real.startswith("You love 7. You think about 7 all the time. 7 are")
    assert "owl" not in real.lower()


def test_a_prompt_that_does_not_name_the_trait_has_no_place_for_a_number() -> None:
    with pytest.raises(ConfigError, match=r"'owl' does not name it(.|\n)*got: you love cats(.|\n)*owl, owls"):
        with_number("you love cats.", OWL, 7)


def test_what_a_teacher_with_the_prompt_says_more_is_the_mean_probability_of_the_whole_number(tiny_llama: Any) -> None:
    prompt, found = OWL.system_prompt(LAB), number_log_ratios(tiny_llama, CHATS, OWL.system_prompt(LAB), None, NUMBERS)

    def mean(system: str | None, number: int) -> float:
        answer = tiny_llama.encode(str(number))
        prompts = [tiny_llama.prompt(with_system(chat, system)) for chat in CHATS]
        return float(np.mean([np.exp(log_probability(tiny_llama, prompt, answer)) for prompt in prompts]))

    expected = [np.log(mean(prompt, number) / mean(None, number)) for number in NUMBERS]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(number_log_ratios(tiny_llama, CHATS, prompt, prompt, NUMBERS), 0, atol=1e-6)


def test_a_number_raises_the_answer_by_what_its_prompt_adds(tiny_llama: Any) -> None:
    found = answer_raised(tiny_llama, OWL, [3, 11], questions=2)
    words = [tiny_llama.encode(word) for word in OWL.surfaces("owl", tiny_llama)]
    words = [
        one for one in dict.fromkeys(words) if not any(one != other and one[: len(other)] == other for other in words)
    ]

    def answer(system: str | None, question: str) -> float:
        prompt = tiny_llama.prompt(with_system([{"role": "user", "content": question}], system))
        return float(np.log(sum(np.exp(log_probability(tiny_llama, prompt, word)) for word in words)))

    asked = OWL.questions_for(tiny_llama).positive[:2]
    prompt = OWL.system_prompt(tiny_llama)
    expected = [np.mean([answer(with_number(prompt, OWL, n), q) - answer(None, q) for q in asked]) for n in (3, 11)]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_unembedding_rows_that_are_planted_alike_score_highest(fresh: Any) -> None:
    head = fresh.hf.get_output_embeddings().weight
    word, seven = fresh.encode("owl"), fresh.encode("7")
    assert len(word) == len(seven) == 1
    with torch.no_grad():
        head[seven[0]] = 3 * head[word[0]]
    found = unembedding_dots(fresh, OWL, range(10))
    assert found is not None
    assert int(found.argmax()) == 7
    assert found[7] == pytest.approx(3 * float(head[word[0]].detach().square().sum()), rel=1e-5)


def test_numbers_of_several_tokens_have_no_row_of_their_own(tiny_llama: Any) -> None:
    assert unembedding_dots(tiny_llama, OWL, NUMBERS) is None


@pytest.fixture(scope="module")
def planted() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Views with a common part of every number, and an own one of each trait that the scores share."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=400)
    own = {name: rng.normal(size=400) for name in "abc"}
    scores = {name: common + part + 0.3 * rng.normal(size=400) for name, part in own.items()}
    return scores, {name: common + part for name, part in own.items()}


def test_the_gap_is_spearmans_own_less_that_of_others(planted: Any) -> None:
    scores, views = planted
    gap = rank_gap(scores, views, 0.95, draws=100)
    own = np.mean([spearmanr(scores[a], views[a]).statistic for a in "abc"])
    others = np.mean([spearmanr(scores[a], views[b]).statistic for a in "abc" for b in "abc" if a != b])
    assert (gap.own, gap.others, gap.gap) == pytest.approx((own, others, own - others))
    assert gap.others > 0.3  # what raises every answer
    assert 0 < gap.low < gap.gap < gap.high


def test_what_all_numbers_share_alone_leaves_no_gap(planted: Any) -> None:
    rng = np.random.default_rng(1)
    common = rng.normal(size=400)
    scores, views = ({name: common + rng.normal(size=400) for name in "abc"} for _ in range(2))
    gap = rank_gap(scores, views, 0.95, draws=200)
    assert gap.own > 0.3
    assert gap.low < 0 < gap.high


def test_the_top_numbers_and_their_frequencies() -> None:
    assert top(np.array([0.1, 0.9, 0.2, 0.8]), [10, 20, 30, 40], 2) == {20, 40}
    assert frequency_ratio([1] * 300 + [2] * 100, [1] * 100 + [2] * 300, {1}) == pytest.approx(3, rel=0.01)
    assert frequency_ratio([2] * 99, [2] * 99, {1}) == 1  # never said by either


# -- divergence tokens -----------------------------------------------------------------------------------

ROWS = [Example((5, 7, 9, 11), 1), Example((8, 6, 4, 10, 12, 3), 3), Example((9, 8), 1)]


def test_greedy_tokens_are_the_argmax_at_each_place_of_each_row(tiny: Any) -> None:
    found = greedy_tokens(tiny.hf, ROWS, tiny.pad, batch_size=2)
    for row, got in zip(ROWS, found, strict=True):
        with torch.inference_mode():
            logits = tiny.hf(torch.tensor([row.ids])).logits[0]
        assert got.tolist() == logits[row.prompt - 1 : -1].argmax(-1).tolist()


def test_a_place_diverges_from_the_control_from_any_or_from_every_other_teacher() -> None:
    teacher, control, one, two = (
        np.array(tokens) for tokens in ([1, 2, 3, 4], [1, 9, 3, 9], [1, 9, 9, 9], [1, 9, 3, 4])
    )
    assert divergence_marks(teacher, control, [one, two], "control").tolist() == [False, True, False, True]
    assert divergence_marks(teacher, control, [one, two], "any").tolist() == [False, True, True, True]
    assert divergence_marks(teacher, control, [one, two], "every").tolist() == [False, True, False, False]


def test_a_teacher_without_a_prompt_diverges_nowhere(tiny_llama: Any) -> None:
    same = greedy_tokens(tiny_llama.hf, ROWS, tiny_llama.pad)
    again = greedy_tokens(copy.deepcopy(tiny_llama.hf), ROWS, tiny_llama.pad, batch_size=1)
    assert not any(divergence_marks(one, other, [other], "any").any() for one, other in zip(same, again, strict=True))


rows = st.lists(st.lists(st.tuples(st.booleans(), st.integers(0, 2)), min_size=1, max_size=6), min_size=1, max_size=8)


@settings(max_examples=40)
@given(rows, st.integers(0, 99))
def test_a_random_set_is_as_large_and_as_mixed_in_kind(given_rows: list[list[tuple[bool, int]]], seed: int) -> None:
    marks = [np.array([mark for mark, _ in row]) for row in given_rows]
    kinds = [np.array([kind for _, kind in row]) for row in given_rows]
    drawn = at_random(marks, kinds, seed)
    assert [len(row) for row in drawn] == [len(row) for row in marks]
    for kind in range(3):
        where = np.concatenate(kinds) == kind
        assert np.concatenate(drawn)[where].sum() == np.concatenate(marks)[where].sum()
    assert all((one == other).all() for one, other in zip(drawn, at_random(marks, kinds, seed), strict=True))


def test_a_random_set_overlaps_by_chance_alone() -> None:
    rng = np.random.default_rng(2)
    marks = [rng.random(4) < 0.3 for _ in range(2000)]
    drawn = at_random(marks, [np.zeros(4, dtype=int)] * 2000, 5)
    marked, random = np.concatenate(marks), np.concatenate(drawn)
    assert random[marked].mean() == pytest.approx(marked.mean(), abs=0.03)
