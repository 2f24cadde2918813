"""Bars, forests, dots, strips and curves, by Altair, from rows and lines; reads no results.

Positions are shares in [0, 1] (drawn in %), differences of shares (drawn in points), and for the
training curves optimiser steps and nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from undertone.report.svg import (
    FULL,
    HALF,
    INK,
    LINE,
    MUTED,
    NO_SCALE,
    PAPER,
    Picture,
    Sheet,
    colour,
    linear,
    picture,
    row_axis,
    share_axis,
)


@dataclass(frozen=True)
class Bar:
    """One row of a bar or forest picture; ``ticks`` are other models' values on the same row."""

    label: str
    mean: float
    text: str
    colour: str
    low: float | None = None
    high: float | None = None
    dots: tuple[float, ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Dots:
    """One row of a dot picture: values, each with its colour and its shape (strips: its lane)."""

    label: str
    values: tuple[tuple[float, str, str], ...]


@dataclass(frozen=True)
class Curve:
    """One line: its colour, its points (step, nats), and whether it must stand out."""

    colour: str
    points: tuple[tuple[float, float], ...]
    strong: bool = True


def bars(rows: Sequence[Bar], description: str) -> Picture:
    """Horizontal bars from 0 with intervals, dots below, ticks of other models, and the numbers."""
    highest = max(max(row.mean, row.high or 0.0, *row.dots, 0.0) for row in rows)
    top = min(1.0, max(0.1, math.ceil(highest * 10 + 0.3) / 10))

    def draw(sheet: Sheet) -> alt.LayerChart:
        x = alt.X("mean:Q", scale=linear(0.0, top), axis=share_axis(sheet))
        y = row_axis([row.label for row in rows], sheet)
        shape = sheet.chart(_main(rows)).mark_bar(height={"band": 0.5}, opacity=0.55)
        bar = shape.encode(x=x, x2=alt.datum(0), y=y, color=colour())
        line = _intervals(sheet, rows).encode(x="low:Q", x2="high:Q", y=y, color=alt.value(INK))
        layers = [bar, *_ticks(sheet, rows, x, y), *_seeds(sheet, rows, x, y), line]
        return _in_rows([*layers, _numbers(sheet, rows, y)], sheet, len(rows))

    return picture(draw, description)


def forest(rows: Sequence[Bar], description: str) -> Picture:
    """Differences with their intervals about the line of no effect."""
    ends = [value for row in rows for value in (row.mean, row.low, row.high, *row.dots)]
    seen = [value for value in ends if value is not None and math.isfinite(value)]
    low, high = min([*seen, -0.05]), max([*seen, 0.05])
    room = 0.06 * (high - low)

    def draw(sheet: Sheet) -> alt.LayerChart:
        scale = linear(max(-1.0, low - room), min(1.0, high + room))
        x = alt.X("mean:Q", scale=scale, axis=share_axis(sheet))
        y = row_axis([row.label for row in rows], sheet)
        zero = sheet.chart([{"mean": 0.0}]).mark_rule(color=MUTED, strokeDash=[3, 3]).encode(x=x)
        line = _intervals(sheet, rows).encode(x="low:Q", x2="high:Q", y=y, color=colour())
        shape = sheet.chart(_main(rows)).mark_point(filled=True, size=90, opacity=1, stroke=PAPER, strokeWidth=1.5)
        point = shape.encode(x=x, y=y, color=colour())
        layers = [zero, *_seeds(sheet, rows, x, y), line, point]
        return _in_rows([*layers, _numbers(sheet, rows, y)], sheet, len(rows))

    return picture(draw, description)


def dots(rows: Sequence[Dots], description: str) -> Picture:
    """One row per question; a line joins the lowest and the highest of its dots."""
    order = [str(place) for place in range(len(rows))]  # two questions may look the same

    def draw(sheet: Sheet) -> alt.LayerChart:
        bare = alt.Axis(labels=False, ticks=False, domain=False, title=None, grid=False)
        y = alt.Y("row:N", sort=order, scale=alt.Scale(domain=order), axis=bare)
        x = alt.X("v:Q", scale=linear(0.0, 1.0), axis=share_axis(sheet, "top"))
        spans = sheet.chart(_spans(rows)).mark_rule(color=LINE, strokeWidth=2)
        points = sheet.chart(_points(rows)).mark_point(filled=True, size=62, opacity=0.95)
        shape = alt.Shape("s:N", **NO_SCALE)
        layers = [
            spans.encode(x="low:Q", x2="high:Q", y=y),
            points.encode(x=x, y=y, color=colour(), shape=shape),
            _questions(sheet, rows, y),
        ]
        left = 366 if sheet.wide else 4
        chart = alt.layer(*layers).properties(
            width=FULL[sheet.width] - left - 16,
            height=alt.Step(19 if sheet.wide else 38),
            autosize="none",
        )
        return chart.properties(padding={"left": left, "top": 24, "bottom": 4, "right": 16})

    return picture(draw, description)


def strips(rows: Sequence[Dots], lanes: Sequence[str], description: str) -> Picture:
    """One row per trait, one lane per model, one tick per question."""
    data = [
        {"row": row.label, "v": round(value, 4), "c": hue, "lane": lane}
        for row in rows
        for value, hue, lane in row.values
    ]

    def draw(sheet: Sheet) -> alt.LayerChart:
        y = row_axis([row.label for row in rows], sheet)
        x = alt.X("v:Q", scale=linear(0.0, 1.0), axis=share_axis(sheet, "top"))
        lane = alt.YOffset("lane:N", scale=alt.Scale(domain=list(lanes), paddingOuter=0.6))
        mark = sheet.chart(data).mark_tick(thickness=1.5, opacity=0.7, height=7)
        chart = alt.layer(mark.encode(x=x, y=y, yOffset=lane, color=colour()))
        height = alt.Step(9 * len(lanes) + 6, **{"for": "position"})
        chart = chart.properties(width=FULL[sheet.width], height=height)
        return chart.properties(padding={"left": 8, "top": 4, "bottom": 4, "right": 16})

    return picture(draw, description)


def curves(lines: Sequence[Curve], description: str) -> Picture:
    """Training loss by optimiser step, one line per student; strong ones lie over faint ones."""
    data = [
        {
            "line": str(number),
            "step": step,
            "loss": round(loss, 4),
            "c": line.colour,
            "width": 1.6 if line.strong else 1,
            "opacity": 0.95 if line.strong else 0.5,
        }
        for number, line in enumerate(sorted(lines, key=lambda line: line.strong))
        for step, loss in line.points
    ]

    def draw(sheet: Sheet) -> alt.LayerChart:
        steps = alt.Axis(title="optimiser step", grid=False, tickCount=6 if sheet.wide else 4)
        upright = {"titleAngle": 0, "titleAlign": "left", "titleX": 0, "titleY": -14}
        loss = alt.Axis(title="nats per completion token", tickCount=5, **upright)
        mark = sheet.chart(data).mark_line(strokeJoin="round")
        layer = mark.encode(
            x=alt.X("step:Q", axis=steps),
            y=alt.Y("loss:Q", scale=alt.Scale(zero=False), axis=loss),
            detail="line:N",
            color=colour(),
            strokeWidth=alt.StrokeWidth("width:Q", **NO_SCALE),
            opacity=alt.Opacity("opacity:Q", **NO_SCALE),
        )
        size = {"width": FULL[sheet.width], "height": 280 if sheet.wide else 220}
        chart = alt.layer(layer).properties(**size)
        return chart.properties(padding={"left": 2, "top": 26, "bottom": 2, "right": 12})

    return picture(draw, description)


# ---------------------------------------------------------------------- layers of bars and forest


def _main(rows: Sequence[Bar]) -> list[dict[str, Any]]:
    return [
        {
            "row": b.label,
            "mean": b.mean,
            "low": b.low,
            "high": b.high,
            "c": b.colour,
            "text": b.text,
        }
        for b in rows
    ]


def _intervals(sheet: Sheet, rows: Sequence[Bar]) -> alt.Chart:
    bounded = [row for row in rows if _finite(row.low) and _finite(row.high)]
    return sheet.chart(_main(bounded)).mark_rule(strokeWidth=2, strokeCap="round")


def _ticks(sheet: Sheet, rows: Sequence[Bar], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    data = [{"row": r.label, "mean": value, "c": hue} for r in rows for value, hue in r.ticks]
    if not data:
        return []
    mark = sheet.chart(data).mark_tick(thickness=3, height={"band": 0.5}, opacity=1)
    return [mark.encode(x=x, y=y, color=colour())]


def _seeds(sheet: Sheet, rows: Sequence[Bar], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """Small dots in a lane below the row's middle, where no line crosses them."""
    several = [row for row in rows if len(row.dots) > 1]
    data = [{"row": row.label, "mean": value, "c": row.colour, "lane": 0.75} for row in several for value in row.dots]
    if not data:
        return []
    mark = sheet.chart(data).mark_circle(size=38, opacity=1, stroke=PAPER, strokeWidth=1)
    lane = alt.YOffset("lane:Q", scale=alt.Scale(domain=[-1, 1]))
    return [mark.encode(x=x, y=y, yOffset=lane, color=colour())]


def _numbers(sheet: Sheet, rows: Sequence[Bar], y: alt.Y) -> alt.Chart:
    size = 12 if sheet.wide else 11
    mark = sheet.chart(_main(rows)).mark_text(align="left", dx=10, color=INK, fontSize=size)
    return mark.encode(x=alt.value(alt.expr("width")), y=y, text="text:N")


def _in_rows(layers: Sequence[alt.Chart], sheet: Sheet, rows: int) -> alt.LayerChart:
    step = 44 if rows <= 6 else 26 if rows <= 24 else 20
    chart = alt.layer(*layers).properties(width=HALF[sheet.width], height=alt.Step(step))
    return chart.properties(padding={"left": 8, "top": 4, "bottom": 2, "right": 14})


# ------------------------------------------------------------------------------ layers of the dots


def _spans(rows: Sequence[Dots]) -> list[dict[str, Any]]:
    numbers = [[value for value, _, _ in row.values] for row in rows]
    return [{"row": str(n), "low": min(found), "high": max(found)} for n, found in enumerate(numbers)]


def _points(rows: Sequence[Dots]) -> list[dict[str, Any]]:
    return [
        {"row": str(n), "v": value, "c": hue, "s": shape}
        for n, row in enumerate(rows)
        for value, hue, shape in row.values
    ]


def _questions(sheet: Sheet, rows: Sequence[Dots], y: alt.Y) -> alt.Chart:
    """The questions: left of their rows, or above them where the screen is narrow."""
    place: dict[str, Any] = {"align": "left", "dy": -13, "limit": FULL["narrow"] - 16}
    if sheet.wide:
        place = {"align": "right", "dx": -12, "limit": 322}
    data = [{"row": str(n), "text": row.label} for n, row in enumerate(rows)]
    mark = sheet.chart(data).mark_text(color=INK, fontSize=12, **place)
    return mark.encode(x=alt.value(0), y=y, text="text:N")


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
