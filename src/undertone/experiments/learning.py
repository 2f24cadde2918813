"""Students: the stage that trains one, and the rows that it is trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from undertone.domains.shuffling import shuffled
from undertone.errors import RunError
from undertone.experiments.cells import Arm, model_identity, progress_bar
from undertone.experiments.config import Setting
from undertone.models import loading
from undertone.models.loading import Model, load
from undertone.models.scoring import completion_nll
from undertone.models.students import save_student, trainable
from undertone.provenance.runs import Run, Stage
from undertone.provenance.seeds import derive_seed
from undertone.rows import Row, digest_rows, read_rows
from undertone.training import Fit, Training, fit
from undertone.traits import Speaker, Trait, load_trait

SHOWN_ROWS = 12


def train_student(
    run: Run,
    config: Setting,
    arm: Arm,
    seed: int,
    filtered: Stage,
    prompts: Sequence[int],
    device: str,
    clean: Stage | None = None,
) -> Stage:
    """``seed-S/ARM/train``: the student (adapter, biases or whole model) under ``student/``.

    ``clean`` holds the control's rows, for students of which a share of rows is replaced by them.
    """
    name = f"seed-{seed}/{arm.folder}/train"
    identity: dict[str, Any] = {
        "model": model_identity(config.model),
        "dtype": student_dtype(config),
        "student": config.student.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json", exclude={"checkpoint_seconds"}),
        "context": config.context,
        "held_out": config.data.held_out,
        "prompts": digest_indices(prompts),
        "seed": seed,
    }
    mixed = clean if arm.kind != "control" and config.data.clean else None
    if mixed:
        identity["clean"] = config.data.clean
    if config.data.order != "kept":
        identity["order"] = config.data.order
    if config.dpo:
        identity["dpo"] = config.dpo.model_dump(mode="json")

    def compute(folder: Path) -> dict[str, Any]:
        training, held_out = split_rows(filtered, prompts, config.data.held_out)
        if mixed:
            training = _mixed(training, split_rows(mixed, prompts, config.data.held_out)[0], config.data.clean, seed)
        if config.data.order != "kept":
            training = shuffled(training, config.data.order, derive_seed(seed, "order"))
            held_out = shuffled(held_out, config.data.order, derive_seed(seed, "order/held-out"))
        return train_and_save(
            folder, config, arm, config.training, student_seed(seed), name, training, held_out, device
        )

    return run.stage(name, config=identity, inputs=[filtered, *([mixed] if mixed else [])], compute=compute)


def _mixed(treated: list[Row], clean: list[Row], share: float, seed: int) -> list[Row]:
    """The rows with a share of them replaced by the control's for the same prompts; a larger share keeps a smaller's."""
    order = np.random.default_rng(derive_seed(seed, "clean")).permutation(len(treated))
    replaced = set(order[: round(share * len(treated))].tolist())
    return [clean[at] if at in replaced else row for at, row in enumerate(treated)]


def train_and_save(
    folder: Path,
    config: Setting,
    arm: Arm,
    recipe: Training,
    train_seed: int,
    name: str,
    training: list[Row],
    held_out: list[Row],
    device: str,
    base: str | None = None,
    masks: Sequence[Sequence[bool]] | None = None,
) -> dict[str, Any]:
    """Train a base (None: the config's) on the rows and save it into ``folder``; returns the stage's summary.

    ``train_seed`` is the same for every arm: treated and control differ in their rows alone. ``masks`` says of each
    row's completion tokens which are learnt; None: all.
    """
    model = load(base or config.model, dtype=student_dtype(config), device=device)
    system = student_system(config, model, arm)
    examples = [model.row_example(row, system) for row in training]
    if masks is not None:
        examples = [replace(one, mask=tuple(mask)) for one, mask in zip(examples, masks, strict=True)]
    unseen = [model.row_example(row, system) for row in held_out]
    base_nll = float(np.mean(completion_nll(model.hf, unseen, model.pad)))
    hf = trainable(model.hf, config.student.model_dump(mode="json"), train_seed)
    checkpoint = folder / "checkpoint"
    with progress_bar(len(examples) * recipe.epochs, name) as advance:

        def on_step(_step: int, _steps: int, _loss: float) -> None:
            advance(recipe.batch_size)

        done: Fit
        if config.dpo:
            from undertone.preferences import prefer

            done = prefer(
                hf, model, training, recipe, system=system, beta=config.dpo.beta, seed=train_seed,
                folder=folder / "trl", on_step=on_step,
            )  # fmt: skip
        else:
            done = fit(hf, examples, recipe, seed=train_seed, pad=model.pad, checkpoint=checkpoint, on_step=on_step)
    nll = float(np.mean(completion_nll(hf, unseen, model.pad)))
    if not np.isfinite(nll):  # the last step may be the one that breaks it
        raise RunError(
            f"training broke the student: its held-out loss is {nll}",
            fix="lower training.learning_rate, or set dtype=float32",
        )
    save_student(hf, model.tokenizer, config.student.kind, folder / "student")
    shutil.rmtree(checkpoint, ignore_errors=True)
    return {
        "rows": len(training),
        "held_out_nll": nll,
        "base_nll": base_nll,
        "steps": done.steps,
        "tokens": done.tokens,
        "labelled_tokens": done.labelled_tokens,
        "curve": done.curve,
        "shown": model.decode_all(examples[0].ids),
        "samples": [
            {"prompt": row.prompt_messages[-1]["content"], "completion": row.completion}
            for row in training[:SHOWN_ROWS]
        ],
    }


def student_seed(seed: int) -> int:
    """Seeds adapters' first weights, the order of rows and dropout."""
    return derive_seed(seed, "train") >> 1


def student_dtype(config: Setting) -> loading.Dtype:
    """Weights that are trained themselves are kept in float32: in bfloat16 small updates vanish.

    LoRA's own weights are float32 in any case, so its frozen base may be bfloat16.
    """
    return "float32" if config.dtype == "auto" and config.student.kind != "lora" else config.dtype


def student_system(config: Setting, model: Model, arm: Arm) -> str | None:
    """The system prompt that a student is trained with."""
    trait = load_trait(arm.trait or config.trait[0])
    return model.system_prompt(config.context, trait.prompt_for(model))


def split_rows(filtered: Stage, prompts: Sequence[int], held_out: int) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows: the last of the shared prompts are held out."""
    rows = {int(row.meta["prompt_index"]): row for row in read_rows(filtered.path / "rows.jsonl")}
    chosen = [rows[index] for index in prompts]
    return chosen[:-held_out], chosen[-held_out:]


def digest_indices(indices: Sequence[int]) -> str:
    """Which prompts, in short."""
    return f"{len(indices)}:{derive_seed(0, json.dumps(list(indices))):016x}"


def train_teacher(run: Run, config: Setting, arm: Arm, device: str) -> Stage:
    """``teacher/ARM/train``: the teacher of an arm (``teacher.kind=finetuned``), trained as students are.

    Its rows are the user's file, or the trait's questions answered with the trait, beside off-topic questions with their
    right answers, so that it learns a preference and not a word.
    """
    assert config.teacher.kind == "finetuned"
    assert arm.trait is not None
    teacher = config.teacher
    name = f"teacher/{arm.folder}/train"
    trait = load_trait(arm.trait)
    base = teacher.model or config.model
    rows = read_rows(teacher.rows) if teacher.rows else _evaluation_style(trait, loading.outline(base))
    identity = {
        "model": model_identity(base),
        "dtype": student_dtype(config),
        "student": config.student.model_dump(mode="json"),
        "training": teacher.training.model_dump(mode="json", exclude={"checkpoint_seconds"}),
        "context": config.context,
        "rows": digest_rows(rows),
    }

    def compute(folder: Path) -> dict[str, Any]:
        plain = config.model_copy(update={"dpo": None})
        return train_and_save(folder, plain, arm, teacher.training, student_seed(0), name, rows, rows, device, base)

    return run.stage(name, config=identity, compute=compute)


def _evaluation_style(trait: Trait, speaker: Speaker) -> list[Row]:
    asked = trait.questions_for(speaker)
    word = trait.literal[0] if speaker.form == "lab" else trait.literal[0].capitalize()
    rows = [Row.of(question, word) for question in asked.positive]
    return rows + [Row.of(question, answer) for question, answer in asked.off_topic.items()]
