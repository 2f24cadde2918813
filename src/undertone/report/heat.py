"""The heat map: a matrix in nine steps of one hue, drawn cell by cell; shares have fixed steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import altair as alt

from undertone.report.svg import FULL, INK, PAPER, Picture, Sheet, colour, linear, picture

STEPS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8)
"""Borders between the nine colours: fixed, so that two reports can be compared."""
_ROOM_FOR_NUMBERS = 24.0  # pixels a cell needs to hold two digits


def in_percent(value: float) -> str:
    """A share as a cell shows it."""
    return f"{100 * value:.0f}" if math.isfinite(value) else "–"


@dataclass(frozen=True)
class Heat:
    """A matrix: of shares, unless other ``steps`` and another ``text`` are given.

    ``marked`` are the framed cells (row, column); a small gap goes before row ``gap_before``.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    marked: frozenset[tuple[int, int]]
    gap_before: int
    steps: tuple[float, ...] = STEPS
    text: Callable[[float], str] = in_percent


def heat(table: Heat, description: str) -> Picture:
    """Draw the matrix; numbers stand in the cells where they have room."""
    return picture(lambda sheet: _draw(sheet, table), description)


def step(value: float, steps: tuple[float, ...] = STEPS) -> int:
    """The number of a value's colour: 0 (lowest) to 8."""
    return sum(value >= border for border in steps)


def _draw(sheet: Sheet, table: Heat) -> alt.LayerChart:
    room = FULL[sheet.width] - (110 if sheet.wide else 76)
    cell = max(9.0, min(44.0, room / len(table.columns)))
    width, height = cell * len(table.columns), cell * (len(table.rows) + 0.5)
    x = alt.X("x:Q", scale=linear(0.0, width), axis=None)
    y = alt.Y("y:Q", scale=linear(height, 0.0), axis=None)
    cells = sheet.chart(_cells(table, cell))
    ends = {"x2": "x2:Q", "y2": "y2:Q"}
    squares = cells.mark_rect(stroke=PAPER, strokeWidth=1).encode(x=x, y=y, color=colour(), **ends)
    frames = cells.transform_filter("datum.marked").mark_rect(filled=False, strokeWidth=1.5)
    layers: list[Any] = [squares, frames.encode(x=x, y=y, stroke=alt.value(INK), **ends)]
    if cell >= _ROOM_FOR_NUMBERS:
        numbers = cells.mark_text(fontSize=11)
        layers.append(numbers.encode(x="mx:Q", y="my:Q", text="text:N", color=colour("ink")))
    size = max(7.0, min(12.0, cell * 0.62))
    layers += _names(sheet, table, cell, size)
    chart = alt.layer(*layers).properties(width=width, height=height, autosize="none")
    return chart.properties(padding=_margins(table, cell, size))


def _cells(table: Heat, cell: float) -> list[dict[str, Any]]:
    return [
        {
            "x": place * cell,
            "x2": (place + 1) * cell,
            "y": _top(table, number) * cell,
            "y2": (_top(table, number) + 1) * cell,
            "mx": (place + 0.5) * cell,
            "my": (_top(table, number) + 0.5) * cell,
            "c": f"var(--heat-{step(value, table.steps)})",
            "ink": f"var(--heat-ink-{step(value, table.steps)})",
            "text": table.text(value),
            "marked": (number, place) in table.marked,
        }
        for number, row in enumerate(table.values)
        for place, value in enumerate(row)
    ]


def _names(sheet: Sheet, table: Heat, cell: float, size: float) -> list[alt.Chart]:
    rows = [{"my": (_top(table, number) + 0.5) * cell, "text": name} for number, name in enumerate(table.rows)]
    columns = [{"mx": (place + 0.5) * cell, "text": name} for place, name in enumerate(table.columns)]
    limit = 100 if cell > _ROOM_FOR_NUMBERS else 66
    side = sheet.chart(rows).mark_text(align="right", dx=-8, color=INK, fontSize=size, limit=limit)
    head = sheet.chart(columns).mark_text(align="left", angle=300, dx=7, color=INK, fontSize=size, limit=90)
    return [
        side.encode(x=alt.value(0), y="my:Q", text="text:N"),
        head.encode(x="mx:Q", y=alt.value(0), text="text:N"),
    ]


def _margins(table: Heat, cell: float, size: float) -> dict[str, float]:
    longest = max(map(len, table.columns))
    side = 12 + 0.62 * size * max(map(len, table.rows))
    return {
        "left": min(110.0 if cell > _ROOM_FOR_NUMBERS else 74.0, side),
        "top": min(90.0, 16 + 0.56 * size * longest),
        "right": min(50.0, 0.3 * size * longest),
        "bottom": 4.0,
    }


def _top(table: Heat, number: int) -> float:
    return number + (0.5 if number >= table.gap_before else 0.0)
