"""Is the system prompt a vector? How well ``base + strength · v`` stands for the prompted model (2606.00995, claims 1–2).

The gauge is the share of the prompt's effect that the vector explains: ``1 − KL(told ‖ steered) / KL(told ‖ plain)``, in
nats per token. 1: the steered model says exactly what the prompted one says; 0: no better than the plain model; below
0: worse. Its baselines are random directions of the same norm and other traits' vectors, each at its own best strength.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from undertone.models.batches import Example, by_length
from undertone.models.loading import Model
from undertone.models.scoring import labelled_logits
from undertone.vectors import Vector, steered

Induced = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Pair:
    """The same completion after the telling prompt and after the plain one."""

    told: Example
    plain: Example


@dataclass(frozen=True)
class Fit:
    """How well one vector stands for a prompt: its best strength on one half of the pairs, its share on the other."""

    strength: float
    explained: float
    """Share of the prompt's effect, on pairs that the strength was not chosen on."""
    effect: float
    """KL(told ‖ plain) there, in nats per token: what there is to explain."""


def answer_pairs(model: Model, told: Sequence[Sequence[int]], plain: Sequence[Sequence[int]]) -> list[Pair]:
    """Pairs that compare the first token of the answer alone, from token ids of prompts."""
    end = model.stop[0]  # a stand-in: what is predicted there is compared, not this token's probability
    return [
        Pair(Example((*first, end), len(first)), Example((*second, end), len(second)))
        for first, second in zip(told, plain, strict=True)
    ]


@torch.inference_mode()
def divergences(
    model: Model, pairs: Sequence[Pair], *, steering: Induced = nullcontext, batch_size: int = 128
) -> np.ndarray:
    """``[pairs]`` KL(told ‖ plain), mean over completion tokens in nats; the plain model is steered while it reads."""
    found = np.zeros(len(pairs))
    for rows in by_length([len(pair.told.ids) for pair in pairs], batch_size):
        told, plain = [pairs[row].told for row in rows], [pairs[row].plain for row in rows]
        p = torch.log_softmax(labelled_logits(model.hf, told, model.pad).float(), -1)
        with steering():
            q = torch.log_softmax(labelled_logits(model.hf, plain, model.pad).float(), -1)
        each = (p.exp() * (p - q)).sum(-1)
        for row, part in zip(rows, torch.split(each, [len(example.completion) for example in told]), strict=True):
            found[row] = float(part.double().mean())
    return found


def best_fit(model: Model, pairs: Sequence[Pair], vector: Vector, strengths: Sequence[float]) -> Fit:
    """The share of the prompt's effect that a vector explains: strength from even pairs, share from odd ones."""
    if len(pairs) < 2:
        raise ValueError("two pairs at least: one to choose the strength on, one to report")
    chosen, reported = list(pairs[::2]), list(pairs[1::2])
    costs = [_steered_cost(model, chosen, vector, strength) for strength in strengths]
    strength = strengths[int(np.argmin(costs))]
    effect = float(divergences(model, reported).mean())
    left = _steered_cost(model, reported, vector, strength)
    return Fit(strength, 1 - left / effect if effect > 0 else 0.0, effect)


def _steered_cost(model: Model, pairs: Sequence[Pair], vector: Vector, strength: float) -> float:
    return float(divergences(model, pairs, steering=lambda: steered(model, vector, strength)).mean())
