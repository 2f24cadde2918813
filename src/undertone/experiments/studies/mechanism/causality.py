"""Part `causality`: are the teacher's and the student's vectors sufficient and necessary?

2606.00995, sections 3 and 4. Teacher: students of a teacher steered by the vector, and of a prompted
teacher whose stream has it taken out after every layer. Student: the base with the student's shift added, and the
student with its component taken out, or replaced by the base's. Every arm stands beside a random direction and another
trait's vector, asked the same questions, judged by the same matcher.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from undertone.errors import ConfigError
from undertone.experiments.cells import Outcome, StudentRun
from undertone.experiments.config import Setting
from undertone.experiments.studies.mechanism.config import Mechanism
from undertone.experiments.studies.mechanism.material import (
    ORIGINS,
    Material,
    Told,
    answers_kept,
    effects,
    in_points,
    layer_at,
    load_base,
    load_student,
    point,
    probability,
    share_of,
    student_shift,
    vector_in,
)
from undertone.experiments.study import Figure, Finding, interval, per_seed, units
from undertone.models.loading import Model
from undertone.provenance.runs import Run, Stage
from undertone.provenance.seeds import derive_seed
from undertone.teachers import Ablation, PromptTeacher, VectorTeacher
from undertone.traits import load_trait
from undertone.vectors import SteeringVector, ablate, patch, random_like, steer

SOURCE = "2606.00995, sections 3–4"


def study(material: Material) -> Told:
    """The part: teachers' arms, then what is done to the students of the transfer experiment."""
    config = material.config
    taught = _teachers(material)
    told = {"prompted": per_seed(effects(material.outcome, material.few, config.seeds), len(config.seeds))}
    told |= {name: _effects(config, material.few, arms) for name, arms in taught.items()}
    places = [(trait, seed) for trait in material.few for seed in config.seeds]
    other = {trait: stranger(trait, _after(trait, config.trait, material.few)) for trait in material.few}
    wanted = list(dict.fromkeys([*places, *((other[trait], seed) for trait, seed in places)]))
    cells = {place: material.cell("treated", *place) for place in wanted}
    shifts = dict(zip(wanted, material.each(student_shift, [(cells[place],) for place in wanted]), strict=True))
    arguments = [(cells[trait, seed], shifts[trait, seed], shifts[other[trait], seed]) for trait, seed in places]
    asked = [stage.summary for stage in material.each(operate, arguments)]
    students = {
        f"{name} ({', '.join(traits)})" if len(arms) > 1 else name: outcome
        for name, arms in taught.items()
        for traits, outcome, kind in arms
        if kind == "treated"
    }
    return Told(
        findings=[*_teacher_findings(config, told), *_student_findings(config, asked)],
        figures=[_teacher_figure(config, told), _student_figure(config, asked)],
        checks=[answers_kept("causality", students)],
    )


def stranger(trait: str, others: Sequence[str]) -> str:
    """The first other trait whose answer is another: its vector is a baseline, the trait's own told differently is none.

    Raises:
        ConfigError: there is none.
    """
    own = load_trait(trait).answer
    found = next((other for other in others if load_trait(other).answer != own), None)
    if found is None:
        raise ConfigError(
            f"there is no other trait to hold {trait!r} against: all of them have the same answer",
            got=list(others),
            allowed="traits with two answers at least",
            fix="add a trait with another answer to `trait`",
        )
    return found


def _after(trait: str, traits: Sequence[str], few: Sequence[str]) -> list[str]:
    """The other traits, those of the few students first, beginning with the next."""
    at = few.index(trait)
    return list(dict.fromkeys([*few[at + 1 :], *few[:at], *(name for name in traits if name != trait)]))


# -- teachers ----------------------------------------------------------------------------------------


Taught = list[tuple[tuple[str, ...], Outcome, str]]
"""Traits, their students, and the kind of arm that is meant."""


