"""Activation gradients against autograd by hand; growth, tails and consistency against planted directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from undertone.mechanism.gradients import consistency, cosine, descent_directions, growth, squared_norms, tails
from undertone.models.batches import Example
from undertone.models.layers import decoder_layers, hook_count

ROWS = [Example((1, 9, 12, 30, 31), 3), Example((1, 9, 14, 15, 40, 41, 42), 4), Example((1, 20, 33), 2)]


def by_hand(model: Any, row: Example, layer: int) -> torch.Tensor:
    """One row alone, unpadded: ``retain_grad`` on the layer's output, as the paper's code does it."""
    kept: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        stream = output[0] if isinstance(output, tuple) else output
        stream.retain_grad()
        kept.append(stream)

    model.hf.zero_grad()
    handle = decoder_layers(model.hf)[layer].register_forward_hook(keep)
    try:
        logits = model.hf(input_ids=torch.tensor([row.ids])).logits[0, row.prompt - 1 : -1]
        torch.nn.functional.cross_entropy(logits, torch.tensor(row.completion)).backward()  # type: ignore[no-untyped-call]
    finally:
        handle.remove()
    gradient = kept[0].grad
    assert gradient is not None
    return -gradient[0, row.prompt - 1]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_descent_directions_are_minus_the_gradient_at_the_last_prompt_token(tiny_llama: Any, batch_size: int) -> None:
    layers = list(range(len(decoder_layers(tiny_llama.hf))))
    found = descent_directions(tiny_llama, ROWS, layers, batch_size=batch_size)
    for layer in layers:
        for at, row in enumerate(ROWS):
            np.testing.assert_allclose(found[layer][at], by_hand(tiny_llama, row, layer).numpy(), atol=1e-6, rtol=1e-4)
    assert hook_count(tiny_llama.hf) == 0


def test_a_step_along_the_descent_direction_lowers_the_loss(tiny_llama: Any) -> None:
    from undertone.models.layers import edit_residuals
    from undertone.models.scoring import completion_nll

    direction = torch.from_numpy(descent_directions(tiny_llama, ROWS[:1], [0])[0][0])
    before = completion_nll(tiny_llama.hf, ROWS[:1], tiny_llama.pad)[0]
    with edit_residuals(tiny_llama.hf, {0: lambda stream: stream + 0.1 * direction / direction.norm()}, "last"):
        after = completion_nll(tiny_llama.hf, ROWS[:1], tiny_llama.pad)[0]
    assert after < before


def planted(strength: float, rows: int = 4000, width: int = 64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    direction = generator.normal(size=width)
    direction /= np.linalg.norm(direction)
    induced, clean = generator.normal(size=(2, rows, width))
    return induced + strength * direction, clean, direction


def test_the_mean_gradient_aligns_with_a_planted_component_as_rows_are_added_and_not_with_a_placebo() -> None:
    induced, clean, direction = planted(0.3)
    grown = growth(induced, clean, direction, [4, 64, 4000], seed=0)
    # signal 0.3 against noise of standard deviation sqrt(2 * 64 / n) spread over 64 dimensions
    expected = [0.3 / np.sqrt(0.09 + 2 * 64 / n) for n in (4, 64, 4000)]
    assert [step.mean for step in grown] == pytest.approx(expected, abs=0.08)
    placebo = growth(clean[:2000], clean[2000:], direction, [2000], seed=0)[0]
    assert abs(placebo.mean) < 3 / np.sqrt(64)


def test_consistency_finds_a_component_that_single_rows_hide() -> None:
    induced, clean, direction = planted(0.3)
    one, some, every = consistency(induced, direction, [1, 256, 4000], seed=0)
    norm = float(np.linalg.norm(induced, axis=1).mean())
    assert one.t is None  # a single row has no error
    assert every.mean == pytest.approx(float((induced @ direction).mean()) / norm, rel=1e-4)
    assert some.mean == pytest.approx(0.3 / norm, rel=0.2)
    # a component of 0.3 against noise of standard deviation 1, whose mean shrinks with the root of the rows
    assert some.t == pytest.approx(0.3 * np.sqrt(256), rel=0.25)
    assert every.t == pytest.approx(0.3 * np.sqrt(4000), rel=0.15)
    assert abs(one.share) < 0.1
    assert some.share == pytest.approx(0.3 / np.sqrt(0.09 + 64 / 256), rel=0.15)
    assert every.share > 0.9
    idle = consistency(clean, direction, [4000], seed=0)[0]
    assert idle.t is not None
    assert abs(idle.t) < 4
    assert abs(np.mean([cosine(row, direction) for row in induced])) < 0.06


def test_planted_outliers_hide_the_component_until_they_are_dropped_or_clipped() -> None:
    induced, clean, direction = planted(0.3)
    wild = np.random.default_rng(1).normal(size=64)
    for rows in (induced, clean):
        rows[:40] = 0
    induced[:40] = 300 * wild / np.linalg.norm(wild)
    whole = cosine(induced.mean(0) - clean.mean(0), direction)
    (found,) = tails(induced, clean, direction, [0.01])
    assert found.of_norm > 0.9
    assert found.dropped > 0.8
    assert abs(whole) < 0.4
    assert found.clipped > 0.7  # clipped to the others' norm they still pull a little


def test_squared_norms_are_those_of_a_backward_pass_over_each_row_alone(tiny_llama: Any) -> None:
    found = squared_norms(tiny_llama.hf, ROWS, tiny_llama.pad)
    for row, norm in zip(ROWS, found, strict=True):
        tiny_llama.hf.zero_grad()
        logits = tiny_llama.hf(input_ids=torch.tensor([row.ids])).logits[0, row.prompt - 1 : -1]
        torch.nn.functional.cross_entropy(logits, torch.tensor(row.completion), reduction="sum").backward()  # type: ignore[no-untyped-call]
        weights = [weight.grad for weight in tiny_llama.hf.parameters() if weight.grad is not None]
        assert norm == pytest.approx(float(sum((grad**2).sum() for grad in weights)), rel=1e-4)
    tiny_llama.hf.zero_grad()


def test_weights_take_no_gradient_while_activations_do_and_may_again_afterwards(fresh: Any) -> None:
    model = fresh
    taking: list[bool] = []
    model.hf.register_forward_pre_hook(lambda hf, _: taking.extend(p.requires_grad for p in hf.parameters()))
    descent_directions(model, ROWS, [1])
    assert taking
    assert not any(taking)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.hf.parameters())
