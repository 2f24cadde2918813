"""``results.json`` of a study: claims with what was found, beside their baselines, and the figures that show it.

A study is a plan of another kind than the transfer experiment: it measures quantities rather than one trait's passing.
The schema's name is ``undertone.study/2``. Fields are only ever added to it; a change of meaning makes ``/3``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import ConfigDict, Field, ValidationError, model_validator

from undertone import stats
from undertone.errors import DataError
from undertone.experiments.results import Check, Cost, Record, Results, check_version, read_results

__all__ = [
    "STUDY_SCHEMA",
    "Figure",
    "Finding",
    "Point",
    "StudyResults",
    "StudyTable",
    "interval",
    "read_run",
    "read_study",
    "valued",
    "verdict_of",
]

STUDY_SCHEMA = "undertone.study/2"

Judgement = Literal["reproduced", "partly", "not reproduced", "not measured"]
Unit = Literal["points", "cosine", "nats", "correlation", "share", "ratio", "accuracy"]


class Finding(Record):
    """One claim, and what this study measured of it."""

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", description="short, in kebab-case")
    claim: str = Field(description="what was claimed, in one sentence of ours")
    source: str = Field(description="where, such as '2606.00995, abstract 5'")
    published: str | None = Field(description="the published value; null: none is known")
    quantity: str = Field(description="what was measured")
    value: float | None = Field(description="null: not measured")
    low: float | None
    high: float | None
    unit: Unit = Field(description="points, shares and accuracies lie in [-1, 1]: 0.01 is one point or per cent")
    pairs: int = Field(description="independent units that the interval rests on")
    method: str = Field(description="how the interval was made, in words")
    baseline: str = Field(description="what the control shows, in words")
    verdict: Judgement
    why: str = Field(description="why this verdict, in one sentence")


NOTHING: Final = 0.05
"""An effect whose interval lies within five points of 0 counts as none, as for a control's drift."""


def verdict_of(
    holds: Literal["above", "none", "less", "more"], mean: float, low: float | None, high: float | None
) -> tuple[Judgement, str]:
    """Reproduced only where the whole interval says so; partly where the mean does, and five points may be there."""
    if low is None or high is None:
        return "not measured", "one pair has no interval; add seeds"
    if holds == "none":
        if low > -NOTHING and high < NOTHING:
            return "reproduced", "the whole interval is within five points of 0"
        if low <= 0 <= high:
            return "partly", "0 is inside the interval, but so are effects of more than five points"
        return "not reproduced", "the interval excludes 0"
    sign = -1.0 if holds == "less" else 1.0
    first, last = sorted((sign * low, sign * high))
    if first > 0:
        return "reproduced", "the whole interval is on the claimed side of 0"
    if last < NOTHING:
        return "not reproduced", "the interval holds 0, and nothing of five points on the claimed side"
    if sign * mean > 0:
        return "partly", "the mean is on the claimed side of 0, the interval is not"
    return "not reproduced", "the mean is not on the claimed side of 0"


def per_seed(values: Sequence[float], seeds: int) -> list[float]:
    """One value a seed, the mean over traits: the pairs of a seed share its control, so that seeds are the units.

    With a single seed the traits are all there is: then each pair stays a unit, and the interval says nothing of seeds.

    Args:
        values: one a pair, traits outermost, seeds innermost.
        seeds: how many there are.

    Raises:
        ValueError: not as many pairs for every seed.
    """
    if len(values) % seeds:
        raise ValueError(f"{len(values)} pairs are not of {seeds} seeds each")
    return by_seed((at % seeds, value) for at, value in enumerate(values))


def by_seed(pairs: Iterable[tuple[int, float]]) -> list[float]:
    """:func:`per_seed` of (seed, value) pairs, of which some may be missing."""
    found: dict[int, list[float]] = {}
    for seed, value in pairs:
        found.setdefault(seed, []).append(value)
    grouped = list(found.values())
    return [float(np.mean(values)) for values in grouped] if len(grouped) > 1 else [v for one in grouped for v in one]


