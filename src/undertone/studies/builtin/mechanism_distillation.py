"""Part ``distillation``: students of teachers steered by arbitrary vectors take the vector over, seen or unseen.

2606.00995, abstract 3: alignment rises and loss falls even where no behaviour changes. Here: the student's shift against
its own teacher's vector, beside the other teachers' vectors, after what all share is subtracted; the held-out loss beside
that of a control student on the same rows; and the visible change of answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from undertone.evaluation.asking import answer_probabilities
from undertone.mechanism.shift import centred
from undertone.models.loading import Model, ModelRef
from undertone.models.scoring import completion_nll
from undertone.provenance.stage_functions import stage
from undertone.studies.builtin.mechanism import Mechanism
from undertone.studies.builtin.mechanism_alignment import ALIGNED, APART, CONTROL, alignments
from undertone.studies.builtin.mechanism_vectors import VectorChats, block_at, check_block, question_chats, stack
from undertone.studies.claim import Claim
from undertone.studies.context import Context, Transfer, point
from undertone.studies.measurement import Measurement
from undertone.studies.results import Point
from undertone.teachers import TeacherSpec, VectorTeacher
from undertone.training import Lesson
from undertone.traits import Trait, load_trait
from undertone.transfer.arms import Arm, arms_of
from undertone.transfer.generate import teacher_of
from undertone.transfer.train import lesson_of
from undertone.vectors import difference, load_vector, save_vector
from undertone.verdicts import Rule, Unit

SOURCE: Final = "2606.00995, abstract 3"
SERIES: Final = ("own vector", "other vectors of the kind", "control student")
KINDS: Final = {"random": "random vectors", "treated": "semantic vectors"}
CLAIMS: Final = {
    kind: (
        Claim(
            id=f"vectors-distil-{kind}", claim=f"Students of steered teachers align with the vector: {label}.",
            source=SOURCE, published=None, rule=ALIGNED, unit="cosine",
        ),
        Claim(
            id=f"vectors-lower-loss-{kind}",
            claim="The loss on the steered teacher's rows falls, with or without visible behaviour.",
            source=SOURCE, published=None, rule=Rule("above"), unit="nats",
        ),
    )
    for kind, label in KINDS.items()
}  # fmt: skip


@stage("steering vector")
def read_steering_vector(folder: Path, device: str, *, teacher: TeacherSpec) -> None:
    """The vector that a steered teacher is steered by, in ``vector.safetensors``."""
    assert teacher.model is not None
    assert teacher.vector is not None
    save_vector(teacher.vector.read(teacher.model.load(device), teacher.context), folder / "vector.safetensors")


@stage("distilled vector", version=2)
def measure_student(
    folder: Path, device: str, *, base: ModelRef, student: ModelRef, control: ModelRef, unseen: Lesson, trait: Trait,
    chats: VectorChats, block: int,
) -> dict[str, Any]:  # fmt: skip
    """Of a student and a control: shift at the steered layer, loss on the student's held-out rows, change of answers."""
    del folder
    before = base.load(device)
    examples, prompts = unseen.tokenised(before), chats.at_prompts(before)
    found: dict[str, Any] = {}
    for shift, prefix, model in (("shift", "", student.load(device)), ("control", "control_", control.load(device))):
        found |= {
            shift: stack(difference(model, before, prompts, blocks=[block], position="last"))[0].tolist(),
            f"{prefix}nll": float(np.mean(completion_nll(model.hf, examples, before.pad))),
            f"{prefix}moved": _moved(model, before, trait, chats),
        }
    return found


@torch.inference_mode()
def _moved(model: Model, base: Model, trait: Trait, chats: VectorChats) -> float:
    """Total variation between the two models' answers to the trait's questions, mean over questions."""
    prompts = [base.prompt(chat) for chat in question_chats(trait, base, chats.asked_in)]
    first, second = answer_probabilities(model, prompts, trait), answer_probabilities(base, prompts, trait)
    return float(0.5 * np.abs(first - second).sum(1).mean())


def preflight(config: Mechanism, _device: str) -> None:
    """Refuse a layer that teacher or student lacks."""
    block = block_at(config.model, config.distillation.block)
    check_block("distillation.block", block, [config.model, config.teacher.model or config.model])


