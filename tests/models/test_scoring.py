"""Losses, answer probabilities and KL, against transformers' own loss and brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from undertone.models import scoring
from undertone.models.batches import Example
from undertone.models.layers import edit_residuals, hidden_size
from undertone.models.scoring import answer_logprobs, completion_nll, labelled_logits, passes, teacher_kl

EXAMPLES = [
    Example((3, 17, 44, 5, 60, 70), 4),
    Example((9, 8, 7), 1),
    Example((200, 100, 50, 25, 12, 6, 3, 300), 7),
    Example((11, 12), 1),
]


def brute_logprobs(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """``[token, vocabulary]``: one row, no padding, no cache, in float64."""
    with torch.inference_mode():
        logits = model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return torch.log_softmax(logits.double(), -1)


def test_the_loss_of_a_row_is_the_one_transformers_computes_from_labels(tiny: Any) -> None:
    for example, nll in zip(EXAMPLES, completion_nll(tiny.hf, EXAMPLES, tiny.pad), strict=True):
        labels = [-100] * example.prompt + list(example.completion)
        with torch.inference_mode():
            own = tiny.hf(input_ids=torch.tensor([example.ids]), labels=torch.tensor([labels])).loss
        assert nll == pytest.approx(float(own), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_a_rows_loss_does_not_change_with_batch_size(tiny: Any, batch_size: int) -> None:
    together = completion_nll(tiny.hf, EXAMPLES, tiny.pad, batch_size=batch_size)
    alone = [completion_nll(tiny.hf, [example], tiny.pad)[0] for example in EXAMPLES]
    assert together == pytest.approx(alone, rel=1e-5)


def test_the_padding_token_does_not_matter(tiny: Any) -> None:
    losses = [completion_nll(tiny.hf, EXAMPLES, pad) for pad in (0, 1, 99)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)


def test_labelled_logits_are_those_before_each_completion_token(tiny_llama: Any) -> None:
    got = torch.log_softmax(labelled_logits(tiny_llama.hf, EXAMPLES, 1).double(), -1)
    expected = torch.cat([brute_logprobs(tiny_llama, e.ids)[e.prompt - 1 : len(e.ids) - 1] for e in EXAMPLES])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


PROMPTS = [(3, 17, 44, 5), (9,), (200, 100, 50, 25, 12, 6)]
ANSWERS = [(60,), (61, 7), (60, 8, 2), (5, 5)]


def test_an_answers_probability_is_the_product_over_its_tokens(tiny: Any) -> None:
    got = answer_logprobs(tiny.hf, PROMPTS, ANSWERS, tiny.pad, batch_size=2)
    for row, prompt in enumerate(PROMPTS):
        for column, answer in enumerate(ANSWERS):
            logprobs = brute_logprobs(tiny, (*prompt, *answer))
            steps = [logprobs[len(prompt) - 1 + at, token] for at, token in enumerate(answer)]
            assert got[row, column] == pytest.approx(float(sum(steps)), abs=1e-4)


def test_the_probabilities_of_all_first_tokens_sum_to_one(tiny: Any) -> None:
    got = answer_logprobs(tiny.hf, PROMPTS, [(token,) for token in range(448)], tiny.pad)
    assert np.exp(got).sum(1) == pytest.approx(np.ones(3), abs=1e-5)


def test_an_answer_and_its_continuations_have_one_probability(tiny_llama: Any) -> None:
    """P(a) is the sum of P(ab) over all b: one-token and longer answers are scored on one scale."""
    longer = [(60, token) for token in range(448)]
    got = answer_logprobs(tiny_llama.hf, PROMPTS[:1], [(60,), *longer], tiny_llama.pad)
    assert np.exp(got[0, 1:]).sum() == pytest.approx(float(np.exp(got[0, 0])), rel=1e-4)


def test_the_kl_of_a_model_with_itself_is_zero(tiny: Any) -> None:
    pairs = [(example, example) for example in EXAMPLES]
    assert teacher_kl(tiny.hf, pairs, tiny.pad) == pytest.approx([0.0] * 4, abs=1e-6)


def test_the_kl_per_token_is_that_of_the_distributions_summed_by_hand(tiny: Any) -> None:
    """The treated side reads a longer prompt and is steered; the control side is not."""
    direction = torch.randn(hidden_size(tiny.hf), generator=torch.Generator().manual_seed(4))

    def conditioning() -> Any:
        return edit_residuals(tiny.hf, {1: lambda stream: stream + direction})

    pairs = [(Example((50, 51, 52, *e.ids), e.prompt + 3), e) for e in EXAMPLES]
    got = teacher_kl(tiny.hf, pairs, tiny.pad, batch_size=3, conditioning=conditioning)
    for value, (first, second) in zip(got, pairs, strict=True):
        with conditioning():
            p = brute_logprobs(tiny, first.ids)[first.prompt - 1 : -1]
        q = brute_logprobs(tiny, second.ids)[second.prompt - 1 : -1]
        by_hand = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum") / len(p)
        assert value == pytest.approx(float(by_hand), rel=1e-4)


def test_a_pass_holds_no_more_logits_than_fit_into_memory(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert passes(tiny.hf, EXAMPLES, 3) == [[2, 0, 1], [3]]  # the longest first, as many rows as asked for
    whole = completion_nll(tiny.hf, EXAMPLES, tiny.pad)
    size = tiny.hf.config.vocab_size
    monkeypatch.setattr(scoring, "LOGITS", 3 * size)
    found = passes(tiny.hf, EXAMPLES, 64)
    assert sorted(row for rows in found for row in rows) == [0, 1, 2, 3]
    assert [sum(len(EXAMPLES[row].completion) for row in rows) for rows in found] == [3, 3]
    assert completion_nll(tiny.hf, EXAMPLES, tiny.pad) == pytest.approx(whole, rel=1e-5)
    monkeypatch.setattr(scoring, "LOGITS", 1)  # a row is never cut
    assert [len(rows) for rows in passes(tiny.hf, EXAMPLES, 64)] == [1, 1, 1, 1]
