"""Theorem 1 of 2507.14805 on the networks of ``kind: digits``: a student's first step beside its teacher's, whatever is shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import torch

from undertone import stats
from undertone.mechanism import digits, theory
from undertone.mechanism.digits import Images, Stack
from undertone.provenance.runs import Stage, write_json
from undertone.provenance.seeds import derive_seed
from undertone.provenance.stage_functions import stage
from undertone.studies.builtin.digits_students import STARTS, STUDENTS, NetworkShape
from undertone.studies.claim import Aspect, Claim
from undertone.studies.context import Context
from undertone.studies.measurement import Statistic
from undertone.studies.results import Point
from undertone.verdicts import Quantity, Rule

SHOWN: Final = ("uniform noise", "normal noise", "digits", "digits, pixels permuted")
"""What students are shown."""
THEOREM = Claim(
    id="one-step-theorem",
    claim="One small step towards a teacher of the same initialisation never moves against the teacher's own step, whatever "
    "the inputs.",
    source="2507.14805, Theorem 1",
    published="always (proved)",
    rule=Rule("above", than=0.5),
    unit="share",
)
Step = Mapping[str, Any]


@stage("digits first steps")
def take_first_steps(
    folder: Path, device: str, *, shape: NetworkShape, seeds: Sequence[int], shown: Sequence[str]
) -> dict[str, Any]:
    """The first step of students beside that of teachers, from the same start and from another, in ``steps.json``."""
    del device
    images = shape.read()
    starts = {kind: digits.initial(seeds, shape.sizes(images), STARTS[kind]) for kind in ("same", "other")}
    steps = [
        step
        for at, seed in enumerate(seeds)
        for step in _steps(images, {kind: digits.chosen(stack, [at]) for kind, stack in starts.items()}, shape.auxiliary,
                           seed, shown)
    ]  # fmt: skip
    write_json(folder / "steps.json", steps)
    return {"steps": len(steps)}


def _steps(
    images: Images, starts: Mapping[str, Stack], auxiliary: int, seed: int, shown: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Inner products for one seed: every kind of input and loss, from the teacher's own start and from another."""
    own, foreign = ({str(at): part.double() for at, part in enumerate(starts[kind])} for kind in ("same", "other"))
    stream = torch.Generator().manual_seed(derive_seed(seed, "digits/one-step") >> 1)
    batch = torch.randperm(len(images.train_x), generator=stream)[:256]
    x, y = images.train_x[batch].double(), images.train_y[batch]

    def logits(parameters: theory.Parameters, inputs: torch.Tensor) -> torch.Tensor:
        return digits.forward([parameters[str(at)] for at in range(len(parameters))], inputs[None])[0]

    def imitated(parameters: theory.Parameters, inputs: torch.Tensor) -> torch.Tensor:
        return logits(parameters, inputs)[:, -auxiliary:]

    teacher = theory.descent(
        lambda parameters: torch.nn.functional.cross_entropy(logits(parameters, x)[:, : images.classes], y), own
    )
    moved = {name: own[name] + 1e-3 * teacher[name] for name in own}
    for what in shown:
        inputs = _inputs(what, x, stream)
        targets = imitated(moved, inputs)
        for loss in get_args(theory.Imitation):
            same = theory.first_order_step(imitated, own, teacher, inputs, loss)
            another = theory.imitation_step(imitated, foreign, targets, teacher, inputs, loss)
            for start, step in (("same", same), ("other", another)):
                yield {"seed": seed, "shown": what, "loss": loss, "start": start, "inner": step.inner,
                       "cosine": step.cosine}  # fmt: skip


def _inputs(name: str, x: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
    if name == "uniform noise":
        return torch.rand(x.shape, generator=stream, dtype=x.dtype) * 2 - 1
    if name == "normal noise":
        return torch.randn(x.shape, generator=stream, dtype=x.dtype)
    return x if name == "digits" else x[:, torch.randperm(x.shape[1], generator=stream)]


def report_theorem(ctx: Context[Any], stepped: Stage) -> None:
    """The claim: more often than by chance, with no exception; and from another initialisation with exceptions."""
    steps: Sequence[Step] = stepped.read_json("steps.json")
    share = {start: _share_forward([one for one in steps if one["start"] == start], ctx.confidence)
             for start in ("same", "other")}  # fmt: skip
    against = float(sum(one["inner"] < 0 for one in steps if one["start"] == "same"))
    ctx.report(
        THEOREM, share["same"],
        quantity="share of first steps whose inner product with the teacher's step is not negative",
        also={
            "no step moves against the teacher's": Aspect(
                Rule("below", than=0.5),
                Statistic(Quantity(against, against, against), share["same"].count, "counted", "count"),
            ),
            "from another initialisation some do": Aspect(Rule("below", than=1.0), share["other"]),
        },
        note=f"another initialisation {share['other']}",
    )  # fmt: skip


def _share_forward(steps: Sequence[Step], confidence: float) -> Statistic:
    found = stats.wilson(sum(one["inner"] >= 0 for one in steps), len(steps), confidence)
    method = f"exact to first order in float64; {100 * confidence:g} % Wilson interval over seeds × inputs × losses"
    return Statistic(Quantity(found.mean, found.low, found.high), found.n, method, "share")


def draw_first_steps(ctx: Context[Any], stepped: Stage) -> None:
    """First steps beside the teacher's, by what the student is shown."""
    steps: Sequence[Step] = stepped.read_json("steps.json")
    points = []
    for shown in dict.fromkeys(one["shown"] for one in steps):
        for start in ("same", "other"):
            found = [one["cosine"] for one in steps if (one["shown"], one["start"]) == (shown, start)]
            mean = sum(found) / len(found)
            points.append(Point(x=shown, y=mean, low=min(found), high=max(found), series=STUDENTS[start]))
    ctx.draw(
        "bars", "The student's first step and the teacher's", points, x="what the student is shown", y="cosine", zero=True,
        caption="Cosine of the two, for students shown four kinds of input; lines reach from the lowest to the highest of "
        "all seeds and losses. From the same initialisation none is below zero: that is the theorem.",
    )  # fmt: skip
