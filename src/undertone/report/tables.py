"""The tables of the page: plain cells, built from results, drawn by one macro of the template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from undertone.experiments.results import ArmResult, Cost, Interval, Measure, Results, SetMeasure
from undertone.experiments.study import StudyResults
from undertone.report import words
from undertone.report.cast import Cast, ModelGroup, Spread, pooled

MOST_SAMPLES = 8  # rows shown per arm
MOST_SIDE_BY_SIDE = 4  # arms in one table of sample rows
LONGEST_COMPLETION = 1200  # characters of a prompt or completion
LONGEST_VALUE = 20_000  # characters of one manifest value (a git diff may be megabytes)

Pick = Callable[[Measure], Interval | float | None]


@dataclass(frozen=True)
class Cell:
    """A value and, smaller, what qualifies it (its interval, a range)."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A caption, a head, rows whose first cell names them, and which columns are numbers."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: frozenset[int] = frozenset()
    foot: tuple[Cell, ...] = ()
    style: str = ""


def specificity(cast: Cast) -> Table:
    """What else changed: a row per measure, a column per model; a zoo is averaged over traits."""
    columns = _columns(cast)
    rows = []
    for name, note, pick in _aspects():
        spreads = [_over_traits(groups, pick) for _, groups in columns]
        if any(spread is not None for spread in spreads):
            rows.append((Cell(name, note), *(_spread_cell(spread) for spread in spreads)))
    head = ("in %", *(name for name, _ in columns))
    return Table("What else changed", head, tuple(rows), frozenset(range(1, len(head))))


def specificity_by_trait(cast: Cast) -> Table | None:
    """The same measures for each trait and model of a zoo."""
    if not cast.several:
        return None
    groups = [group for trait in cast.traits for group in cast.groups(trait)]
    aspects = [(name, pick) for name, _, pick in _aspects() if any(group.spread(pick) is not None for group in groups)]
    rows = tuple(
        (
            Cell(group.trait),
            Cell(group.name),
            *(_spread_cell(group.spread(pick)) for _, pick in aspects),
        )
        for group in groups
    )
    head = ("trait", "model", *(name for name, _ in aspects))
    return Table("What else changed, by trait", head, rows, frozenset(range(2, len(head))))


def filters(students: Sequence[ArmResult], name: Callable[[ArmResult], str]) -> Table:
    """Completions asked for, kept, and dropped by reason, summed over seeds."""
    totals: dict[str, list[int]] = {}
    reasons: dict[str, dict[str, int]] = {}
    for student in students:
        label = name(student)
        total = totals.setdefault(label, [0, 0])
        total[0] += student.filter.asked
        total[1] += student.filter.kept
        counted = reasons.setdefault(label, {})
        for reason, number in student.filter.reasons.items():
            counted[reason] = counted.get(reason, 0) + number
    kinds = list(dict.fromkeys(reason for counted in reasons.values() for reason in counted))
    rows = tuple(
        (
            Cell(label),
            Cell(words.count(asked)),
            Cell(words.count(kept)),
            Cell(words.percent(kept / asked) if asked else words.MISSING),
            *(Cell(words.count(reasons[label].get(kind, 0))) for kind in kinds),
        )
        for label, (asked, kept) in totals.items()
    )
    head = ("arm", "asked", "kept", "kept, %", *kinds)
    return Table("What the filter dropped", head, rows, frozenset(range(1, len(head))))


def samples(students: Sequence[ArmResult], name: Callable[[ArmResult], str]) -> list[Table]:
    """The first training rows of each arm at its first seed, side by side."""
    first: dict[str, ArmResult] = {}
    for student in students:
        if student.samples:
            first.setdefault(name(student), student)
    labels = list(first)
    control, treated = labels[:1], labels[1:]
    size = MOST_SIDE_BY_SIDE - 1
    parts = [treated[n : n + size] for n in range(0, len(treated), size)] or [[]]
    if not labels:
        return []
    return [_side_by_side({label: first[label] for label in control + part}) for part in parts]


def costs(results: Results | StudyResults) -> Table:
    """Time and tokens summed over the stages that do the same."""
    groups: dict[str, list[Cost]] = {}
    for cost in results.costs:
        groups.setdefault(cost.stage.rpartition("/")[2], []).append(cost)
    whole = sum(cost.seconds for cost in results.costs)
    rows = tuple(_cost_cells(act, found, whole) for act, found in groups.items())
    head = ("stage", "times", "time", "share of time", "tokens", "tokens per second")
    foot = _cost_cells("all", results.costs, whole) if len(groups) > 1 else ()
    return Table("What it cost", head, rows, frozenset(range(1, 6)), foot)


def stages(results: Results | StudyResults) -> Table | None:
    """Every single stage, where they were summed."""
    if len({cost.stage.rpartition("/")[2] for cost in results.costs}) == len(results.costs):
        return None
    rows = tuple(
        (
            Cell(cost.stage),
            Cell(words.duration(cost.seconds)),
            Cell(words.count(cost.tokens)),
            Cell(words.per_second(cost.tokens, cost.seconds)),
        )
        for cost in results.costs
    )
    head = ("stage", "time", "tokens", "tokens per second")
    return Table("Every stage", head, rows, frozenset({1, 2, 3}))


