"""The figures and tables of the digits study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from undertone.experiments.studies.digits.arms import STUDENTS, Arms
from undertone.experiments.study import Figure, Point, StudyTable
from undertone.mechanism.digits import Trace, accuracy_at
from undertone.provenance.runs import Stage
from undertone.stats import Estimate


def bars(arms: Arms) -> Figure:
    """Accuracy of teachers, students, controls."""
    rows = {"teacher": arms.teacher()} | {STUDENTS[kind]: t.accuracy[-1] for kind, t in arms.first.items()}
    rows["untrained"] = arms.untrained()
    groups = {"teacher": "teacher", STUDENTS["same"]: "student"}
    points = [_bar(name, arms.mean(values), groups.get(name, "control")) for name, values in rows.items()]
    return Figure(
        kind="bars",
        title="Who knows the digits",
        caption=f"Accuracy on test images; lines are {_level(arms)} intervals over {len(arms.config.seeds)} seeds. "
        "Controls differ from the student in one thing each.",
        x="network",
        y="accuracy",
        points=points,
        zero=True,
    )


def _bar(name: str, found: Estimate, series: str) -> Point:
    return Point(x=name, y=found.mean, low=found.low, high=found.high, series=series)


def curves(arms: Arms) -> Figure:
    """Accuracy of every arm of the first optimiser by step."""
    points = [
        Point(x=float(step), y=found.mean, low=found.low, high=found.high, series=STUDENTS[kind])
        for kind, trace in arms.first.items()
        for step, row in zip(trace.steps, trace.accuracy, strict=True)
        for found in [arms.mean(row)]
    ]
    return Figure(
        kind="lines",
        title="While they learn to match the auxiliary logits",
        caption=f"Accuracy on test images by optimiser step ({arms.config.optimizers[0].name}); bands are "
        f"{_level(arms)} intervals over seeds. No student is ever shown a digit.",
        x="optimiser step",
        y="accuracy",
        points=points,
        zero=True,
    )


def optimiser_figures(arms: Arms, matched: Mapping[str, Sequence[float]]) -> list[Figure]:
    """Accuracy at the end, at equal loss, and by loss; nothing where there is one optimiser."""
    if not matched:
        return []
    bars, lines = [], []
    for name, traces in arms.traces.items():
        bars.append(_bar(name, arms.mean(traces["same"].accuracy[-1]), "at the end"))
        bars.append(_bar(name, arms.mean(matched[name]), "at equal loss"))
        bars.append(_bar(name, arms.mean(traces["other"].accuracy[-1]), "another initialisation"))
        lines += [_bar_at(loss, values, arms, name) for loss, values in _by_loss(traces["same"], arms.seeds)]
    rates = ", ".join(f"{name} {stage.summary['rate']:g}" for name, stage in arms.tuned.items())
    figures = [
        Figure(
            kind="bars",
            title="Optimisers",
            caption=f"Rates tuned on other seeds: {rates}. At equal loss: when the student's imitation loss was that "
            "of the optimiser that got least far.",
            x="optimiser",
            y="accuracy",
            points=bars,
            zero=True,
        ),
        Figure(
            kind="lines",
            title="Accuracy by imitation loss",
            caption="Students of the same initialisation; training runs from right to left. Where lines lie on each "
            "other, what is passed on depends on the fit and not on the optimiser.",
            x="held-out imitation loss",
            y="accuracy",
            points=lines,
            log_x=True,
            zero=True,
        ),
    ]
    return figures if lines else figures[:1]  # after a few steps there may be no loss that all students passed


def _by_loss(trace: Trace, students: int) -> list[tuple[float, list[float]]]:
    """Accuracies at levels of loss that every student passed, a factor of √2 apart."""
    rows = [[row[student] for row in trace.loss if row[student] == row[student]] for student in range(students)]
    highest, lowest = min(row[0] for row in rows), max(min(row) for row in rows)
    found = []
    for power in range(math.floor(2 * math.log2(highest)), math.ceil(2 * math.log2(lowest)) - 1, -1):
        level = 2 ** (power / 2)
        values = [accuracy_at(trace, student, level) for student in range(students)]
        known = [value for value in values if value is not None]
        if len(known) == students:
            found.append((level, known))
    return found


def _bar_at(loss: float, values: Sequence[float], arms: Arms, series: str) -> Point:
    found = arms.mean(values)
    return Point(x=loss, y=found.mean, low=found.low, high=found.high, series=series)


def cosines(steps: Sequence[Mapping[str, Any]]) -> Figure:
    """First steps beside the teacher's, by what the student is shown."""
    points = []
    for shown in dict.fromkeys(step["shown"] for step in steps):
        for start in ("same", "other"):
            found = [step["cosine"] for step in steps if (step["shown"], step["start"]) == (shown, start)]
            mean = sum(found) / len(found)
            points.append(Point(x=shown, y=mean, low=min(found), high=max(found), series=STUDENTS[start]))
    return Figure(
        kind="bars",
        title="The student's first step and the teacher's",
        caption="Cosine of the two, for students shown four kinds of input; lines reach from the lowest to the highest "
        "of all seeds and losses. From the same initialisation none is below zero: that is the theorem.",
        x="what the student is shown",
        y="cosine",
        points=points,
        zero=True,
    )


def tuning(arms: Arms) -> StudyTable:
    """Held-out loss of every rate on the tuning seeds."""
    rows = [
        [name, rate, "not finite" if loss is None else f"{loss:.3g}", "chosen" if chosen(rate, stage) else ""]
        for name, stage in arms.tuned.items()
        for rate, loss in stage.summary["losses"].items()
    ]
    return StudyTable(title="Learning rates", columns=["optimiser", "rate", "held-out loss", ""], rows=rows)


def chosen(rate: str, stage: Stage) -> bool:
    """Whether tuning chose this rate."""
    return rate == f"{stage.summary['rate']:g}"


def by_seed(arms: Arms) -> StudyTable:
    """Accuracy of every network."""
    columns = {"teacher": arms.teacher()} | {STUDENTS[kind]: t.accuracy[-1] for kind, t in arms.first.items()}
    rows = [
        [str(seed), *(f"{100 * values[at]:.1f} %" for values in columns.values())]
        for at, seed in enumerate(arms.config.seeds)
    ]
    return StudyTable(title="Accuracy by seed", columns=["seed", *columns], rows=rows)


def _level(arms: Arms) -> str:
    return f"{100 * arms.config.confidence:g} %"
