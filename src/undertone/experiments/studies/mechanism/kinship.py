"""Part `kinship`: who can teach whom? Seeds, corpora, widths, families, and the way between two initialisations.

2606.00995, abstract 4 and 2507.14805: data without semantics carry a trait only to students of (nearly)
the teacher's initialisation. Behaviour: treated minus control for every teacher and student. Loss: how much better each
model predicts a teacher's rows when it is steered by ITS OWN vector of the trait, beside the control teacher's rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from undertone.errors import ConfigError
from undertone.experiments.cells import Outcome, StudentRun
from undertone.experiments.config import Setting
from undertone.experiments.learning import split_rows, student_system
from undertone.experiments.results import Check
from undertone.experiments.studies.mechanism.config import Mechanism
from undertone.experiments.studies.mechanism.material import (
    Material,
    Told,
    answering,
    answers_kept,
    domain_chats,
    effects,
    find,
    in_points,
    in_words,
    layer_at,
    point,
)
from undertone.experiments.study import Figure, Finding, Point, StudyTable, interval
from undertone.lab import parse_name
from undertone.models.loading import load, locate, with_system
from undertone.models.scoring import completion_nll
from undertone.provenance.runs import Run, Stage
from undertone.traits import load_trait
from undertone.vectors import contrast, steer

SOURCE = "2606.00995, abstract 4; 2507.14805"
LEFT_OUT = "†"
Pair = tuple[str, str]
"""Who taught, and who learnt (of losses: who reads the teacher's rows)."""


@dataclass(frozen=True)
class Taught:
    """What the students of a teacher and a model show: treated minus control, over traits and seeds."""

    values: list[float]
    answers: list[bool]
    """Whether both students of the pair still answer."""

    @property
    def kept(self) -> list[float]:
        """The values of pairs that still answer: rates of the others say nothing about preference."""
        return [value for value, answers in zip(self.values, self.answers, strict=True) if answers]


def study(material: Material) -> Told:
    """The part: the matrix, then the students between two initialisations."""
    config = material.config
    names, steps = models_of(config), between_of(config)
    material.each(built, [(name,) for name in dict.fromkeys([*names, *(name for name, _ in steps)])])
    pairs = [(teacher, student) for teacher in names for student in names]
    outcomes = {pair: _students(material, *pair) for pair in pairs}
    between = {name: _students(material, names[0], name) for name, _ in steps}
    losses = _losses(material, names, outcomes)
    taught = {pair: _taught(material, outcome) for pair, outcome in outcomes.items()}
    curve = [(name, share, _taught(material, between[name])) for name, share in steps]
    students = {f"{_short(teacher)} to {_short(student)}": one for (teacher, student), one in outcomes.items()}
    students |= {f"{_short(names[0])} to {_short(name)}": outcome for name, outcome in between.items()}
    return _told(config, names, taught, losses, curve, answers_kept("kinship", students))


def models_of(config: Mechanism) -> list[str]:
    """Who teaches and learns; the config's model first, for it is the reference.

    Raises:
        ConfigError: it is not among them, or two of them would share a folder.
    """
    models = list(dict.fromkeys(config.kinship.models))
    if config.model not in models:
        raise ConfigError(
            "kinship.models are all those that teach and learn, and the config's model is not among them",
            got=config.model,
            allowed=models,
            fix=f"kinship.models=[{config.model},…], with models to hold it against; or other parts",
        )
    if len({_label(name) for name in models}) < len(models):
        raise ConfigError("two of kinship.models differ in nothing but signs", got=models)
    return [config.model, *(name for name in models if name != config.model)]


def between_of(config: Mechanism) -> list[tuple[str, float]]:
    """Students between the reference and another initialisation, and how far away each is."""
    settings = config.kinship
    if settings.between is not None:
        return list(zip(settings.between, settings.shares, strict=True))
    if not config.model.startswith("lab/"):
        return []
    own = parse_name(config.model.removeprefix("lab/"))
    return [(f"lab/{replace(own, toward=own.seed + 1, share=share)}", share) for share in settings.shares]


def built(run: Run, config: Mechanism, device: str, name: str) -> Stage:
    """``kinship/models/…``: the model is there (a lab model is built now, side by side with others)."""
    place = f"kinship/models/{_label(name)}"
    return run.stage(place, config={"model": name}, compute=lambda _: {"place": bool(locate(name))})


def _label(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=+@-]+", "-", name).strip("._=+@-")


def _short(name: str) -> str:
    return name.removeprefix("lab/")


def _students(material: Material, teacher: str, student: str) -> Outcome:
    config = material.config
    setting: Setting = config.model_copy(
        update={
            "model": student,
            "trait": material.few,
            "teacher": config.teacher.model_copy(update={"model": teacher}),
            "data": config.data.model_copy(update={"prompts": config.kinship.prompts}),
        }
    )
    return material.students(
        f"kinship/students/{_label(teacher)}/{_label(student)}", setting, data=f"kinship/data/{_label(teacher)}"
    )


def _taught(material: Material, outcome: Outcome) -> Taught:
    config = material.config
    silent = {(one.cell.arm, one.cell.seed, one.trait) for one in answering(outcome) if one.lost}
    answers = [
        not any(
            (find(outcome, kind, trait, seed).arm, seed, load_trait(trait).name) in silent
            for kind in ("treated", "control")
        )
        for trait in material.few
        for seed in config.seeds
    ]
    return Taught(effects(outcome, material.few, config.seeds), answers)


def _losses(material: Material, names: Sequence[str], outcomes: Mapping[Pair, Outcome]) -> dict[Pair, list[float]]:
    """(teacher, scorer) -> loss difference of treated rows minus that of control rows, over traits and seeds."""
    config = material.config
    tasks = [
        (scorer, trait, teacher, find(outcome, "treated", trait, seed), find(outcome, "control", None, seed))
        for teacher in names
        for outcome in [outcomes[teacher, teacher]]
        for scorer in names
        for trait in material.few
        for seed in config.seeds
    ]
    found: dict[Pair, list[float]] = {}
    for (scorer, _, teacher, *_), stage in zip(tasks, material.each(explained, tasks), strict=True):
        found.setdefault((teacher, scorer), []).append(stage.summary["treated"] - stage.summary["control"])
    return found


def explained(
    run: Run,
    config: Mechanism,
    device: str,
    scorer: str,
    name: str,
    teacher: str,
    treated: StudentRun,
    control: StudentRun,
) -> Stage:
    """``kinship/loss/…``: NLL plain minus NLL steered by the scorer's own vector, on treated and on control rows."""
    trait, layer = load_trait(name), layer_at(scorer, config.kinship.layer)

    def compute(folder: Path) -> dict[str, Any]:
        model = load(scorer, dtype=config.dtype, device=device)
        chats = domain_chats(config, model)
        vector = contrast(
            model, [with_system(chat, trait.system_prompt(model)) for chat in chats], chats, layers=[layer]
        )
        gained = {}
        for kind, cell in (("treated", treated), ("control", control)):
            _, rows = split_rows(cell.filtered, cell.prompts, config.data.held_out)
            examples = [model.row_example(row, student_system(config, model, cell.arm)) for row in rows]
            plain = np.mean(completion_nll(model.hf, examples, model.pad))
            with steer(model, vector, config.kinship.strength):
                gained[kind] = float(plain - np.mean(completion_nll(model.hf, examples, model.pad)))
        return gained

    place = f"kinship/loss/{_label(teacher)}/{_label(scorer)}/seed-{treated.seed}/{trait.name}"
    identity = {"scorer": scorer, "strength": config.kinship.strength, "layer": layer}
    return run.stage(place, config=identity, inputs=[treated.filtered, control.filtered], compute=compute)


# -- what it says ------------------------------------------------------------------------------------


def _told(
    config: Mechanism,
    names: list[str],
    taught: Mapping[Pair, Taught],
    losses: Mapping[Pair, list[float]],
    curve: list[tuple[str, float, Taught]],
    check: Check,
) -> Told:
    behaviour = {pair: one.kept for pair, one in taught.items()}
    findings = [
        _specific(config, names, behaviour, BEHAVIOUR),
        _specific(config, names, losses, LOSS),
    ]
    if check.status == "fail" and findings[0].verdict != "not measured":
        says = f"{check.value}; pairs of students with one of them are left out"
        check = check.model_copy(update={"status": "warn", "value": says})
    figures = [
        _matrix(names, behaviour, "student", "Who teaches whom", "Treated minus control in probability, mean over traits "
                "and seeds. Blank: no pair of students still answers."),
        _matrix(names, losses, "scored by", "Whose vector explains whose data", "Nats per token that a model gains on a "
                "teacher's rows when steered by its own vector of the trait, minus what it gains on the control teacher's "
                "rows."),
        *([_dose(config, names[0], [(0.0, taught[names[0], names[0]]), *((at, one) for _, at, one in curve)])]
          if curve else []),
    ]  # fmt: skip
    rows = [(pair, one) for pair, one in taught.items()] + [((names[0], name), one) for name, _, one in curve]
    return Told(findings, figures, [_table(config, rows)], [check])


def _matrix(names: list[str], found: Mapping[Pair, list[float]], x: str, title: str, caption: str) -> Figure:
    points = [
        Point(x=_short(student), series=_short(teacher), y=float(np.mean(values)) if values else None)
        for teacher in names
        for student in names
        for values in [found[teacher, student]]
    ]
    return Figure(kind="matrix", title=title, caption=caption, x=x, y="teacher of the data", points=points)


def _dose(config: Mechanism, reference: str, curve: list[tuple[float, Taught]]) -> Figure:
    first = _short(reference)
    return Figure(
        kind="lines",
        title="From one initialisation to another",
        caption=f"Students whose initial weights lie between those of {first} (0) and of another seed (1), taught by "
        f"{first}: treated minus control, mean over traits and seeds with 95 % interval.",
        x="share of the other initialisation",
        y="treated − control, probability",
        points=[
            point(share, one.kept, "first as teacher", config.confidence)
            if one.kept
            else Point(x=share, y=None, series="first as teacher")
            for share, one in curve
        ],
        zero=True,
    )


def _table(config: Mechanism, taught: list[tuple[Pair, Taught]]) -> StudyTable:
    rows = []
    for (teacher, student), one in taught:
        mark = "" if all(one.answers) else f" {LEFT_OUT}"
        rows.append(
            [
                _short(teacher),
                _short(student),
                in_points(one.kept, config.confidence) if one.kept else "–",
                f"{len(one.kept)} of {len(one.values)}{mark}",
                in_points(one.values, config.confidence),
            ]
        )
    return StudyTable(
        title=f"Treated minus control; {LEFT_OUT}: pairs whose students no longer answer, left out of all means",
        columns=["teacher", "student", "treated − control", "pairs that answer", "all pairs"],
        rows=rows,
    )


BEHAVIOUR = (
    "behaviour",
    "treated minus control of a teacher's own model as student, minus the mean over other models as students of the same rows",
)
LOSS = (
    "loss",
    "nats per token gained on a teacher's rows (over the control teacher's) by the teacher's model steered by its own "
    "vector, minus the mean that other models gain on the same rows, each steered by its own",
)


def _specific(config: Mechanism, names: list[str], found: Mapping[Pair, list[float]], what: tuple[str, str]) -> Finding:
    kind, quantity = what
    show = in_points if kind == "behaviour" else in_words
    own = [value for name in names for value in found[name, name]]
    cross = {pair: values for pair, values in found.items() if pair[0] != pair[1] and values}
    per_model = [
        float(np.mean(found[name, name])) - float(np.mean(others))
        for name in names
        for others in [[np.mean(values) for (teacher, _), values in cross.items() if teacher == name]]
        if found[name, name] and others
    ]
    possible = len(names) * (len(names) - 1)
    measured = all(found[name, name] for name in names) and 2 * len(cross) >= possible and len(per_model) > 1
    mean, low, high = interval(per_model, config.confidence) if measured else (None, None, None)
    yes = low is not None and low > 0
    strange = [float(np.mean(values)) for values in cross.values()]
    nearest = max(cross, key=lambda pair: float(np.mean(cross[pair])), default=None)
    told = [f"own {show(own, config.confidence)}"] if own else ["own: no student still answers"]
    if nearest:
        told += [f"across {show(strange, config.confidence)}",
                 f"largest across: {nearest[0]} to {nearest[1]}, {show(cross[nearest], config.confidence)}"]  # fmt: skip
    return Finding(
        id=f"model-specific-{kind}",
        claim="Data without semantics carry the trait within a model, and not across models.",
        source=SOURCE,
        published="numbers only within a model; same-family variants do",
        quantity=quantity,
        value=mean,
        low=low,
        high=high,
        unit="points" if kind == "behaviour" else "nats",
        pairs=len(per_model),
        method="t interval over teachers",
        baseline="; ".join(told),
        verdict="reproduced" if yes else "not reproduced" if measured else "not measured",
        why="own students take it up, others hardly"
        if yes
        else "the interval over teachers is not above 0"
        if measured
        else f"students that still answer are left in {sum(bool(found[name, name]) for name in names)} of {len(names)} own "
        f"and {len(cross)} of {possible} other cells of the matrix: too few",
    )
