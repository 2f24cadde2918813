"""The norm of each row's own gradient, from one pass over a batch.

The gradient of a linear map's weight is a sum over tokens of (gradient of its output) x (its input), and that of a
bias the sum of the former (Goodfellow 2015, arXiv:1510.01799). Both are kept apart by row, so that no row needs a pass of
its own. Weights that are used otherwise (norms, embeddings, experts) are measured one row at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from undertone.models.batches import Example, targets
from undertone.models.layers import ModulePass, recording
from undertone.models.scoring import labelled_logits


def row_losses(hf: Any, rows: Sequence[Example], pad: int) -> Tensor:
    """``[rows]``: cross-entropy summed over a row's labelled tokens, with its graph."""
    logits = labelled_logits(hf, rows, pad).float()
    each = torch.nn.functional.cross_entropy(logits, targets(rows, logits.device), reduction="none")
    return torch.stack([part.sum() for part in torch.split(each, [len(row.labels) for row in rows])])


def losses_and_norms(hf: Any, rows: Sequence[Example], pad: int) -> tuple[Tensor, Tensor]:
    """The losses of :func:`row_losses`, and the squared norm ``[rows]`` of the gradient of each on what is trained."""
    modules = [module for module in hf.modules() if any(_trained(module).values())]
    with recording(modules) as calls:
        losses = row_losses(hf, rows, pad)
    if not _keeps_rows_apart(modules, calls, len(rows)):
        return losses, torch.tensor([_alone(hf, row, pad) for row in rows], device=losses.device)
    gradients = torch.autograd.grad(losses.sum(), [call.output for call in calls], retain_graph=True, allow_unused=True)
    squares = torch.zeros_like(losses)
    for call, gradient in zip(calls, gradients, strict=True):
        if gradient is not None:
            squares += _squares(call, gradient.float())
    return losses, squares


def _trained(module: nn.Module) -> dict[str, bool]:
    """The module's own weights, and whether they are trained."""
    return {name: weight.requires_grad for name, weight in module.named_parameters(recurse=False)}


def _keeps_rows_apart(modules: Sequence[nn.Module], calls: Sequence[ModulePass], rows: int) -> bool:
    """Whether every trained weight is a linear map's or a bias, used once, on ``[rows, token, feature]``."""
    owned = [id(weight) for module in modules for weight in module.parameters(recurse=False) if weight.requires_grad]
    return (
        sorted(id(call.module) for call in calls) == sorted(map(id, modules))
        and len(owned) == len(set(owned))
        and all(_is_linear(module) for module in modules)
        and all(
            call.input.dim() == call.output.dim() == 3
            and len(call.input) == len(call.output) == rows
            and call.output.requires_grad
            and call.output._version == call.version
            for call in calls
        )
    )


def _is_linear(module: nn.Module) -> bool:
    trained = {name for name, is_trained in _trained(module).items() if is_trained}
    if type(module) in (nn.Linear, Conv1D):
        return trained <= {"weight", "bias"}
    return isinstance(module, nn.LayerNorm) and trained <= {"bias"}


def _squares(call: ModulePass, gradient: Tensor) -> Tensor:
    """``[rows]``: what the weights of one linear map add to the squared norm."""
    trained, read = _trained(call.module), call.input.float()
    squares = torch.zeros(len(gradient), device=gradient.device)
    if trained.get("weight"):
        squares += torch.einsum("rti,rto->rio", read, gradient).square().sum((1, 2))
    if trained.get("bias"):
        squares += gradient.sum(1).square().sum(1)
    return squares


def _alone(hf: Any, row: Example, pad: int) -> float:
    weights = [weight for weight in hf.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(row_losses(hf, [row], pad).sum(), weights, allow_unused=True)
    return sum(float(gradient.square().sum()) for gradient in gradients if gradient is not None)
