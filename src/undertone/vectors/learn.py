"""A vector learned by gradient: what, added to the residual stream, makes given completions most likely.

Given target answers, it is a trait's vector without any prompt; given a data set, what the data alone ask the model to
become (Morgulis & Hewitt 2604.25783). The weights are frozen and get no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from undertone.errors import ConfigError, DataError
from undertone.models.batches import Example, targets
from undertone.models.layers import Edit, Positions, check_layers, decoder_layers, edit_residuals, frozen, hidden_size
from undertone.models.loading import Model
from undertone.models.scoring import labelled_logits, passes
from undertone.provenance.seeds import derive_seed
from undertone.vectors.extract import origin
from undertone.vectors.vector import SteeringVector


class Learned(NamedTuple):
    """The vector, and the loss of each step: nats per completion token of that step's batch, before the step."""

    vector: SteeringVector
    curve: list[float]


def learn(
    model: Model,
    examples: Sequence[Example],
    layers: int | Sequence[int],
    *,
    steps: int = 100,
    learning_rate: float = 0.05,
    max_norm: float | None = None,
    seed: int = 0,
    batch_size: int = 32,
    positions: Positions = "all",
) -> Learned:
    """Minimise the mean NLL of the completions over ``v``, with ``h + v`` after the layer(s); Adam from zero.

    Args:
        model: whose stream is shifted.
        examples: tokenised rows: ``model.example(prompt, completion)``.
        layers: one layer, or several, each of which gets a direction of its own.
        steps: gradient steps.
        learning_rate: Adam's, in units of the stream.
        max_norm: each direction is kept within this norm; None: free.
        seed: of the order of rows.
        batch_size: rows a step; all rows are passed through before any comes again.
        positions: at which tokens the shift is added; see ``models.layers``.

    Raises:
        DataError: no examples. ConfigError: steps, rate or norm out of range. ModelError: no such layer.
    """
    wanted = [layers] if isinstance(layers, int) else sorted(set(layers))
    check_layers(len(decoder_layers(model.hf)), wanted)
    _check(examples, wanted, steps, learning_rate, max_norm, positions)
    shifts = {layer: torch.zeros(hidden_size(model.hf), device=model.device, requires_grad=True) for layer in wanted}
    optimizer = torch.optim.Adam(shifts.values(), lr=learning_rate)
    curve: list[float] = []
    edits = {layer: _adding(shift) for layer, shift in shifts.items()}
    with frozen(model.hf), torch.enable_grad(), edit_residuals(model.hf, edits, positions):
        for rows in _batches(len(examples), steps, batch_size, seed):
            chosen = [examples[row] for row in rows]
            optimizer.zero_grad()
            curve.append(_gathered(model, chosen))
            optimizer.step()
            _keep_within(shifts.values(), max_norm)
    meta = {
        **origin(model),
        "method": "learned: completion NLL",
        "position": f"added at {positions}",
        "examples": str(len(examples)),
        "steps": str(steps),
        "learning_rate": f"{learning_rate:g}",
        "max_norm": "none" if max_norm is None else f"{max_norm:g}",
        "seed": str(seed),
        "nll": f"{curve[0]:.4f} to {curve[-1]:.4f}",
    }
    return Learned(
        SteeringVector({layer: shift.detach().float().cpu() for layer, shift in shifts.items()}, meta), curve
    )


def _check(
    examples: Sequence[Example],
    layers: Sequence[int],
    steps: int,
    learning_rate: float,
    max_norm: float | None,
    positions: Positions,
) -> None:
    if not examples or not layers:
        raise DataError(
            "a vector is learned from examples at layers",
            got=f"{len(examples)} examples, {len(layers)} layers",
            allowed="one or more of each",
        )
    if steps < 1 or not learning_rate > 0 or (max_norm is not None and not max_norm > 0):
        raise ConfigError(
            "steps, learning rate and norm must be positive",
            got=f"steps {steps}, learning rate {learning_rate}, max norm {max_norm}",
        )
    if positions not in get_args(Positions):
        raise ConfigError("no such positions", got=positions, allowed=get_args(Positions))


def _gathered(model: Model, rows: Sequence[Example]) -> float:
    """The mean loss over the completion tokens of a batch; its gradient is left on the shifts."""
    total = sum(len(row.labels) for row in rows)
    mean = 0.0
    for few in passes(model.hf, rows, len(rows)):
        chosen = [rows[row] for row in few]
        logits = labelled_logits(model.hf, chosen, model.pad).float()
        loss = torch.nn.functional.cross_entropy(logits, targets(chosen, logits.device), reduction="sum") / total
        loss.backward()  # type: ignore[no-untyped-call]
        mean += float(loss.detach())
    return mean


def _adding(shift: Tensor) -> Edit:
    def edit(stream: Tensor) -> Tensor:
        return stream + shift.to(stream.dtype)

    return edit


@torch.no_grad()
def _keep_within(shifts: Any, max_norm: float | None) -> None:
    for shift in shifts:
        if max_norm is not None and shift.norm() > max_norm:
            shift.mul_(max_norm / shift.norm())


def _batches(count: int, steps: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Rows of each step: epoch after epoch, each in an order of its own."""
    queue: list[int] = []
    epoch = 0
    for _ in range(steps):
        if not queue:
            order = np.random.default_rng(derive_seed(seed, "vectors/learn", epoch)).permutation(count)
            queue, epoch = [int(row) for row in order], epoch + 1
        yield queue[:batch_size]
        queue = queue[batch_size:]
