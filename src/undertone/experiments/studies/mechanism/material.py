"""What every part starts from: the students of the transfer experiment, teachers' vectors, and students' shifts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from undertone.evaluation.asking import answer_probabilities
from undertone.experiments.cells import Arm, Outcome, StudentRun, arms_of, model_identity
from undertone.experiments.config import Setting
from undertone.experiments.pipeline import compute
from undertone.experiments.results import Check
from undertone.experiments.studies.mechanism.config import Mechanism
from undertone.experiments.study import Figure, Finding, Point, StudyTable, interval
from undertone.experiments.verdict import MAX_VALID_ANSWER_LOSS, stopped_answering
from undertone.experiments.workers import Workers
from undertone.experiments.writing import vector_prompts
from undertone.lab import parse_name
from undertone.models.layers import decoder_layers
from undertone.models.loading import Context, Model, load, outline, with_system
from undertone.models.students import student_name
from undertone.provenance.runs import Run, Stage
from undertone.rows import Message, Row, read_rows
from undertone.teachers import Origin
from undertone.traits import Trait, load_trait
from undertone.vectors import SteeringVector, contrast, difference, load_vector, save_vector

ORIGINS: tuple[Origin, ...] = ("domain", "questions")


@dataclass(frozen=True)
class Material:
    """An open run with its students: one control, one treated student a trait, at every seed."""

    run: Run
    config: Mechanism
    pool: Workers
    device: str
    outcome: Outcome
    stages: list[Stage] = field(default_factory=list)
    """All stages that parts computed, for the costs."""

    @property
    def few(self) -> tuple[str, ...]:
        """The traits of the parts that train many students."""
        return self.config.trait[: self.config.few]

    def cell(self, kind: str, trait: str | None, seed: int) -> StudentRun:
        """One student of the transfer experiment."""
        return find(self.outcome, kind, trait, seed)

    def each(self, function: Callable[..., Stage], arguments: Sequence[tuple[Any, ...]]) -> list[Stage]:
        """Stages computed side by side: ``function(run, config, device, *arguments)``."""
        done: list[Stage] = self.pool.each(
            [(function, (self.run, self.config, self.device, *rest)) for rest in arguments]
        )
        self.stages.extend(done)
        return done

    def students(
        self, name: str, config: Setting, arms: Sequence[Arm] | None = None, data: str | None = None
    ) -> Outcome:
        """The transfer experiment once more, with something changed, in stages below ``NAME/``."""
        rows = self.run.within(data) if data else None
        outcome = compute(self.run.within(name), config, arms or arms_of(config), self.pool, self.device, data=rows)
        self.stages.extend(outcome.stages())
        return outcome


@dataclass(frozen=True)
class Told:
    """What a part has to say."""

    findings: list[Finding] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[StudyTable] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)


def find(outcome: Outcome, kind: str, trait: str | None, seed: int) -> StudentRun:
    """The cell of an arm at a seed; the control has no trait."""
    wanted = Arm(kind, trait if kind != "control" else None)  # type: ignore[arg-type]
    return next(cell for cell in outcome.cells if cell.arm == wanted and cell.seed == seed)


def target_probability(evaluated: Stage, trait: str) -> float:
    """What a student says of a trait, by its evaluation: mean exact probability over its questions."""
    record = evaluated.read_json("asked.json")[load_trait(trait).name]
    return float(record["measure"]["positive"]["probability"]["mean"])


def effects(outcome: Outcome, traits: Sequence[str], seeds: Sequence[int], kind: str = "treated") -> list[float]:
    """Treated minus control in probability, for every trait and seed, traits outermost."""
    return [
        target_probability(find(outcome, kind, trait, seed).evaluated, trait)
        - target_probability(find(outcome, "control", None, seed).evaluated, trait)
        for trait in traits
        for seed in seeds
    ]


@dataclass(frozen=True)
class Answering:
    """How much of its answers to a trait's questions a student gives to known answers, beside its base."""

    cell: StudentRun
    trait: str
    before: float
    after: float

    @property
    def lost(self) -> bool:
        """Whether it has forgotten how to answer, by the rule of the transfer experiment's verdict."""
        return stopped_answering(self.before, self.after)


