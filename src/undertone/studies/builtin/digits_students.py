"""The networks of ``kind: digits``: teachers, learning rates, and students that match auxiliary logits on noise.

Every student of a seed has the same teacher and the same noise; arms differ in one thing each. Learning rates are tuned
on seeds that are not reported, by held-out imitation loss, without a look at any accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from undertone.errors import RunError
from undertone.mechanism import digits
from undertone.mechanism.digits import Images, Lesson, Loss, Noise, Stack, Trace
from undertone.models.loading import target_device
from undertone.provenance.runs import Stage, write_json
from undertone.provenance.stage_functions import stage
from undertone.training import Training

STUDENTS: Final = {
    "same": "same initialisation",
    "other": "another initialisation",
    "permuted": "same, targets permuted",
    "shape": "another width",
}
"""Arm -> its name in figures and sentences."""
STARTS: Final = {"same": "digits/start", "other": "digits/another-start", "permuted": "digits/start",
                 "shape": "digits/other-shape"}  # fmt: skip
"""Arm -> stream of its initialisation; that of the teachers is ``digits/start``."""


@dataclass(frozen=True)
class NetworkShape:
    """The images that networks of this study name, and the networks' shape; an argument of all its stages.

    Attributes:
        images: an .npz file; None: scikit-learn's digits.
        hidden: width of every hidden layer.
        auxiliary: logits beside the classes'.
    """

    images: Path | None
    hidden: tuple[int, ...]
    auxiliary: int

    def read(self) -> Images:
        """The images.

        Raises:
            DataError: a file that does not fit.
        """
        return digits.bundled_images() if self.images is None else digits.read_images(self.images)

    def sizes(self, images: Images, hidden: Sequence[int] | None = None) -> list[int]:
        """Width of every layer, input and output included."""
        return [images.pixels, *(hidden or self.hidden), images.classes + self.auxiliary]


@dataclass(frozen=True)
class ImitationTask:
    """What students imitate, and how they are trained to; an argument of the stages that do it.

    Attributes:
        shape: of the teachers.
        teachers: the stage of :func:`train_teachers`.
        seeds: of the students.
        places: of these seeds among the teachers.
        optimizer: name; ``options`` are its further arguments.
        batch_size: rows of noise a step.
        steps: optimiser steps.
        loss: what students minimise.
        noise: what they are shown.
    """

    shape: NetworkShape
    teachers: Stage
    seeds: tuple[int, ...]
    places: tuple[int, ...]
    optimizer: str
    options: Mapping[str, Any]
    batch_size: int
    steps: int
    loss: Loss
    noise: Noise

    def trace(
        self, device: str, kinds: Sequence[str], rates: Sequence[float], hidden: Sequence[int] | None = None,
        checkpoints: int = 25,
    ) -> Trace:  # fmt: skip
        """Students of all kinds × seeds (kinds outermost) in one stack, each with its rate."""
        images = self.shape.read().to(str(target_device(device)))
        stored = load_file(self.teachers.path / "teachers.safetensors")
        sizes = self.shape.sizes(images, hidden)
        starts = [digits.initial(self.seeds, sizes, STARTS[kind]) for kind in kinds]
        lesson = Lesson(
            teachers=_on(device, [stored[str(at)][list(self.places)] for at in range(len(stored))]),
            seeds=self.seeds,
            taught_by=list(range(len(self.seeds))) * len(kinds),
            shuffled=[kind == "permuted" for kind in kinds for _ in self.seeds],
            classes=images.classes,
            loss=self.loss,
            noise=self.noise,
        )
        training = Training(
            optimizer=self.optimizer, learning_rate=rates[0], options=dict(self.options), batch_size=self.batch_size
        )
        start = _on(device, [torch.cat(parts) for parts in zip(*starts, strict=True)])
        several = rates if len(set(rates)) > 1 else None
        return digits.distil(start, lesson, images, training, self.steps, rates=several, checkpoints=checkpoints)[1]


@stage("digits teachers")
def train_teachers(
    folder: Path, device: str, *, shape: NetworkShape, training: Training, seeds: Sequence[int]
) -> dict[str, Any]:
    """One network a seed, reported and tuning seeds alike, in ``teachers.safetensors``."""
    images = shape.read().to(str(target_device(device)))
    sizes = shape.sizes(images)
    start = _on(device, digits.initial(seeds, sizes, STARTS["same"]))
    stack = digits.teach(start, images, seeds, training)
    save_file({str(at): part.cpu().contiguous() for at, part in enumerate(stack)}, folder / "teachers.safetensors")
    return {
        "accuracy": digits.accuracy(stack, images),
        "untrained": digits.accuracy(start, images),
        "images": [len(images.train_x), len(images.test_x)],
        "data": images.name,
        "sizes": sizes,
        "majority": float(torch.bincount(images.test_y).max()) / len(images.test_y),
    }


@stage("digits learning rate")
def tune_rate(
    folder: Path, device: str, *, name: str, imitation: ImitationTask, rates: Sequence[float]
) -> dict[str, Any]:
    """Held-out imitation loss of every rate on the tuning seeds, and the best; accuracies are not looked at."""
    del folder
    size = len(imitation.seeds)
    each = [rate for rate in rates for _ in range(size)]
    losses = imitation.trace(device, ["same"] * len(rates), each, checkpoints=1).loss[-1]
    means = {rate: sum(losses[at * size : (at + 1) * size]) / size for at, rate in enumerate(rates)}
    fit = {rate: mean for rate, mean in means.items() if math.isfinite(mean)}
    if not fit:
        raise RunError(
            f"no learning rate of {name} trains a student: every loss is not finite",
            got=list(rates),
            fix="give this arm of optimizers lower rates",
        )
    return {"losses": {f"{rate:g}": fit.get(rate) for rate in rates}, "rate": min(fit, key=lambda rate: fit[rate])}


@stage("digits students")
def train_students(
    folder: Path, device: str, *, imitation: ImitationTask, kinds: Sequence[str], tuned: Stage,
    hidden: Sequence[int] | None,
) -> dict[str, Any]:  # fmt: skip
    """The students of arms that are computed side by side; ``traces.json`` says how they went. ``hidden``: if not the
    teachers'."""
    size = len(imitation.seeds)
    trace = imitation.trace(device, kinds, [tuned.summary["rate"]] * len(kinds) * size, hidden)
    write_json(
        folder / "traces.json",
        {
            kind: {
                "steps": trace.steps,
                "loss": [_plain(row[at * size : (at + 1) * size]) for row in trace.loss],
                "accuracy": [row[at * size : (at + 1) * size] for row in trace.accuracy],
            }
            for at, kind in enumerate(kinds)
        },
    )
    return {"kinds": list(kinds), "accuracy": trace.accuracy[-1], "loss": _plain(trace.loss[-1])}


def traces_of(trained: Stage) -> Iterator[tuple[str, Trace]]:
    """Arm -> how its students went, of one stage of students."""
    for kind, record in trained.read_json("traces.json").items():
        losses = [[math.nan if value is None else value for value in row] for row in record["loss"]]
        yield kind, Trace(record["steps"], losses, record["accuracy"])


def _on(device: str, stack: Sequence[torch.Tensor]) -> Stack:
    return [part.to(target_device(device)) for part in stack]


def _plain(losses: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in losses]
