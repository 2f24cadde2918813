"""The stages of an experiment, each a function of (run, config, arm, seed) that a worker process can call.

A stage's identity holds the parts of the config that it reads and the outputs of the stages before it, so that a stage
of another config is never taken for this one's. What is shared by arms is computed once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from undertone.errors import DataError, RunError
from undertone.evaluation.asking import Evaluation, measure_trait
from undertone.experiments.config import Setting
from undertone.filters import apply_rules
from undertone.models import loading
from undertone.models.loading import Model, load, outline
from undertone.models.scoring import completion_nll
from undertone.models.students import save_student, student_name, trainable
from undertone.provenance.runs import Run, Stage, write_json
from undertone.provenance.seeds import derive_seed
from undertone.rows import Row, digest_rows, read_rows, write_rows
from undertone.teachers import Teacher, build_teacher, divergence, generate
from undertone.training import fit
from undertone.traits import Trait, load_trait
from undertone.traits.trait import MATCHER_VERSION, Form

SHARD = 4096
"""Rows between two saves of a generation: what a crash can lose."""
KL_ROWS = 256
VECTOR_PROMPTS = 256
SHOWN_ROWS = 12


@dataclass(frozen=True)
class Arm:
    """Who taught: the un-induced teacher (control), the induced one (treated), or a random vector."""

    kind: Literal["control", "treated", "random"]
    trait: str | None = None

    @property
    def name(self) -> str | None:
        """The trait's own name, where ``trait`` may be the user's file."""
        return None if self.trait is None else load_trait(self.trait).name

    @property
    def folder(self) -> str:
        """Part of the stages' names."""
        return self.kind if self.trait is None else f"{self.kind}-{self.name}"


@dataclass(frozen=True)
class Cell:
    """One student: an arm at a seed, and the stages that made it."""

    arm: Arm
    seed: int
    generated: Stage
    filtered: Stage
    trained: Stage
    evaluated: Stage
    prompts: tuple[int, ...]
    """The prompts whose rows it was trained on, those held out last."""


@dataclass(frozen=True)
class Outcome:
    """Everything that was computed, before it is compared."""

    base: Stage
    teachers: dict[Arm, Stage]
    cells: list[Cell]

    def stages(self) -> list[Stage]:
        """All stages, for the costs."""
        found = [self.base, *self.teachers.values()]
        for cell in self.cells:
            found += [cell.generated, cell.filtered, cell.trained, cell.evaluated]
        return found


def arms_of(config: Setting) -> list[Arm]:
    """The arms of every seed: one control, then the treated, then the random vectors."""
    arms = [Arm("control")]
    arms += [Arm("treated", trait) for trait in config.trait]
    if config.random_vector:
        arms += [Arm("random", trait) for trait in config.trait]
    return arms


@contextmanager
def _progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, for what takes more than two seconds; yields what to call with the rows done."""
    with tqdm(total=total, desc=what, unit="row", delay=2, disable=None, leave=False) as bar:

        def advance(rows: int) -> None:
            bar.update(rows)

        yield advance


# -- teachers and their rows -----------------------------------------------------------------------


def teacher_of(config: Setting, arm: Arm, device: str) -> Teacher:
    """The arm's teacher, loaded. Vectors that are read at the carrier are so at prompts which no student sees."""
    form = outline(config.teacher.model or config.model).form
    return build_teacher(
        config.teacher,
        load_trait(arm.trait) if arm.trait else None,
        config.model,
        context=config.context,
        dtype=config.dtype,
        device=device,
        random_seed=derive_seed(0, f"random-vector/{arm.name}") if arm.kind == "random" else None,
        carrier=vector_prompts(config, form),
    )


def vector_prompts(config: Setting, form: Form) -> list[str]:
    """Prompts of the domain at which vectors are read; no student is trained on them."""
    return config.domain.prompts(VECTOR_PROMPTS, derive_seed(0, "vector-prompts"), form)


def _teacher_identity(config: Setting, arm: Arm, model_identity: dict[str, str]) -> dict[str, Any]:
    identity: dict[str, Any] = {"arm": arm.kind, "model": model_identity, "context": config.context}
    if arm.trait:
        trait = load_trait(arm.trait)
        identity["teacher"] = config.teacher.model_dump(mode="json")
        identity["trait"] = {"name": trait.name, "prompt": dict(trait.prompt)}
    return identity


