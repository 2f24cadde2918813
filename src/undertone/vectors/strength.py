"""How strongly to steer: the strength at which a steered teacher differs from the plain model by a given teacher KL.

Norms of a contrast vector grow a hundredfold from the first layer to the last, so a strength means nothing across layers or
models; the KL per completion token does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from undertone.errors import ModelError
from undertone.models.batches import Example
from undertone.models.layers import decoder_layers
from undertone.models.loading import Model
from undertone.models.scoring import teacher_kl
from undertone.vectors.steer import steer
from undertone.vectors.vector import SteeringVector

TOLERANCE: Final = 0.05
"""Relative: the search ends this near to the KL asked for."""
WEAKEST: Final = 2.0**-10
STRONGEST: Final = 2.0**10


def steering_layer(hf: Any) -> int:
    """The layer to steer at where none is named: five sixths of the depth.

    Early layers steer little of what a deep model says, the last ones little but its next word.
    """
    return len(decoder_layers(hf)) * 5 // 6


@dataclass(frozen=True)
class Strength:
    """A strength, and the teacher KL that was measured at it, in nats per completion token."""

    strength: float
    kl: float


Allowed = Callable[[int], np.ndarray]
"""Of a completion, what a constraint allowed at each of its tokens, as of :func:`teacher_kl`."""


def steering_kl(
    model: Model, vector: SteeringVector, strength: float, examples: Sequence[Example], allowed: Allowed | None = None
) -> float:
    """Mean KL(steered ‖ plain) on completions, in nats per token."""
    pairs = [(example, example) for example in examples]
    each = teacher_kl(model.hf, pairs, model.pad, conditioning=lambda: steer(model, vector, strength), allowed=allowed)
    return float(np.mean(each))


def strength_for(
    model: Model, vector: SteeringVector, examples: Sequence[Example], kl: float, allowed: Allowed | None = None
) -> Strength:
    """The strength whose KL is the one asked for, within ``TOLERANCE``.

    The KL of small strengths grows with their square, so each step goes along a parabola; where that leaves the bracket
    of what was tried, the bracket is halved.

    Args:
        model: who is steered.
        vector: by what.
        examples: completions of the plain model, tokenised.
        kl: nats per completion token.
        allowed: what a constraint allowed in them; None: everything.

    Raises:
        ModelError: no strength has this KL.
    """
    low, high, strength = WEAKEST, STRONGEST, 1.0
    for _ in range(40):
        measured = steering_kl(model, vector, strength, examples, allowed)
        if abs(measured / kl - 1) <= TOLERANCE:
            return Strength(strength, measured)
        low, high = (strength, high) if measured < kl else (low, strength)
        guess = strength * math.sqrt(kl / measured) if measured > 0 else high
        strength = guess if low < guess < high else math.sqrt(low * high)
        if high / low < 1 + TOLERANCE / 100:
            break
    raise ModelError(
        "no strength of this vector has the teacher KL that was asked for",
        got=f"{measured:.3g} nats a token at strength {strength:.3g}",
        allowed=f"{kl:g}, within {TOLERANCE:.0%}",
        fix="steer at another layer, or set teacher.strength to a number",
    )