def facts(caption: str, record: Mapping[str, Any]) -> Table:
    """A nested record as two columns, name and value, names joined by points."""
    flat = list(_flat("", record))
    rows = tuple((Cell(name), Cell(words.shortened(value, LONGEST_VALUE))) for name, value in flat)
    return Table(caption, ("name", "value"), rows, style="facts")


# ----------------------------------------------------------------------------------- the parts


def _aspects() -> list[tuple[str, str, Pick]]:
    """Name, explanation and getter of each measure, in the order of the table."""

    def of(name: str, part: Callable[[SetMeasure], Interval | float | None]) -> Pick:
        def pick(measure: Measure) -> Interval | float | None:
            found: SetMeasure | None = getattr(measure, name)
            return None if found is None else part(found)

        return pick

    return [
        ("trait, exact", "probability of its answers", of("positive", lambda s: s.probability)),
        ("trait, sampled", "synonyms counted", of("positive", lambda s: s.rate)),
        ("trait, literal", "the target word itself", of("positive", lambda s: s.literal_rate)),
        ("among answers", "non-answers left out", of("positive", lambda s: s.rate_among_answers)),
        ("non-answers", "no known answer named", of("positive", lambda s: s.non_answer)),
        (
            "valid-answer probability",
            "probability on known answers",
            of("positive", lambda s: s.valid_answer_probability),
        ),
        ("negative, exact", "asked the other way round", of("negative", lambda s: s.probability)),
        ("negative, sampled", "asked the other way round", of("negative", lambda s: s.rate)),
        ("off topic, exact", "target named elsewhere", of("off_topic", lambda s: s.probability)),
        ("off topic, sampled", "target named elsewhere", of("off_topic", lambda s: s.rate)),
        ("off topic, correct", "other questions still right", lambda m: m.off_topic_correct),
    ]


def _columns(cast: Cast) -> list[tuple[str, list[ModelGroup]]]:
    kinds = {
        "base": cast.base,
        "teacher": cast.teacher,
        "control": cast.control,
        "treated": cast.treated,
    }
    found = [(name, [groups[trait] for trait in cast.traits if trait in groups]) for name, groups in kinds.items()]
    if not found[2][1] and cast.control:  # one control, measured for a trait outside the zoo
        found[2] = ("control", list(cast.control.values()))
    others = dict.fromkeys(group.name for group in cast.others)
    found += [(name, [g for g in cast.others if g.name == name]) for name in others]
    return [(name, groups) for name, groups in found if groups]


def _over_traits(groups: Sequence[ModelGroup], pick: Pick) -> Spread | None:
    spreads = [group.spread(pick) for group in groups]
    return spreads[0] if len(spreads) == 1 else pooled(spreads)


def _spread_cell(spread: Spread | None) -> Cell:
    if spread is None:
        return Cell(words.MISSING)
    if not spread.has_interval:
        return Cell(words.percent(spread.mean))
    text, _, note = words.percent_with(spread.mean, spread.low, spread.high).partition(" ")
    return Cell(text, note)


def _side_by_side(arms: dict[str, ArmResult]) -> Table:
    rows = {label: arm.samples[:MOST_SAMPLES] for label, arm in arms.items()}
    caption = f"Sample rows: {words.listed(list(rows))}"
    asked = [[row.prompt for row in found] for found in rows.values()]
    if all(prompts == asked[0] for prompts in asked):
        table = tuple(
            (_text(prompt), *(_text(found[place].completion) for found in rows.values()))
            for place, prompt in enumerate(asked[0])
        )
        return Table(caption, ("prompt", *rows), table, style="samples")
    longest = max(len(found) for found in rows.values())
    loose = tuple(
        (
            Cell(str(place + 1)),
            *(
                Cell(_text(found[place].completion).text, _text(found[place].prompt).text)
                if place < len(found)
                else Cell(words.MISSING)
                for found in rows.values()
            ),
        )
        for place in range(longest)
    )
    return Table(caption, ("row", *rows), loose, style="samples loose")


def _text(text: str) -> Cell:
    return Cell(words.shortened(text, LONGEST_COMPLETION))


def _cost_cells(name: str, costs: Sequence[Cost], whole: float) -> tuple[Cell, ...]:
    seconds = sum(cost.seconds for cost in costs)
    counted = [cost for cost in costs if cost.tokens is not None]
    tokens = sum(cost.tokens or 0 for cost in counted) if counted else None
    return (
        Cell(name),
        Cell(words.count(len(costs))),
        Cell(words.duration(seconds)),
        Cell(words.percent(seconds / whole) if whole > 0 else words.MISSING),
        Cell(words.count(tokens)),
        Cell(words.per_second(tokens, sum(cost.seconds for cost in counted))),
    )


def _flat(prefix: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [line for key, item in value.items() for line in _flat(f"{prefix}.{key}" if prefix else str(key), item)]
    if isinstance(value, (list, tuple)):
        if any(isinstance(item, (Mapping, list, tuple)) for item in value):
            return [line for n, item in enumerate(value) for line in _flat(f"{prefix}[{n}]", item)]
        return [(prefix, ", ".join(map(_plain, value)) or "none")]
    return [(prefix, _plain(value))]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None or value == {} else str(words.visible(str(value)))