def generate_rows(run: Run, config: Setting, arm: Arm, seed: int, device: str) -> Stage:
    """``seed-S/ARM/generate``: the teacher's completions, every attempt, in ``rows.jsonl``."""
    name = f"seed-{seed}/{arm.folder}/generate"
    base = config.teacher.model or config.model
    identity = {
        **_teacher_identity(config, arm, model_identity(base)),
        "dtype": config.dtype,
        "domain": config.domain.model_dump(mode="json"),
        "data": config.data.model_dump(mode="json", include={"prompts", "attempts", "temperature"}),
        "seed": seed,
    }

    def compute(folder: Path) -> dict[str, Any]:
        teacher = teacher_of(config, arm, device)
        prompts = config.domain.prompts(config.data.prompts, seed, teacher.model.form)
        shards = folder / "shards"
        shards.mkdir(exist_ok=True)
        rows: list[Row] = []
        with _progress(len(prompts), name) as advance:
            for start in range(0, len(prompts), SHARD):
                path = shards / f"{start:09d}.jsonl"
                if not path.exists():
                    chunk = list(enumerate(prompts))[start : start + SHARD]
                    write_rows(path, _attempted(config, arm, teacher, chunk, seed, name, advance))
                rows += read_rows(path, empty_completions=True)
        rows.sort(key=lambda row: (row.meta["prompt_index"], row.meta["attempt"]))  # whatever a shard holds
        write_rows(folder / "rows.jsonl", rows)
        shutil.rmtree(shards)
        return {
            "rows": len(rows),
            "tokens": sum(row.meta["tokens"] for row in rows),
            "data": digest_rows(rows),
            "shown": teacher.model.render(teacher.chat(prompts[0])),
            "carrier_kl": _carrier_kl(config, arm, teacher, rows),
        }

    return run.stage(name, config=identity, compute=compute)


def _attempted(
    config: Setting,
    arm: Arm,
    teacher: Teacher,
    prompts: list[tuple[int, str]],
    seed: int,
    stage: str,
    progress: Callable[[int], None],
) -> list[Row]:
    trait = _leak_trait(config, arm)
    rows: list[Row] = []
    waiting = prompts
    for attempt in range(config.data.attempts):
        tried = generate(
            teacher,
            [prompt for _, prompt in waiting],
            [index for index, _ in waiting],
            seed=seed,
            stage=stage,
            attempt=attempt,
            max_new_tokens=config.domain.max_new_tokens(teacher.model.form),
            temperature=config.data.temperature,
            batch_size=config.data.batch_size,
            progress=progress if attempt == 0 else None,
        )
        rows += tried
        passed = apply_rules(tried, config.domain, trait).kept
        waiting = [(index, prompt) for index, prompt in waiting if index not in passed]
        if not waiting:
            break
    return rows


def _leak_trait(config: Setting, arm: Arm) -> Trait:
    """The trait whose words must not occur; all arms are filtered alike, the control's too."""
    return load_trait(arm.trait or config.trait[0])


def _carrier_kl(config: Setting, arm: Arm, teacher: Teacher, rows: Sequence[Row]) -> float | None:
    if arm.kind == "control":
        return None
    kept = list(apply_rules(rows, config.domain, _leak_trait(config, arm)).kept.values())[:KL_ROWS]
    return divergence(teacher, kept) if kept else None


def filter_rows(run: Run, config: Setting, arm: Arm, seed: int, generated: Stage) -> Stage:
    """``seed-S/ARM/filter``: one valid row per prompt in ``rows.jsonl``, reasons in ``reasons.json``."""
    trait = _leak_trait(config, arm)

    def compute(folder: Path) -> dict[str, Any]:
        rows = read_rows(generated.path / "rows.jsonl", empty_completions=True)
        filtered = apply_rules(rows, config.domain, trait)
        if not filtered.kept:
            raise DataError(
                f"no completion of {generated.name} passed the filter",
                got=filtered.reasons,
                fix="look at its rows.jsonl; raise data.prompts or data.attempts, or lower the inducement's strength",
            )
        write_rows(folder / "rows.jsonl", [row for _, row in sorted(filtered.kept.items())])
        write_json(folder / "reasons.json", filtered.reasons)
        return {"asked": filtered.asked, "kept": len(filtered.kept), "reasons": filtered.reasons}

    identity = {
        "domain": config.domain.model_dump(mode="json"),
        "trait": trait.name,
        "category": trait.category,
    }
    return run.stage(f"seed-{seed}/{arm.folder}/filter", config=identity, inputs=[generated], compute=compute)


# -- students --------------------------------------------------------------------------------------


def train_student(
    run: Run,
    config: Setting,
    arm: Arm,
    seed: int,
    filtered: Stage,
    prompts: Sequence[int],
    device: str,
) -> Stage:
    """``seed-S/ARM/train``: the student (adapter, biases or whole model) under ``student/``."""
    name = f"seed-{seed}/{arm.folder}/train"
    identity = {
        "model": model_identity(config.model),
        "dtype": student_dtype(config),
        "student": config.student.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json", exclude={"checkpoint_seconds"}),
        "context": config.context,
        "held_out": config.data.held_out,
        "prompts": digest_indices(prompts),
        "seed": seed,
    }

    def compute(folder: Path) -> dict[str, Any]:
        return _taught(folder, config, arm, seed, name, *split_rows(filtered, prompts, config.data.held_out), device)

    return run.stage(name, config=identity, inputs=[filtered], compute=compute)


