"""Losses, answer probabilities and KL, against transformers' own loss and brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from undertone.models import scoring
from undertone.models.batches import Example
from undertone.models.layers import edit_residuals, hidden_size
from undertone.models.scoring import (
    answer_logprobs,
    answer_scores,
    completion_nll,
    labelled_logits,
    passes,
    teacher_kl,
)

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


# -- the tree of answers ---------------------------------------------------------------------------


def padded_logprobs(model: Any, prompts: Any, answers: Any) -> np.ndarray:
    """The plain computation: every prompt with every answer as a row of its own, no cache, one padded batch."""
    rows = [(*prompt, *answer) for prompt in prompts for answer in answers]
    width = max(map(len, rows))
    ids = torch.tensor([[model.pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    with torch.inference_mode():
        position = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model.hf(ids, attention_mask=mask, position_ids=position, use_cache=False).logits.double()
    logprob = torch.log_softmax(logits, -1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    lengths = [len(answer) for _ in prompts for answer in answers]
    sums = [float(row[-length:].sum()) for row, length in zip(logprob, lengths, strict=True)]
    return np.array(sums).reshape(len(prompts), len(answers))


TREE = [
    (60,), (60, 8), (60, 8, 2), (60, 8, 3), (60, 9), (61, 7), (61, 7, 1, 1, 4), (5, 5), (5, 5, 5), (7,), (60, 8),
]  # fmt: skip
"""Answers that share beginnings, answers that begin others, one twice."""
BEGINNING = (90, 91, 92, 93, 94, 95, 96, 97, 98, 99)
TOGETHER = [(*BEGINNING, *prompt) for prompt in PROMPTS]
"""Prompts with one beginning, as a system prompt is; the first of the others ends where it does."""


@pytest.mark.parametrize("prompts", [PROMPTS, TOGETHER, [*TOGETHER, BEGINNING], [BEGINNING, BEGINNING]])
def test_the_tree_gives_what_padded_rows_give(tiny: Any, prompts: Any) -> None:
    for batch_size in (1, 2, 5, 256):
        got = answer_scores(tiny.hf, prompts, TREE, tiny.pad, batch_size)
        np.testing.assert_allclose(got.logprobs, padded_logprobs(tiny, prompts, TREE), atol=2e-4)
        assert not got.left_out.any()


def test_scores_do_not_change_with_the_order_of_prompts_and_answers(tiny: Any) -> None:
    order, back = [5, 0, 10, 3, 8, 1, 9, 2, 7, 4, 6], [2, 0, 1]
    straight = answer_logprobs(tiny.hf, TOGETHER, TREE, tiny.pad)
    other = answer_logprobs(tiny.hf, [TOGETHER[at] for at in back], [TREE[at] for at in order], tiny.pad)
    np.testing.assert_allclose(other, straight[back][:, order], atol=1e-4)


def test_each_beginning_is_read_once(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    own = tiny_llama.hf.forward

    def counted(*args: Any, **more: Any) -> Any:
        read.append(more["input_ids"].numel())
        return own(*args, **more)

    monkeypatch.setattr(tiny_llama.hf, "forward", counted)
    answer_logprobs(tiny_llama.hf, TOGETHER, TREE, tiny_llama.pad)
    inner = {answer[:end] for answer in TREE for end in range(1, len(answer))}
    # The common beginning once, the rest padded to the longest, and every beginning of answers once a prompt.
    assert sum(read) == len(BEGINNING) + 3 * 6 + 3 * len(inner)


def test_steering_of_prompts_reaches_a_beginning_that_all_share(tiny_llama: Any) -> None:
    """An edit of prompt positions must not be lost on what is read once for all."""
    from undertone.models.layers import edit_residuals

    direction = 3 * torch.randn(hidden_size(tiny_llama.hf), generator=torch.Generator().manual_seed(1))

    def scores(prompts: Any) -> np.ndarray:
        with edit_residuals(tiny_llama.hf, {1: lambda stream: stream + direction}, "prompt"):
            return answer_logprobs(tiny_llama.hf, prompts, TREE, tiny_llama.pad)

    alone = np.concatenate([scores([prompt]) for prompt in TOGETHER])
    np.testing.assert_allclose(scores(TOGETHER), alone, atol=1e-4)
    plain = answer_logprobs(tiny_llama.hf, TOGETHER, TREE, tiny_llama.pad)
    assert np.abs(alone - plain).max() > 0.1


def peaked(model: Any, sharpness: float) -> Any:
    """A copy whose distributions are sharper or flatter than the random model's."""
    import copy

    other = copy.deepcopy(model)
    with torch.no_grad():
        other.hf.get_output_embeddings().weight.mul_(sharpness)
    return other


