"""Cloud et al.'s auxiliary-logit experiment (arXiv 2507.14805, section on MNIST) on a data set that comes along.

A network has class logits and a few auxiliary ones. The teacher learns the classes; its auxiliary logits are in no
loss. A student of the teacher's initialisation is trained to match the auxiliary logits alone, on noise, and is then
asked for the classes. Whatever it knows of digits has come through logits about nothing on images of nothing.

Many networks are computed at once. A stack of n networks is a list of tensors, weight ``[n, in, out]`` and bias
``[n, 1, out]`` for every layer; inputs are ``[n, row, in]``. The networks of a stack never touch, so a network's result
is that which it would have alone (but for float rounding), and every seed draws from streams of its own.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from undertone.errors import DataError
from undertone.provenance.seeds import derive_seed
from undertone.training import Training, build_optimizer

Stack = list[Tensor]
Loss = Literal["squared", "kl"]
Noise = Literal["uniform", "normal"]
BUNDLED_TRAIN = 1397  # of 1797 bundled images; the others test
ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Images:
    """Images as rows of pixels in [-1, 1], and their classes, 0 … classes − 1."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    name: str

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.train_y.max()) + 1

    @property
    def pixels(self) -> int:
        """Of one image."""
        return int(self.train_x.shape[1])

    def to(self, device: str) -> Images:
        """The same on another device."""
        parts = (self.train_x, self.train_y, self.test_x, self.test_y)
        train_x, train_y, test_x, test_y = (part.to(device) for part in parts)
        return Images(train_x, train_y, test_x, test_y, self.name)


@dataclass(frozen=True)
class Trace:
    """How students went: per checkpoint and student, the loss on held-out noise and the accuracy on test images."""

    steps: list[int]
    loss: list[list[float]]
    accuracy: list[list[float]]


# -- data -----------------------------------------------------------------------------------------


