"""The student runs of an experiment: which arm at which seed, and the stages that make one student."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from tqdm import tqdm

from undertone.experiments.config import Setting
from undertone.models import loading
from undertone.provenance.runs import Stage
from undertone.traits import load_trait


@dataclass(frozen=True)
class Arm:
    """Whose rows: the control teacher's, the trait-conditioned teacher's (treated), or those of a random vector."""

    kind: Literal["control", "treated", "random-vector"]
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
class StudentRun:
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
    cells: list[StudentRun]

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
        arms += [Arm("random-vector", trait) for trait in config.trait]
    return arms


@contextmanager
def progress_bar(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, for what takes more than two seconds; yields what to call with the rows done."""
    with tqdm(total=total, desc=what, unit="row", delay=2, disable=None, leave=False) as bar:

        def advance(rows: int) -> None:
            bar.update(rows)

        yield advance


def model_identity(name: str) -> dict[str, str]:
    """What a model is, without loading it: name, revision, and for folders a digest of the content."""
    return loading.identify(name)
