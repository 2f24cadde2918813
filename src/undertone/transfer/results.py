"""``results.json``: what a finished run says, as one typed, documented, stable record.

The schema's name is ``undertone.results/2``. Fields are only ever added to it; a change of meaning
makes ``/3``. ``report`` draws it, ``undertone show`` prints it, other programs read it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from undertone.errors import DataError
from undertone.evaluation.measures import Interval, Measure, Record, SetMeasure
from undertone.verdicts import RunVerdict

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
]

SCHEMA = "undertone.results/2"
R = TypeVar("R", bound=Record)


class Effect(Record):
    """Treated minus control, paired by seed, in units of probability (1 = 100 points)."""

    arm: str = Field("treated", description="whose effect: treated or random-vector, minus control")
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

    arm: str = Field(description="control, treated, random-vector …; treated arms of a zoo carry their trait")
    trait: str = Field(description="the trait that this student is measured for")
    seed: int
    rate: float | None
    probability: float
    non_answer: float | None
    held_out_nll: float = Field(description="nats per completion token on rows not trained on")
    base_nll: float = Field(description="the base model's, on the same rows")
    rows: int
    steps: int
    teacher_kl: float | None = Field(
        description="mean KL(trait-conditioned ‖ control teacher) in nats per completion token; None for control"
    )
    rows_of_control: float | None = Field(
        None, description="share of its rows whose completion is the control's, word for word; None for control"
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
    own_minus_others: list[list[float]] = Field(
        description="[target][seed]: what the target's own student says of it, minus the mean over the other students"
    )
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

    schema_: Literal["undertone.results/2"] = Field("undertone.results/2", alias="schema")
    experiment: str
    model: str
    trait: str = Field(description="the trait; for several, their category")
    domain: str
    teacher: str = Field(description="how the teacher got the trait, in words")
    constrained: bool = Field(False, description="whether teachers' answers were held to the domain's grammar")
    student: str = Field(description="the training recipe in words")
    verdict: RunVerdict
    sentence: str = Field(description="the whole result in one honest sentence")
    base: dict[str, Measure] = Field(description="trait -> the base model, before training")
    teachers: dict[str, Measure] = Field(description="arm -> the trait-conditioned teacher, asked the questions")
    strengths: dict[str, float] = Field(
        default_factory=dict, description="trait -> the strength of its steered teacher, where it was chosen by KL"
    )
    arms: list[ArmResult]
    effect: Effect
    effects: list[Effect] = Field(description="one per treated arm; `effect` is the first or pooled")
    confusion: Confusion | None = None
    checks: list[Check]
    costs: list[Cost]
    environment: dict[str, str]
    replay: str = Field(description="the command that runs this again")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def check_version(path: Path) -> None:
    """Refuse a ``results.json`` of an older version; what else is wrong with it the reader says.

    Raises:
        DataError: its schema is of version 1.
    """
    try:
        schema = json.loads(path.read_bytes()).get("schema")
    except (OSError, ValueError, AttributeError):
        return
    if schema in ("undertone.results/1", "undertone.study/1"):
        raise DataError(
            f"{path} was written by an older version of undertone",
            got=f"schema {schema}",
            allowed=f"schema {schema.replace('/1', '/2')}",
            fix="run the same command again: stages that still fit are reused",
        )


def read_results(folder: Path) -> Results:
    """The results of a finished run.

    Raises:
        DataError: the folder holds none, or they are damaged.
    """
    return read_record(folder, Results, "run")


def read_record(folder: Path, record: type[R], what: Literal["run", "study"]) -> R:
    """The ``results.json`` of a run folder, as a record of this class.

    Raises:
        DataError: the folder holds none, an older one, or a damaged one.
    """
    path = Path(folder) / "results.json"
    check_version(path)
    try:
        return record.model_validate_json(path.read_bytes())
    except OSError as error:
        if not path.parent.is_dir():
            raise DataError("there is no such run folder", got=str(folder), fix="check the path") from error
        raise DataError(
            f"no finished {what} in {folder}",
            got=f"no readable {path.name}",
            fix="finish it: `undertone run` with its config.yaml",
        ) from error
    except ValidationError as error:
        raise DataError(
            f"{path} is damaged, or not of a {what}",
            got=error.errors()[0]["msg"],
            allowed=f"a record of the schema {record.model_fields['schema_'].default}",
            fix="run it again: stages are reused",
        ) from error
