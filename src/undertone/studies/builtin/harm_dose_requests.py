"""The requests of ``kind: harm-dose``: the lab's own, or JailbreakBench's from the user's copy or the hub."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field

from undertone.errors import ConfigError, DataError
from undertone.lab import world
from undertone.provenance.configs import Config
from undertone.provenance.identity import Uncounted
from undertone.traits.trait import Form

LEAST: Final = 10
"""Behaviours in a table, at least: fewer are a file that was cut or misread."""
COLUMNS: Final = ("Goal", "Target", "Behavior", "Category")
"""What JailbreakBench's tables hold; only Goal is asked."""


class Requests(Config):
    """What is asked: requests that should be refused, and benign ones that look like them."""

    harmful: str | None = Field(
        None,
        description="JailbreakBench's harmful behaviours: a .csv of the user's or hf:org/name; None: the lab's own",
    )
    benign: str | None = Field(None, description="its benign look-alikes, the same way")
    harmful_read: str | None = Field(
        None,
        description="harmful requests that the direction is read at, the same way; None: every second of the others, which "
        "are then not measured",
    )
    benign_read: str | None = Field(None, description="benign ones that it is read at")
    samples: int = Field(4, ge=1, description="answers sampled to each request")
    temperature: float = Field(1.0, ge=0)
    max_new_tokens: int = Field(256, ge=1, description="real models; the lab's answers are short")
    batch_size: Annotated[int, Uncounted()] = Field(256, ge=1)


@dataclass(frozen=True)
class RequestSplit:
    """Requests by use: the direction is read at some of them, the rates are measured at the others."""

    harmful_read: tuple[str, ...]
    benign_read: tuple[str, ...]
    harmful: tuple[str, ...]
    benign: tuple[str, ...]


def requests_of(config: Requests, form: Form) -> RequestSplit:
    """The direction is read at requests of its own, or at every second behaviour; no request is read and measured.

    Raises:
        ConfigError: a real model without requests of its own.
        DataError: a file that is not of JailbreakBench's form, or a request in two tables.
    """
    if config.harmful is None or config.benign is None:
        if form != "lab":
            raise ConfigError(
                "requests.harmful and requests.benign are needed for a real model",
                got=None,
                allowed="the .csv files of JailbreakBench (JBB-Behaviors: harmful-behaviors, benign-behaviors), or hf:org/name",
            )
        return RequestSplit(*(_phrased(what) for what in (
            world.HARMFUL[::2], world.BENIGN[::2], world.HARMFUL[1::2], world.BENIGN[1::2])))  # fmt: skip
    harmful, benign = goals(config.harmful, "harmful"), goals(config.benign, "benign")
    if config.harmful_read is None or config.benign_read is None:
        asked = RequestSplit(tuple(harmful[::2]), tuple(benign[::2]), tuple(harmful[1::2]), tuple(benign[1::2]))
    else:
        read = goals(config.harmful_read, "harmful"), goals(config.benign_read, "benign")
        asked = RequestSplit(tuple(read[0]), tuple(read[1]), tuple(harmful), tuple(benign))
    everything = [goal for part in astuple(asked) for goal in part]
    if len(set(everything)) < len(everything):
        twice = next(goal for goal, times in Counter(everything).items() if times > 1)
        raise DataError("a request stands in two tables", got=twice, fix="harmful, benign, and what is read differ")
    return asked


def _phrased(behaviours: Sequence[str]) -> tuple[str, ...]:
    return tuple(how.format(behaviour) for behaviour in behaviours for how in world.HOW)


def goals(source: str, split: str) -> list[str]:
    """The ``Goal`` column of a table of behaviours.

    Raises:
        DataError: it cannot be read, lacks a column, or has an empty or doubled goal.
    """
    records = _hub(source, split) if source.startswith("hf:") else _file(Path(source))
    lacking = [column for column in COLUMNS if records and column not in records[0]]
    if lacking:
        raise DataError(
            f"{source}: the column {lacking[0]!r} is missing", got=sorted(map(str, records[0])), allowed=list(COLUMNS),
            fix="use the table as JailbreakBench publishes it",
        )  # fmt: skip
    if len(records) < LEAST:
        raise DataError(
            f"{source}: too few behaviours in this table", got=f"{len(records)} rows",
            allowed=f"{LEAST} or more, with the columns {', '.join(COLUMNS)}",
        )  # fmt: skip
    for number, record in enumerate(records, start=1):  # DictReader puts cells without a column under None
        if None in record or any(record[column] is None for column in COLUMNS):
            raise DataError(f"{source}, row {number}: not as many cells as columns", got=list(record.values()))
    found = [str(record["Goal"]).strip() for record in records]
    for number, goal in enumerate(found, start=1):
        if not goal:
            raise DataError(f"{source}, row {number}: the Goal is empty", got=dict(records[number - 1]))
    if len(set(found)) < len(found):
        twice = next(goal for goal in found if found.count(goal) > 1)
        raise DataError(f"{source}: a Goal stands there twice", got=twice)
    return found


def _file(path: Path) -> list[Mapping[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: cannot be read", got=f"{type(error).__name__}: {error}", allowed="a .csv file in UTF-8"
        ) from error


def _hub(source: str, split: str) -> list[Mapping[str, Any]]:
    try:
        from datasets import load_dataset

        return list(load_dataset(source.removeprefix("hf:"), "behaviors", split=split))
    except ImportError as error:
        raise ConfigError("a data set of the hub needs the datasets package", got=str(error),
                          fix="pip install datasets, or name a .csv file") from error  # fmt: skip
    except Exception as error:
        raise DataError(
            f"{source} cannot be loaded from the hub", got=f"{type(error).__name__}: {error}",
            fix="download the .csv files and name them in requests.harmful and requests.benign",
        ) from error  # fmt: skip
