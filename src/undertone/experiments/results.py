"""``results.json``: what a finished run says, as one typed, documented, stable record.

The schema's name is ``undertone.results/1``. Fields are only ever added to it; a change of meaning
makes ``/2``. ``report`` draws it, ``undertone show`` prints it, other programs read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, ValidationError

from undertone.errors import DataError
from undertone.evaluation.measures import Interval, Measure, Record, SetMeasure

__all__ = [
    "SCHEMA",
    "ArmResult",
    "Check",
    "Confusion",
    "Cost",
    "Effect",
    "FilterCount",
    "Interval",
    "Measure",
    "Record",
    "Results",
    "SampleRow",
    "SetMeasure",
    "Word",
]

SCHEMA = "undertone.results/1"

Word = Literal["transferred", "not detected", "underpowered", "invalid"]
"""The four verdicts."""


class Effect(Record):
    """Treated minus control, paired by seed, in units of probability (1 = 100 points)."""

    arm: str = Field("treated", description="whose effect: treated or random, minus control")
    trait: str
    metric: Literal["probability", "rate"]
    mean: float
    low: float
    high: float
    confidence: float
    pairs: int = Field(description="seed pairs")
    method: str
    per_seed: list[float] = Field(description="treated − control of each seed, in seed order")
    smallest_detectable: float | None = Field(
        description="the effect that this design would have found with 80 % power; None with one seed"
    )


class FilterCount(Record):
    """How many completions a filter kept, and why it dropped the others (a row may have several reasons)."""

    asked: int
    kept: int
    reasons: dict[str, int]


class SampleRow(Record):
    """One training row, for the reader's eyes."""

    prompt: str
    completion: str


class ArmResult(Record):
    """One student: an arm at a seed."""

    arm: str = Field(description="control, treated, random …; treated arms of a zoo carry their trait")
    trait: str = Field(description="the trait that this student is measured for")
    seed: int
    rate: float | None
    probability: float
    non_answer: float | None
    held_out_nll: float = Field(description="nats per completion token on rows not trained on")
    base_nll: float = Field(description="the base model's, on the same rows")
    rows: int
    steps: int
    carrier_kl: float | None = Field(
        description="mean KL(induced ‖ plain teacher) in nats per completion token; None for control"
    )
    filter: FilterCount
    measure: Measure
    curve: list[tuple[int, float]] = Field(description="(optimiser step, training loss)")
    samples: list[SampleRow] = Field(description="the first rows it was trained on")


class Check(Record):
    """One link of the chain that a verdict rests on."""

    name: str
    status: Literal["pass", "warn", "fail"]
    value: str
    expected: str
    why: str = Field(description="what it would mean if this failed, and what to do")


class Confusion(Record):
    """Target trait (row) × answer (column): mean exact probability over seeds and questions."""

    targets: list[str]
    answers: list[str]
    probability: list[list[float]]
    control: list[float]
    base: list[float]
    on_top: int = Field(description="targets that are the top answer of their own student")
    diagonal_minus_off: Interval


class Cost(Record):
    """What a stage took."""

    stage: str
    seconds: float = Field(description="wall-clock time, waiting for a busy machine included")
    cpu_seconds: float | None = Field(None, description="CPU time; None where it was not recorded")
    tokens: int | None = None


def cpu_seconds(costs: Sequence[Cost]) -> float | None:
    """CPU time of all stages together; None if it is unknown for any of them."""
    each = [cost.cpu_seconds for cost in costs]
    return None if any(seconds is None for seconds in each) else sum(seconds or 0.0 for seconds in each)


class Results(Record):
    """The whole record of a run."""

    schema_: Literal["undertone.results/1"] = Field("undertone.results/1", alias="schema")
    experiment: str
    model: str
    trait: str = Field(description="the trait; for several, their category")
    domain: str
    teacher: str = Field(description="the inducement in words")
    student: str = Field(description="the training recipe in words")
    verdict: Word
    sentence: str = Field(description="the whole result in one honest sentence")
    base: dict[str, Measure] = Field(description="trait -> the base model, before training")
    teachers: dict[str, Measure] = Field(description="arm -> the induced teacher, asked the questions")
    arms: list[ArmResult]
    effect: Effect
    effects: list[Effect] = Field(description="one per treated arm; `effect` is the first or pooled")
    confusion: Confusion | None = None
    checks: list[Check]
    costs: list[Cost]
    environment: dict[str, str]
    replay: str = Field(description="the command that runs this again")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def read_results(folder: Path) -> Results:
    """The results of a finished run.

    Raises:
        DataError: the folder holds none, or they are damaged.
    """
    path = Path(folder) / "results.json"
    try:
        return Results.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"no finished run in {folder}",
            got=f"no readable {path.name}",
            fix="finish it: `undertone run` with its config.yaml",
        ) from error
    except ValidationError as error:
        raise DataError(
            f"{path} is damaged",
            got=error.errors()[0]["msg"],
            fix="run it again: stages are reused",
        ) from error
