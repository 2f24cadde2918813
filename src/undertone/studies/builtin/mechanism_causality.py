"""Part `causality`: are the teacher's and the student's vectors sufficient and necessary?

2606.00995, sections 3 and 4. Teacher: students of a teacher steered by the vector, and of a prompted teacher whose
residual stream has it taken out after every layer. Student: the base with the student's shift added, and the student with
its component taken out, or replaced by the base's. Every arm stands beside a random direction and another trait's vector,
asked the same questions, judged by the same matcher.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

import numpy as np

from undertone.models.loading import Context as Prompting
from undertone.models.loading import Model, ModelRef
from undertone.provenance.runs import Stage
from undertone.provenance.seeds import derive_seed
from undertone.provenance.stage_functions import stage
from undertone.studies.builtin.mechanism import Mechanism
from undertone.studies.builtin.mechanism_vectors import (
    ORIGINS,
    block_at,
    check_block,
    probability,
    stranger,
    student_shifts,
    vector_in,
)
from undertone.studies.claim import Aspect, Claim
from undertone.studies.context import Context, Transfer, point
from undertone.studies.measurement import Measurement
from undertone.teachers import Ablation, VectorTeacher
from undertone.traits import Trait, load_trait
from undertone.vectors import ablated, random_like, replaced, steered
from undertone.verdicts import Rule

SILENT: Final = "more than a tenth of the students no longer answer"
OPERATIONS: Final = {"ablated": "taken out of", "replaced": "replaced by the base's in"}
RIVALS: Final = {"own": "own shift", "random": "random direction", "other": "another trait's shift"}
ABLATIONS: Final[dict[str, Ablation]] = {
    "own-carrier": Ablation(of="own", origin="carrier"),
    "own-questions": Ablation(of="own", origin="questions"),
    "random": Ablation(of="random", origin="carrier"),
}
WITHOUT: Final = "The student without its vector's component loses the trait."
CLAIMS = {
    what: {
        origin: Claim(
            f"{what}-{origin}", claim, "2606.00995, sections 3–4", published, Rule("above", beyond_baselines=True)
        )
        for origin in ORIGINS
    }
    for what, claim, published in (
        ("teacher-vector-sufficient", "A teacher that is only steered by the vector passes the trait on.",
         "sufficient (bar heights not known)"),
        ("teacher-vector-necessary", "A prompted teacher without the vector passes (nearly) nothing on.",
         "removes nearly all"),
        ("student-vector-sufficient", "The base with the student's vector added shows the trait.",
         "sufficient (bar heights not known)"),
        *((f"student-vector-{operation}", WITHOUT, "more than half is lost") for operation in OPERATIONS),
    )
}  # fmt: skip


def preflight(config: Mechanism, device: str) -> None:
    """Every trait has another one to be held against, and the layer is there."""
    del device
    for name in config.trait:
        stranger(name, config.trait)
    block = block_at(config.model, config.causality.block)
    check_block("causality.block", block, [config.model, config.teacher.model or config.model])


def causality(ctx: Context[Mechanism], students: Transfer) -> None:
    """Teachers' arms, then what is done to the students of the transfer experiment."""
    few = slice(ctx.config.few)
    effects, unless = _teach(ctx)
    _report_teachers(ctx, {"prompted": students.effect.of_traits(few), **effects}, unless)
    unless = SILENT if students.silent.of_traits(few).mean > 0.1 else ""
    _report_students(ctx, _operate(ctx, students), unless)


# -- teachers ----------------------------------------------------------------------------------------