def units(traits: int, seeds: int) -> str:
    """What :func:`per_seed` makes of so many pairs a seed, in words: ``3 seeds, the mean of 2 pairs each``."""
    if seeds == 1:
        return f"{traits} pairs of one seed"
    return f"{seeds} seeds" + (f", the mean of {traits} pairs each" if traits > 1 else "")


def interval(values: Sequence[float], confidence: float) -> tuple[float, float | None, float | None]:
    """Mean with its t interval; with one value there is none."""
    if len(values) < 2:
        return float(np.mean(values)), None, None
    estimate = stats.mean_interval(list(values), confidence)
    return estimate.mean, estimate.low, estimate.high


def valued(finding: Finding) -> str:
    """``+28.5 points (+12.6 to +44.4)``; ``0.62 (0.51 to 0.70)``."""
    if finding.value is None:
        return "not measured"
    sign, scale, digits = ("+", 100, 1) if finding.unit == "points" else ("", 1, 3)
    unit = "" if finding.unit in ("cosine", "correlation", "share", "ratio", "accuracy") else f" {finding.unit}"
    numbers = [
        f"{scale * number:{sign}.{digits}f}"
        for number in (finding.value, finding.low, finding.high)
        if number is not None
    ]
    return numbers[0] + unit + (f" ({numbers[1]} to {numbers[2]})" if len(numbers) == 3 else "")


class Point(Record):
    """One point of a figure; of a matrix: x is the column, series the row, y the value."""

    x: float | str
    y: float | None
    low: float | None = None
    high: float | None = None
    series: str
    panel: str | None = None


class Figure(Record):
    """A picture by its numbers; the report draws it."""

    kind: Literal["bars", "lines", "scatter", "matrix"]
    title: str
    caption: str
    x: str = Field(description="what the x axis (of a matrix: the columns) counts")
    y: str = Field(description="what the y axis (of a matrix: the cells) counts")
    points: list[Point]
    log_x: bool = False
    zero: bool = Field(False, description="the y axis begins at 0")

    @model_validator(mode="after")
    def _drawable(self) -> Figure:
        words = [point.x for point in self.points if isinstance(point.x, str)]
        if self.kind in ("lines", "scatter") and words:
            raise ValueError(f"a figure of kind {self.kind} needs numbers on x; got {words[0]!r}")
        if self.log_x and any(not isinstance(point.x, str) and point.x <= 0 for point in self.points):
            raise ValueError("a logarithmic x axis needs numbers above 0")
        return self


class StudyTable(Record):
    """A table of words; the first cell of a row names it."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    @model_validator(mode="after")
    def _rectangular(self) -> StudyTable:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"the table {self.title!r} has rows that are not as long as its head")
        return self


class StudyResults(Record):
    """The whole record of a study."""

    schema_: Literal["undertone.study/2"] = Field("undertone.study/2", alias="schema")
    experiment: str = Field(description="the config's name")
    kind: str = Field(description="the config's kind")
    model: str = Field(description="what was studied")
    sentence: str = Field(description="the whole result in one honest sentence")
    findings: list[Finding]
    figures: list[Figure]
    tables: list[StudyTable]
    checks: list[Check]
    costs: list[Cost]
    environment: dict[str, str]
    replay: str = Field(description="the command that runs this again")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def read_study(folder: Path) -> StudyResults:
    """The results of a finished study.

    Raises:
        DataError: the folder holds none, or they are damaged.
    """
    path = Path(folder) / "results.json"
    check_version(path)
    try:
        return StudyResults.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"no finished study in {folder}",
            got=f"no readable {path.name}",
            fix="finish it: `undertone run` with its config.yaml",
        ) from error
    except ValidationError as error:
        raise DataError(
            f"{path} is damaged, or not of a study",
            got=error.errors()[0]["msg"],
            allowed=f"a record of the schema {STUDY_SCHEMA}",
            fix="run it again: stages are reused",
        ) from error


def read_run(folder: Path) -> Results | StudyResults:
    """The results of a finished run of any kind.

    Raises:
        DataError: the folder holds none, or they are damaged.
    """
    try:
        schema = json.loads((Path(folder) / "results.json").read_bytes()).get("schema")
    except (OSError, ValueError, AttributeError):
        schema = None  # the reader below says what is wrong
    return read_study(folder) if schema == STUDY_SCHEMA else read_results(folder)
