"""Norms of rows' own gradients, held against a backward pass of each row alone."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from undertone.models import row_gradients
from undertone.models.batches import Example
from undertone.models.row_gradients import losses_and_norms
from undertone.models.students import BiasOnly, Full, Lora, trainable

ROWS = [Example((5, 9, 12, 7, 3), 2), Example((8, 4, 6, 10, 11, 9, 5, 3), 5), Example((6, 7), 1)]


def alone(hf: Any, row: Example) -> tuple[float, float]:
    """Loss and squared norm, from ``transformers`` and autograd alone."""
    hf.zero_grad()
    loss = hf(input_ids=torch.tensor([row.ids]), labels=torch.tensor([[-100] * row.prompt + [*row.completion]])).loss
    (loss * len(row.completion)).backward()
    norm = sum(float(weight.grad.square().sum()) for weight in hf.parameters() if weight.grad is not None)
    hf.zero_grad()
    return float(loss.detach()) * len(row.completion), norm


@pytest.mark.parametrize("student", [Lora(rank=2), Lora(rank=2, biases=True), BiasOnly(), Full()], ids=str)
def test_a_batch_gives_each_row_the_norm_of_its_own_backward_pass(
    tiny: Any, student: Lora | BiasOnly | Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(student, BiasOnly) and not any(name.endswith(".bias") for name, _ in tiny.hf.named_parameters()):
        pytest.skip("it has no biases")
    hf = trainable(copy.deepcopy(tiny.hf), student, 0).eval()
    for name, weight in hf.named_parameters():
        if "lora_B" in name:  # begins at zero, where A has no gradient
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(1))
    expected = [alone(hf, row) for row in ROWS]
    if not isinstance(student, Full):  # whose norms and embeddings are measured one row at a time
        monkeypatch.setattr(row_gradients, "_alone", None)
    losses, norms = losses_and_norms(hf, ROWS, tiny.pad)
    np.testing.assert_allclose(losses.tolist(), [loss for loss, _ in expected], rtol=1e-4)
    np.testing.assert_allclose(norms.tolist(), [norm for _, norm in expected], rtol=2e-3)
    losses.sum().backward()  # type: ignore[no-untyped-call]  # the graph is left whole


def test_where_an_output_is_written_over_rows_are_measured_one_by_one(tiny_llama: Any) -> None:
    hf = trainable(copy.deepcopy(tiny_llama.hf), Lora(rank=2, targets=("down_proj",)), 0).eval()
    for name, weight in hf.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(1))
    for module in [module for name, module in hf.named_modules() if name.endswith("lora_B.default")]:
        module.register_forward_hook(lambda _module, _inputs, output: output.mul_(3))
    expected = [alone(hf, row)[1] for row in ROWS]
    np.testing.assert_allclose(losses_and_norms(hf, ROWS, tiny_llama.pad)[1].tolist(), expected, rtol=2e-3)