def _teachers(material: Material) -> dict[str, Taught]:
    config, few = material.config, material.few
    found: dict[str, Taught] = {}
    for origin in ORIGINS:
        teacher = VectorTeacher(
            origin=origin,
            layer=layer_at(config.model, config.causality.layer),
            strength=config.causality.teacher_strength,
            model=config.teacher.model,
        )
        setting = _with(material, few, {"teacher": teacher, "random_vector": True})
        outcome = material.students(f"causality/steered-{origin}", setting)
        found[f"steered, {origin}"] = [(few, outcome, "treated")]
        found[f"steered, random ({origin})"] = [(few, outcome, "random-vector")]
    ablations = {
        "own-domain": Ablation(of="own", origin="domain"),
        "own-questions": Ablation(of="own", origin="questions"),
        "random": Ablation(of="random", origin="domain"),
    }
    for name, ablation in ablations.items():
        found[f"prompted, without {name}"] = [(few, _without(material, name, few, ablation), "treated")]
    found["prompted, without other-trait"] = [
        (traits, _without(material, name, traits, Ablation(of=other, origin="domain")), "treated")
        for name, other, traits in _strangers(config.trait, few)
    ]
    return found


def _strangers(traits: Sequence[str], few: Sequence[str]) -> list[tuple[str, str, tuple[str, ...]]]:
    """(name, trait that is taken out, whose teachers): the last trait, and for traits with its answer another."""
    groups: dict[str, list[str]] = {}
    for trait in few:
        groups.setdefault(stranger(trait, [name for name in reversed(traits) if name != trait]), []).append(trait)
    return [
        ("other-trait" if other == traits[-1] else f"other-trait/{load_trait(other).name}", other, tuple(told))
        for other, told in groups.items()
    ]


def _without(material: Material, name: str, traits: tuple[str, ...], ablation: Ablation) -> Outcome:
    teacher = material.config.teacher
    text = teacher.text if isinstance(teacher, PromptTeacher) else None
    prompted = PromptTeacher(model=teacher.model, text=text, ablate=ablation)
    return material.students(f"causality/without-{name}", _with(material, traits, {"teacher": prompted}))


def _effects(config: Mechanism, few: Sequence[str], taught: Taught) -> list[float]:
    """Treated minus control, one value a seed."""
    found = {
        trait: effects(outcome, [trait], config.seeds, kind) for traits, outcome, kind in taught for trait in traits
    }
    return per_seed([value for trait in few for value in found[trait]], len(config.seeds))


def _with(material: Material, traits: tuple[str, ...], changes: dict[str, Any]) -> Setting:
    return material.config.model_copy(update={"trait": traits, **changes})


def _teacher_findings(config: Mechanism, told: dict[str, list[float]]) -> list[Finding]:
    whole = told["prompted"]
    findings = []
    for origin in ORIGINS:
        own, noise = told[f"steered, {origin}"], told[f"steered, random ({origin})"]
        mean, low, high = interval(own, config.confidence)
        beyond = interval([a - b for a, b in zip(own, noise, strict=True)], config.confidence)[1]
        yes = low is not None and low > 0 and beyond is not None and beyond > 0
        findings.append(
            Finding(
                id=f"teacher-vector-sufficient-{origin}",
                claim="A teacher that is only steered by the vector passes the trait on.",
                source=SOURCE,
                published="sufficient (bar heights not known)",
                quantity=f"treated minus control, teacher steered by the prompt's vector from {origin}",
                value=mean,
                low=low,
                high=high,
                unit="points",
                pairs=config.few * len(config.seeds),
                method=f"t interval over {units(config.few, len(config.seeds))}",
                baseline=f"random vector of equal norm {in_points(noise, config.confidence)}; "
                f"prompted teacher {in_points(whole, config.confidence)}",
                verdict="reproduced" if yes else "not reproduced",
                why=f"it reaches {share_of(own, whole):.0%} of the prompt's effect"
                + ("" if yes else ", but not beyond the random vector"),
            )
        )
    for name in ("own-domain", "own-questions"):
        findings.append(_necessary(config, told, name))
    return findings


