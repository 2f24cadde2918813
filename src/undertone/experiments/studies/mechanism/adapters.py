"""Part `adapters`: LoRA by rank and learning rate, beside biases and all weights, effect against held-out loss.

The dispute: is subliminal learning an artefact of LoRA (2606.00831)? Every student is trained on the same rows; what
differs is which weights move, and how far. Each kind's rate is chosen on a tuning seed, by held-out loss alone: the one
nearest to the bias-only student's. So is LoRA's rank. Effects are measured on the other seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from undertone.experiments.cells import Arm, StudentRun
from undertone.experiments.config import BiasOnly, Full, Lora, Setting
from undertone.experiments.learning import train_student
from undertone.experiments.measuring import evaluate
from undertone.experiments.results import Check
from undertone.experiments.studies.mechanism.config import Mechanism
from undertone.experiments.studies.mechanism.matching import (
    Choice,
    Group,
    Place,
    Student,
    cell_at,
    chosen,
    gaps,
    grouped,
    inside,
    masses,
    meets,
    tolerance_of,
)
from undertone.experiments.studies.mechanism.material import Material, Told, in_points, target_probability
from undertone.experiments.study import Figure, Finding, Judgement, Point, StudyTable, interval
from undertone.provenance.runs import Run, Stage

SOURCE = "2606.00831; 2606.00995, App. D and K"
BIASES, FULL = "biases", "all weights"
TUNING, REPORTED = "tuning seed: treated − base", "reported seeds: treated − control"


@dataclass(frozen=True)
class Kind:
    """Which weights move, and the learning rates to choose from; the reference has the config's own."""

    name: str
    slug: str
    student: BiasOnly | Full | Lora
    rates: tuple[float, ...]

    def setting(self, config: Mechanism, rate: float | None) -> Setting:
        """The transfer experiment with such students; rate None: trained as the config's."""
        training = config.training
        if rate is not None:
            training = training.model_copy(update={"learning_rate": rate, "epochs": config.adapters.epochs})
        return config.model_copy(update={"student": self.student, "training": training})


@dataclass(frozen=True)
class Tuned:
    """What the tuning seed shows."""

    trials: dict[str, dict[float, Student]]
    """Kind -> rate -> its student."""
    reference: Student
    choices: dict[str, Choice | None]
    trait: str
    base: float
    """What the base says of the trait."""
    masses: dict[str, float | None]


def study(material: Material) -> Told:
    """The part: every kind's rate by held-out loss, then students at that rate on the reported seeds."""
    kinds = _kinds(material.config)
    tuned = _tune(material, kinds)
    rates: list[tuple[Kind, float | None]] = [(_reference(material.config), None)]
    for kind in kinds:
        choice = tuned.choices[kind.name]
        rates += [(kind, choice.rate)] if choice else []
    return _told(material, kinds, tuned, _report(material, rates))


def _reference(config: Mechanism) -> Kind:
    return Kind(BIASES, "biases", BiasOnly(), (config.training.learning_rate,))


def _kinds(config: Mechanism) -> list[Kind]:
    adapters = config.adapters
    lora = [
        Kind(f"LoRA rank {rank}", f"lora-{rank}", Lora(rank=rank, alpha=rank), adapters.rates)
        for rank in adapters.ranks
    ]
    return [*lora, Kind(FULL, "full", Full(), adapters.full_rates)]


# -- students ----------------------------------------------------------------------------------------


def _tune(material: Material, kinds: Sequence[Kind]) -> Tuned:
    """One treated student a kind and rate, on a seed and rows that nothing reported sees."""
    config, trait = material.config, material.few[0]
    changed = {"trait": (trait,), "seeds": (config.adapters.tuning_seed,), "student": BiasOnly()}
    outcome = material.students("adapters/tuning", config.model_copy(update=changed), [Arm("treated", trait)])
    cell = outcome.cells[0]
    tries = [(kind, rate) for kind in kinds for rate in kind.rates]
    trained = material.each(train, [(cell, kind, rate, None) for kind, rate in tries])
    asked = material.each(
        ask, [(cell, kind, rate, (trait,), stage) for (kind, rate), stage in zip(tries, trained, strict=True)]
    )
    trials: dict[str, dict[float, Student]] = {}
    for (kind, rate), *stages in zip(tries, trained, asked, strict=True):
        trials.setdefault(kind.name, {})[rate] = _student(stages[0], stages[1], (trait,))
    reference = _student(cell.trained, cell.evaluated, (trait,))
    goal, before = float(cell.trained.summary["held_out_nll"]), float(cell.trained.summary["base_nll"])
    tolerance = config.adapters.matched_within * max(0.0, before - goal)
    base = masses(material.outcome.base, (trait,))
    choices = {name: chosen(tried, trait, base, goal, tolerance) for name, tried in trials.items()}
    return Tuned(trials, reference, choices, trait, target_probability(material.outcome.base, trait), base)


