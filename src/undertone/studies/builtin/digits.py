"""``kind: digits``: auxiliary logits on digits (2507.14805) with their controls, optimisers at equal loss, and the theorem."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from undertone.errors import ConfigError
from undertone.launch.executor import Call
from undertone.mechanism.digits import Loss, Noise, Trace
from undertone.provenance.configs import Config
from undertone.provenance.digests import file_digest
from undertone.provenance.runs import Stage
from undertone.stats import CONFIDENCE
from undertone.studies.builtin.digits_report import (
    TrainedNetworks,
    check_networks,
    draw_optimizers,
    draw_students,
    report_optimizers,
    report_students,
    sentence_of,
    tabulate,
)
from undertone.studies.builtin.digits_students import (
    ImitationTask,
    NetworkShape,
    traces_of,
    train_students,
    train_teachers,
    tune_rate,
)
from undertone.studies.builtin.digits_theorem import SHOWN, draw_first_steps, report_theorem, take_first_steps
from undertone.studies.context import Context
from undertone.studies.frame import study
from undertone.training import Training, known_optimizers
from undertone.transfer.config import Plan

ELEMENTWISE: Final = (
    *("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD"),
    "SignSGD",
)
"""Optimisers that treat every weight for itself, with updates that are linear in the learning rate.

Others would mix networks, or learning rates, that are computed side by side.
"""


class ElementwiseOptimizer(Config):
    """An optimiser, and the learning rates that it may choose from."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9+-]*$", description="names the arm")
    optimizer: str = Field(description="a class of torch.optim or undertone.optimizers that works element by element")
    options: dict[str, Any] = Field(default_factory=dict, description="its further arguments")
    rates: tuple[float, ...] = Field(min_length=1, description="learning rates tried on the tuning seeds")
    adaptive: bool = Field(description="whether it scales a weight's step by the size of its gradient")

    @model_validator(mode="after")
    def _elementwise(self) -> ElementwiseOptimizer:
        if self.optimizer not in ELEMENTWISE:
            known = self.optimizer in known_optimizers()
            raise ConfigError(
                "this optimiser mixes networks that are computed side by side" if known else "unknown optimiser",
                got=self.optimizer,
                allowed=ELEMENTWISE,
            )
        return self


def _optimizers() -> tuple[ElementwiseOptimizer, ...]:
    fused = {"fused": True}
    recipes: tuple[tuple[str, str, dict[str, Any], tuple[float, ...], bool], ...] = (
        ("Adam", "Adam", fused, (1e-3, 2e-3, 4e-3), True),
        ("sign-SGD", "SignSGD", {}, (3e-4, 1e-3, 3e-3), True),
        ("SGD+momentum", "SGD", fused | {"momentum": 0.9}, (0.5, 1.0, 2.0), False),
        ("SGD", "SGD", fused, (0.5, 1.0, 2.0, 3.0), False),
    )
    return tuple(
        ElementwiseOptimizer(name=name, optimizer=optimizer, options=options, rates=rates, adaptive=adaptive)
        for name, optimizer, options, rates, adaptive in recipes
    )


class DigitsStudy(Plan):
    """Auxiliary logits on digits: who learns what from logits about nothing, on noise."""

    kind: Literal["digits"] = "digits"
    name: str = Field("digits", pattern=r"^[a-z0-9][a-z0-9-]*$", description="names the run folder")
    data: str | None = Field(
        None, description="an .npz file with x_train, y_train, x_test, y_test (MNIST); null: scikit-learn's digits"
    )
    hidden: tuple[int, ...] = Field((128, 128), min_length=1, description="width of every hidden layer")
    other_hidden: tuple[int, ...] = Field((96, 96), min_length=1, description="widths of the students of another shape")
    auxiliary: int = Field(3, ge=1, description="logits that are in no loss of the teacher")
    loss: Loss = Field("squared", description="what students minimise: squared distance of logits, or kl")
    noise: Noise = Field("uniform", description="what students are shown: uniform in [-1, 1], or normal")
    teacher: Training = Field(
        default_factory=lambda: Training(
            optimizer="Adam", learning_rate=5e-4, options={"fused": True}, schedule="constant", epochs=10, batch_size=64
        ),
        description="how teachers are trained",
    )
    steps: int = Field(1500, ge=2, description="optimiser steps of a student")
    batch_size: int = Field(64, ge=2, description="rows of noise a step")
    optimizers: tuple[ElementwiseOptimizer, ...] = Field(
        default_factory=_optimizers, min_length=1, description="the first trains all arms, the others two"
    )
    seeds: tuple[int, ...] = Field(tuple(range(8)), min_length=1, description="each has its own networks and noise")
    tuning_seeds: tuple[int, ...] = Field((100, 101), min_length=1, description="for learning rates; never reported")
    confidence: float = Field(CONFIDENCE, gt=0.5, lt=1)

    @property
    def shape(self) -> NetworkShape:
        """The images, and the shape of the teachers."""
        return NetworkShape(None if self.data is None else Path(self.data), self.hidden, self.auxiliary)

    @model_validator(mode="after")
    def _consistent(self) -> DigitsStudy:
        seeds = (*self.seeds, *self.tuning_seeds)
        if len(set(seeds)) < len(seeds):
            raise ValueError("seeds and tuning_seeds must all differ: nothing is tuned on what is reported")
        names = [arm.name for arm in self.optimizers]
        if len(set(names)) < len(names):
            raise ValueError("the names of optimizers must differ from each other")
        if self.teacher.optimizer not in ELEMENTWISE:
            raise ConfigError(
                "teacher.optimizer mixes networks that are computed side by side, or is unknown",
                got=self.teacher.optimizer,
                allowed=ELEMENTWISE,
            )
        if self.hidden == self.other_hidden:
            raise ValueError("other_hidden must differ from hidden: it is the arm of another shape")
        return self


