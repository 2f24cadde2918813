"""The arms of the digits study as its findings and figures read them: traces by optimiser and arm, means, gains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from undertone.experiments.studies.digits.config import DigitsStudy
from undertone.mechanism.digits import Trace, accuracy_at
from undertone.provenance.runs import Stage
from undertone.stats import Estimate, PairedEffect, clustered_mean, paired_effect

STUDENTS = {
    "same": "same initialisation",
    "other": "another initialisation",
    "permuted": "same, targets permuted",
    "shape": "another width",
}
"""Arm -> its name in figures and sentences."""


@dataclass(frozen=True)
class Arms:
    """The traces of every optimiser's arms, and what they are compared with."""

    config: DigitsStudy
    teachers: Stage
    tuned: Mapping[str, Stage]
    traces: Mapping[str, Mapping[str, Trace]]

    @property
    def first(self) -> Mapping[str, Trace]:
        """The arms of the first optimiser."""
        return self.traces[self.config.optimizers[0].name]

    @property
    def seeds(self) -> int:
        """How many are reported; they come first in the teachers' stage."""
        return len(self.config.seeds)

    def teacher(self) -> list[float]:
        """Accuracy of the reported seeds' teachers."""
        return list(self.teachers.summary["accuracy"][: self.seeds])

    def untrained(self) -> list[float]:
        """Accuracy of the reported seeds' networks before anything was learnt."""
        return list(self.teachers.summary["untrained"][: self.seeds])

    def mean(self, values: Sequence[float]) -> Estimate:
        """Over seeds, with an interval that stays in [0, 1]."""
        return clustered_mean([[value] for value in values], self.config.confidence)

    def gain(self, one: Sequence[float], other: Sequence[float]) -> PairedEffect:
        """One arm minus another, paired by seed."""
        return paired_effect([[value] for value in one], [[value] for value in other], self.config.confidence)


def traces_of(stage: Stage) -> Iterator[tuple[str, Trace]]:
    """Arm -> how its students went, of one stage of students."""
    for kind, record in stage.read_json("traces.json").items():
        losses = [[math.nan if value is None else value for value in row] for row in record["loss"]]
        yield kind, Trace(record["steps"], losses, record["accuracy"])


def matched_accuracy(arms: Arms) -> dict[str, list[float]]:
    """Optimiser -> accuracy of each seed's student when all optimisers had reached the same held-out loss.

    The level of a seed is the loss of the optimiser that got least far; empty where there is only one optimiser.
    """
    same = {name: found["same"] for name, found in arms.traces.items()}
    if len(same) < 2:
        return {}
    matched: dict[str, list[float]] = {name: [] for name in same}
    for student in range(arms.seeds):
        lowest = [min(row[student] for row in trace.loss if row[student] == row[student]) for trace in same.values()]
        for name, trace in same.items():
            value = accuracy_at(trace, student, max(lowest))
            assert value is not None  # the level was reached by every one of them
            matched[name].append(value)
    return matched
