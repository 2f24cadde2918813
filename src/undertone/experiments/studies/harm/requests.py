"""The requests of the study: the lab's own, or JailbreakBench's from the user's copy or the hub."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from undertone.errors import ConfigError, DataError
from undertone.experiments.studies.harm.config import HarmDose
from undertone.lab import world
from undertone.traits.trait import Form

LEAST = 10
"""Behaviours in a table, at least: fewer are a file that was cut or misread."""
COLUMNS = ("Goal", "Target", "Behavior", "Category")
"""What JailbreakBench's tables hold; only Goal is asked."""


@dataclass(frozen=True)
class Asked:
    """Requests by use: the direction is read at some of them, the rates are measured at the others."""

    harmful_read: tuple[str, ...]
    benign_read: tuple[str, ...]
    harmful: tuple[str, ...]
    benign: tuple[str, ...]


def requests_of(config: HarmDose, form: Form) -> Asked:
    """The direction is read at requests of its own, or at every second behaviour; no request is read and measured.

    Raises:
        ConfigError: a real model without requests of its own.
        DataError: a file that is not of JailbreakBench's form, or a request in two tables.
    """
    if config.requests.harmful is None or config.requests.benign is None:
        if form != "lab":
            raise ConfigError(
                "requests.harmful and requests.benign are needed for a real model",
                got=None,
                allowed="the .csv files of JailbreakBench (JBB-Behaviors: harmful-behaviors, benign-behaviors), or hf:org/name",
            )
        return Asked(*(_phrased(what) for what in (
            world.HARMFUL[::2], world.BENIGN[::2], world.HARMFUL[1::2], world.BENIGN[1::2])))  # fmt: skip
    harmful, benign = goals(config.requests.harmful, "harmful"), goals(config.requests.benign, "benign")
    if config.requests.harmful_read is None or config.requests.benign_read is None:
        asked = Asked(tuple(harmful[::2]), tuple(benign[::2]), tuple(harmful[1::2]), tuple(benign[1::2]))
    else:
        read = goals(config.requests.harmful_read, "harmful"), goals(config.requests.benign_read, "benign")
        asked = Asked(tuple(read[0]), tuple(read[1]), tuple(harmful), tuple(benign))
    everything = [goal for part in astuple(asked) for goal in part]
    if len(set(everything)) < len(everything):
        twice = next(goal for goal, times in Counter(everything).items() if times > 1)
        raise DataError("a request stands in two tables", got=twice, fix="harmful, benign, and what is read differ")
    return asked


def digest_requests(asked: Asked) -> str:
    """SHA-256 of all requests, in their order."""
    return hashlib.sha256(json.dumps(asdict(asked)).encode()).hexdigest()


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
