"""Students compared at matched held-out loss: which learning rate is chosen, who is compared, whether the losses meet.

Rates are chosen on a tuning seed by held-out loss alone. What is reported is treated minus control on other seeds, of those
kinds of students whose losses there are the reference's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from undertone.provenance.runs import Stage
from undertone.stats import CONFIDENCE
from undertone.studies.context import Context, Transfer
from undertone.studies.measurement import Measurement
from undertone.transfer.arms import StudentRun, target_probability, valid_answer_probability
from undertone.transfer.checks import stopped_answering
from undertone.verdicts import REPRODUCED, Rule, decide

Place = tuple[str | None, int]
"""A student: the trait of its teacher (None: the control teacher), and its seed."""
ValidAnswers = Mapping[str, float | None]
"""Trait -> valid-answer probability; None where the known answers are not a set."""


@dataclass(frozen=True)
class FittedStudent:
    """How well a student fits, and what it answers of each trait that it was asked about."""

    nll: float | None
    """Held-out loss, nats per token; None: training broke it."""
    probability: Mapping[str, float]
    valid: ValidAnswers

    @classmethod
    def of(cls, one: StudentRun, traits: Sequence[str]) -> FittedStudent:
        """A student of a transfer experiment."""
        said = {trait: target_probability(one.evaluated, trait) for trait in traits}
        return cls(float(one.trained.summary["held_out_nll"]), said, valid_answers(one.evaluated, traits))

    def silent(self, trait: str, base: ValidAnswers) -> bool:
        """Whether it stopped answering: by the rule that a transfer experiment's verdict goes by."""
        return stopped_answering(base.get(trait), self.valid.get(trait))


def valid_answers(evaluated: Stage, traits: Sequence[str]) -> dict[str, float | None]:
    """What an evaluation stage holds of the traits' answers."""
    return {trait: valid_answer_probability(evaluated, trait) for trait in traits}


@dataclass(frozen=True)
class RateChoice:
    """A learning rate chosen on the tuning seed, by its held-out loss there."""

    rate: float
    nll: float
    at_edge: bool
    """It is the lowest or highest of its grid."""
    matched: bool
    """Its loss is the one aimed at, within the tolerance."""


def choose_rate(
    trials: Mapping[float, FittedStudent], trait: str, base: ValidAnswers, goal: float, tolerance: float
) -> RateChoice | None:
    """The rate whose held-out loss is nearest to the goal, of those whose student still answers; None: there is none."""
    losses = {rate: one.nll for rate, one in trials.items() if one.nll is not None and not one.silent(trait, base)}
    if not losses:
        return None
    rate = min(losses, key=lambda tried: abs(losses[tried] - goal))
    ends = (min(trials), max(trials)) if len(trials) > 1 else ()
    return RateChoice(rate, losses[rate], at_edge=rate in ends, matched=abs(losses[rate] - goal) <= tolerance)


def choose_rates(
    trials: Mapping[str, Mapping[float, FittedStudent]], trait: str, base: ValidAnswers, goal: float, tolerance: float
) -> dict[str, RateChoice | None]:
    """:func:`choose_rate` for every kind of student."""
    return {name: choose_rate(tried, trait, base, goal, tolerance) for name, tried in trials.items()}


@dataclass(frozen=True)
class StudentGroup:
    """Students of one kind: what treated ones answer beyond their controls, and how well both fit.

    Attributes:
        effect: treated minus control, ``[trait, seed]``; NaN for pairs that are left out.
        losses: held-out loss of all students in the pairs that are left.
        diverged: how many pairs were left out because training broke a student.
        silent: how many because one stopped answering.
    """

    effect: Measurement
    losses: Mapping[Place, float]
    diverged: int
    silent: int

    @property
    def nll(self) -> float:
        """Mean held-out loss of treated and control students."""
        return float(np.mean(list(self.losses.values())))

    @property
    def pairs(self) -> str:
        """``4 of 6 (1 diverged, 1 no longer answering)``."""
        lost = [f"{n} {what}" for n, what in ((self.diverged, "diverged"), (self.silent, "no longer answering")) if n]
        total = self.effect.values.size
        return f"{total - self.diverged - self.silent} of {total}" + (f" ({', '.join(lost)})" if lost else "")


def group_students(
    students: Mapping[Place, FittedStudent],
    traits: Sequence[str],
    seeds: Sequence[int],
    base: ValidAnswers,
    confidence: float = CONFIDENCE,
) -> StudentGroup:
    """Every trait and seed's pair, but for those with a member that diverged or stopped answering."""
    effect = np.full((len(traits), len(seeds)), np.nan)
    losses: dict[Place, float] = {}
    diverged = silent = 0
    for at, trait in enumerate(traits):
        for column, seed in enumerate(seeds):
            treated, control = students[trait, seed], students[None, seed]
            if treated.nll is None or control.nll is None:
                diverged += 1
            elif treated.silent(trait, base) or control.silent(trait, base):
                silent += 1
            else:
                effect[at, column] = treated.probability[trait] - control.probability[trait]
                losses |= {(trait, seed): treated.nll, (None, seed): control.nll}
    return StudentGroup(Measurement(effect, confidence), losses, diverged, silent)


