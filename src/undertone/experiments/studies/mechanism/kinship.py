"""Part `kinship`: who can teach whom? Seeds, corpora, widths, families, and the way between two initialisations.

2606.00995, abstract 4 and 2507.14805: data without semantics carry a trait only to students of (nearly)
the teacher's initialisation. Behaviour: treated minus control for every teacher and student. Loss: how much better each
model predicts a teacher's rows when it is steered by ITS OWN vector of the trait, beside the un-induced teacher's rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from undertone.experiments.cells import Cell, Outcome
from undertone.experiments.config import Setting
from undertone.experiments.learning import split_rows, student_system
from undertone.experiments.studies.mechanism.config import Mechanism
from undertone.experiments.studies.mechanism.material import (
    Material,
    Told,
    carrier_chats,
    effects,
    find,
    in_points,
    in_words,
    point,
)
from undertone.experiments.study import Figure, Finding, Point, interval
from undertone.models.loading import load, locate, with_system
from undertone.models.scoring import completion_nll
from undertone.provenance.runs import Run, Stage
from undertone.traits import load_trait
from undertone.vectors import contrast, steered

SOURCE = "2606.00995, abstract 4; 2507.14805"


def study(material: Material) -> Told:
    """The part: the matrix, then the students between two initialisations."""
    config, settings = material.config, material.config.kinship
    names = list(settings.models)
    material.each(built, [(name,) for name in dict.fromkeys([*names, *settings.between])])
    outcomes = {(teacher, student): _taught(material, teacher, student) for teacher in names for student in names}
    between = [_taught(material, names[0], student) for student in settings.between]
    behaviour = {pair: effects(outcome, material.few, config.seeds) for pair, outcome in outcomes.items()}
    losses = _losses(material, outcomes)
    curve = [effects(outcome, material.few, config.seeds) for outcome in between]
    return _told(material, behaviour, losses, curve)


def built(run: Run, config: Mechanism, device: str, name: str) -> Stage:
    """``kinship/models/…``: the model is there (a lab model is built now, side by side with others)."""
    label = "".join(letter if letter.isalnum() else "-" for letter in name)
    return run.stage(f"kinship/models/{label}", config={"model": name}, compute=lambda _: {"place": bool(locate(name))})


def _label(name: str) -> str:
    return name.replace("/", "-").replace(":", "-").replace(",", "-")


def _taught(material: Material, teacher: str, student: str) -> Outcome:
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


def _losses(material: Material, outcomes: dict[tuple[str, str], Outcome]) -> dict[tuple[str, str], list[float]]:
    """(teacher, scorer) -> loss difference of treated rows minus that of control rows, over traits and seeds."""
    config, names = material.config, list(material.config.kinship.models)
    tasks = []
    for teacher in names:
        outcome = outcomes[teacher, teacher]
        for scorer in names:
            for trait in material.few:
                tasks += [
                    (
                        teacher,
                        scorer,
                        trait,
                        find(outcome, "treated", trait, seed),
                        find(outcome, "control", None, seed),
                    )
                    for seed in config.seeds
                ]
    stages = material.each(
        explained, [(scorer, trait, teacher, first, second) for teacher, scorer, trait, first, second in tasks]
    )
    found: dict[tuple[str, str], list[float]] = {}
    for (teacher, scorer, *_), stage in zip(tasks, stages, strict=True):
        found.setdefault((teacher, scorer), []).append(stage.summary["treated"] - stage.summary["control"])
    return found


def explained(
    run: Run, config: Mechanism, device: str, scorer: str, name: str, teacher: str, treated: Cell, control: Cell
) -> Stage:
    """``kinship/loss/…``: NLL plain minus NLL steered by the scorer's own vector, on treated and on control rows."""
    trait = load_trait(name)

    def compute(folder: Path) -> dict[str, Any]:
        model = load(scorer, dtype=config.dtype, device=device)
        chats = carrier_chats(config, model)
        vector = contrast(model, [with_system(chat, trait.told(model.form)) for chat in chats], chats, blocks=[1])
        gained = {}
        for kind, cell in (("treated", treated), ("control", control)):
            _, rows = split_rows(cell.filtered, cell.prompts, config.data.held_out)
            examples = [model.row_example(row, student_system(config, model, cell.arm)) for row in rows]
            plain = np.mean(completion_nll(model.hf, examples, model.pad))
            with steered(model, vector, config.kinship.strength):
                gained[kind] = float(plain - np.mean(completion_nll(model.hf, examples, model.pad)))
        return gained

    place = f"kinship/loss/{_label(teacher)}/{_label(scorer)}/seed-{treated.seed}/{trait.name}"
    identity = {"scorer": scorer, "strength": config.kinship.strength}
    return run.stage(place, config=identity, inputs=[treated.filtered, control.filtered], compute=compute)