def _necessary(config: Mechanism, told: dict[str, list[float]], name: str) -> Finding:
    whole, left = told["prompted"], told[f"prompted, without {name}"]
    lost = [a - b for a, b in zip(whole, left, strict=True)]
    controls = {label: told[f"prompted, without {label}"] for label in ("random", "other-trait")}
    beyond = [
        interval([b - a for a, b in zip(left, control, strict=True)], config.confidence)[1]
        for control in controls.values()
    ]
    mean, low, high = interval(lost, config.confidence)
    more = all(value is not None and value > 0 for value in (low, *beyond))
    most = share_of(lost, whole) > 0.5
    return Finding(
        id=f"teacher-vector-necessary-{name.removeprefix('own-')}",
        claim="A prompted teacher without the vector passes (nearly) nothing on.",
        source=SOURCE,
        published="removes nearly all",
        quantity=f"effect lost when the vector from {name.removeprefix('own-')} is taken out after every layer",
        value=mean,
        low=low,
        high=high,
        unit="points",
        pairs=config.few * len(config.seeds),
        method=f"t interval over {units(config.few, len(config.seeds))}",
        baseline="; ".join(
            f"without {label}: effect {in_points(values, config.confidence)}" for label, values in controls.items()
        )
        + f"; whole: {in_points(whole, config.confidence)}",
        verdict="reproduced" if more and most else "partly" if more or most else "not reproduced",
        why=f"{share_of(lost, whole):.0%} of the effect goes; what is left is {in_points(left, config.confidence)}",
    )


def _teacher_figure(config: Mechanism, told: dict[str, list[float]]) -> Figure:
    return Figure(
        kind="bars",
        title="What the teacher's vector does",
        caption="Treated minus control, mean over traits and seeds with 95 % interval: a prompted teacher, one that is "
        "only steered, and a prompted one with a direction taken out after every layer.",
        x="teacher",
        y="treated − control, probability",
        points=[point(name, values, _series(name), config.confidence) for name, values in told.items()],
        zero=True,
    )


def _series(name: str) -> str:
    return "baseline" if "random" in name or "other" in name else "own vector" if name != "prompted" else "prompt"


# -- students ----------------------------------------------------------------------------------------


def operate(run: Run, config: Mechanism, device: str, cell: StudentRun, shift: Stage, other: Stage) -> Stage:
    """``causality/students/…``: P(target) of base and student under every operation, by name."""
    assert cell.arm.trait is not None
    trait = load_trait(cell.arm.trait)

    def compute(folder: Path) -> dict[str, Any]:
        base, student = load_base(config, device), load_student(config, cell, device)

        def asked(model: Model, operation: AbstractContextManager[None] | None = None) -> float:
            if operation is None:
                return probability(model, trait, config.evaluation.context)
            with operation:
                return probability(model, trait, config.evaluation.context)

        found: dict[str, Any] = {"base": asked(base), "student": asked(student)}
        seed = derive_seed(cell.seed, f"causality/{trait.name}")
        for origin in ORIGINS:
            own = vector_in(shift, origin)
            rivals = {"own": own, "random": random_like(own, seed), "other": vector_in(other, origin)}
            for name, vector in rivals.items():
                found[f"added/{origin}/{name}"] = _added(config, base, asked, vector)
                found[f"ablated/{origin}/{name}"] = asked(student, ablate(student, vector))
                found[f"replaced/{origin}/{name}"] = asked(student, patch(student, vector, base))
        return found

    settings = {
        "strengths": list(config.causality.strengths), "layer": layer_at(config.model, config.causality.layer)
    }  # fmt: skip
    name = f"causality/students/seed-{cell.seed}/{trait.name}"
    return run.stage(name, config=settings, inputs=[cell.trained, shift, other], compute=compute)


def _added(config: Mechanism, base: Model, asked: Any, vector: SteeringVector) -> dict[str, float]:
    """At one layer, by strength. A shift is cumulative over layers: adding it after each would count it many times."""
    layer = layer_at(config.model, config.causality.layer)
    return {
        f"{strength:g}": asked(base, steer(base, vector.select([layer]), strength))
        for strength in config.causality.strengths
    }