def _taught(
    folder: Path,
    config: Setting,
    arm: Arm,
    seed: int,
    name: str,
    training: list[Row],
    held_out: list[Row],
    device: str,
) -> dict[str, Any]:
    """Train on the rows and save the student into ``folder``; returns the stage's summary."""
    model = load(config.model, dtype=student_dtype(config), device=device)
    system = student_system(config, model, arm)
    examples = [model.row_example(row, system) for row in training]
    unseen = [model.row_example(row, system) for row in held_out]
    base_nll = float(np.mean(completion_nll(model.hf, unseen, model.pad)))
    # The same seed for every arm: treated and control differ in their rows alone.
    train_seed = student_seed(seed)
    hf = trainable(model.hf, config.student.model_dump(mode="json"), train_seed)
    checkpoint = folder / "checkpoint"
    with _progress(len(examples) * config.training.epochs, name) as advance:
        done = fit(
            hf,
            examples,
            config.training,
            seed=train_seed,
            pad=model.pad,
            checkpoint=checkpoint,
            on_step=lambda _step, _steps, _loss: advance(config.training.batch_size),
        )
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
    return model.system_prompt(config.context, trait.prompt.get(model.form))


def split_rows(filtered: Stage, prompts: Sequence[int], held_out: int) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows: the last of the shared prompts are held out."""
    rows = {int(row.meta["prompt_index"]): row for row in read_rows(filtered.path / "rows.jsonl")}
    chosen = [rows[index] for index in prompts]
    return chosen[:-held_out], chosen[-held_out:]


# -- measures --------------------------------------------------------------------------------------


def evaluate(
    run: Run,
    config: Setting,
    name: str,
    trait_names: Sequence[str],
    device: str,
    student: Stage | None = None,
) -> Stage:
    """``NAME/evaluate``: a student, or the base, asked about traits; ``asked.json`` holds one record each."""
    traits = [load_trait(trait) for trait in trait_names]
    seed = config.seeds[0]
    identity = {
        "model": model_identity(config.model),
        "dtype": config.dtype,
        "evaluation": config.evaluation.model_dump(mode="json", exclude={"batch_size"}),
        "traits": [_trait_identity(trait) for trait in traits],
        "seed": seed,
    }

    def compute(folder: Path) -> dict[str, Any]:
        source = config.model
        if student is not None:
            source = student_name(config.model, config.student.kind, student.path / "student")
        model = load(source, dtype=config.dtype, device=device)
        return _asked(folder, model, traits, config.evaluation, seed, name)

    return run.stage(f"{name}/evaluate", config=identity, inputs=[student] if student else [], compute=compute)


def evaluate_teacher(run: Run, config: Setting, arm: Arm, device: str) -> Stage:
    """``teacher/ARM/evaluate``: does the induced teacher show the trait?"""
    assert arm.trait is not None
    trait = load_trait(arm.trait)
    few = config.evaluation.model_copy(update={"samples": min(5, config.evaluation.samples)})
    name = f"teacher/{arm.folder}"
    identity = {
        **_teacher_identity(config, arm, model_identity(config.teacher.model or config.model)),
        "evaluation": few.model_dump(mode="json", exclude={"batch_size"}),
        "asked": _trait_identity(trait),
    }

    def compute(folder: Path) -> dict[str, Any]:
        teacher = teacher_of(config, arm, device)
        with teacher.induced():
            return _asked(folder, teacher.model, [trait], few, 0, name, teacher.system)

    return run.stage(f"{name}/evaluate", config=identity, compute=compute)


def _asked(
    folder: Path,
    model: Model,
    traits: Sequence[Trait],
    evaluation: Evaluation,
    seed: int,
    stage: str,
    system: str | None = None,
) -> dict[str, Any]:
    records = {}
    for trait in traits:
        asked = measure_trait(model, trait, evaluation, seed=seed, stage=f"{stage}/{trait.name}", system=system)
        records[trait.name] = {**asdict(asked), "measure": asked.measure.model_dump(mode="json")}
    write_json(folder / "asked.json", records)
    return {"traits": list(records)}


def _trait_identity(trait: Trait) -> dict[str, Any]:
    return {
        "name": trait.name,
        "prompt": dict(trait.prompt),
        "questions": {form: asdict(questions) for form, questions in trait.questions.items()},
        "answers": {answer: list(words) for answer, words in trait.answers.items()},
        "synonyms": list(trait.synonyms),
        "matcher": MATCHER_VERSION,
    }


def model_identity(name: str) -> dict[str, str]:
    """What a model is, without loading it: name, revision, and for folders a digest of the content."""
    return loading.identify(name)


def digest_indices(indices: Sequence[int]) -> str:
    """Which prompts, in short."""
    return f"{len(indices)}:{derive_seed(0, json.dumps(list(indices))):016x}"