def distillation(ctx: Context[Mechanism], _students: Transfer) -> None:
    """Students of steered teachers, semantic and random, and one control a seed."""
    config, settings, chats = ctx.config, ctx.config.distillation, VectorChats.of(ctx.config)
    block = block_at(config.model, settings.block)
    teacher = VectorTeacher(model=config.teacher.model, origin="carrier", block=block, strength=settings.strength)
    setting = ctx.setting(trait=config.trait[: max(settings.random, 2)], teacher=teacher, random_vector=True)
    steered = ctx.transfer(setting, within="distillation/students", label="distillation: ")
    ctx.check_answers("distillation", {"": steered})
    arms = [arm for arm in arms_of(setting) if arm.trait]
    vectors = ctx.each(
        read_steering_vector,
        [(f"distillation/vectors/{arm.folder}", {"teacher": teacher_of(setting, arm)}) for arm in arms],
    )
    runs = [one for one in steered.students if one.arm.trait]
    measured = ctx.beside(runs, measure_student, "distillation/measured", lambda one: {
        "base": ctx.base, "student": one.model(setting),
        "control": steered.outcome.student("control", None, one.seed).model(setting),
        "unseen": lesson_of(setting, one, one.rows(setting.data.held_out)[1]),
        "trait": load_trait(one.arm.trait or "").for_questions(chats.asked_in), "chats": chats, "block": block,
    })  # fmt: skip
    report(
        ctx,
        {(one.arm, one.seed): stage.summary for one, stage in zip(runs, measured, strict=True)},
        {arm: stack(load_vector(one.path / "vector.safetensors"))[0] for arm, one in zip(arms, vectors, strict=True)},
    )


Found = Mapping[tuple[Arm, int], Mapping[str, Any]]
"""(arm, seed) -> the summary of :func:`measure_student`."""


def report(ctx: Context[Mechanism], found: Found, goals: Mapping[Arm, np.ndarray]) -> None:
    """Alignment and loss by kind of vector, and the figure; ``goals``: arm -> ``[hidden]``, what its teacher was steered by."""
    ctx.draw(
        "bars", "Arbitrary vectors distil", [one for kind in KINDS for one in _report_kind(ctx, kind, found, goals)],
        x="", y="value", zero=True,
        caption="Students of teachers steered by a vector: alignment of their shift with it, change of their answers, and "
        f"loss on their teacher's held-out rows against a control student's; {ctx.intervals}."
    )  # fmt: skip


def _report_kind(ctx: Context[Mechanism], kind: str, found: Found, goals: Mapping[Arm, np.ndarray]) -> list[Point]:
    arms = {arm.trait or "": arm for arm in goals if arm.kind == kind}
    label, (distils, lowers) = KINDS[kind], CLAIMS[kind]

    def of(name: str, unit: Unit) -> Measurement:
        return ctx.measure(lambda trait, seed: found[arms[trait], seed][name], list(arms), unit)

    shifts = {}
    for seed in ctx.config.seeds:
        own = {trait: np.array(found[arm, seed]["shift"]) for trait, arm in arms.items()}
        control = np.array(found[next(iter(arms.values())), seed]["control"])
        shifts[seed] = centred({**own, CONTROL: control}, list(own))
    lines = alignments(ctx, shifts, {trait: goals[arm] for trait, arm in arms.items()}, list(arms))
    loss, moved = of("nll", "nats") - of("control_nll", "nats"), of("moved", "share")
    control_moved = of("control_moved", "share")
    ctx.report(
        distils, lines[0], baselines=dict(zip(SERIES[1:], lines[1:], strict=True)),
        quantity="cosine of the student's shift (what all share subtracted) with its teacher's vector at the steered "
        f"layer, last prompt token; {label}",
    )  # fmt: skip
    ctx.report(
        lowers, -loss,
        quantity=f"held-out NLL of a control student minus that of the steered teacher's student, {label}",
        note=f"answers moved by {moved - control_moved} (total variation) more than the control's",
    )  # fmt: skip
    return [
        *(point(name, line, label, f"cosine, {APART}") for name, line in zip(SERIES, lines, strict=True)),
        point("student", moved, label, "answers changed (total variation)"),
        point("control", control_moved, label, "answers changed (total variation)"),
        point("student", loss, label, "held-out NLL, student minus control"),
    ]
