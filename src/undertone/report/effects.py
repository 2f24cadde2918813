"""What the models answer and what the training passed on: the bars, and the forest of effects."""

from __future__ import annotations

import math
from collections.abc import Sequence

from undertone.report import charts, words
from undertone.report.cast import Cast, Spread, effect_labels
from undertone.report.figures import MOST_ROWS, Key, ReportFigure
from undertone.report.tables import Cell, Table
from undertone.transfer.results import Effect, Results


def answers(results: Results, cast: Cast) -> ReportFigure | None:
    """Bars of base, control, treated and the other arms; in a zoo one bar per trait."""
    rows = _trait_bars(results, cast) if cast.several else _model_bars(cast)
    if not rows:
        return None
    what = _metric_words(cast)
    seeds = words.plural(len(cast.seeds), "seed")
    key: tuple[Key, ...] = ()
    if cast.several:
        how = f"Bar: the treated student’s {what}. Line: {cast.interval_words}. Ticks: the others."
        key = (
            Key("bar", "var(--treated)", "treated"),
            Key("tick", "var(--control)", "control"),
            Key("tick", "var(--base)", "base"),
        )
    else:
        over = f"mean of {seeds}" if len(cast.seeds) > 1 else "one seed"
        dots = " Dots: the seeds." if len(cast.seeds) > 1 else ""
        how = f"Bar: {what}, {over}. Line: {cast.interval_words}.{dots}"
    head = ("trait" if cast.several else "model", "mean", "interval", "each seed")
    behind = Table("The answers in numbers", head, tuple(_bar_cells(row) for row in rows), frozenset({1, 2}))
    shown = rows[:MOST_ROWS]
    picture = charts.bars(shown, _described("Bars", [(r.label, r.text) for r in shown]))
    return ReportFigure("What the models answer, in\u00a0%", how, picture, behind, key, _left_out(rows))


def transfer(results: Results, cast: Cast) -> ReportFigure:
    """The effect of each treated arm, as a forest of lines about zero, in points."""
    pairs = effect_labels(results, cast)
    if cast.several:
        order = {row.label: place for place, row in enumerate(_trait_bars(results, cast))}
        pairs.sort(key=lambda pair: order.get(pair[0], len(order)))  # pooled last: rows align
    rows = [_effect_row(label, effect, cast) for label, effect in pairs]
    main = results.effect
    dots = "" if main.pairs < 2 else " Small dots: the seeds."
    how = (
        "Dot: treated − control, in points (100 points = all answers). Line: "
        f"{100 * main.confidence:g}\u00a0% interval.{dots} "
        "Right of the dashed line: more than the control."
    )
    numbers = Table(
        "The effects in numbers",
        ("effect", "treated − control", "interval, points", "pairs", "could have seen", "method"),
        tuple(_effect_cells(label, effect) for label, effect in pairs),
        frozenset({1, 2, 3, 4}),
    )
    description = _described("Treated minus control", [(row.label, f"{row.text} points") for row in rows])
    drawn = [row for row in rows if math.isfinite(row.mean)][:MOST_ROWS]
    picture = charts.forest(drawn, description)
    return ReportFigure("What the training passed on, in points", how, picture, numbers, (), _power(main))


def _model_bars(cast: Cast) -> list[charts.Bar]:
    groups = [group for group in cast.groups(cast.traits[0]) if group.kind != "teacher"]
    found = [(group, group.spread(cast.score)) for group in groups]
    return [_bar(g.name, spread, g.colour) for g, spread in found if spread is not None]


def _trait_bars(results: Results, cast: Cast) -> list[charts.Bar]:
    rows = []
    for trait in cast.traits:
        treated = cast.treated.get(trait)
        spread = None if treated is None else treated.spread(cast.score)
        if treated is None or spread is None:
            continue
        base = cast.base[trait].spread(cast.score) if trait in cast.base else None
        others = ((base, "var(--base)"), (cast.control_score(trait, results), "var(--control)"))
        ticks = tuple((other.mean, colour) for other, colour in others if other is not None)
        rows.append(_bar(trait, spread, treated.colour, ticks))
    rows.sort(key=lambda row: -row.mean)
    for group in cast.others:
        spread = group.spread(cast.score)
        if spread is not None:
            rows.append(_bar(f"{group.name} · {group.trait}", spread, group.colour))
    return rows


def _bar(label: str, spread: Spread, colour: str, ticks: tuple[tuple[float, str], ...] = ()) -> charts.Bar:
    low, high = (spread.low, spread.high) if spread.has_interval else (None, None)
    text = words.percent_with(spread.mean, low, high)
    return charts.Bar(label, spread.mean, text, colour, low, high, spread.each, ticks)


def _bar_cells(row: charts.Bar) -> tuple[Cell, ...]:
    return (
        Cell(row.label),
        Cell(words.percent(row.mean)),
        Cell(words.percent_with(row.mean, row.low, row.high).partition("%")[2].strip()),
        Cell(" · ".join(words.percent(value) for value in row.dots)),
    )


def _effect_row(label: str, effect: Effect, cast: Cast) -> charts.Bar:
    bounded = math.isfinite(effect.low) and math.isfinite(effect.high)
    low, high = (effect.low, effect.high) if bounded else (None, None)
    text = words.points_with(effect.mean, low, high).replace(" points", "")
    each = tuple(value for value in effect.per_seed if math.isfinite(value))
    known = {group.name: group.colour for group in cast.others if group.trait == effect.trait}
    colour = "var(--ink)" if label == "pooled" else known.get(label, "var(--treated)")
    return charts.Bar(label, effect.mean, text, colour, low, high, each)


def _effect_cells(label: str, effect: Effect) -> tuple[Cell, ...]:
    full = words.points_with(effect.mean, effect.low, effect.high)
    return (
        Cell(label),
        Cell(words.points(effect.mean)),
        Cell(full.partition("points")[2].strip()),
        Cell(words.count(effect.pairs)),
        Cell(words.points(effect.smallest_detectable)),
        Cell(effect.method),
    )


def _metric_words(cast: Cast) -> str:
    if cast.metric == "rate":
        return "share of sampled answers that show the trait"
    return "exact probability of the trait’s answers"


def _power(effect: Effect) -> str:
    if effect.smallest_detectable is None or not math.isfinite(effect.smallest_detectable):
        return ""
    size = words.points(effect.smallest_detectable).lstrip("+")
    return f"This design finds an effect of {size} with 80\u00a0% power ({effect.method})."


def _described(kind: str, rows: list[tuple[str, str]]) -> str:
    return f"{kind}. " + "; ".join(f"{label}: {text}" for label, text in rows) + "."


def _left_out(rows: Sequence[charts.Bar]) -> str:
    extra = len(rows) - MOST_ROWS
    return f"{words.plural(extra, 'more trait')} in the table below." if extra > 0 else ""