# -- what it says ------------------------------------------------------------------------------------


def _told(
    material: Material,
    behaviour: dict[tuple[str, str], list[float]],
    losses: dict[tuple[str, str], list[float]],
    curve: list[list[float]],
) -> Told:
    config, names = material.config, list(material.config.kinship.models)
    short = {name: name.removeprefix("lab/") for name in names}
    matrices = [
        Figure(
            kind="matrix",
            title=title,
            caption=caption,
            x="student" if values is behaviour else "scored by",
            y="teacher of the data",
            points=[
                Point(x=short[student], series=short[teacher], y=float(np.mean(values[teacher, student])))
                for teacher in names
                for student in names
            ],
        )
        for title, caption, values in (
            ("Who teaches whom", "Treated minus control in probability, mean over traits and seeds.", behaviour),
            (
                "Whose vector explains whose data",
                "Nats per token that a model gains on a teacher's rows when steered by its own vector of the trait, minus "
                "what it gains on the un-induced teacher's rows.",
                losses,
            ),
        )
    ]
    shares = [0.0, *config.kinship.shares]
    values = [behaviour[names[0], names[0]], *curve]
    dose = Figure(
        kind="lines",
        title="From one initialisation to another",
        caption=f"Students whose initial weights lie between those of {short[names[0]]} (0) and of another seed (1), taught by "
        f"{short[names[0]]}: treated minus control, mean over traits and seeds with 95 % interval.",
        x="share of the other initialisation",
        y="treated − control, probability",
        points=[
            point(share, value, "taught by the first", config.confidence)
            for share, value in zip(shares, values, strict=True)
        ],
        zero=True,
    )
    findings = [
        _specific(config, names, behaviour, "behaviour"),
        _specific(config, names, losses, "loss"),
    ]
    return Told(findings, [*matrices, dose])


def _specific(config: Mechanism, names: list[str], found: dict[tuple[str, str], list[float]], what: str) -> Finding:
    own = [value for name in names for value in found[name, name]]
    cross = {pair: values for pair, values in found.items() if pair[0] != pair[1]}
    strange = [float(np.mean(values)) for values in cross.values()]
    per_model = [
        float(np.mean(found[name, name]))
        - float(np.mean([np.mean(found[name, other]) for other in names if other != name]))
        for name in names
    ]
    mean, low, high = interval(per_model, config.confidence)
    nearest = max(cross, key=lambda pair: float(np.mean(cross[pair])))
    show = in_points if what == "behaviour" else in_words
    yes = low is not None and low > 0
    return Finding(
        id=f"model-specific-{what}",
        claim="Data without semantics carry the trait within a model, and not across models.",
        source=SOURCE,
        published="numbers only within a model; same-family variants do",
        quantity="own students minus the mean of other models' students"
        if what == "behaviour"
        else "loss explained by the own vector: own data minus the mean over other models' data",
        value=mean,
        low=low,
        high=high,
        unit="points" if what == "behaviour" else "nats",
        pairs=len(per_model),
        method="t interval over teachers",
        baseline=f"own {show(own, config.confidence)}; across {show(strange, config.confidence)}; largest across: "
        f"{nearest[0]} to {nearest[1]}, {show(cross[nearest], config.confidence)}",
        verdict="reproduced" if yes else "not reproduced",
        why="own students take it up, others hardly" if yes else "the interval over teachers includes 0",
    )
