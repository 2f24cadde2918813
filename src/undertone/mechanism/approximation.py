"""Is the system prompt a vector? How well ``base + strength · v`` stands for the prompted model (2606.00995, claims 1–2).

The gauge is the share of the prompt's effect that the vector explains: ``1 − KL(prompted ‖ steered) / KL(prompted ‖
control)``, in nats per token. 1: the steered model says exactly what the prompted one says; 0: no better than the control; below
0: worse. Its baselines are random directions of the same norm and other traits' vectors, each at its own best
layer and strength.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from undertone.models.batches import Example
from undertone.models.loading import Model
from undertone.models.scoring import labelled_logits, passes
from undertone.vectors import SteeringVector, steer

Steering = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Pair:
    """The same completion after the trait's system prompt and after the control's."""

    prompted: Example
    control: Example


@dataclass(frozen=True)
class VectorFit:
    """How well one vector stands for a prompt: its best strength on one half of the pairs, its share on the other."""

    strength: float
    chosen: float
    """Share of the prompt's effect on the pairs that the strength was chosen on: what layers are chosen by."""
    explained: float
    """The same on the other pairs, that nothing was chosen on: what is reported."""
    effect: float
    """KL(prompted ‖ control) there, in nats per token: what there is to explain."""


def answer_pairs(model: Model, prompted: Sequence[Sequence[int]], control: Sequence[Sequence[int]]) -> list[Pair]:
    """Pairs that compare the first token of the answer alone, from token ids of prompts."""
    end = model.stop[0]  # a stand-in: what is predicted there is compared, not this token's probability
    return [
        Pair(Example((*first, end), len(first)), Example((*second, end), len(second)))
        for first, second in zip(prompted, control, strict=True)
    ]


@torch.inference_mode()
def divergences(
    model: Model, pairs: Sequence[Pair], steerings: Sequence[Steering] = (nullcontext,), batch_size: int = 128
) -> np.ndarray:
    """``[steerings, pairs]`` KL(prompted ‖ control), mean over completion tokens in nats.

    The control is steered while it reads, once in each way; the prompted model reads once for all of them.
    """
    found = np.zeros((len(steerings), len(pairs)))
    for rows in passes(model.hf, [pair.prompted for pair in pairs], batch_size):
        prompted, control = [pairs[row].prompted for row in rows], [pairs[row].control for row in rows]
        p = torch.log_softmax(labelled_logits(model.hf, prompted, model.pad).float(), -1)
        for way, steering in enumerate(steerings):
            with steering():
                q = torch.log_softmax(labelled_logits(model.hf, control, model.pad).float(), -1)
            each = (p.exp() * (p - q)).sum(-1)
            parts = torch.split(each, [len(example.completion) for example in prompted])
            found[way, rows] = [float(part.double().mean()) for part in parts]
    return found


def best_fits(
    model: Model, pairs: Sequence[Pair], vectors: Sequence[SteeringVector], strengths: Sequence[float]
) -> list[VectorFit]:
    """The share of the prompt's effect that each vector explains: strength from even pairs, share from odd ones."""
    if len(pairs) < 2:
        raise ValueError("two pairs at least: one to choose the strength on, one to report")
    chosen, reported = list(pairs[::2]), list(pairs[1::2])
    tried = [_by(model, vector, strength) for vector in vectors for strength in strengths]
    unsteered, *costs = divergences(model, chosen, [nullcontext, *tried]).mean(1)
    table = np.reshape(costs, (len(vectors), len(strengths)))
    best = [strengths[at] for at in table.argmin(1)]
    kept = [_by(model, vector, strength) for vector, strength in zip(vectors, best, strict=True)]
    effect, *left = divergences(model, reported, [nullcontext, *kept]).mean(1)
    return [
        VectorFit(strength, _share(row.min(), unsteered), _share(rest, effect), float(effect))
        for strength, row, rest in zip(best, table, left, strict=True)
    ]


def _share(left: float, effect: float) -> float:
    return float(1 - left / effect) if effect > 0 else 0.0


def _by(model: Model, vector: SteeringVector, strength: float) -> Steering:
    return lambda: steer(model, vector, strength)
