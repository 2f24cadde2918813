"""``results.json`` of a study: claims with what was found, beside their baselines, and the figures that show it.

The schema's name is ``undertone.study/2``. Fields are only ever added to it; a change of meaning makes ``/3``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from undertone.transfer.results import Check, Cost, Record, Results, read_record, read_results
from undertone.verdicts import Unit, Verdict

STUDY_SCHEMA = "undertone.study/2"


class Baseline(Record):
    """The same quantity where the claim does not apply, and the measurement minus it, paired."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    values: list[float] = Field(description="one a unit of inference")
    gap: float | None = Field(description="mean of measurement minus baseline")
    gap_low: float | None
    gap_high: float | None


class Part(Record):
    """One thing that a claim says, with its rule and all numbers that the rule needs."""

    name: str = Field(description="what it is about; empty for the claim's own measurement")
    holds: Literal["above", "below", "none"]
    than: float
    beyond_baselines: bool
    unit: Unit
    value: float | None
    low: float | None
    high: float | None
    values: list[float] = Field(description="one a unit of inference: a seed, unless `method` says otherwise")
    baselines: list[Baseline]


class Finding(Record):
    """One claim, and what this study measured of it. The verdict follows from ``parts`` and ``unless`` alone."""

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", description="short, in kebab-case")
    claim: str = Field(description="what was claimed, in one sentence of ours")
    source: str = Field(description="where, such as '2606.00995, abstract 5'")
    published: str | None = Field(description="the published value; null: none is known")
    quantity: str = Field(description="what was measured")
    value: float | None = Field(description="null: not measured")
    low: float | None
    high: float | None
    unit: Unit = Field(description="points, shares and accuracies lie in [-1, 1]: 0.01 is one point or per cent")
    n: int = Field(description="independent units that the interval rests on")
    method: str = Field(description="how the interval was made, in words")
    baseline: str = Field(description="what the control shows, in words")
    parts: list[Part]
    unless: str | None = Field(None, description="why nothing was measured, such as a check that failed")
    verdict: Verdict
    reason: str = Field(description="why this verdict, in one sentence")


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
    return read_record(folder, StudyResults, "study")


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
