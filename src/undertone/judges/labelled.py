"""The labelled answers that ship with undertone, and the error of a judge on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

from undertone import stats
from undertone.judges.judge import Judge, JudgedPair
from undertone.judges.rules import Label

Part = Literal["dev", "held-out"]


@dataclass(frozen=True)
class Labelled:
    """One answer and what it is. Rules were written with ``dev`` in view; figures come from ``held-out``."""

    answer: str
    label: Label
    form: Literal["real", "lab"]
    part: Part


@dataclass(frozen=True)
class Error:
    """How a judge does on one label: counts, and two rates with Wilson intervals (95 %).

    ``precision``: of the answers it gave the label, the share that have it; None if it gave the label to none.
    ``recall``: of the answers that have the label, the share it found.
    """

    label: Label
    true: int
    given: int
    right: int
    failed: int
    precision: stats.Estimate | None
    recall: stats.Estimate


@cache
def labelled() -> tuple[Labelled, ...]:
    """All labelled answers."""
    text = (files("undertone.judges") / "data" / "refusals.jsonl").read_text(encoding="utf-8")
    return tuple(Labelled(**json.loads(line)) for line in text.splitlines())


def error_of(
    judge: Judge, items: Sequence[Labelled] | None = None, *, form: Literal["real", "lab"] = "real"
) -> dict[str, Error]:
    """Precision and recall of a judge that gives labels, per label.

    Args:
        judge: one whose verdicts carry ``refusal``, ``compliance`` or ``neither``.
        items: labelled answers; None: the held-out part of those that ship, in this form.
        form: English or the lab's wording.

    Raises:
        ValueError: a label does not occur among the items, or the judge gives other labels.
    """
    chosen = [item for item in labelled() if item.part == "held-out" and item.form == form] if items is None else items
    verdicts = judge.judge([JudgedPair("", item.answer) for item in chosen])
    foreign = {verdict.label for verdict in verdicts if not verdict.failed} - set(get_args(Label))
    if foreign:
        raise ValueError(f"the judge says {sorted(map(str, foreign))}; labels are {', '.join(get_args(Label))}")
    failed = sum(verdict.failed for verdict in verdicts)
    errors: dict[str, Error] = {}
    labels: tuple[Label, ...] = ("refusal", "compliance", "neither")
    for label in labels:
        true = [item.label == label for item in chosen]
        given = [verdict.label == label for verdict in verdicts]
        right = sum(a and b for a, b in zip(true, given, strict=True))
        errors[label] = Error(
            label,
            sum(true),
            sum(given),
            right,
            failed,
            stats.wilson(right, sum(given)) if any(given) else None,
            stats.wilson(right, sum(true)),
        )
    return errors