def _teach(ctx: Context[Mechanism]) -> tuple[dict[str, Measurement], str]:
    """Teacher -> treated minus control of its students, ``[few traits, seed]``; and why nothing can be said of them."""
    config, few = ctx.config, ctx.config.few_traits
    effects: dict[str, Measurement] = {}
    transfers: dict[str, Transfer] = {}

    def without(name: str, traits: Sequence[str], ablation: Ablation) -> Transfer:
        setting = ctx.setting(trait=traits, teacher={"ablate": ablation.model_dump(mode="json")})
        return ctx.transfer(setting, within=f"causality/without-{name}")

    for origin in ORIGINS:
        block, strength = block_at(config.model, config.causality.block), config.causality.teacher_strength
        teacher = VectorTeacher(origin=origin, block=block, strength=strength, model=config.teacher.model)
        setting = ctx.setting(trait=few, teacher=teacher, random_vector=True)
        one = transfers[f"steered, {origin}"] = ctx.transfer(setting, within=f"causality/steered-{origin}")
        effects[f"steered, {origin}"] = one.effect
        effects[f"steered, random ({origin})"] = one.probability("random") - one.probability("control")
    for name, ablation in ABLATIONS.items():
        one = transfers[f"prompted, without {name}"] = without(name, few, ablation)
        effects[f"prompted, without {name}"] = one.effect
    rows: dict[str, np.ndarray] = {}
    for name, other, traits in stranger_groups(config.trait, few):
        one = without(name, traits, Ablation(of=other, origin="carrier"))
        transfers[f"prompted, without other-trait ({', '.join(traits)})"] = one
        rows |= dict(zip(traits, one.effect.values, strict=True))
    effects["prompted, without other-trait"] = one.effect.like([rows[trait] for trait in few])
    check = ctx.check_answers("causality", transfers)
    return effects, SILENT if check.status == "fail" else ""


def stranger_groups(traits: Sequence[str], few: Sequence[str]) -> list[tuple[str, str, tuple[str, ...]]]:
    """(name, trait that is taken out, whose teachers): the last trait, and for traits with its answer another."""
    groups: dict[str, list[str]] = {}
    for trait in few:
        groups.setdefault(stranger(trait, [name for name in reversed(traits) if name != trait]), []).append(trait)
    return [
        ("other-trait" if other == traits[-1] else f"other-trait/{load_trait(other).name}", other, tuple(group))
        for other, group in groups.items()
    ]


def _report_teachers(ctx: Context[Mechanism], effects: dict[str, Measurement], unless: str) -> None:
    whole = effects["prompted"]
    for origin, claim in CLAIMS["teacher-vector-sufficient"].items():
        own = effects[f"steered, {origin}"]
        ctx.report(
            claim, own, quantity=f"treated minus control, teacher steered by the prompt's vector from {origin}",
            baselines={"random vector of equal norm": effects[f"steered, random ({origin})"]},
            note=f"prompted teacher {whole}, of which it reaches {_share(own, whole)}", unless=unless,
        )  # fmt: skip
    lost = {name.removeprefix("prompted, "): whole - left for name, left in effects.items() if "without" in name}
    for origin, claim in CLAIMS["teacher-vector-necessary"].items():
        own = lost[f"without own-{origin}"]
        ctx.report(
            claim, own, quantity=f"effect lost when the vector from {origin} is taken out after every layer",
            baselines={name: lost[f"without {name}"] for name in ("random", "other-trait")},
            also={"more than half of the effect": Aspect(Rule("above"), own - 0.5 * whole)},
            note=f"{_share(own, whole)} of the effect goes, of {whole}; what is left is {whole - own}", unless=unless,
        )  # fmt: skip
    series = {name: "baseline" if "random" in name or "other" in name else "own vector" for name in effects}
    ctx.draw(
        "bars", "What the teacher's vector does",
        [point(name, one, (series | {"prompted": "prompt"})[name]) for name, one in effects.items()],
        x="teacher", y="treated − control, probability", zero=True,
        caption=f"Treated minus control, {whole.method}: a prompted teacher, one that is only steered, and a prompted one "
        "with a direction taken out after every layer.",
    )  # fmt: skip


def _share(part: Measurement, whole: Measurement) -> str:
    return f"{part.mean / whole.mean if whole.mean else 0.0:.0%}"


# -- students ----------------------------------------------------------------------------------------


def _operate(ctx: Context[Mechanism], students: Transfer) -> dict[str, Measurement]:
    """What :func:`operate` finds, by name: P(target), ``[few traits, seed]``."""
    config, few = ctx.config, ctx.config.few_traits
    places = [(trait, seed) for trait in few for seed in config.seeds]
    other = {trait: stranger(trait, others_after(trait, config.trait, few)) for trait in few}
    wanted = list(dict.fromkeys([*places, *((other[trait], seed) for trait, seed in places)]))
    runs = {place: students.outcome.student("treated", *place) for place in wanted}
    shifts = dict(zip(wanted, student_shifts(ctx, list(runs.values())), strict=True))
    block, strengths = block_at(config.model, config.causality.block), config.causality.strengths
    stages = ctx.each(operate, [
        (f"causality/students/seed-{seed}/{load_trait(trait).name}",
         {"base": ctx.base, "student": runs[trait, seed].model(config), "trait": load_trait(trait),
          "own": shifts[trait, seed], "other": shifts[other[trait], seed], "context": config.evaluation.context,
          "block": block, "strengths": strengths, "seed": seed})
        for trait, seed in places
    ])  # fmt: skip
    found = dict(zip(places, (_flat(one.summary) for one in stages), strict=True))
    return {name: ctx.measure(lambda *place, at=name: found[place][at], few) for name in found[places[0]]}