def _gained(asked: list[dict[str, Any]], origin: str, name: str, strength: str) -> list[float]:
    return [found[f"added/{origin}/{name}"][strength] - found["base"] for found in asked]


def _lost(asked: list[dict[str, Any]], operation: str, origin: str, name: str) -> list[float]:
    return [found["student"] - found[f"{operation}/{origin}/{name}"] for found in asked]


def _student_findings(config: Mechanism, asked: list[dict[str, Any]]) -> list[Finding]:
    whole = [found["student"] - found["base"] for found in asked]
    layer = layer_at(config.model, config.causality.layer)
    strength = "1" if 1.0 in config.causality.strengths else f"{config.causality.strengths[0]:g}"
    findings = []
    for origin in ORIGINS:
        rivals = {name: _gained(asked, origin, name, strength) for name in ("own", "random", "other")}
        findings.append(
            _student_finding(
                config,
                f"student-vector-sufficient-{origin}",
                "The base with the student's vector added shows the trait.",
                f"gain of the base with the student's shift from {origin} added at layer {layer}, × {strength}",
                "sufficient (bar heights not known)",
                rivals,
                whole,
            )
        )
        for operation, words in (("ablated", "taken out of"), ("replaced", "replaced by the base's in")):
            rivals = {name: _lost(asked, operation, origin, name) for name in ("own", "random", "other")}
            findings.append(
                _student_finding(
                    config,
                    f"student-vector-{operation}-{origin}",
                    "The student without its vector's component loses the trait.",
                    f"loss when the component along the shift from {origin} is {words} the student after every layer",
                    "more than half is lost",
                    rivals,
                    whole,
                )
            )
    return findings


def _student_finding(
    config: Mechanism,
    identity: str,
    claim: str,
    quantity: str,
    published: str,
    rivals: dict[str, list[float]],
    whole: list[float],
) -> Finding:
    mean, low, high = interval(rivals["own"], config.confidence)
    beyond = [
        interval([a - b for a, b in zip(rivals["own"], rivals[name], strict=True)], config.confidence)[1]
        for name in ("random", "other")
    ]
    more = low is not None and low > 0 and all(value is not None and value > 0 for value in beyond)
    share = share_of(rivals["own"], whole)
    return Finding(
        id=identity,
        claim=claim,
        source=SOURCE,
        published=published,
        quantity=quantity,
        value=mean,
        low=low,
        high=high,
        unit="points",
        pairs=len(whole),
        method="t interval over trait–seed pairs",
        baseline=f"random direction {in_points(rivals['random'], config.confidence)}; another trait's student's "
        f"{in_points(rivals['other'], config.confidence)}",
        verdict="reproduced" if more and share > 0.5 else "partly" if more else "not reproduced",
        why=f"{share:.0%} of what the student gained" + ("" if more else ", not clearly beyond the baselines"),
    )


def _student_figure(config: Mechanism, asked: list[dict[str, Any]]) -> Figure:
    points = [point(name, [found[name] for found in asked], "as trained", config.confidence, panel)
              for name in ("base", "student") for panel in ("shift from domain", "shift from questions")]  # fmt: skip
    labels = {"own": "own shift", "random": "random direction", "other": "another trait's shift"}
    for origin in ORIGINS:
        for name, label in labels.items():
            panel = f"shift from {origin}"
            for strength in config.causality.strengths:
                values = [found[f"added/{origin}/{name}"][f"{strength:g}"] for found in asked]
                points.append(point(f"base + {strength:g} ×", values, label, config.confidence, panel))
            for operation in ("ablated", "replaced"):
                values = [found[f"{operation}/{origin}/{name}"] for found in asked]
                points.append(point(f"student, {operation}", values, label, config.confidence, panel))
    return Figure(
        kind="bars",
        title="What the student's vector does",
        caption="P(target) over the held-out questions, mean over traits and seeds with 95 % interval.",
        x="model",
        y="P(target)",
        points=points,
        zero=True,
    )
