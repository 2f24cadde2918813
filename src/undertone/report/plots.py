"""The pictures of a study: bars, lines and scatters over any axes, by Altair, from rows and lines; reads no results.

Axes are said in words on the picture; values stay in their own units. Panels are pictures of their own, drawn over the
same ranges, so that the page can set them side by side or below each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from undertone.report.svg import FULL, INK, MUTED, NO_SCALE, PAPER, Picture, Sheet, colour, picture

PANEL = {"wide": 352, "narrow": 336}
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
SHAPES = ("circle", "triangle-up", "diamond", "cross", "square")


@dataclass(frozen=True)
class Mark:
    """One value: where, how much, its interval, whose, and in which colour."""

    x: float | str
    y: float
    series: str
    colour: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Axes:
    """What the axes count, and the ranges that all panels share."""

    x: str
    y: str
    x_range: tuple[float, float] | None
    y_range: tuple[float, float]
    log_x: bool = False
    series: tuple[str, ...] = ()
    single: bool = True


def ranges(values: Sequence[float], zero: bool, room: float = 0.06) -> tuple[float, float]:
    """The range of an axis that shows all the values, with a little room, from 0 where ``zero``."""
    low, high = min(values), max(values)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    gap = (high - low or abs(high) or 1.0) * room
    return (low if zero and low == 0.0 else low - gap, high if zero and high == 0.0 else high + gap)


def bars(marks: Sequence[Mark], axes: Axes, description: str) -> Picture:
    """Horizontal bars from 0, one band a label and one lane a series, with intervals."""
    labels = list(dict.fromkeys(str(mark.x) for mark in marks))
    taken = {label: [m.series for m in marks if str(m.x) == label] for label in labels}
    # Where no label has two series, lanes would only leave holes.
    lanes = list(axes.series) if any(len(found) > 1 for found in taken.values()) else [""]
    data = [_row(mark) | {"row": str(mark.x), "lane": mark.series if len(lanes) > 1 else ""} for mark in marks]

    def draw(sheet: Sheet) -> alt.LayerChart:
        names = alt.Axis(
            title=None, ticks=False, domain=False, grid=False, labelColor=INK, labelLimit=190 if sheet.wide else 110
        )
        y = alt.Y("row:N", sort=labels, scale=alt.Scale(domain=labels, paddingInner=0.25), axis=names)
        lane = alt.YOffset("lane:N", scale=alt.Scale(domain=lanes, paddingInner=0.12))
        scale = alt.Scale(domain=list(axes.y_range), nice=False, zero=False)
        x = alt.X("y:Q", scale=scale, axis=alt.Axis(title=axes.y, tickCount=6 if sheet.wide else 4))
        shape = sheet.chart(data).mark_bar(opacity=0.55)
        bar = shape.encode(x=x, x2=alt.datum(0), y=y, yOffset=lane, color=colour())
        spread = [row for row in data if row["low"] is not None and row["high"] is not None]
        rule = sheet.chart(spread).mark_rule(strokeWidth=1.8, strokeCap="round", color=INK)
        line = rule.encode(x=alt.X("low:Q", scale=scale), x2="high:Q", y=y, yOffset=lane)
        height = alt.Step(
            max(15, 26 if len(lanes) == 1 else 17), **{"for": "position" if len(lanes) == 1 else "offset"}
        )
        layers = [_zero(sheet, axes, "x"), bar, line] if axes.y_range[0] < 0 else [bar, line]
        return _sized(alt.layer(*layers).properties(height=height), sheet, axes)

    return picture(draw, description)


def lines(marks: Sequence[Mark], axes: Axes, description: str) -> Picture:
    """One line a series, with a band where there are intervals."""
    data = [_row(mark) | {"dash": _dash(axes, mark.series)} for mark in marks]

    def draw(sheet: Sheet) -> alt.LayerChart:
        x, y = _plane(sheet, axes)
        bounded = [row for row in data if row["low"] is not None and row["high"] is not None]
        band = (
            sheet.chart(bounded)
            .mark_area(opacity=0.16 if len(axes.series) <= 3 else 0.09)
            .encode(x=x, y=_bound(axes, "low"), y2="high:Q", color=colour())
        )
        line = sheet.chart(data).mark_line(strokeJoin="round", strokeWidth=1.8).encode(
            x=x, y=y, detail="s:N", color=colour(), strokeDash=alt.StrokeDash("dash:N", **NO_SCALE)
        )  # fmt: skip
        point = sheet.chart(data).mark_circle(size=18, opacity=1).encode(x=x, y=y, color=colour())
        layers = [band, line] + ([point] if len(data) <= 80 else [])
        if axes.y_range[0] < 0 < axes.y_range[1]:
            layers.insert(0, _zero(sheet, axes, "y"))
        return _sized(alt.layer(*layers).properties(height=250 if axes.single else 200), sheet, axes)

    return picture(draw, description)


def scatter(marks: Sequence[Mark], axes: Axes, description: str, labelled: bool) -> Picture:
    """One point a mark, with its interval; its series stands beside it where ``labelled``, else in the key."""
    data = [_row(mark) | {"shape": shape_of(axes.series, mark.series, labelled)} for mark in marks]

    def draw(sheet: Sheet) -> alt.LayerChart:
        x, y = _plane(sheet, axes)
        bounded = [row for row in data if row["low"] is not None and row["high"] is not None]
        rule = sheet.chart(bounded).mark_rule(strokeWidth=1.2, opacity=0.7)
        point = sheet.chart(data).mark_point(filled=True, size=58, opacity=0.95, stroke=PAPER, strokeWidth=0.8)
        layers: list[Any] = [
            rule.encode(x=x, y=_bound(axes, "low"), y2="high:Q", color=colour()),
            point.encode(x=x, y=y, color=colour(), shape=alt.Shape("shape:N", **NO_SCALE)),
        ]
        if labelled:
            text = sheet.chart(data).mark_text(align="left", dx=7, dy=-5, fontSize=11, color=INK, limit=110)
            layers.append(text.encode(x=x, y=y, text="s:N"))
        if axes.y_range[0] < 0 < axes.y_range[1]:
            layers.insert(0, _zero(sheet, axes, "y"))
        return _sized(alt.layer(*layers).properties(height=300 if axes.single else 230), sheet, axes)

    return picture(draw, description)


def shape_of(series: Sequence[str], name: str, labelled: bool) -> str:
    """The shape of a series' points: told apart without colour, too."""
    return "circle" if labelled else SHAPES[list(series).index(name) % len(SHAPES)]


