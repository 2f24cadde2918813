"""Shifts and vectors held against teachers' vectors, beside other traits' vectors and the control: used by several parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from undertone.mechanism.shift import cosines, rank_of_own
from undertone.studies.context import Context
from undertone.studies.measurement import Measurement
from undertone.transfer.arms import StudentRun
from undertone.verdicts import Rule

CONTROL: Final = "control"
RAW, APART = "raw", "what all share subtracted"
LINES: Final = ("own vector", "other traits' vectors", "control student")
ALIGNED: Final = Rule("above", beyond_baselines=True)
Directions = Mapping[str, np.ndarray]
"""Trait or control -> ``[hidden]``, or a stack of them ``[…, hidden]``."""


def by_seed(students: Iterable[StudentRun], arrays: Iterable[np.ndarray]) -> dict[int, dict[str, np.ndarray]]:
    """Seed -> trait, or control -> the array of that student."""
    found: dict[int, dict[str, np.ndarray]] = {}
    for one, array in zip(students, arrays, strict=True):
        found.setdefault(one.seed, {})[one.arm.trait or CONTROL] = array
    return found


def alignments(
    ctx: Context[Any], shifts: Mapping[int, Directions], goals: Directions, names: Sequence[str]
) -> list[Measurement]:
    """Cosines of each named shift with its own goal; with the others, their mean; and the control's with the own goal.

    Args:
        ctx: of the study.
        shifts: seed -> name -> shift ``[…, hidden]``, with the control's.
        goals: name -> direction, two or more, broadcast against the shifts.
        names: which shifts.

    Returns:
        Three measurements ``[name, seed, …]``, in the order of :data:`LINES`.
    """

    def others(name: str, seed: int) -> np.ndarray:
        each = [cosines(shifts[seed][name], goal) for other, goal in goals.items() if other != name]
        return np.asarray(np.mean(each, axis=0))

    return [
        ctx.measure(lambda name, seed: cosines(shifts[seed][name], goals[name]), names, "cosine"),
        ctx.measure(others, names, "cosine"),
        ctx.measure(lambda name, seed: cosines(shifts[seed][CONTROL], goals[name]), names, "cosine"),
    ]


def own_ranks(shifts: Mapping[int, Directions], goals: Directions, names: Sequence[str]) -> list[int]:
    """Of each named shift ``[hidden]`` at each seed: 1 when no other goal is nearer than its own."""
    return [rank_of_own(one[name], goals, name) for one in shifts.values() for name in names]
