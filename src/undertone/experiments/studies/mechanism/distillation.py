"""Part `distillation`: students of teachers steered by arbitrary vectors take the vector over, seen or unseen.

2606.00995, abstract 3: alignment rises and loss falls even where no behaviour changes. Here: the
student's shift against its own teacher's vector, beside the other students' vectors, after what all share is subtracted;
the held-out loss beside that of a control student on the same rows; and the visible change of answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from undertone.evaluation.asking import answer_probabilities
from undertone.experiments.cells import Arm, StudentRun, arms_of
from undertone.experiments.config import Setting
from undertone.experiments.learning import split_rows, student_system
from undertone.experiments.results import Check
from undertone.experiments.studies.mechanism.config import Mechanism
from undertone.experiments.studies.mechanism.material import (
    Material,
    Told,
    answers_kept,
    domain_chats,
    find,
    in_words,
    layer_at,
    load_base,
    load_student,
    point,
    question_chats,
    stack,
)
from undertone.experiments.study import Figure, Finding, interval
from undertone.experiments.writing import teacher_of
from undertone.mechanism.shift import centred, cosine
from undertone.models.loading import Context, Model
from undertone.models.scoring import completion_nll
from undertone.provenance.runs import Run, Stage
from undertone.teachers import Teacher, VectorTeacher
from undertone.traits import load_trait
from undertone.vectors import SteeringVector, difference

SOURCE = "2606.00995, abstract 3"
OTHERS = "others' vectors"
KINDS = {"random-vector": "random vectors", "treated": "semantic vectors"}


def study(material: Material) -> Told:
    """The part: students of steered teachers, semantic and random, and one control a seed."""
    config, settings = material.config, material.config.distillation
    layer = layer_at(config.model, settings.layer)
    teacher = VectorTeacher(model=config.teacher.model, origin="domain", layer=layer, strength=settings.strength)
    traits = config.trait[: max(settings.random, 2)]
    setting = config.model_copy(update={"trait": traits, "teacher": teacher, "random_vector": True})
    outcome = material.students("distillation/students", setting)
    cells = [cell for cell in outcome.cells if cell.arm.kind != "control"]
    stages = material.each(measure, [(setting, cell, find(outcome, "control", None, cell.seed)) for cell in cells])
    goals = {arm: stack(_vector(setting, arm, material.device)) for arm in arms_of(setting) if arm.trait}
    found = list(zip(cells, [stage.summary for stage in stages], strict=True))
    return _told(config, setting, found, goals, answers_kept("distillation", {"": outcome}))


def _vector(setting: Setting, arm: Arm, device: str) -> SteeringVector:
    teacher = teacher_of(setting, arm, device)
    assert isinstance(teacher, Teacher)
    assert teacher.vector is not None
    return teacher.vector


def measure(run: Run, config: Mechanism, device: str, setting: Setting, cell: StudentRun, control: StudentRun) -> Stage:
    """``distillation/measured/…``: shift at the steered layer, losses on the cell's held-out rows, change of answers."""

    def compute(folder: Path) -> dict[str, Any]:
        base = load_base(config, device)
        student, other = load_student(setting, cell, device), load_student(setting, control, device)
        layer = [layer_at(config.model, config.distillation.layer)]
        chats = domain_chats(config, base)
        _, unseen = split_rows(cell.filtered, cell.prompts, config.data.held_out)
        examples = [base.row_example(row, student_system(setting, base, cell.arm)) for row in unseen]
        trait = cell.arm.trait or config.trait[0]
        return {
            "shift": stack(difference(student, base, chats, layers=layer, position="last"))[0].tolist(),
            "control": stack(difference(other, base, chats, layers=layer, position="last"))[0].tolist(),
            "nll": float(np.mean(completion_nll(student.hf, examples, base.pad))),
            "control_nll": float(np.mean(completion_nll(other.hf, examples, base.pad))),
            "moved": _moved(student, base, trait, config.evaluation.context),
            "control_moved": _moved(other, base, trait, config.evaluation.context),
        }

    name = f"distillation/measured/seed-{cell.seed}/{cell.arm.folder}"
    identity = {"layer": layer_at(config.model, config.distillation.layer), "strength": config.distillation.strength}
    return run.stage(name, config=identity, inputs=[cell.trained, control.trained, cell.filtered], compute=compute)


@torch.inference_mode()
def _moved(model: Model, base: Model, name: str, context: Context) -> float:
    """Total variation between the two models' answers to the trait's questions, mean over questions."""
    trait = load_trait(name)
    prompts = [base.prompt(chat) for chat in question_chats(trait, base, context)]
    first, second = answer_probabilities(model, prompts, trait), answer_probabilities(base, prompts, trait)
    return float(0.5 * np.abs(first - second).sum(1).mean())


