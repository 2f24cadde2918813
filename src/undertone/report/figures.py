"""A figure: a picture, how it is read, the numbers behind it; here the matrix and the training.

Each function returns a ``ReportFigure`` or None where the run has nothing of the kind. A zoo (several
traits) takes other forms than a single trait: one row per trait instead of one per model, one tick
per question instead of one dot, thin lines instead of thick ones. Bars and forest are in
``effects``, the questions in ``questions``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from undertone.experiments.results import ArmResult, Confusion, Results
from undertone.report import charts, heat, words
from undertone.report.cast import Cast, ModelGroup
from undertone.report.svg import Picture
from undertone.report.tables import Cell, Table

MOST_ROWS = 48  # traits in one picture; the table behind it has them all
MOST_STRONG = 12  # training curves drawn strongly; beyond, only the control's stand out
MOST_POINTS = 4000  # of all training curves together: keeps the file small


@dataclass(frozen=True)
class Key:
    """One entry of a picture's key: a form (drawn by the style sheet), its colour, its name."""

    form: str
    colour: str
    name: str


@dataclass(frozen=True)
class ReportFigure:
    """A picture with its title, how to read it in one line, its key and the numbers behind it."""

    title: str
    reading: str
    picture: Picture
    numbers: Table
    key: tuple[Key, ...] = ()
    remark: str = ""


def confusion(results: Results) -> ReportFigure | None:
    """The heat map target × answer, with the control's and the base's row below."""
    table = results.confusion
    if table is None or not table.targets or not table.answers:
        return None
    order = [name for name in table.targets if name in table.answers]
    columns = order + [name for name in table.answers if name not in order]
    places = [table.answers.index(name) for name in columns]
    below = (table.control, table.base)
    values = tuple(tuple(row[p] for p in places) for row in (*table.probability, *below))
    rows = (*table.targets, "control", "base")
    own = {(n, columns.index(t)) for n, t in enumerate(table.targets) if t in columns}
    drawn = heat.Heat(rows, tuple(columns), values, frozenset(own), len(table.targets))
    numbers = Table(
        "The confusion matrix in numbers: mean exact probability",
        ("trained on", *columns),
        tuple(
            (Cell(name), *(Cell(words.percent(value)) for value in row)) for name, row in zip(rows, values, strict=True)
        ),
        frozenset(range(1, len(columns) + 1)),
    )
    how = (
        "Row: what the student’s teacher loved. Column: what the student answers, in %. "
        "Framed: its own target; a strong diagonal is transfer, a strong column a habit all share."
    )
    picture = heat.heat(drawn, f"Heat map. {_diagonal(table)}")
    title = "Who became what, in\u00a0%"
    return ReportFigure(title, how, picture, numbers, _heat_key(), _diagonal(table))


def training(students: Sequence[ArmResult], cast: Cast) -> ReportFigure | None:
    """Training loss by step, one line per student, coloured by arm."""
    lines, key = [], {}
    several_arms = len({student.arm for student in students}) > 1
    room = max(24, MOST_POINTS // max(1, len(students)))
    for student in students:
        group = _group_of(student, cast)
        points = [(float(x), y) for x, y in student.curve if math.isfinite(y)]
        if len(points) > 1:
            strong = len(students) <= MOST_STRONG or group.kind == "control"
            lines.append(charts.Curve(group.colour, tuple(_thinned(points, room)), strong))
            key[group.name] = Key("line", group.colour, group.name)
    if not lines:
        return None
    how = "A line per student: training loss in nats per completion token, by optimiser step."
    description = f"Training loss of {words.plural(len(lines), 'student')}, by optimiser step."
    entries = tuple(key.values()) if several_arms or len(key) > 1 else ()
    return ReportFigure("Training", how, charts.curves(lines, description), training_table(students, cast), entries)


def training_table(students: Sequence[ArmResult], cast: Cast) -> Table:
    """What each student was trained on and how well it fitted rows it had not seen."""
    head = ("student", "seed", "rows", "steps", "last loss", "held-out NLL", "of the base", "KL")
    rows = tuple(
        (
            Cell(student_name(student, cast)),
            Cell(str(student.seed)),
            Cell(words.count(student.rows)),
            Cell(words.count(student.steps)),
            Cell(words.nats(student.curve[-1][1] if student.curve else None)),
            Cell(words.nats(student.held_out_nll)),
            Cell(words.nats(student.base_nll)),
            Cell(words.nats(student.teacher_kl)),
        )
        for student in students
    )
    caption = "The students’ training; losses and the teacher’s KL in nats per completion token"
    return Table(caption, head, rows, frozenset(range(1, 8)))


def student_name(student: ArmResult, cast: Cast) -> str:
    """``control``, ``treated``; in a zoo the treated arms with their trait."""
    group = _group_of(student, cast)
    if cast.several and group.kind != "control" and student.trait not in group.name:
        return f"{group.name} · {student.trait}"
    return group.name


def _heat_key() -> tuple[Key, ...]:
    borders = [0.0, *heat.STEPS]
    names = [f"{100 * border:.0f}" for border in borders]
    names[-1] += "+"
    return tuple(Key("cell", f"var(--heat-{n})", name) for n, name in enumerate(names))


def _diagonal(table: Confusion) -> str:
    diagonal = table.diagonal_minus_off
    difference = words.points_with(diagonal.mean, diagonal.low, diagonal.high)
    return (
        f"{table.on_top} of {len(table.targets)} targets are the top answer of their own student; "
        f"diagonal − off-diagonal {difference} ({diagonal.method})."
    )


def _group_of(student: ArmResult, cast: Cast) -> ModelGroup:
    for group in (*cast.control.values(), *cast.treated.values(), *cast.others):
        if any(student is member for member in group.students):
            return group
    raise LookupError(f"student {student.arm!r} belongs to no group")


def _thinned(points: list[tuple[float, float]], room: int) -> list[tuple[float, float]]:
    """Means of neighbouring points, so that a long curve keeps its shape and loses its weight."""
    if len(points) <= room:
        return points
    size = math.ceil(len(points) / room)
    parts = [points[n : n + size] for n in range(0, len(points), size)]
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in parts]
