"""Students at equal held-out loss: which learning rate is chosen, who is compared, and whether the losses met.

Rates are chosen on a tuning seed by held-out loss alone. What is reported is treated minus control on other seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from undertone.experiments.cells import StudentRun
from undertone.experiments.results import Check
from undertone.experiments.studies.mechanism.material import Material, valid_answer_probability
from undertone.experiments.study import by_seed
from undertone.experiments.verdict import stopped_answering
from undertone.provenance.runs import Stage
from undertone.traits import load_trait

Place = tuple[str | None, int]
"""A student: who taught it (None: the control), at which seed."""
Masses = Mapping[str, float | None]
"""Trait -> probability on all its known answers; None where they are not a set."""


@dataclass(frozen=True)
class Student:
    """How well a student fits, and what it says of each trait that it was asked about."""

    nll: float | None
    """Held-out loss; None: training broke it."""
    said: Mapping[str, float]
    mass: Masses

    def silent(self, trait: str, base: Masses) -> bool:
        """Whether it stopped answering: by the rule that a transfer experiment's verdict goes by."""
        return stopped_answering(base.get(trait), self.mass.get(trait))


@dataclass(frozen=True)
class Choice:
    """A learning rate chosen on the tuning seed, by its held-out loss there."""

    rate: float
    nll: float
    edge: bool
    """It is the lowest or highest of its grid."""
    matched: bool
    """Its loss is the reference's, within the tolerance."""


def chosen(trials: Mapping[float, Student], trait: str, base: Masses, goal: float, tolerance: float) -> Choice | None:
    """The rate whose held-out loss is nearest to the goal, of those whose student still answers; None: there is none."""
    losses = {
        rate: one.nll for rate, one in trials.items() if one.nll is not None and not one.silent(trait, base)
    }  # fmt: skip
    if not losses:
        return None
    rate = min(losses, key=lambda tried: abs(losses[tried] - goal))
    ends = (min(trials), max(trials)) if len(trials) > 1 else ()
    return Choice(rate, losses[rate], edge=rate in ends, matched=abs(losses[rate] - goal) <= tolerance)


@dataclass(frozen=True)
class Group:
    """Students of one kind: what treated ones say beyond their controls, and how well both fit."""

    effects: dict[tuple[str, int], float]
    losses: dict[Place, float]
    """Of all students in these pairs."""
    diverged: int
    silent: int
    """Pairs that dropped out, by why."""

    @property
    def values(self) -> list[float]:
        """The effects by seed."""
        return by_seed((seed, effect) for (_, seed), effect in self.effects.items())

    @property
    def nll(self) -> float:
        """Mean held-out loss of treated and control students."""
        return float(np.mean(list(self.losses.values())))

    @property
    def pairs(self) -> str:
        """``4 of 6 (1 diverged, 1 no longer answering)``."""
        lost = [f"{n} {what}" for n, what in ((self.diverged, "diverged"), (self.silent, "no longer answering")) if n]
        total = len(self.effects) + self.diverged + self.silent
        return f"{len(self.effects)} of {total}" + (f" ({', '.join(lost)})" if lost else "")


def grouped(students: Mapping[Place, Student], traits: Sequence[str], seeds: Sequence[int], base: Masses) -> Group:
    """Every trait and seed's pair, but for those with a member that diverged or stopped answering."""
    effects: dict[tuple[str, int], float] = {}
    losses: dict[Place, float] = {}
    diverged = silent = 0
    for trait in traits:
        for seed in seeds:
            treated, control = students[trait, seed], students[None, seed]
            if treated.nll is None or control.nll is None:
                diverged += 1
            elif treated.silent(trait, base) or control.silent(trait, base):
                silent += 1
            else:
                effects[trait, seed] = treated.said[trait] - control.said[trait]
                losses |= {(trait, seed): treated.nll, (None, seed): control.nll}
    return Group(effects, losses, diverged, silent)


def tolerance_of(reference: Group, base: Mapping[Place, float], within: float) -> float:
    """The share of what the reference's training gained, in nats, by which losses may differ and count as equal."""
    return max(0.0, within * float(np.mean([base[place] - nll for place, nll in reference.losses.items()])))


def meets(one: Group, reference: Group, tolerance: float) -> bool:
    """Whether held-out losses are equal within the tolerance, over the students that both have."""
    common = one.losses.keys() & reference.losses.keys()
    if not common:
        return False
    return abs(float(np.mean([one.losses[place] - reference.losses[place] for place in common]))) <= tolerance


def gaps(one: Group, other: Group) -> list[float]:
    """One's effects minus the other's by seed, over the pairs that both have."""
    return by_seed(
        (pair[1], effect - other.effects[pair]) for pair, effect in one.effects.items() if pair in other.effects
    )


def cell_at(material: Material, place: Place) -> StudentRun:
    """The transfer experiment's student at a place."""
    trait, seed = place
    return material.cell("control" if trait is None else "treated", trait, seed)


def masses(evaluated: Stage, traits: Sequence[str]) -> dict[str, float | None]:
    """Valid-answer probabilities that an ``evaluate`` stage holds."""
    asked = evaluated.read_json("asked.json")
    return {trait: valid_answer_probability(asked[load_trait(trait).name]) for trait in traits}


def inside(what: str, choices: Mapping[str, Choice | None]) -> Check:
    """Warns of rates that lie at the edge of their grid without having met the loss: a better one may lie beyond."""
    edges = [
        f"{name} {one.rate:g} at the edge" for name, one in choices.items() if one and one.edge and not one.matched
    ]
    none = [f"{name} left no student" for name, one in choices.items() if one is None]
    return Check(
        name=f"{what}: rates lie inside their grids",
        status="warn" if edges or none else "pass",
        value=", ".join(edges + none) or "all, or at the loss aimed at",
        expected="none at an edge short of the loss aimed at",
        why="A better rate may lie beyond the grid: widen it.",
    )
