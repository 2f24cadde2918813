"""Learned vectors: a planted direction comes back, weights stay as they are, and placebos teach nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from undertone.errors import ConfigError, DataError, ModelError
from undertone.models.batches import Example
from undertone.models.layers import hook_count
from undertone.models.sampling import sample
from undertone.models.scoring import answer_logprobs, completion_nll, labelled_logits
from undertone.vectors import SteeringVector, learn, steer

PROMPTS = [(9, 8, 7), (3, 17, 44, 5), (60, 61), (12, 13, 14, 15, 16)]
TARGET = 77
EXAMPLES = [Example((*prompt, TARGET), len(prompt)) for prompt in PROMPTS]


def probability(model: Any) -> float:
    return float(torch.tensor(answer_logprobs(model.hf, PROMPTS, [(TARGET,)], model.pad)).exp().mean())


def test_a_learned_vector_raises_the_answer_that_it_was_taught_and_its_curve_falls(tiny: Any) -> None:
    before = probability(tiny)
    vector, curve = learn(tiny, EXAMPLES, 1, steps=60, learning_rate=0.3, seed=0)
    with steer(tiny, vector, 1.0):
        after = probability(tiny)
    assert vector.layers == [1]
    assert len(curve) == 60
    assert curve[-1] < 0.2 * curve[0]
    assert after > 0.25 > 50 * before  # a final norm bounds what any vector can reach in a random model
    nll = sum(completion_nll(tiny.hf, EXAMPLES, tiny.pad)) / len(EXAMPLES)
    assert curve[0] == pytest.approx(nll, rel=1e-4)  # the first step is taken from no shift at all


def test_the_gradient_at_zero_is_that_of_a_finite_difference(tiny_llama: Any) -> None:
    """One plain step of Adam moves every coordinate by the learning rate, against the sign of the gradient."""
    vector, _ = learn(tiny_llama, EXAMPLES, 1, steps=1, learning_rate=1e-3)
    for at in (0, 7, 31):
        moved = []
        for sign in (1.0, -1.0):
            one = SteeringVector({1: sign * 0.01 * torch.eye(32)[at]}, {})
            with steer(tiny_llama, one, 1.0):
                moved.append(sum(completion_nll(tiny_llama.hf, EXAMPLES, tiny_llama.pad)))
        assert torch.sign(vector.directions[1][at]) == (1.0 if moved[0] < moved[1] else -1.0)
    torch.testing.assert_close(vector.directions[1].abs(), torch.full((32,), 1e-3), atol=1e-5, rtol=1e-2)


@pytest.mark.slow
def test_a_vector_planted_in_the_data_is_found_from_the_data_alone(tiny_llama: Any) -> None:
    """Rows that a steered model wrote; a random direction of the same norm is the baseline of the cosine."""
    planted = SteeringVector({1: 1.5 * torch.randn(32, generator=torch.Generator().manual_seed(3))}, {})
    prompts = [(row % 400 + 5, row * 7 % 400 + 5, row * 13 % 400 + 5) for row in range(300)]
    with steer(tiny_llama, planted, 1.0):
        written = sample(
            tiny_llama.hf, prompts, list(range(300)), max_new_tokens=6, stop=[], pad=tiny_llama.pad
        )  # fmt: skip
    rows = [Example((*prompt, *text), len(prompt)) for prompt, text in zip(prompts, written, strict=True)]
    vector, _ = learn(tiny_llama, rows, 1, steps=60, learning_rate=0.1, batch_size=100)
    assert planted.cosine(vector)[1] > 0.6  # 3.4 standard deviations of a random direction of 32
    nothing = [
        replace(row, ids=(*row.ids[:3], *sampled))
        for row, sampled in zip(rows, plain(tiny_llama, prompts), strict=True)
    ]
    placebo, _ = learn(tiny_llama, nothing, 1, steps=60, learning_rate=0.1, batch_size=100)
    assert abs(planted.cosine(placebo)[1]) < 0.5
    assert placebo.norm() < 0.6 * vector.norm()


def plain(model: Any, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    written = sample(model.hf, prompts, list(range(300)), max_new_tokens=6, stop=[], pad=model.pad)
    return [tuple(text) for text in written]


def test_a_norm_is_kept_and_several_layers_get_directions_of_their_own(tiny_llama: Any) -> None:
    vector, _ = learn(tiny_llama, EXAMPLES, [2, 0], steps=20, learning_rate=0.5, max_norm=0.25)
    assert vector.layers == [0, 2]
    assert all(norm <= 0.25 + 1e-6 for norm in vector.norms().values())
    assert not torch.allclose(vector.directions[0], vector.directions[2])


def test_the_same_seed_gives_the_same_vector_and_another_order_another(tiny_llama: Any) -> None:
    def run(seed: int) -> SteeringVector:
        return learn(tiny_llama, EXAMPLES, 1, steps=5, learning_rate=0.1, seed=seed, batch_size=2).vector

    assert run(1).digest() == run(1).digest()
    assert run(1).digest() != run(2).digest()


def test_every_row_is_passed_through_before_any_comes_again(tiny_llama: Any) -> None:
    """Without moving (a rate of nearly zero) the mean loss of an epoch is that of the whole set."""
    _, curve = learn(tiny_llama, EXAMPLES, 1, steps=8, learning_rate=1e-12, batch_size=1)
    nll = completion_nll(tiny_llama.hf, EXAMPLES, tiny_llama.pad)
    assert sorted(curve[:4]) == pytest.approx(sorted(nll), rel=1e-4)
    assert sorted(curve[4:]) == pytest.approx(sorted(nll), rel=1e-4)


def test_weights_are_frozen_meanwhile_and_as_before_afterwards(fresh: Any) -> None:
    before = copy.deepcopy(fresh.hf.state_dict())
    flags = {}
    for index, (name, parameter) in enumerate(fresh.hf.named_parameters()):
        parameter.requires_grad_(index % 2 == 0)
        flags[name] = parameter.requires_grad
    learn(fresh, EXAMPLES, 1, steps=3)
    assert all(torch.equal(value, before[name]) for name, value in fresh.hf.state_dict().items())
    assert {name: parameter.requires_grad for name, parameter in fresh.hf.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in fresh.hf.parameters())
    assert hook_count(fresh.hf) == 0
    with pytest.raises(ModelError):
        learn(fresh, EXAMPLES, 9)
    assert {name: parameter.requires_grad for name, parameter in fresh.hf.named_parameters()} == flags


def test_only_the_named_positions_are_shifted_while_learning(tiny_llama: Any) -> None:
    """A shift at the response cannot change the first token of an answer: there is nothing to learn."""
    vector, curve = learn(tiny_llama, EXAMPLES, 1, steps=3, learning_rate=0.1, positions="response")
    assert vector.norm() == 0
    assert curve[0] == pytest.approx(curve[-1], rel=1e-6)
    moved, _ = learn(tiny_llama, EXAMPLES, 1, steps=3, learning_rate=0.1, positions="last")
    with torch.no_grad(), steer(tiny_llama, moved, 1.0, "last"):
        at_last = labelled_logits(tiny_llama.hf, EXAMPLES, 1)
    assert not torch.allclose(at_last, labelled_logits(tiny_llama.hf, EXAMPLES, 1), atol=1e-3)


def test_settings_that_cannot_learn_are_refused(tiny_llama: Any) -> None:
    with pytest.raises(DataError, match="0 examples"):
        learn(tiny_llama, [], 1)
    for options in ({"steps": 0}, {"learning_rate": -1.0}, {"max_norm": 0.0}):
        with pytest.raises(ConfigError, match="must be positive"):
            learn(tiny_llama, EXAMPLES, 1, **options)
    with pytest.raises(ConfigError, match="no such positions"):
        learn(tiny_llama, EXAMPLES, 1, positions="first")  # type: ignore[arg-type]


def test_a_batch_read_in_parts_gives_the_same_vector(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, curve = learn(tiny_llama, EXAMPLES, 1, steps=5, learning_rate=0.1, seed=0)
    monkeypatch.setattr("undertone.models.scoring.LOGITS", 1)
    parts, other = learn(tiny_llama, EXAMPLES, 1, steps=5, learning_rate=0.1, seed=0)
    assert other == pytest.approx(curve, rel=1e-4)
    torch.testing.assert_close(parts.directions[1], whole.directions[1], atol=1e-4, rtol=1e-3)