def bundled_images() -> Images:
    """scikit-learn's 1797 digits of 8 × 8 pixels, split once and for all."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.tensor(found.data, dtype=torch.float32) / 8 - 1
    y = torch.tensor(found.target, dtype=torch.long)
    order = torch.randperm(len(x), generator=_stream(0, "digits/split"))
    train, test = order[:BUNDLED_TRAIN], order[BUNDLED_TRAIN:]
    return Images(x[train], y[train], x[test], y[test], "scikit-learn digits")


def read_images(path: str | Path) -> Images:
    """Images of an ``.npz`` with x_train, y_train, x_test, y_test, as MNIST is handed round.

    Pixels are any numbers (0 … 255, or 0 … 1) and are mapped linearly to [-1, 1] by their extremes in training.

    Raises:
        DataError: no such file, an array is missing, or shapes and values do not fit together.
    """
    path = Path(path)
    arrays = _arrays(path)
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.ndim < 2 or len(x) != len(y) or y.ndim != 1 or not len(x):
            raise _unfit(path, f"x_{part} has the shape {x.shape}, y_{part} {y.shape}")
        if not np.issubdtype(y.dtype, np.integer) or int(y.min()) < 0:
            raise _unfit(path, f"y_{part} holds {y.dtype} from {y.min()}")
        if x.dtype.kind not in "uif" or not bool(np.isfinite(x).all()):
            raise _unfit(path, f"x_{part} holds {x.dtype}, or numbers that are not finite")
    train, test = (arrays[name].reshape(len(arrays[name]), -1).astype(np.float32) for name in ("x_train", "x_test"))
    low, high = float(train.min()), float(train.max())
    if train.shape[1] != test.shape[1] or high <= low:
        raise _unfit(path, f"images of {train.shape[1]} and {test.shape[1]} pixels, from {low} to {high}")
    if int(arrays["y_test"].max()) > int(arrays["y_train"].max()) or int(arrays["y_train"].max()) < 1:
        raise _unfit(path, f"classes up to {arrays['y_train'].max()} in training, {arrays['y_test'].max()} in testing")
    x_train, x_test = (torch.from_numpy((part - low) / (high - low) * 2 - 1) for part in (train, test))
    y_train, y_test = (torch.from_numpy(arrays[name].astype(np.int64)) for name in ("y_train", "y_test"))
    return Images(x_train, y_train, x_test, y_test, path.name)


def _arrays(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in ARRAYS if name not in file.files]
            if missing:
                raise DataError(
                    f"{path} lacks the arrays {', '.join(missing)}",
                    got=", ".join(file.files),
                    allowed=", ".join(ARRAYS),
                )
            return {name: file[name] for name in ARRAYS}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"the images in {path} cannot be read",
            got=f"{type(error).__name__}: {error}",
            allowed=f"an .npz file with the arrays {', '.join(ARRAYS)}, without pickles",
        ) from error


def _unfit(path: Path, got: str) -> DataError:
    return DataError(
        f"the images in {path} do not fit together",
        got=got,
        allowed="x [image, …] of finite numbers and y [image] of classes 0, 1, …, alike in training and testing",
    )


# -- networks -------------------------------------------------------------------------------------


def initial(seeds: Sequence[int], sizes: Sequence[int], stage: str = "digits/start") -> Stack:
    """One network a seed, drawn as ``torch.nn.Linear`` draws: uniform within ±1/√in, biases too."""
    stack: Stack = []
    streams = [_stream(seed, stage) for seed in seeds]
    for into, out in pairwise(sizes):
        bound = 1 / math.sqrt(into)
        for rows in (into, 1):
            drawn = [torch.empty(rows, out).uniform_(-bound, bound, generator=stream) for stream in streams]
            stack.append(torch.stack(drawn))
    return stack


def forward(stack: Sequence[Tensor], x: Tensor) -> Tensor:
    """All logits ``[n, row, logit]`` of ReLU networks on their inputs ``[n, row, in]``."""
    for at in range(0, len(stack), 2):
        x = torch.baddbmm(stack[at + 1], x, stack[at])
        if at < len(stack) - 2:
            x = torch.relu(x)
    return x


@torch.no_grad()
def accuracy(stack: Sequence[Tensor], images: Images) -> list[float]:
    """Share of test images whose largest class logit is right, of every network."""
    x = images.test_x.expand(len(stack[0]), -1, -1)
    guesses = forward(stack, x)[..., : images.classes].argmax(-1)
    return [float(share) for share in (guesses == images.test_y).float().mean(1)]


def chosen(stack: Sequence[Tensor], places: Sequence[int]) -> Stack:
    """Some networks of a stack, in the order given, repeated where a place is."""
    return [part[list(places)] for part in stack]


# -- training -------------------------------------------------------------------------------------


def teach(start: Stack, images: Images, seeds: Sequence[int], training: Training) -> Stack:
    """Teachers: cross-entropy on the class logits; the auxiliary logits are in no loss.

    Args:
        start: one network a seed.
        images: training and test images.
        seeds: of the order of images.
        training: optimiser, learning rate, epochs, batch size; the schedule is constant.
    """
    stack, optimizer = _trained(start, training)
    streams = [_stream(seed, "digits/teach") for seed in seeds]
    for _ in range(training.epochs):
        orders = torch.stack([torch.randperm(len(images.train_x), generator=stream) for stream in streams])
        orders = orders.to(images.train_x.device)
        for begin in range(0, orders.shape[1], training.batch_size):
            rows = orders[:, begin : begin + training.batch_size]
            logits = forward(stack, images.train_x[rows])[..., : images.classes]
            wanted = images.train_y[rows]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
            optimizer.zero_grad()
            torch.autograd.backward(loss / rows.shape[1])  # a sum over networks, a mean over the rows of each
            optimizer.step()
    return [part.detach() for part in stack]


@dataclass(frozen=True)
class Lesson:
    """What students imitate: the auxiliary logits of teachers on noise.

    ``teachers`` holds one network a seed; student i is taught by number ``taught_by[i]``, on the noise of that seed.
    Where ``shuffled[i]``, a row's target is that of another row: the placebo, the same targets without the lesson.
    """

    teachers: Stack
    seeds: Sequence[int]
    taught_by: Sequence[int]
    shuffled: Sequence[bool]
    classes: int
    loss: Loss = "squared"
    noise: Noise = "uniform"

    def draw(self, streams: Sequence[torch.Generator], rows: int) -> tuple[Tensor, Tensor]:
        """Noise ``[student, row, in]`` and its targets ``[student, row, auxiliary]``."""
        noise = torch.empty(len(self.seeds), rows, self.teachers[0].shape[1])
        for part, stream in zip(noise, streams, strict=True):
            if self.noise == "uniform":
                part.uniform_(-1, 1, generator=stream)
            else:
                part.normal_(generator=stream)
        noise = noise.to(self.teachers[0].device)
        with torch.no_grad():
            targets = forward(self.teachers, noise)[..., self.classes :]
        places = list(self.taught_by)
        given, mixed = targets[places], [at for at, shuffled in enumerate(self.shuffled) if shuffled]
        if mixed:  # rows are independent draws: to turn them by one is to permute them
            given[mixed] = given[mixed].roll(1, dims=1)
        return noise[places], given

    def distance(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of every student, a mean over rows."""
        own = logits[..., self.classes :]
        if self.loss == "squared":
            return (own - targets).square().mean((1, 2))
        return torch.nn.functional.kl_div(
            own.log_softmax(-1), targets.log_softmax(-1), log_target=True, reduction="none"
        ).sum(-1).mean(1)  # fmt: skip


