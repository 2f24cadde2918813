"""The page of a study: claims with verdicts, every figure with its numbers, tables, checks, costs, origin, replay.

The look and the rules are those of the other page (``page``): one file, no script, everything escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from undertone.experiments.results import Cost, cpu_seconds
from undertone.experiments.study import Figure, Finding, Point, StudyResults, StudyTable
from undertone.report import heat, page, plots, tables, words
from undertone.report.figures import Key
from undertone.report.svg import Picture
from undertone.report.tables import Cell, Table

COLOURS = ("treated", "control", "teacher", "other-0", "other-1", "other-2", "other-3", "base")
"""In the order in which series take them; a series of the same name takes its own."""
VERDICTS = ("reproduced", "partly", "not reproduced", "not measured")
_IN_HUNDREDTHS = {"points", "share", "accuracy"}


@dataclass(frozen=True)
class Drawn:
    """A figure on the page: a picture a panel, how it is read, its key and the numbers behind it."""

    title: str
    reading: str
    panels: tuple[tuple[str, Picture], ...]
    numbers: Table
    key: tuple[Key, ...]


@dataclass(frozen=True)
class Told:
    """A finding, in the words of the page."""

    claim: str
    source: str
    published: str
    quantity: str
    value: str
    interval: str
    method: str
    baseline: str
    verdict: str
    why: str


def fill(results: StudyResults, manifest: Mapping[str, Any]) -> str:
    """The whole page as one HTML text."""
    results = StudyResults.model_validate(words.visible(results.model_dump(by_alias=True)))
    verdicts = [finding.verdict for finding in results.findings]
    return page.template("study.html.j2").render(
        style=Markup(page.text("style.css")),
        results=results,
        facts=[
            ("Kind", results.kind),
            ("Studied", results.model),
            _work(results.costs),
        ],
        verdicts=[(word, verdicts.count(word)) for word in VERDICTS if word in verdicts],
        findings=[told(finding) for finding in results.findings],
        figures=[drawn(figure) for figure in results.figures if any(plots.finite(p.y) for p in figure.points)],
        tables=[_table(table) for table in results.tables],
        status_sign=page.STATUS_SIGN,
        plural=words.plural,
        tally=page.tally(results.checks),
        costs=tables.costs(results),
        stages=tables.stages(results),
        environment=tables.facts("Environment", results.environment),
        manifest=tables.facts("Manifest", words.visible(manifest)) if manifest else None,
    )


# ---------------------------------------------------------------------------------- findings


def told(finding: Finding) -> Told:
    """A finding as text: value and interval with the digits that the interval can carry."""
    value, interval = _measured(finding)
    return Told(
        claim=finding.claim,
        source=finding.source,
        published=finding.published or words.MISSING,
        quantity=finding.quantity,
        value=value,
        interval=interval,
        method=f"{finding.method}; n = {words.count(finding.pairs)}",
        baseline=finding.baseline,
        verdict=finding.verdict,
        why=finding.why,
    )


def _measured(finding: Finding) -> tuple[str, str]:
    if finding.value is None or not plots.finite(finding.value):
        return words.MISSING, ""
    bounds = (finding.low, finding.high)
    if finding.unit == "points":
        text, _, interval = words.points_with(finding.value, *bounds).partition(" points")
        return f"{text} points", interval.strip()
    if finding.unit in _IN_HUNDREDTHS:
        text, _, interval = words.percent_with(finding.value, *bounds).partition(" ")
        return text, interval
    unit = {"nats": " nats"}.get(finding.unit, "")
    low, high = bounds
    span = "" if low is None or high is None else f"[{words.number(low)},\u00a0{words.number(high)}]"
    return f"{words.number(finding.value)}{unit}", span


# ---------------------------------------------------------------------------------- figures


def drawn(figure: Figure) -> Drawn:
    """A figure of any kind, one picture a panel, all over the same axes and in the same colours."""
    points = [point for point in figure.points if plots.finite(point.y)]
    series = tuple(dict.fromkeys(point.series for point in points))
    hues = colours(series)
    labelled = figure.kind == "scatter" and len(series) == len(points) > 1
    panels: dict[str, list[Point]] = {}
    for point in points:
        panels.setdefault(point.panel or "", []).append(point)
    if figure.kind == "matrix":
        steps = _steps([point.y for point in points if point.y is not None])
        pictures = [(name, _matrix(found, figure, steps)) for name, found in panels.items()]
        key = _matrix_key(steps)
    else:
        axes = _axes(figure, points, series, len(panels) == 1)
        pictures = [(name, _plot(figure, found, axes, hues, labelled)) for name, found in panels.items()]
        key = () if labelled or len(series) < 2 else _key(figure, series, hues)
    return Drawn(figure.title, figure.caption, tuple(pictures), _numbers(figure), key)


def colours(series: Sequence[str]) -> dict[str, str]:
    """Series -> colour: its own where it is called control, base …, else the next that is free."""
    own = {name: name for name in series if name in COLOURS}
    free = [name for name in COLOURS if name not in own.values()] or list(COLOURS)
    others = [name for name in series if name not in own]
    own |= {name: free[at % len(free)] for at, name in enumerate(others)}
    return {name: f"var(--{own[name]})" for name in series}


def _axes(figure: Figure, points: Sequence[Point], series: tuple[str, ...], single: bool) -> plots.Axes:
    ends = [value for point in points for value in (point.y, point.low, point.high)]
    up = plots.ranges([value for value in ends if value is not None and plots.finite(value)], _from_zero(figure))
    places = [point.x for point in points if not isinstance(point.x, str)]
    across = None
    if figure.kind != "bars":
        across = (min(places), max(places)) if figure.kind == "lines" else plots.ranges(places, False)
        if across[0] == across[1]:
            across = (across[0] * 0.9, across[1] * 1.1 or 1.0)
        if figure.log_x and figure.kind != "lines":
            across = (min(places) * 0.8, max(places) * 1.25)
    return plots.Axes(figure.x, figure.y, across, up, figure.log_x, series, single)


def _from_zero(figure: Figure) -> bool:
    return figure.zero or figure.kind == "bars"  # a bar that does not begin at 0 lies


def _plot(
    figure: Figure, points: Sequence[Point], axes: plots.Axes, hues: Mapping[str, str], labelled: bool
) -> Picture:
    marks = [
        plots.Mark(p.x, p.y, p.series, hues[p.series], *(v if plots.finite(v) else None for v in (p.low, p.high)))
        for p in points
        if p.y is not None
    ]
    said = f"{figure.title}: {figure.y} by {figure.x}, {words.plural(len(marks), 'value')}; the numbers are below."
    if figure.kind == "bars":
        return plots.bars(marks, axes, said)
    if figure.kind == "lines":
        return plots.lines(marks, axes, said)
    return plots.scatter(marks, axes, said, labelled)


def _key(figure: Figure, series: Sequence[str], hues: Mapping[str, str]) -> tuple[Key, ...]:
    if figure.kind == "scatter":
        return tuple(Key(plots.shape_of(series, name, False), hues[name], name) for name in series)
    return tuple(Key("bar" if figure.kind == "bars" else "line", hues[name], name) for name in series)


# ---------------------------------------------------------------------------------- matrices


def _steps(values: Sequence[float]) -> tuple[float, ...]:
    """Eight borders between nine colours, evenly from the lowest value to the highest."""
    low, high = min(values), max(values)
    gap = (high - low) or 1.0
    return tuple(low + gap * at / 9 for at in range(1, 9))


def _matrix(points: Sequence[Point], figure: Figure, steps: tuple[float, ...]) -> Picture:
    rows = tuple(dict.fromkeys(point.series for point in points))
    columns = tuple(dict.fromkeys(_named(point.x) for point in points))
    found = {(point.series, _named(point.x)): point.y for point in points}
    values = tuple(tuple(_nan(found.get((row, column))) for column in columns) for row in rows)
    marked = frozenset((rows.index(name), columns.index(name)) for name in rows if name in columns)
    table = heat.Heat(rows, columns, values, marked, len(rows), steps, words.short)
    said = f"{figure.title}: {figure.y}, {len(rows)} rows by {len(columns)} columns; the numbers are below."
    return heat.heat(table, said)


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _matrix_key(steps: tuple[float, ...]) -> tuple[Key, ...]:
    names = [f"< {words.short(steps[0])}", *(f"{words.short(step)}" for step in steps)]
    return tuple(Key("cell", f"var(--heat-{n})", name) for n, name in enumerate(names))


# ---------------------------------------------------------------------------------- tables


def _numbers(figure: Figure) -> Table:
    """Every point of a figure, those without a value too."""
    panels = any(point.panel for point in figure.points)
    matrix = figure.kind == "matrix"
    bounds = any(point.low is not None or point.high is not None for point in figure.points)
    head = ["row" if matrix else "series", *(["panel"] if panels else []), "column" if matrix else figure.x, figure.y]
    head += ["from", "to"] if bounds else []
    rows = []
    for point in figure.points:
        cells = [point.series, *([point.panel or ""] if panels else []), _named(point.x), words.number(point.y)]
        cells += [words.number(point.low), words.number(point.high)] if bounds else []
        rows.append(tuple(map(Cell, cells)))
    first = 1 + panels + (0 if _numeric(figure) else 1)
    return Table(f"{figure.title}: the numbers", tuple(head), tuple(rows), frozenset(range(first, len(head))))


def _numeric(figure: Figure) -> bool:
    return all(not isinstance(point.x, str) for point in figure.points)


def _named(x: float | str) -> str:
    return x if isinstance(x, str) else words.number(x)


def _table(table: StudyTable) -> Table:
    rows = tuple(tuple(Cell(words.shortened(cell, tables.LONGEST_COMPLETION)) for cell in row) for row in table.rows)
    numeric = {
        at
        for at in range(1, len(table.columns))
        if table.rows and all(not row[at] or words.is_number(row[at]) for row in table.rows)
    }
    return Table(table.title, tuple(table.columns), rows, frozenset(numeric))


def _work(costs: Sequence[Cost]) -> tuple[str, str]:
    """CPU time, which does not count waiting; wall-clock time where CPU time was not recorded."""
    cpu = cpu_seconds(costs)
    if cpu is not None:
        return "CPU time", words.duration(cpu)
    return "Time of stages", words.duration(sum(cost.seconds for cost in costs))