@dataclass(frozen=True)
class LossMatch:
    """Groups of students beside one whose held-out loss they are to meet.

    Attributes:
        groups: of every kind that has students.
        reference: the kind whose loss counts.
        base_losses: held-out loss of the base on the rows of every place, nats per token.
        within: share of what the reference's training gains, by which losses may differ and count as equal.
    """

    groups: Mapping[str, StudentGroup]
    reference: str
    base_losses: Mapping[Place, float]
    within: float

    @cached_property
    def tolerance(self) -> float:
        """The same in nats; 0 where the reference gained nothing or left no student."""
        losses = self.groups[self.reference].losses if self.reference in self.groups else {}
        gains = [self.base_losses[place] - nll for place, nll in losses.items()]
        return max(0.0, self.within * float(np.mean(gains))) if gains else 0.0

    def meets(self, name: str) -> bool:
        """Whether a kind's held-out losses are the reference's, over the students that both have."""
        if not (self.has_students(name) and self.has_students(self.reference)):
            return False
        own, other = self.groups[name].losses, self.groups[self.reference].losses
        common = own.keys() & other.keys()
        return bool(common) and abs(float(np.mean([own[p] - other[p] for p in common]))) <= self.tolerance

    def has_students(self, name: str) -> bool:
        """Whether a pair of students is left of a kind."""
        return name in self.groups and bool(self.groups[name].losses)

    def average(self, names: Sequence[str]) -> Measurement:
        """The mean effect of several kinds; a pair that some lack is the mean of the others."""
        effects = [self.groups[name].effect for name in names]
        values = np.ma.masked_invalid(np.stack([one.values for one in effects])).mean(axis=0)
        return replace(effects[0], values=np.ma.filled(values, np.nan))

    @property
    def equal(self) -> str:
        """What equal losses are, for notes."""
        return f"losses are equal within {self.tolerance:.3f} nats, {self.within:.0%} of what {self.reference} gains"

    def left_out(self, names: Sequence[str]) -> list[str]:
        """Which of these kinds are not compared, and why; and which lost some of their pairs."""
        there = [name for name in names if self.has_students(name)]
        fewer = [name for name in there if self.groups[name].diverged + self.groups[name].silent]
        said = {
            "left out, for want of students that trained and still answer": [n for n in names if n not in there],
            "left out, for want of a rate that meets the loss": [name for name in there if not self.meets(name)],
            "pairs left": [f"{name} {self.groups[name].pairs}" for name in fewer],
        }
        return [f"{why}: {', '.join(who)}" for why, who in said.items() if who]

    def row(self, name: str) -> list[str]:
        """Loss, whether it is the reference's, effect, pairs: of a kind, for a table."""
        if name not in self.groups:
            return ["–", "–", "left out: no rate leaves a student", "0"]
        group = self.groups[name]
        if not group.losses:
            return ["–", "–", "left out: no pair is left", group.pairs]
        return [f"{group.nll:.3f}", "yes" if self.meets(name) else "no", str(group.effect), group.pairs]


def is_unseen(effect: Measurement) -> bool:
    """Whether an effect has an interval and yet, by the rule of every claim, is not seen to be above 0."""
    return effect.count > 1 and decide(Rule("above"), effect.unit, effect.quantity).verdict != REPRODUCED


def check_rates(ctx: Context[Any], what: str, choices: Mapping[str, RateChoice | None]) -> None:
    """Warn of rates at the edge of their grid that have not met the loss: a better one may lie beyond."""
    edges = [
        f"{name} {one.rate:g} at the edge" for name, one in choices.items() if one and one.at_edge and not one.matched
    ]
    none = [f"{name} left no student" for name, one in choices.items() if one is None]
    ctx.check(
        f"{what}: rates lie inside their grids",
        not edges + none,
        ", ".join(edges + none) or "all, or at the loss aimed at",
        "none at an edge short of the loss aimed at",
        "A better rate may lie beyond the grid: widen it.",
    )


def student_at(transfer: Transfer, place: Place) -> StudentRun:
    """The student of a transfer experiment at a place."""
    trait, seed = place
    return transfer.outcome.student("control" if trait is None else "treated", trait, seed)


def places_of(traits: Sequence[str], seeds: Sequence[int]) -> list[Place]:
    """A treated student of every trait and a control, at every seed."""
    return [(trait, seed) for trait in (*traits, None) for seed in seeds]


def match_losses(
    transfer: Transfer,
    found: Mapping[str, Mapping[Place, FittedStudent]],
    traits: Sequence[str],
    reference: str,
    within: float,
) -> LossMatch:
    """Every kind's students on the rows of a transfer experiment's, beside those of the reference kind.

    Args:
        transfer: whose rows they learnt.
        found: kind -> its students at all :func:`places_of` the traits and the experiment's seeds.
        traits: what they were asked about.
        reference: the kind whose loss counts.
        within: see :class:`LossMatch`.
    """
    config, base = transfer.config, valid_answers(transfer.outcome.base, traits)
    groups = {
        name: group_students(students, traits, config.seeds, base, config.confidence)
        for name, students in found.items()
    }
    losses = {
        place: float(student_at(transfer, place).trained.summary["base_nll"])
        for place in places_of(traits, config.seeds)
    }
    return LossMatch(groups, reference, losses, within)
