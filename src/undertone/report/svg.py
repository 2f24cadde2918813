"""From an Altair chart to SVG text that sits well in the page; shared fittings of all pictures.

Every colour is a CSS variable of the page (``var(--treated)``), so one SVG serves light, dark and
print; fonts are inherited. Each picture is drawn twice, for a wide and for a narrow screen, because
a scaled-down picture has unreadable letters; the style sheet shows one of them.

Rows of data go in by name, past Altair: it would check and copy every single value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from xml.etree import ElementTree

import altair as alt
import vl_convert
from markupsafe import Markup

Width = Literal["wide", "narrow"]
HALF = {"wide": 520, "narrow": 336}
FULL = {"wide": 736, "narrow": 336}
INK, MUTED, LINE, PAPER = "var(--ink)", "var(--muted)", "var(--line)", "var(--paper)"
NO_SCALE: dict[str, Any] = {"scale": None}

_SVG = "http://www.w3.org/2000/svg"
_PLACES = {"d", "transform", "x", "y", "x1", "x2", "y1", "y2"}
_LONG = re.compile(r"-?\d+\.\d{3,}(?:e-?\d+)?")
_NOISE = ("font-family", "class", "aria-roledescription", "aria-hidden", "pointer-events", "role")


@dataclass(frozen=True)
class Picture:
    """The same picture for two widths of screen."""

    wide: Markup
    narrow: Markup


@dataclass
class Sheet:
    """What one picture is drawn on: its width, and the data of its layers by name."""

    width: Width
    datasets: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def wide(self) -> bool:
        """Whether this is the picture for a wide screen."""
        return self.width == "wide"

    def chart(self, rows: Sequence[dict[str, Any]]) -> alt.Chart:
        """A chart over these rows, still without a mark."""
        name = f"d{len(self.datasets)}"
        self.datasets[name] = list(rows)
        return alt.Chart(alt.NamedData(name))


def picture(draw: Callable[[Sheet], alt.LayerChart], description: str) -> Picture:
    """Draw for both widths; ``description`` is what a screen reader says instead."""
    wide, narrow = (_svg(draw, Sheet(width), description) for width in ("wide", "narrow"))
    return Picture(wide, narrow)


def colour(name: str = "c") -> alt.Color:
    """Colours as they stand in the data."""
    return alt.Color(f"{name}:N", **NO_SCALE)


def linear(low: float, high: float) -> alt.Scale:
    """A scale from exactly ``low`` to exactly ``high``."""
    return alt.Scale(domain=[low, high], nice=False, zero=False)


def row_axis(labels: Sequence[str], sheet: Sheet) -> alt.Y:
    """One band per label, in this order, named on the left."""
    axis = alt.Axis(
        title=None,
        ticks=False,
        domain=False,
        grid=False,
        labelColor=INK,
        labelLimit=130 if sheet.wide else 84,
    )
    return alt.Y("row:N", sort=list(labels), scale=alt.Scale(domain=list(labels)), axis=axis)


def share_axis(sheet: Sheet, orient: Literal["top", "bottom"] = "bottom") -> alt.Axis:
    """An axis over shares (or their differences) that counts in hundredths."""
    return alt.Axis(
        title=None,
        orient=orient,
        tickCount=6 if sheet.wide else 4,
        labelOverlap="greedy",
        labelExpr="replace(format(datum.value * 100, '.0f'), '-', '−')",
    )


def _svg(draw: Callable[[Sheet], alt.LayerChart], sheet: Sheet, description: str) -> Markup:
    spec = draw(sheet).configure(aria=False, background="transparent", **_look()).to_dict()
    spec["datasets"] = sheet.datasets
    spec.setdefault("autosize", {"type": "fit-x", "contains": "padding"})
    return _tidy(vl_convert.vegalite_to_svg(spec), description)


def _look() -> dict[str, Any]:
    axis = alt.AxisConfig(
        labelColor=MUTED,
        titleColor=MUTED,
        gridColor=LINE,
        domain=False,
        ticks=False,
        labelFontSize=12,
        labelPadding=8,
        titleFontSize=12,
        titleFontWeight="normal",
        titlePadding=10,
    )
    return {"font": "sans-serif", "view": alt.ViewConfig(stroke=None), "axis": axis}


def _tidy(svg: str, description: str) -> Markup:
    """One image for assistive technology, without fonts and classes that could meet the page's."""
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for name in _NOISE:
            parent.attrib.pop(name, None)
        for name in _PLACES.intersection(parent.keys()):
            parent.set(name, _LONG.sub(_two_digits, parent.get(name, "")))
        for child in [child for child in parent if _empty(child)]:
            parent.remove(child)
    root.attrib.pop("version", None)
    root.set("role", "img")
    root.set("aria-label", description)
    text = ElementTree.tostring(root, encoding="unicode")
    return Markup(re.sub(r' (?:xmlns(?::\w+)?="[^"]*"|stroke(?:-dasharray)?="")', "", text))


def _empty(element: ElementTree.Element) -> bool:
    return element.tag == f"{{{_SVG}}}path" and element.get("d", "") in ("", "M0,0h0v0h0Z")


def _two_digits(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"
