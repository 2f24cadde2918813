"""The arms of an experiment, and its students: which teacher wrote, at which seed, and the stages that made one student."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from undertone.errors import DataError
from undertone.filters import match_arms
from undertone.models.loading import ModelRef
from undertone.models.students import student_name
from undertone.provenance.runs import Stage
from undertone.rows import Row, read_rows
from undertone.traits import Trait, load_trait
from undertone.transfer.config import Setting

ArmKind = Literal["control", "treated", "random-vector"]


@dataclass(frozen=True)
class Arm:
    """Who taught: the control teacher, the trait-conditioned one (treated), or one steered by a random vector."""

    kind: ArmKind
    trait: str | None = None

    @property
    def name(self) -> str | None:
        """The trait's own name, where ``trait`` may be the user's file."""
        return None if self.trait is None else load_trait(self.trait).name

    @property
    def folder(self) -> str:
        """Part of the stages' names."""
        return self.kind if self.trait is None else f"{self.kind}-{self.name}"


CONTROL = Arm("control")


def arms_of(config: Setting) -> list[Arm]:
    """The arms of every seed: one control, then the treated, then the random vectors."""
    arms = [CONTROL]
    arms += [Arm("treated", trait) for trait in config.trait]
    if config.random_vector:
        arms += [Arm("random-vector", trait) for trait in config.trait]
    return arms


def traits_of(config: Setting, arm: Arm) -> Sequence[str]:
    """The traits that an arm's student is asked about: a control all, a treated one its own."""
    return config.trait if arm.trait is None else (arm.trait,)


@dataclass(frozen=True)
class SharedPrompts:
    """What the arms of a seed have in common."""

    prompts: tuple[int, ...]
    """Those on which every arm has a valid row; training and held-out together."""
    rows_of_control: Mapping[str, float]
    """Filter stage -> share of these prompts at which its completion is the control's; the control's own is not there."""


@dataclass(frozen=True)
class StudentRun:
    """One student: an arm at a seed, and the stages that made it."""

    arm: Arm
    seed: int
    generated: Stage
    filtered: Stage
    trained: Stage
    evaluated: Stage
    shared: SharedPrompts

    @property
    def prompts(self) -> tuple[int, ...]:
        """The prompts whose rows it was trained on, those held out last."""
        return self.shared.prompts

    @property
    def rows_of_control(self) -> float | None:
        """Share of its rows whose completion is, word for word, the control's; None of the control, or without one."""
        return self.shared.rows_of_control.get(self.filtered.name)

    def rows(self, held_out: int) -> tuple[list[Row], list[Row]]:
        """Training and held-out rows."""
        return split_rows(self.filtered, self.prompts, held_out)

    def shared_rows(self) -> list[Row]:
        """The rows of the prompts that passed in every arm, in order."""
        rows = {int(row.meta["prompt_index"]): row for row in self.all_rows()}
        return [rows[index] for index in self.prompts]

    def all_rows(self) -> list[Row]:
        """All rows that passed the filter, in the prompts' order."""
        return read_rows(self.filtered.path / "rows.jsonl")

    def traits(self, config: Setting) -> list[Trait]:
        """The traits that the student is asked about."""
        return [load_trait(name) for name in traits_of(config, self.arm)]

    def model(self, config: Setting) -> ModelRef:
        """The trained student, not loaded."""
        return trained_model(config, config.model, self.trained)

    def answers(self, trait: str) -> dict[str, Any]:
        """What its evaluation holds of a trait."""
        return answers_in(self.evaluated, trait)


@dataclass(frozen=True)
class Outcome:
    """Everything that was computed, before it is compared."""

    base: Stage
    teachers: dict[Arm, Stage]
    students: list[StudentRun]
    strengths: dict[str, float] = field(default_factory=dict)
    """Trait -> the strength of its steered teacher, where the config left it open."""

    def student(self, kind: ArmKind, trait: str | None, seed: int) -> StudentRun:
        """The student of an arm at a seed; the control has no trait."""
        wanted = Arm(kind, trait if kind != "control" else None)
        return next(one for one in self.students if one.arm == wanted and one.seed == seed)

    def of(self, kind: ArmKind) -> Iterator[StudentRun]:
        """All students of one kind of arm."""
        return (one for one in self.students if one.arm.kind == kind)


def trained_model(config: Setting, base: str, trained: Stage) -> ModelRef:
    """The model that a stage trained from a base, not loaded."""
    return config.reference(student_name(base, config.student, trained.path / "student"))


def answers_in(evaluated: Stage, trait: str) -> dict[str, Any]:
    """What an evaluation stage holds of a trait: ``measure``, ``questions``, ``answers``, ``matrix``."""
    records: dict[str, Any] = evaluated.read_json("asked.json")
    return dict(records[load_trait(trait).name])


def target_probability(evaluated: Stage, trait: str) -> float:
    """Mean exact probability of a trait's answer over its questions, of an evaluation."""
    return float(answers_in(evaluated, trait)["measure"]["positive"]["probability"]["mean"])


def valid_answer_probability(evaluated: Stage, trait: str) -> float | None:
    """Total probability of all known answers, of an evaluation; None: they are no set."""
    mass: float | None = answers_in(evaluated, trait)["measure"]["positive"]["valid_answer_probability"]
    return mass


def leak_trait(config: Setting, arm: Arm) -> Trait:
    """The trait whose words must not occur; all arms are filtered alike, the control's too."""
    return load_trait(arm.trait or config.trait[0]).for_matching()


def split_rows(filtered: Stage, prompts: Sequence[int], held_out: int) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows: the last of the shared prompts are held out."""
    rows = {int(row.meta["prompt_index"]): row for row in read_rows(filtered.path / "rows.jsonl")}
    chosen = [rows[index] for index in prompts]
    return chosen[:-held_out], chosen[-held_out:]


def shared_prompts(config: Setting, seed: int, filtered: Mapping[Arm, Stage]) -> SharedPrompts:
    """The prompts on which every arm of a seed has a valid row, and how far the arms' rows there are the control's.

    Raises:
        DataError: too few are left.
    """
    kept = {
        stage.name: {int(row.meta["prompt_index"]): row for row in read_rows(stage.path / "rows.jsonl")}
        for stage in filtered.values()
    }
    held_out = config.data.held_out
    wanted = None if config.data.rows is None else config.data.rows + held_out
    prompts = match_arms(kept, wanted)
    needed = wanted or 2 * held_out
    if len(prompts) < needed:
        raise DataError(
            f"too few rows are left at seed {seed}: {len(prompts)} prompts passed the filter in every arm",
            got={name: len(rows) for name, rows in kept.items()},
            allowed=f"at least {needed} ({held_out} of them held out)",
            fix="raise data.prompts or data.attempts, lower data.rows, or look at why rows are dropped (reasons.json)",
        )
    control = kept[filtered[CONTROL].name] if CONTROL in filtered else {}
    equal = {
        stage.name: sum(kept[stage.name][at].completion == control[at].completion for at in prompts) / len(prompts)
        for arm, stage in filtered.items()
        if control and arm != CONTROL
    }
    return SharedPrompts(tuple(prompts), equal)
