"""The config of the digits study."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from undertone.errors import ConfigError
from undertone.experiments.config import Plan
from undertone.mechanism.digits import Loss, Noise
from undertone.provenance.configs import Config
from undertone.training import Training, known_optimizers

ELEMENTWISE = (
    *("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD"),
    "SignSGD",
)
"""Optimisers that treat every weight for itself, with updates that are linear in the learning rate.

Others would mix networks, or learning rates, that are computed side by side.
"""


class OptimizerArm(Config):
    """An optimiser, and the learning rates that it may choose from."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9+-]*$", description="names the arm")
    optimizer: str = Field(
        description="a class of torch.optim or undertone.training.optimizers that works element by element"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="its further arguments")
    rates: tuple[float, ...] = Field(min_length=1, description="learning rates tried on the tuning seeds")
    adaptive: bool = Field(description="whether it scales a weight's step by the size of its gradient")

    @model_validator(mode="after")
    def _elementwise(self) -> OptimizerArm:
        if self.optimizer not in ELEMENTWISE:
            known = self.optimizer in known_optimizers()
            raise ConfigError(
                "this optimiser mixes networks that are computed side by side" if known else "unknown optimiser",
                got=self.optimizer,
                allowed=ELEMENTWISE,
            )
        return self


def _arms() -> tuple[OptimizerArm, ...]:
    fused = {"fused": True}
    return (
        OptimizerArm(name="Adam", optimizer="Adam", options=fused, rates=(1e-3, 2e-3, 4e-3), adaptive=True),
        OptimizerArm(name="sign-SGD", optimizer="SignSGD", rates=(3e-4, 1e-3, 3e-3), adaptive=True),
        OptimizerArm(
            name="SGD+momentum", optimizer="SGD", options=fused | {"momentum": 0.9}, rates=(0.5, 1.0, 2.0),
            adaptive=False,
        ),
        OptimizerArm(name="SGD", optimizer="SGD", options=fused, rates=(0.5, 1.0, 2.0, 3.0), adaptive=False),
    )  # fmt: skip


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
    optimizers: tuple[OptimizerArm, ...] = Field(
        default_factory=_arms,
        min_length=1,
        description="the first trains all arms, the others two",
    )
    seeds: tuple[int, ...] = Field(tuple(range(8)), min_length=1, description="each has its own networks and noise")
    tuning_seeds: tuple[int, ...] = Field((100, 101), min_length=1, description="for learning rates; never reported")
    confidence: float = Field(0.95, gt=0.5, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> DigitsStudy:
        seeds = (*self.seeds, *self.tuning_seeds)
        if len(set(seeds)) < len(seeds):
            raise ValueError("seeds and tuning_seeds must all differ: nothing is tuned on what is reported")
        names = [arm.name for arm in self.optimizers]
        if len(set(names)) < len(names):
            raise ValueError("the names of optimizers must differ from each other")
        if any(part.optimizer not in ELEMENTWISE for part in (self.teacher,)):
            raise ConfigError(
                "teacher.optimizer mixes networks that are computed side by side, or is unknown",
                got=self.teacher.optimizer,
                allowed=ELEMENTWISE,
            )
        if self.hidden == self.other_hidden:
            raise ValueError("other_hidden must differ from hidden: it is the arm of another shape")
        return self