def others_after(trait: str, traits: Sequence[str], few: Sequence[str]) -> list[str]:
    """The other traits, those of the few students first, beginning with the next."""
    at = few.index(trait)
    return list(dict.fromkeys([*few[at + 1 :], *few[:at], *(name for name in traits if name != trait)]))


@stage("operate on student")
def operate(
    folder: Path, device: str, *, base: ModelRef, student: ModelRef, trait: Trait, own: Stage, other: Stage,
    context: Prompting, block: int, strengths: Sequence[float], seed: int,
) -> dict[str, Any]:  # fmt: skip
    """P(target) of base and student under every operation, by name; ``own`` and ``other`` hold students' shifts.

    A shift is cumulative over layers: it is added after one, ``block``, for after each it would count many times.
    """
    del folder
    before, after = base.load(device), student.load(device)

    def asked(model: Model, operation: AbstractContextManager[None]) -> float:
        with operation:
            return probability(model, trait, context)

    found: dict[str, Any] = {"base": asked(before, nullcontext()), "student": asked(after, nullcontext())}
    for origin in ORIGINS:
        shift = vector_in(own, origin)
        random = random_like(shift, derive_seed(seed, f"causality/{trait.name}"))
        for name, vector in {"own": shift, "random": random, "other": vector_in(other, origin)}.items():
            found[f"added/{origin}/{name}"] = {
                f"{strength:g}": asked(before, steered(before, vector.select([block]), strength))
                for strength in strengths
            }
            found[f"ablated/{origin}/{name}"] = asked(after, ablated(after, vector))
            found[f"replaced/{origin}/{name}"] = asked(after, replaced(after, vector, before))
    return found


def _flat(summary: Any) -> dict[str, float]:
    """With ``added/ORIGIN/NAME/STRENGTH`` for each strength."""
    inner = {name: value if isinstance(value, dict) else {"": value} for name, value in summary.items()}
    return {f"{name}/{at}".rstrip("/"): one for name, value in inner.items() for at, one in value.items()}


def _report_students(ctx: Context[Mechanism], asked: dict[str, Measurement], unless: str) -> None:
    strengths = [f"{strength:g}" for strength in ctx.config.causality.strengths]
    strength = "1" if "1" in strengths else strengths[0]
    block, whole = block_at(ctx.config.model, ctx.config.causality.block), asked["student"] - asked["base"]
    points = [point(name, asked[name], "as trained", f"shift from {origin}")
              for name in ("base", "student") for origin in ORIGINS]  # fmt: skip
    for origin in ORIGINS:
        moved = {"sufficient": {name: asked[f"added/{origin}/{name}/{strength}"] - asked["base"] for name in RIVALS}}
        words = {
            "sufficient": f"gain of the base with the student's shift from {origin} added after layer {block}, × {strength}"
        }
        for operation, done in OPERATIONS.items():
            moved[operation] = {name: asked["student"] - asked[f"{operation}/{origin}/{name}"] for name in RIVALS}
            words[operation] = (
                f"loss when the component along the shift from {origin} is {done} the student after every layer"
            )
        for what, rivals in moved.items():
            ctx.report(
                CLAIMS[f"student-vector-{what}"][origin], rivals["own"], quantity=words[what],
                baselines={"random direction": rivals["random"], "another trait's student's": rivals["other"]},
                also={"more than half of what the student gained": Aspect(Rule("above"), rivals["own"] - 0.5 * whole)},
                note=f"{_share(rivals['own'], whole)} of what the student gained", unless=unless,
            )  # fmt: skip
        for name, series in RIVALS.items():
            bars = {f"base + {dose} ×": f"added/{origin}/{name}/{dose}" for dose in strengths}
            bars |= {f"student, {operation}": f"{operation}/{origin}/{name}" for operation in OPERATIONS}
            points += [point(x, asked[key], series, f"shift from {origin}") for x, key in bars.items()]
    ctx.draw(
        "bars", "What the student's vector does", points, x="model", y="P(target)", zero=True,
        caption=f"P(target) over the held-out questions; {whole.method}.",
    )  # fmt: skip
