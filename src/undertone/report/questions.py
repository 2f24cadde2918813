"""The positive questions one by one: a row of dots each, or strips of ticks where they are many."""

from __future__ import annotations

from undertone.report import charts, words
from undertone.report.cast import Cast, Kind, ModelGroup, over_seeds
from undertone.report.figures import MOST_ROWS, Key, ReportFigure
from undertone.report.tables import Cell, Table

MOST_QUESTIONS = 60  # rows of the dot picture; beyond, one strip per model
_SHAPES = {"base": "square", "teacher": "cross", "control": "triangle-up", "treated": "circle"}
_KINDS: tuple[Kind, ...] = ("base", "control", "treated")


def questions(cast: Cast) -> ReportFigure | None:
    """A dot per model for each positive question; ticks in strips where that is too many."""
    if cast.several:
        return _question_strips(cast)
    groups = [group for group in cast.groups(cast.traits[0]) if group.kind != "teacher"]
    table = {group.name: _by_question(group) for group in groups}
    first = table.get("treated") or next(iter(table.values()), {})
    asked = [question for question in first if any(question in row for row in table.values())]
    if not asked:
        return None
    if len(asked) > MOST_QUESTIONS:
        return _question_strips(cast)
    asked.sort(key=lambda question: -first[question])
    marks = {group.name: _mark(group, place) for place, group in enumerate(groups)}
    rows = [
        charts.Dots(
            question,
            tuple((row[question], *marks[name]) for name, row in table.items() if question in row),
        )
        for question in asked
    ]
    names = tuple(table)
    numbers = Table(
        "Each question in numbers: exact probability of the trait’s answers",
        ("question", *names),
        tuple(
            (Cell(question), *(Cell(words.percent(table[name].get(question))) for name in names)) for question in asked
        ),
        frozenset(range(1, len(names) + 1)),
    )
    averaged = ", mean of the seeds" if len(cast.seeds) > 1 else ""
    how = f"A row per question, a mark per model: probability of the trait’s answers{averaged}."
    description = f"Dots for {len(asked)} questions: exact probability for {words.listed(list(names))}."
    key = tuple(Key(marks[name][1], marks[name][0], name) for name in names)
    return ReportFigure("Question by question, in\u00a0%", how, charts.dots(rows, description), numbers, key)


def _question_strips(cast: Cast) -> ReportFigure | None:
    rows, found = [], []
    for trait in cast.traits[:MOST_ROWS]:
        by_kind = {g.kind: _by_question(g) for g in cast.groups(trait) if g.kind in _KINDS}
        values = tuple((value, f"var(--{kind})", kind) for kind in _KINDS for value in by_kind.get(kind, {}).values())
        if values:
            rows.append(charts.Dots(trait, values))
            found.append((trait, by_kind))
    if not rows:
        return None
    numbers = Table(
        "The questions in numbers: lowest, median and highest exact probability",
        ("trait", *_KINDS),
        tuple(
            (Cell(trait), *(Cell(_three_numbers(by_kind.get(kind, {}))) for kind in _KINDS)) for trait, by_kind in found
        ),
        frozenset({1, 2, 3}),
    )
    how = "A tick per question: exact probability of the trait’s answers, a lane per model."
    description = f"Strips of ticks, one per question, for {words.plural(len(rows), 'trait')}."
    key = tuple(Key("tick", f"var(--{kind})", kind) for kind in _KINDS)
    picture = charts.strips(rows, _KINDS, description)
    return ReportFigure("Question by question, in\u00a0%", how, picture, numbers, key)


def _three_numbers(values: dict[str, float]) -> str:
    if not values:
        return words.MISSING
    ordered = sorted(values.values())
    return " · ".join(words.percent(ordered[n]) for n in (0, len(ordered) // 2, -1))


def _by_question(group: ModelGroup) -> dict[str, float]:
    asked = dict.fromkeys(q for measure in group.measures for q in measure.per_question)
    found = {q: over_seeds(m.per_question.get(q) for m in group.measures) for q in asked}
    return {question: spread.mean for question, spread in found.items() if spread is not None}


def _mark(group: ModelGroup, place: int) -> tuple[str, str]:
    return group.colour, _SHAPES.get(group.kind, "diamond" if place % 2 else "cross")