# -- what it says ------------------------------------------------------------------------------------


def _told(
    config: Mechanism,
    setting: Setting,
    found: Sequence[tuple[StudentRun, dict[str, Any]]],
    goals: dict[Arm, np.ndarray],
    check: Check,
) -> Told:
    findings, points = [], []
    for kind, label in KINDS.items():
        lines = _aligned(setting, found, goals, kind)
        mine = [summary for cell, summary in found if cell.arm.kind == kind]
        findings += [_alignment(config, lines, kind, label), _loss(config, mine, kind, label)]
        points += [point(name, values, label, config.confidence, "cosine, what all share subtracted")
                   for name, values in lines.items()]  # fmt: skip
        points += [
            point("student", [one["moved"] for one in mine], label, config.confidence, "answers changed (total variation)"),
            point("control", [one["control_moved"] for one in mine], label, config.confidence,
                  "answers changed (total variation)"),
            point("student", [one["nll"] - one["control_nll"] for one in mine], label, config.confidence,
                  "held-out NLL, student minus control"),
        ]  # fmt: skip
    figure = Figure(
        kind="bars",
        title="Arbitrary vectors distil",
        caption="Students of teachers steered by a vector: alignment of their shift with it, change of their answers, and "
        "loss on their teacher's held-out rows against a control student's; mean with 95 % interval.",
        x="",
        y="value",
        points=points,
        zero=True,
    )
    return Told(findings, [figure], checks=[check])


def _aligned(
    setting: Setting, found: Sequence[tuple[StudentRun, dict[str, Any]]], goals: dict[Arm, np.ndarray], kind: str
) -> dict[str, list[float]]:
    """Cosines with the own vector and with the others' of the kind, after the arms' mean shift is subtracted."""
    lines: dict[str, list[float]] = {"own vector": [], OTHERS: [], "control student": []}
    for seed in setting.seeds:
        shifts = {cell.arm.folder: np.array(one["shift"]) for cell, one in found
                  if cell.seed == seed and cell.arm.kind == kind}  # fmt: skip
        control = next(np.array(one["control"]) for cell, one in found if cell.seed == seed)
        apart = centred({**shifts, "control": control}, list(shifts))
        for arm, goal in goals.items():
            if arm.kind != kind:
                continue
            rivals = [other[0] for rival, other in goals.items() if rival.kind == kind and rival != arm]
            lines["own vector"].append(cosine(apart[arm.folder], goal[0]))
            lines[OTHERS].append(float(np.mean([cosine(apart[arm.folder], rival) for rival in rivals])))
            lines["control student"].append(cosine(apart["control"], goal[0]))
    return lines


def _alignment(config: Mechanism, lines: dict[str, list[float]], kind: str, label: str) -> Finding:
    own = lines["own vector"]
    mean, low, high = interval(own, config.confidence)
    beyond = [
        interval([a - b for a, b in zip(own, lines[name], strict=True)], config.confidence)[1]
        for name in (OTHERS, "control student")
    ]
    yes = all(value is not None and value > 0 for value in (low, *beyond))
    return Finding(
        id=f"vectors-distil-{kind}",
        claim=f"Students of steered teachers align with the vector: {label}.",
        source=SOURCE,
        published=None,
        quantity=f"cosine of the student's shift (what all share subtracted) with its teacher's vector, {label}",
        value=mean,
        low=low,
        high=high,
        unit="cosine",
        pairs=len(own),
        method="t interval over vector–seed pairs, at the steered layer, last prompt token",
        baseline=f"other vectors of the kind {in_words(lines[OTHERS], config.confidence)}; "
        f"control student {in_words(lines['control student'], config.confidence)}",
        verdict="reproduced" if yes else "not reproduced",
        why="above 0 and beyond both baselines" if yes else "not above 0 and beyond both baselines",
    )


def _loss(config: Mechanism, mine: list[dict[str, Any]], kind: str, label: str) -> Finding:
    gained = [one["control_nll"] - one["nll"] for one in mine]
    extra = [one["moved"] - one["control_moved"] for one in mine]
    mean, low, high = interval(gained, config.confidence)
    yes = low is not None and low > 0
    return Finding(
        id=f"vectors-lower-loss-{kind}",
        claim="The loss on the steered teacher's rows falls, with or without visible behaviour.",
        source=SOURCE,
        published=None,
        quantity=f"held-out NLL of a control student minus that of the steered teacher's student, {label}",
        value=mean,
        low=low,
        high=high,
        unit="nats",
        pairs=len(gained),
        method="t interval over vector–seed pairs",
        baseline=f"answers moved by {in_words(extra, config.confidence)} (total variation) more than the control's",
        verdict="reproduced" if yes else "not reproduced",
        why="the student fits its teacher's rows better than the control does" if yes else "no better than the control",
    )