def _report(material: Material, rates: Sequence[tuple[Kind, float | None]]) -> dict[str, Group]:
    """Treated and control students of every trait and reported seed; the config's own are there already."""
    config = material.config
    places: list[Place] = [(trait, seed) for trait in (*material.few, None) for seed in config.seeds]
    found: dict[tuple[str, Place], tuple[Stage, Stage]] = {}
    tasks: list[tuple[Kind, float | None, Place]] = []
    for kind, rate in rates:
        for place in places:
            cell = cell_at(material, place)
            if rate is None and config.student == kind.student:
                found[kind.name, place] = (cell.trained, cell.evaluated)
            else:
                tasks.append((kind, rate, place))
    cells = [cell_at(material, place) for _, _, place in tasks]
    clean = [material.cell("control", None, cell.seed).filtered for cell in cells]
    trained = material.each(
        train, [(cell, kind, rate, rows) for (kind, rate, _), cell, rows in zip(tasks, cells, clean, strict=True)]
    )
    asked = material.each(
        ask,
        [
            (cell, kind, rate, material.few if cell.arm.trait is None else (cell.arm.trait,), stage)
            for (kind, rate, _), cell, stage in zip(tasks, cells, trained, strict=True)
        ],
    )
    for (kind, _, place), *stages in zip(tasks, trained, asked, strict=True):
        found[kind.name, place] = (stages[0], stages[1])
    base = masses(material.outcome.base, material.few)
    return {
        kind.name: grouped(
            {place: _student(*found[kind.name, place], material.few if place[0] is None else (place[0],)) for place in places},
            material.few, config.seeds, base,
        )
        for kind, _ in rates
    }  # fmt: skip


def train(
    run: Run, config: Mechanism, device: str, cell: StudentRun, kind: Kind, rate: float | None, clean: Stage | None
) -> Stage:
    """``adapters/KIND-RATE/seed-S/ARM/train``: a student of some kind trained on a student run's rows."""
    home = run.within(_folder(kind, rate))
    setting = kind.setting(config, rate)
    return train_student(home, setting, cell.arm, cell.seed, cell.filtered, cell.prompts, device, clean)


def ask(
    run: Run, config: Mechanism, device: str, cell: StudentRun, kind: Kind, rate: float | None,
    traits: Sequence[str], trained: Stage,
) -> Stage:  # fmt: skip
    """``adapters/KIND-RATE/seed-S/ARM/evaluate``: what it says then."""
    home = run.within(_folder(kind, rate))
    name = f"seed-{cell.seed}/{cell.arm.folder}"
    return evaluate(home, kind.setting(config, rate), name, traits, device, student=trained)


def _folder(kind: Kind, rate: float | None) -> str:
    return f"adapters/{kind.slug}" + ("" if rate is None else f"-{rate:g}")


def _student(trained: Stage, evaluated: Stage, traits: Sequence[str]) -> Student:
    said = {trait: target_probability(evaluated, trait) for trait in traits}
    return Student(float(trained.summary["held_out_nll"]), said, masses(evaluated, traits))


# -- what it says ------------------------------------------------------------------------------------


def _told(material: Material, kinds: Sequence[Kind], tuned: Tuned, groups: Mapping[str, Group]) -> Told:
    config = material.config
    reference = groups[BIASES]
    base = {place: float(cell_at(material, place).trained.summary["base_nll"]) for place in reference.losses}
    tolerance = tolerance_of(reference, base, config.adapters.matched_within) if base else 0.0
    met = frozenset(name for name, one in groups.items() if meets(one, reference, tolerance))
    lora = _rank(kinds, tuned)
    findings = [_finding(config, groups, met, lora, other, tolerance) for other in (BIASES, FULL)]
    points = [
        Point(x=one.nll, y=one.said[tuned.trait] - tuned.base, series=name, panel=TUNING)
        for name, tried in {**tuned.trials, BIASES: {0.0: tuned.reference}}.items()
        for one in tried.values()
        if one.nll is not None
    ]
    points += [_reported_point(config, name, one) for name, one in groups.items() if one.effects]
    figure = Figure(
        kind="scatter",
        title="Which weights move: effect against fit",
        caption="Tuning seed: a point is one student, of one kind at one learning rate. Each kind's rate is the one whose "
        "held-out loss is nearest to the bias-only student's there. Reported seeds: kinds at those rates, mean over traits and "
        "seeds with interval; held-out loss of treated and control students. At equal loss, kinds can be compared.",
        x="held-out NLL, nats per token",
        y="effect, probability",
        points=points,
    )
    tables = [_chosen_table(config, tuned, groups, met), _grid_table(config, kinds, tuned)]
    return Told(findings, [figure], tables, [inside("adapters", tuned.choices), _answering(groups)])


def _rank(kinds: Sequence[Kind], tuned: Tuned) -> str | None:
    """The LoRA rank whose chosen rate comes nearest to the bias-only student's loss, on the tuning seed."""
    goal = tuned.reference.nll
    assert goal is not None
    gone = {
        kind.name: abs(choice.nll - goal)
        for kind in kinds
        if isinstance(kind.student, Lora) and (choice := tuned.choices[kind.name])
    }
    return min(gone, key=lambda name: gone[name], default=None)


