"""Shifts: what training or a prompt did to the mean residual stream, and how alike two such shifts are.

A raw cosine says nothing until what all arms share is subtracted: ``centred`` does that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from undertone.mechanism.gradients import cosine

__all__ = ["Stack", "centred", "cosine", "cosines", "rank_of_own"]

Stack = np.ndarray
"""``[block, hidden]``."""


def centred(shifts: Mapping[str, Stack], over: Sequence[str]) -> dict[str, Stack]:
    """Each shift minus the mean of those named in ``over``; one that is named there is left out of its own mean."""
    found = {}
    for name, shift in shifts.items():
        others = [shifts[other] for other in over if other != name]
        found[name] = shift - np.mean(others, axis=0)
    return found


def cosines(shift: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Cosines ``[…]`` of two ``[…, hidden]`` arrays along their last axis; the other axes are broadcast."""
    first, second = np.broadcast_arrays(shift, direction)
    width = first.shape[-1]
    found = [cosine(a, b) for a, b in zip(first.reshape(-1, width), second.reshape(-1, width), strict=True)]
    return np.array(found).reshape(first.shape[:-1])


def rank_of_own(shift: np.ndarray, directions: Mapping[str, np.ndarray], own: str) -> int:
    """1 when no other direction is nearer to the shift ``[hidden]`` than its own."""
    near = {name: cosine(shift, direction) for name, direction in directions.items()}
    return 1 + sum(value > near[own] for name, value in near.items() if name != own)