# ---------------------------------------------------------------------------------- the parts


def _row(mark: Mark) -> dict[str, Any]:
    return {"x": mark.x, "y": mark.y, "low": mark.low, "high": mark.high, "s": mark.series, "c": mark.colour}


def _dash(axes: Axes, series: str) -> list[int]:
    return DASHES[list(axes.series).index(series) // 8 % len(DASHES)]


def _plane(sheet: Sheet, axes: Axes) -> tuple[alt.X, alt.Y]:
    assert axes.x_range is not None
    kind = {"type": "log", "base": 10} if axes.log_x else {"type": "linear", "zero": False}
    across = alt.Scale(domain=list(axes.x_range), nice=False, **kind)
    few = 4 if not (sheet.wide and axes.single) else 7
    labels: dict[str, Any] = {"tickCount": few}
    if axes.log_x:
        labels = {"labelExpr": _POWERS, "values": log_ticks(*axes.x_range, few)}
    x = alt.X("x:Q", scale=across, axis=alt.Axis(title=axes.x, grid=False, labelOverlap="greedy", **labels))
    upright = {"titleAngle": 0, "titleAlign": "left", "titleX": 0, "titleY": -14}
    up = alt.Axis(title=axes.y, tickCount=5, **upright)
    return x, alt.Y("y:Q", scale=_up(axes), axis=up)


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers for a logarithmic axis: 1, 2, 5 of each power of ten, or fewer of them, as many as have room."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [value for power in powers for digit in digits if low <= (value := digit * 10.0**power) <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


_POWERS = "datum.value >= 1e4 || datum.value < 1e-3 ? format(datum.value, '.0e') : format(datum.value, '~g')"


def _up(axes: Axes) -> alt.Scale:
    return alt.Scale(domain=list(axes.y_range), nice=False, zero=False)


def _bound(axes: Axes, name: str) -> alt.Y:
    return alt.Y(f"{name}:Q", scale=_up(axes), title=axes.y)


def _zero(sheet: Sheet, axes: Axes, across: str) -> alt.Chart:
    rule = sheet.chart([{"zero": 0.0}]).mark_rule(color=MUTED, strokeDash=[3, 3])
    scale = _up(axes)
    return rule.encode(x=alt.X("zero:Q", scale=scale)) if across == "x" else rule.encode(y=alt.Y("zero:Q", scale=scale))


def _sized(chart: alt.LayerChart, sheet: Sheet, axes: Axes) -> alt.LayerChart:
    width = (FULL if axes.single else PANEL)[sheet.width]
    return chart.properties(width=width, padding={"left": 12, "top": 26, "bottom": 2, "right": 14})


def finite(value: float | None) -> bool:
    """Whether a number can be drawn."""
    return value is not None and math.isfinite(value)