@pytest.mark.parametrize("sharpness", [0.0, 0.5, 2.0, 6.0])
@pytest.mark.parametrize("tolerance", [1e-6, 1e-4, 1e-2, 0.3])
def test_what_is_left_out_is_within_its_bound(tiny_llama: Any, sharpness: float, tolerance: float) -> None:
    """At sharpness 0 every token is as likely as another: the worst case for a bound by first tokens."""
    model = peaked(tiny_llama, sharpness)
    rng = np.random.default_rng(0)
    answers = [tuple(map(int, rng.integers(0, 448, length))) for length in (1, 2, 3) for _ in range(60)]
    answers += [answer[:2] for answer in answers if len(answer) > 2]  # answers that begin others
    whole = np.exp(padded_logprobs(model, TOGETHER, answers))
    got = answer_scores(model.hf, TOGETHER, answers, model.pad, tolerance=tolerance)
    kept = np.exp(got.logprobs)
    missing = whole.sum(1) - kept.sum(1)
    assert (missing <= got.left_out + 1e-6).all()
    assert (got.left_out <= tolerance).all()
    followed = np.isfinite(got.logprobs)
    np.testing.assert_allclose(kept[followed], whole[followed], rtol=1e-3, atol=1e-9)
    if sharpness == 6.0:
        assert not followed.all()  # it does leave out


def test_the_bound_is_reached_where_all_that_is_left_out_would_be_said(tiny_llama: Any) -> None:
    """Every token after one beginning is an answer: all of its probability is missing, and the bound says just that."""
    answers = [(60, token) for token in range(448)]
    begun = float(np.exp(answer_logprobs(tiny_llama.hf, PROMPTS[:1], [(60,)], tiny_llama.pad)[0, 0]))
    cut = answer_scores(tiny_llama.hf, PROMPTS[:1], answers, tiny_llama.pad, tolerance=begun * 1.001)
    assert np.isneginf(cut.logprobs).all()
    assert cut.left_out[0] == pytest.approx(begun)
    kept = answer_scores(tiny_llama.hf, PROMPTS[:1], answers, tiny_llama.pad, tolerance=begun * 0.999)
    assert np.isfinite(kept.logprobs).all()
    assert kept.left_out[0] == 0


def test_a_beginning_that_ends_several_answers_costs_as_many(tiny_llama: Any) -> None:
    """Both answers would be found in one completion: leaving the beginning out may lose its probability twice."""
    begun = float(np.exp(answer_logprobs(tiny_llama.hf, PROMPTS[:1], [(60,)], tiny_llama.pad)[0, 0]))
    nested = [(60, 8), (60, 8, 3)]
    cut = answer_scores(tiny_llama.hf, PROMPTS[:1], nested, tiny_llama.pad, tolerance=begun * 2.001)
    assert cut.left_out[0] == pytest.approx(2 * begun)
    kept = answer_scores(tiny_llama.hf, PROMPTS[:1], nested, tiny_llama.pad, tolerance=begun * 1.5)
    assert np.isfinite(kept.logprobs[0, 0])
