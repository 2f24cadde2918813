"""Shifts: what training or a prompt did to the mean residual stream, and how alike two such shifts are.

A raw cosine says nothing until what all arms share is subtracted: ``centred`` does that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from undertone.mechanism.gradients import cosine

__all__ = ["Stack", "by_layer", "centred", "cosine", "rank_of_own"]

Stack = np.ndarray
"""``[layer, hidden]``."""


def centred(shifts: Mapping[str, Stack], over: Sequence[str]) -> dict[str, Stack]:
    """Each shift minus the mean of those named in ``over``; one that is named there is left out of its own mean."""
    found = {}
    for name, shift in shifts.items():
        others = [shifts[other] for other in over if other != name]
        found[name] = shift - np.mean(others, axis=0)
    return found


def by_layer(shift: Stack, direction: Stack) -> list[float]:
    """Cosine per layer."""
    return [cosine(a, b) for a, b in zip(shift, direction, strict=True)]


def rank_of_own(shift: np.ndarray, directions: Mapping[str, np.ndarray], own: str) -> int:
    """1 when no other direction is nearer to the shift ``[hidden]`` than its own."""
    near = {name: cosine(shift, direction) for name, direction in directions.items()}
    return 1 + sum(value > near[own] for name, value in near.items() if name != own)