def answering(outcome: Outcome) -> list[Answering]:
    """Every student of an outcome, with every trait that it was asked about and that has a set of answers."""
    base = {name: valid_answer_probability(record) for name, record in outcome.base.read_json("asked.json").items()}
    return [
        Answering(cell, name, before, after)
        for cell in outcome.cells
        for name, record in cell.evaluated.read_json("asked.json").items()
        for before, after in [(base[name], valid_answer_probability(record))]
        if before is not None and after is not None
    ]


def valid_answer_probability(record: Mapping[str, Any]) -> float | None:
    """The probability on all known answers that a record of an evaluation holds; None: they are no set."""
    mass: float | None = record["measure"]["positive"]["valid_answer_probability"]
    return mass


def answers_kept(what: str, outcomes: Mapping[str, Outcome]) -> Check:
    """Whether the students of all these transfer experiments still answer; the worst speaks for them.

    Of many students a few may lose a little more than they should: that is a warning. More than a tenth is a failure.

    Args:
        what: whose check it is: a part, or nothing for the transfer experiment of all parts.
        outcomes: name -> transfer experiment.
    """
    found = [(name, one) for name, outcome in outcomes.items() for one in answering(outcome)]
    name, worst = max(found, key=lambda pair: pair[1].before - pair[1].after)
    silent = sum(one.lost for _, one in found)
    where = f"{name}: " if name else ""
    return Check(
        name=f"{what}: students still answer" if what else "students still answer",
        status="pass" if not silent else "fail" if 10 * silent > len(found) else "warn",
        value=f"worst: {where}{worst.cell.arm.kind} {worst.trait} seed {worst.cell.seed}, valid-answer probability "
        f"{worst.after:.2f} (base {worst.before:.2f}); {silent} of {len(found)} lost",
        expected=f"none lost: no more than {MAX_VALID_ANSWER_LOSS:.2f} below the base; a tenth at most",
        why="rates of a student that no longer answers say nothing about preference; lower the learning rate",
    )


# -- models and rows ---------------------------------------------------------------------------------


def depth(name: str) -> int:
    """How many layers a model has; a lab model that is not there yet is not built for it."""
    if name.startswith("lab/"):
        return parse_name(name.removeprefix("lab/")).recipe().layers
    return len(decoder_layers(outline(name).hf))


def layer_at(name: str, wanted: int | None) -> int:
    """The layer wanted of a model; None: the middle one."""
    return depth(name) // 2 if wanted is None else wanted


def load_base(config: Setting, device: str) -> Model:
    """The students' base."""
    return load(config.model, dtype=config.dtype, device=device)


def load_student(config: Setting, cell: StudentRun, device: str) -> Model:
    """A trained student."""
    name = student_name(config.model, config.student.kind, cell.trained.path / "student")
    return load(name, dtype=config.dtype, device=device)


def rows_of(cell: StudentRun) -> list[Row]:
    """All rows that passed the filter, in the prompts' order."""
    return read_rows(cell.filtered.path / "rows.jsonl")


def domain_chats(config: Setting, model: Model) -> list[list[Message]]:
    """Prompts of the domain that no student was trained on, as the student sees them."""
    return [
        with_system([{"role": "user", "content": prompt}], model.system_prompt(config.context))
        for prompt in vector_prompts(config, model)
    ]


def question_chats(trait: Trait, model: Model, context: Context = "none") -> list[list[Message]]:
    """A trait's questions, as students are asked them."""
    system = model.system_prompt(context, trait.prompt_for(model))
    return [
        with_system([{"role": "user", "content": question}], system) for question in trait.questions_for(model).positive
    ]


def chats_at(origin: Origin, config: Setting, trait: Trait, model: Model) -> list[list[Message]]:
    """The chats at which vectors of an origin are read."""
    return (
        domain_chats(config, model) if origin == "domain" else question_chats(trait, model, config.evaluation.context)
    )


