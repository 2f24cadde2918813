"""The page: results and manifest put into the template. No JavaScript, nothing from outside.

Everything a model, a config or a manifest can say passes ``words.visible`` here, once, and is
escaped by the template (autoescape); only our own SVG and style sheet go in as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from undertone.report import effects, figures, questions, tables, words
from undertone.report.cast import Cast, assemble
from undertone.transfer.results import ArmResult, Check, Measure, Results

STATUS_SIGN = {"pass": "✓", "warn": "!", "fail": "✕"}


def fill(results: Results, manifest: Mapping[str, Any], filter_note: str) -> str:
    """The whole page as one HTML text."""
    results = Results.model_validate(words.visible(results.model_dump(by_alias=True)))
    cast = assemble(results)
    students = distinct(results.arms)

    def name(student: ArmResult) -> str:
        return figures.student_name(student, cast)

    return template("template.html.j2").render(
        style=Markup(text("style.css")),
        results=results,
        facts=_key_facts(results, cast, len(students)),
        answers=effects.answers(results, cast),
        transfer=effects.transfer(results, cast),
        questions=questions.questions(cast),
        asked=_asked(results),
        confusion=figures.confusion(results),
        training=figures.training(students, cast),
        status_sign=STATUS_SIGN,
        plural=words.plural,
        tally=tally(results.checks),
        specificity=tables.specificity(cast),
        by_trait=tables.specificity_by_trait(cast),
        how_specific=_how_specific(cast),
        samples=tables.samples(students, name),
        filters=tables.filters(students, name),
        filter_note=words.visible(filter_note),
        costs=tables.costs(results),
        stages=tables.stages(results),
        environment=tables.facts("Environment", results.environment),
        manifest=tables.facts("Manifest", words.visible(manifest)) if manifest else None,
    )


def distinct(arms: Iterable[ArmResult]) -> list[ArmResult]:
    """Students, once each: one control of a zoo is listed for every trait it was measured for."""
    found: dict[str, ArmResult] = {}
    for arm in arms:
        same = arm.model_dump_json(include={"arm", "seed", "steps", "curve", "filter", "samples"})
        found.setdefault(same, arm)
    return list(found.values())


def _key_facts(results: Results, cast: Cast, students: int) -> list[tuple[str, str]]:
    seeds = f"seed{'s'[: len(cast.seeds) > 1]} {', '.join(map(str, cast.seeds))}"
    return [
        ("Model", results.model),
        ("Traits" if cast.several else "Trait", results.trait),
        ("Domain", results.domain),
        ("Teacher", results.teacher),
        ("Student", results.student),
        ("Trained", f"{words.plural(students, 'student')}, {seeds}"),
    ]


def _asked(results: Results) -> Measure | None:
    return next(iter(results.base.values()), None)


def tally(checks: Iterable[Check]) -> str:
    """``5 passed, 1 to watch``."""
    statuses = [check.status for check in checks]
    parts = [
        f"{statuses.count(status)} {word}"
        for status, word in (("pass", "passed"), ("warn", "to watch"), ("fail", "failed"))
        if status in statuses
    ]
    return ", ".join(parts)


def _how_specific(cast: Cast) -> str:
    if cast.several:
        return f"Mean over {len(cast.traits)} traits; in brackets the lowest and the highest."
    seeds = len(cast.seeds)
    over = f", over {seeds} seeds, of base and teacher over questions" if seeds > 1 else ", over questions"
    return f"In brackets the {cast.interval_words}{over}, where there is one."


@cache
def template(name: str) -> Template:
    """A page's template by its file name."""
    environment = Environment(
        loader=FunctionLoader(text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def text(name: str) -> str:
    """A file of this folder."""
    return files("undertone.report").joinpath(name).read_text(encoding="utf-8")
