"""Activation gradients: where training on a row would push the residual stream (2606.00995, Fig. 7).

The sign is that of the descent direction ``-∂L/∂h``, so that learning ``+v`` reads positive. A row's loss is the
mean over its own completion tokens, so that each row weighs the same however long it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undertone.models.batches import Example, targets
from undertone.models.layers import Edit, Positions, edit_residuals, frozen, hidden_size
from undertone.models.loading import Model
from undertone.models.row_gradients import losses_and_norms
from undertone.models.scoring import labelled_logits, passes


def descent_directions(
    model: Model,
    examples: Sequence[Example],
    layers: Sequence[int],
    *,
    positions: Positions = "last",
    batch_size: int = 64,
) -> dict[int, np.ndarray]:
    """``-∂L_row/∂h`` of every row: layer -> ``[rows, hidden]`` float32.

    The gradient is with respect to one shift added at all the named positions of the row: at one token its own
    gradient, at several their sum.

    Args:
        model: whose; its weights take no gradient meanwhile, so that nothing is kept below the lowest layer.
        examples: tokenised rows.
        layers: after which layers.
        positions: at which tokens; the papers use the last prompt token.
        batch_size: rows a backward pass, at most.
    """
    width = hidden_size(model.hf)
    found = {layer: np.zeros((len(examples), width), dtype=np.float32) for layer in layers}
    for rows in passes(model.hf, examples, batch_size):
        chosen = [examples[row] for row in rows]
        shifts = {layer: torch.zeros(len(rows), 1, width, device=model.device, requires_grad=True) for layer in layers}
        edits = {layer: _adding(shift) for layer, shift in shifts.items()}
        with frozen(model.hf), edit_residuals(model.hf, edits, positions):
            logits = labelled_logits(model.hf, chosen, model.pad).float()
        each = torch.nn.functional.cross_entropy(logits, targets(chosen, logits.device), reduction="none")
        loss = torch.stack([part.mean() for part in torch.split(each, [len(row.completion) for row in chosen])]).sum()
        gradients = torch.autograd.grad(loss, [shifts[layer] for layer in layers])
        for layer, gradient in zip(layers, gradients, strict=True):
            found[layer][rows] = -gradient.squeeze(1).cpu().numpy()
    return found


def squared_norms(hf: Any, examples: Sequence[Example], pad: int, batch_size: int = 32) -> np.ndarray:
    """Squared norm of each row's gradient on the weights that are trained, ``[rows]``.

    A row's loss is summed over its labelled tokens, as it weighs in a batch of the training loop.
    """
    found = np.zeros(len(examples))
    for rows in passes(hf, examples, batch_size):
        found[rows] = losses_and_norms(hf, [examples[row] for row in rows], pad)[1].cpu().numpy()
    return found


def _adding(shift: Tensor) -> Edit:
    def edit(stream: Tensor) -> Tensor:
        return stream + shift.to(stream.dtype)

    return edit


@dataclass(frozen=True)
class Alignment:
    """Cosine of a mean gradient with a direction, over ``draws`` random choices of ``rows`` rows: mean and 95 % range."""

    rows: int
    mean: float
    low: float
    high: float


def growth(
    treated: np.ndarray,
    control: np.ndarray,
    direction: np.ndarray,
    counts: Sequence[int],
    *,
    seed: int,
    draws: int = 50,
) -> list[Alignment]:
    """How the mean gradient difference of treated and control rows aligns with a direction as rows are added.

    Args:
        treated: ``[rows, hidden]`` descent directions of the trait-conditioned teacher's rows.
        control: the same for the control teacher's rows.
        direction: ``[hidden]``.
        counts: how many rows are averaged.
        seed: of the choice of rows.
        draws: choices a count; at the full count there is one.
    """
    generator = np.random.default_rng(seed)
    most = min(len(treated), len(control))
    found = []
    for count in counts:
        values = []
        for _ in range(draws if count < most else 1):
            first, second = (generator.permutation(len(rows))[:count] for rows in (treated, control))
            values.append(cosine(treated[first].mean(0) - control[second].mean(0), direction))
        low, high = np.quantile(values, [0.025, 0.975])
        found.append(Alignment(count, float(np.mean(values)), float(low), float(high)))
    return found


@dataclass(frozen=True)
class Tail:
    """What a share of the rows with the largest gradients holds, and what the others say without them."""

    share: float
    """Of the rows, those with the largest norm."""
    of_norm: float
    """Their share of the summed squared norm."""
    dropped: float
    """Cosine of the mean difference with the direction when they are left out."""
    clipped: float
    """The same when they are scaled down to the norm of the largest one left."""


def tails(treated: np.ndarray, control: np.ndarray, direction: np.ndarray, shares: Sequence[float]) -> list[Tail]:
    """The role of outlier rows: the largest by norm dropped or clipped, in both sets alike (shapes as `growth`)."""
    found = []
    for share in shares:
        parts = [_tail(rows, share) for rows in (treated, control)]
        dropped = cosine(parts[0].dropped - parts[1].dropped, direction)
        clipped = cosine(parts[0].clipped - parts[1].clipped, direction)
        found.append(Tail(share, parts[0].of_norm, dropped, clipped))
    return found


@dataclass(frozen=True)
class _Trimmed:
    of_norm: float
    dropped: np.ndarray
    clipped: np.ndarray


def _tail(rows: np.ndarray, share: float) -> _Trimmed:
    norms = np.linalg.norm(rows, axis=1)
    order = np.argsort(norms)
    keep = order[: len(rows) - round(share * len(rows))]
    bound = norms[keep].max()
    scaled = rows * np.minimum(1.0, bound / np.maximum(norms, 1e-30))[:, None]
    held = 1 - float((norms[keep] ** 2).sum() / (norms**2).sum())
    return _Trimmed(held, rows[keep].mean(0), scaled.mean(0))


@dataclass(frozen=True)
class Consistency:
    """The component of gradients along a direction when so many rows are averaged, mean over random choices of rows."""

    rows: int
    mean: float
    """Mean component of single rows, in units of their mean norm."""
    t: float | None
    """Mean over standard error, the median choice (of few rows some are wild): how surely it is not 0; None: one row."""
    share: float
    """Component of the averaged gradient over its own norm: what is left of the rest after averaging."""


def consistency(
    rows: np.ndarray, direction: np.ndarray, counts: Sequence[int], *, seed: int, draws: int = 50
) -> list[Consistency]:
    """How steady the component of ``[rows, hidden]`` gradients along a direction is, as rows are added.

    Args:
        rows: descent directions of one set of rows.
        direction: ``[hidden]``.
        counts: how many rows are averaged.
        seed: of the choice of rows.
        draws: choices a count; at the full count there is one.
    """
    generator = np.random.default_rng(seed)
    along = rows @ (direction / np.linalg.norm(direction)) / float(np.linalg.norm(rows, axis=1).mean())
    found = []
    for count in counts:
        chosen = [generator.permutation(len(rows))[:count] for _ in range(draws if count < len(rows) else 1)]
        found.append(
            Consistency(
                count,
                float(np.mean([along[one].mean() for one in chosen])),
                float(np.median([_t(along[one]) for one in chosen])) if count > 1 else None,
                float(np.mean([cosine(rows[one].mean(0), direction) for one in chosen])),
            )
        )
    return found


def _t(values: np.ndarray) -> float:
    error = float(values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()) / error if error else 0.0


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Cosine of two vectors; 0 where one of them is nothing."""
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / size if size else 0.0