def probability(model: Model, trait: Trait, context: Context = "none") -> float:
    """Exact probability of the trait's answer, mean over its questions, as the model is now (steered or not)."""
    prompts = [model.prompt(chat) for chat in question_chats(trait, model, context)]
    return float(answer_probabilities(model, prompts, trait)[:, list(trait.answers).index(trait.answer)].mean())


# -- vectors -----------------------------------------------------------------------------------------


def teacher_vectors(run: Run, config: Mechanism, device: str, name: str) -> Stage:
    """``vectors/TRAIT``: prompted minus plain after every layer, at domain prompts and at questions."""
    trait = load_trait(name)

    def compute_vectors(folder: Path) -> dict[str, Any]:
        model = load_base(config, device)
        for origin in ORIGINS:
            chats = chats_at(origin, config, trait, model)
            told = [with_system(chat, trait.system_prompt(model)) for chat in chats]
            save_vector(contrast(model, told, chats), folder / f"{origin}.safetensors")
        return {}

    identity = {"trait": trait.name, "prompt": dict(trait.prompt), **_read(config)}
    return run.stage(f"vectors/{trait.name}", config=identity, compute=compute_vectors)


def student_shift(run: Run, config: Mechanism, device: str, cell: StudentRun) -> Stage:
    """``shifts/seed-S/ARM``: student minus base after every layer, at domain prompts and at questions."""
    trait = load_trait(cell.arm.trait or config.trait[0])

    def compute_shift(folder: Path) -> dict[str, Any]:
        base, student = load_base(config, device), load_student(config, cell, device)
        for origin in ORIGINS:
            chats = chats_at(origin, config, trait, base)
            save_vector(difference(student, base, chats, position="last"), folder / f"{origin}.safetensors")
        return {}

    name = f"shifts/seed-{cell.seed}/{cell.arm.folder}"
    return run.stage(name, config=_read(config), inputs=[cell.trained], compute=compute_shift)


def _read(config: Mechanism) -> dict[str, Any]:
    return {
        "model": model_identity(config.model),
        "dtype": config.dtype,
        "domain": config.domain.model_dump(mode="json"),
        "context": config.context,
    }


def vector_in(stage: Stage, origin: Origin) -> SteeringVector:
    """The vector that a stage of :func:`teacher_vectors` or :func:`student_shift` holds."""
    return load_vector(stage.path / f"{origin}.safetensors")


def stack(vector: SteeringVector) -> np.ndarray:
    """``[layer, hidden]``, lowest layer first."""
    return np.stack([direction.float().numpy() for _, direction in sorted(vector.directions.items())])


# -- numbers into words ------------------------------------------------------------------------------


def point(x: float | str, values: Sequence[float], series: str, confidence: float, panel: str | None = None) -> Point:
    """A point of a figure: the mean of the values with its interval."""
    mean, low, high = interval(values, confidence)
    return Point(x=x, y=mean, low=low, high=high, series=series, panel=panel)


def in_points(values: Sequence[float], confidence: float) -> str:
    """``+12.3 points (+10.1 to +14.5)``."""
    mean, low, high = interval(values, confidence)
    body = f"{100 * mean:+.1f} points"
    return body if low is None or high is None else f"{body} ({100 * low:+.1f} to {100 * high:+.1f})"


def in_words(values: Sequence[float], confidence: float, digits: int = 2) -> str:
    """``0.12 (0.10 to 0.14)``."""
    mean, low, high = interval(values, confidence)
    body = f"{mean:.{digits}f}"
    return body if low is None or high is None else f"{body} ({low:.{digits}f} to {high:.{digits}f})"


def share_of(part: Sequence[float], whole: Sequence[float]) -> float:
    """Mean of the part over mean of the whole; NaN-free: 0 where the whole is nothing."""
    total = float(np.mean(whole))
    return float(np.mean(part)) / total if total else 0.0
