"""Who takes part in a run, put together from the flat list of students.

A group is one kind of model for one trait, over all its seeds: the base, the teacher, the control
students, the treated students, or any other arm. Charts and tables speak of groups only. A control
that was trained once and measured for one trait still answers for the others through its answer
distribution; where even that is missing the confusion matrix has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from undertone import stats
from undertone.transfer.results import ArmResult, Effect, Interval, Measure, Results

Kind = Literal["base", "teacher", "control", "treated", "other"]


@dataclass(frozen=True)
class Spread:
    """A mean, its interval where there is one, and the single values (per seed or trait)."""

    mean: float
    low: float | None = None
    high: float | None = None
    each: tuple[float, ...] = ()

    @property
    def has_interval(self) -> bool:
        """Whether there is a finite interval to draw."""
        bounds = (self.low, self.high)
        return all(bound is not None and math.isfinite(bound) for bound in bounds)


@dataclass(frozen=True)
class ModelGroup:
    """One kind of model for one trait, over its seeds."""

    kind: Kind
    name: str
    trait: str
    colour: str
    measures: tuple[Measure, ...] = ()
    students: tuple[ArmResult, ...] = ()
    confidence: float = stats.CONFIDENCE

    def spread(self, pick: Callable[[Measure], Interval | float | None]) -> Spread | None:
        """What ``pick`` finds in each measure, over the seeds; None where no measure has it."""
        return over_seeds((pick(measure) for measure in self.measures), self.confidence)


@dataclass(frozen=True)
class Cast:
    """Everybody in the run: the traits in the order of the effects, and their groups."""

    traits: tuple[str, ...]
    metric: Literal["probability", "rate"]
    base: dict[str, ModelGroup]
    teacher: dict[str, ModelGroup]
    control: dict[str, ModelGroup]
    treated: dict[str, ModelGroup]
    others: tuple[ModelGroup, ...] = ()
    seeds: tuple[int, ...] = field(default=())
    confidence: float = stats.CONFIDENCE

    @property
    def interval_words(self) -> str:
        """How wide the intervals are: those over seeds as the run asked, those over questions as they were measured."""
        asked, measured = (f"{100 * level:g}\u00a0% interval" for level in (self.confidence, stats.CONFIDENCE))
        return asked if asked == measured else f"{asked} over seeds (over questions: {measured})"

    @property
    def several(self) -> bool:
        """Whether several traits are compared (a zoo): pictures then have one row per trait."""
        return len(self.traits) > 1

    def groups(self, trait: str) -> list[ModelGroup]:
        """Base, teacher, control, treated and the other arms of one trait, those that exist."""
        by_kind = (self.base, self.teacher, self.control, self.treated)
        found = [groups[trait] for groups in by_kind if trait in groups]
        return found + [group for group in self.others if group.trait == trait]

    def score(self, measure: Measure) -> Interval:
        """The run's own metric on the positive questions (its rate, or its exact probability)."""
        positive = measure.positive
        use_rate = self.metric == "rate" and positive.rate is not None
        return positive.rate if use_rate and positive.rate is not None else positive.probability

    def control_score(self, trait: str, results: Results) -> Spread | None:
        """The control's score for a trait, from wherever the results have it."""
        if trait in self.control:
            return self.control[trait].spread(self.score)
        measures = [measure for group in self.control.values() for measure in group.measures]
        if any(trait in measure.answers for measure in measures):
            return over_seeds((measure.answers.get(trait) for measure in measures), self.confidence)
        table = results.confusion
        if table is not None and trait in table.answers:
            return over_seeds([table.control[table.answers.index(trait)]])
        return None


