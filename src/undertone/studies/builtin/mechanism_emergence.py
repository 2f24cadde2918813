"""Part ``emergence``: when does the student's shift appear, and is it the teacher's vector more than every student's is?

2606.00995, Fig. 2, with the baselines that it lacked: the control student, the other traits' vectors, and the alignment
after what all arms share is subtracted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file, save_file

from undertone.mechanism.shift import centred
from undertone.models.loading import Model, ModelRef
from undertone.provenance.stage_functions import stage
from undertone.studies.builtin.mechanism import Mechanism
from undertone.studies.builtin.mechanism_alignment import (
    ALIGNED,
    APART,
    CONTROL,
    LINES,
    RAW,
    Directions,
    alignments,
    by_seed,
    own_ranks,
)
from undertone.studies.builtin.mechanism_vectors import VectorChats, probability, stack, teacher_vectors, vector_in
from undertone.studies.claim import Claim
from undertone.studies.context import Context, Transfer, point
from undertone.studies.results import Point
from undertone.training import Lesson, Student, Training, student_dtype, student_seed, train_student
from undertone.traits import Trait
from undertone.transfer.train import lesson_of
from undertone.vectors import activations

TURNS: Final = Claim(
    id="emergence-raw",
    claim="Training turns the student's shift towards the teacher's vector, and a control's not.",
    source="2606.00995, Fig. 2",
    published="cosine 0.7–0.9 against 0.1 for controls",
    rule=ALIGNED,
    unit="cosine",
)
CLAIMS: Final = {RAW: TURNS, APART: replace(TURNS, id="emergence-centred")}


@stage("follow training", version=2)
def follow_training(
    folder: Path, device: str, *, base: ModelRef, student: Student, training: Training, lesson: Lesson, seed: int,
    traits: Sequence[Trait], chats: VectorChats, points: int,
) -> dict[str, Any]:  # fmt: skip
    """A student's shift ``[moment, layer, hidden]`` and probabilities ``[moment, trait]`` while it is trained once more."""
    before = replace(base, dtype=student_dtype(base.dtype, student)).load(device)
    start = _stream(before, chats)
    shifts, answers = [np.zeros_like(start)], [[probability(before, trait, chats.asked_in) for trait in traits]]
    del before
    steps = -(-len(lesson.rows) // training.batch_size) * training.epochs
    moments = sorted({round(step) for step in np.geomspace(min(4, steps), steps, points)})

    def look(model: Model, step: int, _steps: int) -> None:
        if step in moments:
            model.hf.eval()
            shifts.append(_stream(model, chats) - start)
            answers.append([probability(model, trait, chats.asked_in) for trait in traits])
            model.hf.train()

    train_student(base, student, training, lesson, seed=student_seed(seed), device=device, on_step=look)
    arrays = {"shift": np.stack(shifts).astype(np.float32), "probability": np.array(answers, dtype=np.float32)}
    save_file(arrays, folder / "trace.safetensors")
    return {"steps": [0, *moments]}


def _stream(model: Model, chats: VectorChats) -> np.ndarray:
    """The mean residual stream ``[layer, hidden]`` at prompts of the domain."""
    read = activations(model, chats.at_prompts(model))
    return np.stack([rows.mean(0).numpy() for _, rows in sorted(read.items())])


def emergence(ctx: Context[Mechanism], students: Transfer) -> None:
    """Students trained once more and measured on the way; judged at the end of training."""
    config, few, chats = ctx.config, ctx.config.few_traits, VectorChats.of(ctx.config)
    traits = [trait.for_questions(chats.asked_in) for trait in ctx.traits()[: config.few]]
    runs = [one for one in students.students if one.arm.trait in (None, *few)]
    traces = ctx.beside(runs, follow_training, "emergence", lambda one: {
        "base": ctx.base, "student": config.student, "training": config.training, "lesson": lesson_of(config, one),
        "seed": one.seed, "traits": traits, "chats": chats, "points": config.emergence.points,
    })  # fmt: skip
    steps = min((trace.summary["steps"] for trace in traces), key=len)[1:]
    read = [load_file(trace.path / "trace.safetensors") for trace in traces]
    # Seeds whose rows differ in number differ in steps: the same number of moments of each, ends together.
    shifts = by_seed(runs, (arrays["shift"][-len(steps) :] for arrays in read))
    answers = by_seed(runs, (arrays["probability"][-len(steps) :] for arrays in read))
    vectors = teacher_vectors(ctx, config.trait)
    goals = {trait: stack(vector_in(vector, "carrier")) for trait, vector in vectors.items()}
    curves, by_layer = report(ctx, steps, shifts, goals)
    own = ctx.measure(lambda trait, seed: answers[seed][trait][:, few.index(trait)], few)
    control = ctx.measure(lambda trait, seed: answers[seed][CONTROL][:, few.index(trait)], few)
    for name, line in ((LINES[0], own), (LINES[2], control)):
        curves += [point(step, line[at], name, "P(target)") for at, step in enumerate(steps)]
    words = f"{ctx.intervals} over {own[0].unit_words}"
    ctx.draw(
        "lines", "Emergence during training", curves, x="training step", y="cosine, or probability", log_x=True,
        caption="Alignment of the student's shift with the teacher's vector at the middle layer, and the trait's "
        f"probability, by training step; {words}. A gauge means something only where the own vector leaves the other "
        "traits' and the control's.",
    )  # fmt: skip
    ctx.draw(
        "lines", "Alignment by layer at the end", by_layer, x="layer", y="cosine", zero=True,
        caption=f"Cosine of the student's shift with its teacher's vector after each layer; {words}.",
    )  # fmt: skip


def report(
    ctx: Context[Mechanism], steps: Sequence[int], shifts: Mapping[int, Directions], goals: Directions
) -> tuple[list[Point], list[Point]]:
    """Both findings; the points by step at the middle layer, and by layer at the end.

    Args:
        ctx: where to.
        steps: at which shifts were measured.
        shifts: seed -> trait or control -> ``[step, layer, hidden]``.
        goals: trait -> the teacher's vector ``[layer, hidden]``.
    """
    few = ctx.config.few_traits
    depth = len(goals[few[0]])
    middle = depth // 2
    curves, by_layer = [], []
    for which, claim in CLAIMS.items():
        if which == APART:
            goals = centred(goals, list(goals))
            shifts = {seed: centred(one, list(one)) for seed, one in shifts.items()}
        lines = alignments(ctx, shifts, goals, few)
        own, others, control = (line[-1][middle] for line in lines)
        at_end = {seed: {name: shift[-1, middle] for name, shift in one.items()} for seed, one in shifts.items()}
        ranks = own_ranks(at_end, {name: goal[middle] for name, goal in goals.items()}, few)
        ctx.report(
            claim, own, baselines={LINES[1]: others, LINES[2]: control},
            quantity="cosine of the student's shift with the teacher's vector at the end of training "
            f"({which}; middle layer, last prompt token of the domain's prompts)",
            note=f"rank of the own vector among {len(goals)}: {', '.join(map(str, ranks))}" if which == APART else "",
        )  # fmt: skip
        curves += [point(step, line[at][middle], name, f"cosine, {which}")
                   for name, line in zip(LINES, lines, strict=True) for at, step in enumerate(steps)]  # fmt: skip
        by_layer += [point(layer, lines[0][-1][layer], which) for layer in range(depth)]
    return curves, by_layer