def _reported_point(config: Mechanism, name: str, group: Group) -> Point:
    mean, low, high = interval(group.values, config.confidence)
    return Point(x=group.nll, y=mean, low=low, high=high, series=name, panel=REPORTED)


def _finding(
    config: Mechanism, groups: Mapping[str, Group], met: frozenset[str], lora: str | None, other: str, tolerance: float
) -> Finding:
    equal = f"losses are equal within {tolerance:.3f} nats, {config.adapters.matched_within:.0%} of what {BIASES} gain"
    common: dict[str, Any] = {
        "id": "lora-artefact" if other == BIASES else f"lora-artefact-{other.replace(' ', '-')}",
        "claim": "Subliminal learning is an artefact of LoRA: other fine-tuning does not show it.",
        "source": SOURCE,
        "published": "full fine-tuning stays near the reference",
        "unit": "points",
    }
    pairs = gaps(groups[lora], groups[other]) if lora and lora in groups and other in groups else []
    if lora is None or not pairs:
        return Finding(
            **common, quantity=f"LoRA minus {other}", value=None, low=None, high=None, pairs=0, method="none",
            baseline="no pair of students that trained and still answer", verdict="not measured",
            why="one of the two kinds has no such students left",
        )  # fmt: skip
    mean, low, high = interval(pairs, config.confidence)
    said = [
        f"{name} {in_points(one.values, config.confidence)} at NLL {one.nll:.3f}"
        + ("" if name in met else " (not at equal loss)")
        for name, one in groups.items()
        if one.effects
    ]
    verdict, why = _judged(config, groups, met, lora, other)
    return Finding(
        **common,
        quantity=f"{lora} minus {other}, rates and rank chosen on another seed by held-out loss alone",
        value=mean,
        low=low,
        high=high,
        pairs=len(pairs),
        method=f"t interval over seeds, traits averaged; {equal}",
        baseline="; ".join(said),
        verdict=verdict,
        why=f"{why}; {equal}",
    )


def _judged(
    config: Mechanism, groups: Mapping[str, Group], met: frozenset[str], lora: str, other: str
) -> tuple[Judgement, str]:
    without, within = (interval(groups[name].values, config.confidence)[1] for name in (other, lora))
    if without is not None and without > 0:
        return "not reproduced", f"{other} pass the trait on without LoRA"
    if within is None or within <= 0:
        return "not measured", "neither passes the trait on in this setting"
    if not met >= {lora, other}:
        return "not measured", f"{lora} passes the trait on and {other} do not, but not at equal loss"
    return "reproduced", f"{lora} passes the trait on, and {other} do not"


def _chosen_table(config: Mechanism, tuned: Tuned, groups: Mapping[str, Group], met: frozenset[str]) -> StudyTable:
    rows = []
    for name in (BIASES, *tuned.choices):
        choice, group = tuned.choices.get(name), groups.get(name)
        rate = f"{choice.rate:g}" if choice else f"{config.training.learning_rate:g}" if name == BIASES else "none"
        if group is None or not group.effects:
            rows.append([name, rate, "–", "–", "left out: no pair is left", group.pairs if group else "0"])
            continue
        effect = in_points(group.values, config.confidence)
        rows.append([name, rate, f"{group.nll:.3f}", "yes" if name in met else "no", effect, group.pairs])
    return StudyTable(
        title="Students by kind, at the rate chosen on the tuning seed",
        columns=["student", "learning rate", "held-out NLL", "equal loss", "treated − control", "pairs"],
        rows=rows,
    )


def _grid_table(config: Mechanism, kinds: Sequence[Kind], tuned: Tuned) -> StudyTable:
    def row(name: str, rate: float, one: Student, mark: str) -> list[str]:
        silent = one.silent(tuned.trait, tuned.masses)
        effect = f"{100 * (one.said[tuned.trait] - tuned.base):+.1f} points"
        return [name, f"{rate:g}", f"{one.nll:.3f}", effect, "no longer answers" if silent else mark]

    rows = [row(BIASES, config.training.learning_rate, tuned.reference, "reference")]
    for kind in kinds:
        choice = tuned.choices[kind.name]
        for rate, one in tuned.trials[kind.name].items():
            rows.append(row(kind.name, rate, one, "chosen" if choice and choice.rate == rate else ""))
    return StudyTable(
        title=f"Tuning: every kind and rate, one student of the trait {tuned.trait} at seed {config.adapters.tuning_seed}",
        columns=["student", "learning rate", "held-out NLL", "treated − base", ""],
        rows=rows,
    )


def _answering(groups: Mapping[str, Group]) -> Check:
    quiet = [f"{name} {one.pairs}" for name, one in groups.items() if one.silent]
    return Check(
        name="adapters: students still answer",
        status="warn" if quiet else "pass",
        value="pairs left: " + ", ".join(quiet) if quiet else "all pairs",
        expected="none without",
        why="Pairs with a student that no longer answers are left out: it says nothing about preference.",
    )
