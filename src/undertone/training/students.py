"""The one function that trains a student: a base, rows, which weights move, how; with its loss on rows not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from tqdm import tqdm

from undertone.errors import DataError, RunError
from undertone.models.batches import Example
from undertone.models.layers import context_length
from undertone.models.loading import Context, Dtype, Model, ModelRef
from undertone.models.scoring import completion_nll
from undertone.models.students import BiasOnly, Full, Lora, save_student, trainable
from undertone.provenance.configs import Config
from undertone.provenance.seeds import derive_seed
from undertone.rows import Row
from undertone.training.loop import Fit, Training, fit
from undertone.training.team import Team

Student = BiasOnly | Lora | Full


class Dpo(Config):
    """Students are trained on (chosen, rejected) pairs by direct preference optimisation, through TRL."""

    beta: float = Field(0.1, gt=0, description="how far the student is held to its base")


@dataclass(frozen=True)
class Lesson:
    """What a student is trained on.

    Attributes:
        rows: to train on, in order.
        held_out: rows whose loss is measured before and after.
        context: the system prompt in front of every row.
        trait_prompt: the trait's own, for the context ``trait``.
        masks: of each row's completion tokens, which are learnt; None: all.
        examples: the tokenised rows where they were changed by hand; None: the rows as they are.
        dpo: train on ``meta["rejected"]`` beside the completion.
    """

    rows: Sequence[Row]
    held_out: Sequence[Row] = ()
    context: Context = "none"
    trait_prompt: str | None = None
    masks: Sequence[Sequence[bool]] | None = None
    examples: Sequence[Example] | None = None
    dpo: Dpo | None = None

    def system(self, model: Model) -> str | None:
        """The system prompt that the student is trained with."""
        return model.system_prompt(self.context, self.trait_prompt)

    def tokenised(self, model: Model) -> list[Example]:
        """The rows as the student sees them."""
        if self.examples is not None:
            return list(self.examples)
        system = self.system(model)
        examples = [model.row_example(row, system) for row in self.rows]
        if self.masks is not None:
            examples = [replace(one, mask=tuple(mask)) for one, mask in zip(examples, self.masks, strict=True)]
        return examples


@dataclass(frozen=True)
class TrainedStudent:
    """A trained model in memory, and how it went.

    ``base_nll`` and ``held_out_nll`` are nats per completion token on the held-out rows, before and after; NaN: none.
    """

    model: Model
    student: Student
    fit: Fit
    base_nll: float
    held_out_nll: float
    examples: Sequence[Example] = field(repr=False, default=())

    @property
    def team(self) -> Team:
        """The processes that trained it; the first of them saves it."""
        return self.fit.team

    def save(self, folder: Path) -> None:
        """The adapter, the biases or the whole model, under ``folder``."""
        known = {key: value for key, value in self.model.identity.items() if key != "name"}
        base = (
            known if set(known) in ({"sha256"}, {"revision"}) else None
        )  # a base that bears adapters has no digest of its own
        save_student(self.model.hf, self.model.tokenizer, self.student, folder, base)


def train_student(
    base: ModelRef,
    student: Student,
    training: Training,
    lesson: Lesson,
    *,
    seed: int,
    device: str = "auto",
    folder: Path | None = None,
    on_step: Callable[[Model, int, int], None] | None = None,
    second_moments: Path | None = None,
) -> TrainedStudent:
    """Train a copy of the base on the rows.

    Args:
        base: what it starts from; loaded here.
        student: which weights are trained.
        training: how.
        lesson: on what.
        seed: of adapters' first weights, the order of rows and dropout.
        device: auto, cpu, cuda …
        folder: for checkpoints while it trains; a run that was cut off goes on from them. None: none are kept.
        on_step: called with (model, step, steps) after each optimiser step.
        second_moments: file to write Adam's second moments to, at the end.

    Raises:
        ConfigError: weights that are not there, or an optimiser that does not fit.
        DataError: rows that are longer than the model's context.
        RunError: the loss is not finite.
    """
    model = replace(base, dtype=student_dtype(base.dtype, student)).load(device)
    examples = lesson.tokenised(model)
    system = lesson.system(model)
    unseen = [model.row_example(row, system) for row in lesson.held_out]
    _check_lengths(model, [*examples, *unseen])
    before = _mean_nll(model.hf, unseen, model.pad)
    hf = trainable(model.hf, student, seed)
    trained = replace(model, hf=hf)

    with _progress(len(examples) * training.epochs, base.name) as advance:

        def step(at: int, steps: int, _loss: float) -> None:
            advance(training.batch_size)
            if on_step:
                on_step(trained, at, steps)

        if lesson.dpo:
            from undertone.training.preferences import prefer

            done = prefer(
                hf, model, list(lesson.rows), training, system=system, beta=lesson.dpo.beta, seed=seed,
                folder=(folder or Path()) / "trl", on_step=step,
            )  # fmt: skip
        else:
            done = fit(
                hf, examples, training, seed=seed, pad=model.pad, checkpoint=folder, on_step=step,
                second_moments=second_moments,
            )  # fmt: skip
    after = _mean_nll(hf, unseen, model.pad)
    if unseen and not np.isfinite(after):  # the last step may be the one that breaks it
        raise RunError(
            f"training broke the student: its held-out loss is {after}",
            fix="lower training.learning_rate, or set dtype=float32",
        )
    return TrainedStudent(trained, student, done, before, after, examples)


def _check_lengths(model: Model, examples: Sequence[Example]) -> None:
    """Refuse rows that do not fit the context: cut, they would teach answers without an end."""
    context = context_length(model.hf)
    longest = max((len(example.ids) for example in examples), default=0)
    if context is not None and longest > context:
        count = sum(len(example.ids) > context for example in examples)
        raise DataError(
            f"{count} of {len(examples)} rows are longer than the context of {model.name}",
            got=f"up to {longest} tokens",
            allowed=f"{context} tokens, prompt and answer together",
            fix="leave those rows out, or train a model of longer context",
        )


def student_seed(seed: int) -> int:
    """From a run's seed: the same for every arm, so that treated and control students differ in their rows alone."""
    return derive_seed(seed, "train") >> 1


def student_dtype(dtype: Dtype, student: Student) -> Dtype:
    """Weights that are trained themselves are kept in float32: in bfloat16 small updates vanish.

    LoRA's own weights are float32 in any case, so its frozen base may be bfloat16.
    """
    return "float32" if dtype == "auto" and not isinstance(student, Lora) else dtype


def _mean_nll(hf: Any, examples: Sequence[Example], pad: int) -> float:
    return float(np.mean(completion_nll(hf, examples, pad))) if examples else float("nan")


@contextmanager
def _progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, for what takes more than two seconds; yields what to call with the rows done."""
    with tqdm(total=total, desc=f"training {what}", unit="row", delay=2, disable=None, leave=False) as bar:

        def advance(rows: int) -> None:
            bar.update(rows)

        yield advance