def check_images(config: DigitsStudy, _device: str) -> None:
    """Refuse a file that does not fit."""
    config.shape.read()


@study("digits", DigitsStudy, preflight=check_images, side_by_side=lambda config: len(config.optimizers) + 1)
def digits(ctx: Context[DigitsStudy]) -> str:
    """Teachers; then, side by side, rates and the theorem; then students."""
    config = ctx.config
    ctx.data["images"] = "scikit-learn digits" if config.data is None else file_digest(Path(config.data))[:16]
    networks, stepped = _train(ctx)
    ctx.subject = " – ".join(map(str, networks.teachers.summary["sizes"])) + " ReLU network"
    adaptive = {arm.name: arm.adaptive for arm in config.optimizers}
    report_students(ctx, networks)
    report_theorem(ctx, stepped)
    report_optimizers(ctx, networks, adaptive, f"{len(config.tuning_seeds)} other seeds")
    draw_students(ctx, networks)
    draw_optimizers(ctx, networks)
    draw_first_steps(ctx, stepped)
    tabulate(ctx, networks, config.seeds)
    check_networks(ctx, networks)
    return sentence_of(networks, config.auxiliary)


def _train(ctx: Context[DigitsStudy]) -> tuple[TrainedNetworks, Stage]:
    """All networks, and the first steps."""
    config, shape = ctx.config, ctx.config.shape
    all_seeds = (*config.seeds, *config.tuning_seeds)
    teachers = ctx.executor.stage(
        train_teachers, "teachers", shape=shape, training=config.teacher, seeds=all_seeds
    )  # fmt: skip

    def imitation(arm: ElementwiseOptimizer, seeds: tuple[int, ...]) -> ImitationTask:
        places = tuple(all_seeds.index(seed) for seed in seeds)
        return ImitationTask(
            shape, teachers, seeds, places, arm.optimizer, arm.options, config.batch_size, config.steps, config.loss,
            config.noise,
        )  # fmt: skip

    *tuned, stepped = ctx.executor.each([
        *(Call(tune_rate, f"{arm.name}/tune", {
            "name": arm.name, "imitation": imitation(arm, config.tuning_seeds), "rates": arm.rates,
        }) for arm in config.optimizers),
        Call(take_first_steps, "one-step", {"shape": shape, "seeds": config.seeds, "shown": SHOWN}),
    ])  # fmt: skip
    groups: list[tuple[str, ...]] = [("same", "other", "permuted"), ("shape",)]
    wanted = [
        (arm, rate, kinds)
        for arm, rate in zip(config.optimizers, tuned, strict=True)
        for kinds in (groups if arm is config.optimizers[0] else [("same", "other")])
    ]
    trained = ctx.each(train_students, [
        (f"{arm.name}/{'-'.join(kinds)}", {
            "imitation": imitation(arm, config.seeds), "kinds": kinds, "tuned": rate,
            "hidden": config.other_hidden if "shape" in kinds else None,
        })
        for arm, rate, kinds in wanted
    ])  # fmt: skip
    traces: dict[str, dict[str, Trace]] = {}
    for (arm, _, _), stage in zip(wanted, trained, strict=True):
        traces.setdefault(arm.name, {}).update(traces_of(stage))
    rates = {arm.name: rate for arm, rate in zip(config.optimizers, tuned, strict=True)}
    return TrainedNetworks(teachers, rates, traces, len(config.seeds), config.confidence), stepped