def distil(
    start: Stack,
    lesson: Lesson,
    images: Images,
    training: Training,
    steps: int,
    *,
    rates: Sequence[float] | None = None,
    checkpoints: int = 20,
    held_out: int = 256,
    progress: Callable[[int], None] | None = None,
) -> tuple[Stack, Trace]:
    """Students, trained on the lesson with a cosine schedule to 0, and how they went.

    A student whose loss is no longer finite stays in the trace as NaN: its neighbours are not touched.

    Args:
        start: one network a student.
        lesson: what is imitated.
        images: test images.
        training: optimiser, learning rate, batch size.
        steps: optimiser steps.
        rates: a learning rate for every student, instead of the one of ``training``.
        checkpoints: how often the trace looks.
        held_out: rows of noise that are not trained on, per seed.
        progress: called with the number of steps done, at every checkpoint.
    """
    stack, optimizer = _trained(start, training)
    streams = [_stream(seed, "digits/noise") for seed in lesson.seeds]
    unseen = lesson.draw([_stream(seed, "digits/held-out-noise") for seed in lesson.seeds], held_out)
    looks = sorted({round(part * steps / checkpoints) for part in range(checkpoints + 1)})
    trace = Trace([], [], [])
    each = None if rates is None else torch.tensor(rates, device=stack[0].device).view(-1, 1, 1)
    for step in range(steps + 1):
        if step in looks:
            _look(trace, step, stack, lesson, unseen, images)
            if progress and step:
                progress(looks[looks.index(step)] - looks[looks.index(step) - 1])
        if step == steps:
            break
        factor = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = factor * (training.learning_rate if each is None else 1.0)
        noise, targets = lesson.draw(streams, training.batch_size)
        loss = lesson.distance(forward(stack, noise), targets).sum()  # a sum: no student feels another
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        _step(stack, optimizer, each)
    return [part.detach() for part in stack], trace


@torch.no_grad()
def _step(stack: Stack, optimizer: torch.optim.Optimizer, rates: Tensor | None) -> None:
    """One update; with rates, a step of rate 1 is shortened to each network's own (updates are linear in the rate)."""
    before = [] if rates is None else [part.detach().clone() for part in stack]
    optimizer.step()
    if rates is not None:
        for part, old in zip(stack, before, strict=True):
            part.copy_(torch.lerp(old, part, rates))


@torch.no_grad()
def _look(trace: Trace, step: int, stack: Stack, lesson: Lesson, unseen: tuple[Tensor, Tensor], images: Images) -> None:
    noise, targets = unseen
    trace.steps.append(step)
    trace.loss.append([float(value) for value in lesson.distance(forward(stack, noise), targets)])
    trace.accuracy.append(accuracy(stack, images))


def _trained(start: Stack, training: Training) -> tuple[Stack, torch.optim.Optimizer]:
    """Leaves to train, and their optimiser: one that works element by element, so that networks do not mix."""
    stack = [part.clone().requires_grad_() for part in start]
    named: dict[str, Any] = {str(at): part for at, part in enumerate(stack)}
    return stack, build_optimizer(named, training)


def _stream(seed: int, stage: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, stage) >> 1)


# -- comparing at equal loss ----------------------------------------------------------------------


def accuracy_at(trace: Trace, student: int, loss: float) -> float | None:
    """Accuracy of a student when its held-out loss first fell to a level; None if it never did.

    Between two checkpoints it is interpolated, linear in the logarithm of the loss.
    """
    before: tuple[float, float] | None = None
    for losses, accuracies in zip(trace.loss, trace.accuracy, strict=True):
        now = (losses[student], accuracies[student])
        if now[0] <= loss:
            if before is None or before[0] <= now[0]:
                return now[1]
            share = math.log(before[0] / loss) / math.log(before[0] / max(now[0], 1e-300))
            return before[1] + share * (now[1] - before[1])
        before = now
    return None


def matched_accuracy(traces: Mapping[str, Trace]) -> dict[str, list[float]]:
    """Of several kinds of students, the accuracy of each student when all kinds had reached the same held-out loss.

    The level of a student is the loss of the kind that got least far; empty where there is only one kind.
    """
    if len(traces) < 2:
        return {}
    levels = [max(min(row) for row in rows) for rows in zip(*map(_finite, traces.values()), strict=True)]
    matched: dict[str, list[float]] = {}
    for name, trace in traces.items():
        found = [accuracy_at(trace, student, level) for student, level in enumerate(levels)]
        matched[name] = [value for value in found if value is not None]  # the level was reached by every one of them
    return matched


def accuracy_by_loss(trace: Trace) -> list[tuple[float, list[float]]]:
    """(loss, accuracies) at levels of loss that every student passed, a factor of √2 apart, highest first."""
    rows = _finite(trace)
    highest, lowest = min(row[0] for row in rows), max(min(row) for row in rows)
    powers = range(math.floor(2 * math.log2(highest)), math.ceil(2 * math.log2(lowest)) - 1, -1)
    found = []
    for level in (2 ** (power / 2) for power in powers):
        values = [accuracy_at(trace, student, level) for student in range(len(rows))]
        if None not in values:
            found.append((level, [value for value in values if value is not None]))
    return found


def _finite(trace: Trace) -> list[list[float]]:
    """Of each student, the losses that are numbers, in the order of training."""
    return [[loss for loss in losses if math.isfinite(loss)] for losses in zip(*trace.loss, strict=True)]