def assemble(results: Results) -> Cast:
    """Sort the students of a run into groups."""
    confidence = results.effect.confidence
    effects = [results.effect, *results.effects]
    known = {arm.trait for arm in results.arms} | set(results.base)
    order = [effect.trait for effect in effects] + [arm.trait for arm in results.arms]
    traits = tuple(dict.fromkeys(name for name in order if name in known)) or (results.trait,)
    found: dict[tuple[str, str], list[ArmResult]] = {}
    for arm in results.arms:
        found.setdefault((arm.arm, arm.trait), []).append(arm)
    control: dict[str, ModelGroup] = {}
    treated: dict[str, ModelGroup] = {}
    others: list[ModelGroup] = []
    hues: dict[str, int] = {}
    for (arm_name, trait), students in found.items():
        kind = kind_of(arm_name, trait)
        home = {"control": control, "treated": treated}.get(kind)
        if home is not None and trait not in home:
            home[trait] = _students(kind, kind, trait, f"var(--{kind})", students, confidence)
        else:
            colour = f"var(--other-{hues.setdefault(arm_name, len(hues)) % 4})"
            others.append(_students("other", arm_name, trait, colour, students, confidence))
    if len(traits) > 1:  # students without a treatment only stand beside the others
        traits = tuple(trait for trait in traits if trait in treated) or traits
    return Cast(
        traits=traits,
        metric=results.effect.metric,
        base={name: _model("base", name, measure) for name, measure in results.base.items()},
        teacher=_teachers(results, traits),
        control=control,
        treated=treated,
        others=tuple(others),
        seeds=tuple(sorted({arm.seed for arm in results.arms})),
        confidence=confidence,
    )


def kind_of(arm: str, trait: str) -> Kind:
    """Read an arm's name: ``control…``, ``treated…`` (or the trait itself), anything else."""
    if arm.startswith("control"):
        return "control"
    return "treated" if arm.startswith("treated") or arm == trait else "other"


def effect_labels(results: Results, cast: Cast) -> list[tuple[str, Effect]]:
    """Effects with the names of their rows: the trait, or the arm where a trait has several."""
    effects = list(results.effects) or [results.effect]
    labels = [effect.trait for effect in effects]
    for trait in {label for label in labels if labels.count(label) > 1}:
        names = ["treated", *(group.name for group in cast.others if group.trait == trait)]
        places = [place for place, label in enumerate(labels) if label == trait]
        for number, place in enumerate(places):
            labels[place] = names[number] if number < len(names) else f"{trait} {number + 1}"
    if results.effect not in effects:
        labels, effects = ["pooled", *labels], [results.effect, *effects]
    return list(zip(labels, effects, strict=True))


def over_seeds(values: Iterable[Interval | float | None], confidence: float = stats.CONFIDENCE) -> Spread | None:
    """Mean and interval of shares over seeds (never outside [0, 1]); of one seed, its own.

    The unit is the seed: ``stats.clustered_mean`` with one value per cluster. A single seed brings
    the interval over its questions, if it has one.
    """
    found = [value for value in values if value is not None]
    means = tuple(value.mean if isinstance(value, Interval) else value for value in found)
    if not means or not all(map(math.isfinite, means)):
        return None
    if len(means) == 1:
        only = found[0]
        if isinstance(only, Interval):
            return Spread(only.mean, only.low, only.high, means)
        return Spread(only, each=means)
    estimate = stats.clustered_mean([[min(max(mean, 0.0), 1.0)] for mean in means], confidence)
    return Spread(estimate.mean, estimate.low, estimate.high, means)


def pooled(spreads: Sequence[Spread | None]) -> Spread | None:
    """The mean over traits; its bounds are the lowest and the highest of them."""
    means = [spread.mean for spread in spreads if spread is not None]
    if not means:
        return None
    return Spread(sum(means) / len(means), min(means), max(means), tuple(means))


def _students(
    kind: Kind, name: str, trait: str, colour: str, students: Sequence[ArmResult], confidence: float
) -> ModelGroup:
    ordered = tuple(sorted(students, key=lambda student: student.seed))
    return ModelGroup(kind, name, trait, colour, tuple(arm.measure for arm in ordered), ordered, confidence)


def _model(kind: Kind, trait: str, measure: Measure) -> ModelGroup:
    return ModelGroup(kind, kind, trait, f"var(--{kind})", (measure,))


def _teachers(results: Results, traits: Sequence[str]) -> dict[str, ModelGroup]:
    """The teachers by trait; their keys are arms, which name or carry their trait."""
    carried = {arm.arm: arm.trait for arm in results.arms}
    found: dict[str, ModelGroup] = {}
    for arm, measure in results.teachers.items():
        if kind_of(arm, carried.get(arm, arm)) == "control":
            continue
        named = arm.rpartition(":")[2]
        alone = traits[0] if len(traits) == 1 else carried.get(arm, arm)
        trait = named if named in traits else alone
        found.setdefault(trait, _model("teacher", trait, measure))
    return found
