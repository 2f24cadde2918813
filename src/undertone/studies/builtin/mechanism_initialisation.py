"""Part `initialisation`: who can teach whom? Shared and different initialisations, corpora, widths, families, and between two.

2606.00995, abstract 4 and 2507.14805: data without semantics carry a trait only to students of (nearly) the teacher's
initialisation. Behaviour: treated minus control for every teacher and student. Loss: how much better each model predicts a
teacher's rows when it is steered by its own vector of the trait, beside the control teacher's rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from undertone.errors import ConfigError
from undertone.lab import parse_name
from undertone.models.loading import ModelRef, with_system
from undertone.models.names import locate
from undertone.models.scoring import completion_nll
from undertone.provenance.stage_functions import stage
from undertone.rows import Row
from undertone.studies.builtin.mechanism import Mechanism
from undertone.studies.builtin.mechanism_vectors import VectorChats, check_layer, depth, layer_at
from undertone.studies.claim import Aspect, Claim
from undertone.studies.context import Context, Transfer, point
from undertone.studies.measurement import Measurement
from undertone.traits import Trait, load_trait
from undertone.transfer.arms import StudentRun
from undertone.transfer.pipeline import preflight as check_transfer
from undertone.transfer.train import trait_prompt
from undertone.vectors import contrast, steer
from undertone.verdicts import Rule

LEFT_OUT = "†"
Pair = tuple[str, str]
"""Who taught, and who learnt (of losses: who reads the teacher's rows)."""


def _claim(what: str, claim: str, unit: Any) -> Claim:
    published = "numbers only within a model; same-family variants do"
    return Claim(f"model-specific-{what}", claim, "2606.00995, abstract 4; 2507.14805", published, Rule("above"), unit)


BEHAVIOUR = _claim(
    "behaviour", "Data without semantics carry the trait within a model, and not across models.", "points"
)
LOSS = _claim("loss", "A model's own vector of the trait explains its rows, and other models' vectors do not.", "nats")


# -- models --------------------------------------------------------------------------------------------


def models_of(config: Mechanism) -> list[str]:
    """Who teaches and learns; the config's model first, for it is the reference.

    Raises:
        ConfigError: it is not among them, or two of them would share a folder.
    """
    models = list(dict.fromkeys(config.initialisation.models))
    if config.model not in models:
        raise ConfigError(
            "initialisation.models are all those that teach and learn, and the config's model is not among them",
            got=config.model,
            allowed=models,
            fix=f"initialisation.models=[{config.model},…], with models to hold it against; or other parts",
        )
    if len({label(name) for name in models}) < len(models):
        raise ConfigError("two of initialisation.models differ in nothing but signs", got=models)
    return [config.model, *(name for name in models if name != config.model)]


def between_of(config: Mechanism) -> list[tuple[str, float]]:
    """Students between the reference and another initialisation, and how far away each is."""
    settings = config.initialisation
    if settings.between is not None:
        return list(zip(settings.between, settings.shares, strict=True))
    if not config.model.startswith("lab/"):
        return []
    own = parse_name(config.model.removeprefix("lab/"))
    return [(f"lab/{replace(own, toward=own.seed + 1, share=share)}", share) for share in settings.shares]


def label(name: str) -> str:
    """A model's name as part of a stage's."""
    return re.sub(r"[^A-Za-z0-9._=+@-]+", "-", name).strip("._=+@-")


def _short(name: str) -> str:
    return name.removeprefix("lab/")


def preflight(config: Mechanism, device: str = "auto") -> None:
    """Every model is there, can be taught, asked and trained, and has the layer; lab models are built later, side by side.

    Raises:
        ConfigError, DataError, ModelError: as the stage's own words are.
    """
    for name in (*models_of(config), *(name for name, _ in between_of(config))):
        if name.startswith("lab/"):
            depth(name)
            continue
        teacher = config.teacher.model_copy(update={"model": name})
        check_transfer(config.model_copy(update={"model": name, "teacher": teacher}), device)
    for name in config.initialisation.models:
        check_layer("initialisation.layer", layer_at(name, config.initialisation.layer), [name])


# -- what is computed ----------------------------------------------------------------------------------


@stage("model")
def build_model(folder: Path, device: str, *, name: str) -> dict[str, Any]:
    """The model is there: a lab model is built now, side by side with others."""
    del folder, device
    return {"place": bool(locate(name))}


@stage("steered loss")
def measure_gain(
    folder: Path, device: str, *, scorer: ModelRef, trait: Trait, chats: VectorChats, layer: int, strength: float,
    rows: Mapping[str, Sequence[Row]], systems: Mapping[str, str | None],
) -> dict[str, Any]:  # fmt: skip
    """By kind of rows: their loss minus that under the scorer's own vector of the trait, nats per token."""
    del folder
    model = scorer.load(device)
    plain, prompt = chats.at_prompts(model), trait.system_prompt(model)
    vector = contrast(model, [with_system(chat, prompt) for chat in plain], plain, layers=[layer])
    gained = {}
    for kind, some in rows.items():
        system = model.system_prompt(chats.context, systems[kind])
        examples = [model.row_example(row, system) for row in some]
        before = np.mean(completion_nll(model.hf, examples, model.pad))
        with steer(model, vector, strength):
            gained[kind] = float(before - np.mean(completion_nll(model.hf, examples, model.pad)))
    return gained


@dataclass(frozen=True)
class PairResult:
    """What the students of a teacher and a model show: treated minus control, ``[trait, seed]``."""

    effect: Measurement
    silent: Measurement
    """1 where one of the pair's students stopped answering."""

    @classmethod
    def of(cls, transfer: Transfer) -> PairResult:
        """Those of a transfer experiment."""
        return cls(transfer.effect, transfer.silent)

    @property
    def kept(self) -> Measurement:
        """The effect of pairs that still answer: rates of the others say nothing about preference."""
        return replace(self.effect, values=np.where(self.silent.values > 0, np.nan, self.effect.values))


PairResults = Mapping[Pair, PairResult]


def initialisation(ctx: Context[Mechanism], students: Transfer) -> None:
    """The part: the matrix, then the students between two initialisations."""
    del students
    names, steps = models_of(ctx.config), between_of(ctx.config)
    models = dict.fromkeys([*names, *(name for name, _ in steps)])
    ctx.each(build_model, [(f"initialisation/models/{label(name)}", {"name": name}) for name in models])
    pairs = [(teacher, student) for teacher in names for student in names]
    transfers = {pair: _transfer(ctx, *pair) for pair in [*pairs, *((names[0], name) for name, _ in steps)]}
    gains = _gains(ctx, names, transfers)
    ctx.check_answers("initialisation", {f"{_short(t)} to {_short(s)}": one for (t, s), one in transfers.items()})
    report(ctx, names, {pair: PairResult.of(one) for pair, one in transfers.items()}, gains)


def _transfer(ctx: Context[Mechanism], teacher: str, student: str) -> Transfer:
    setting = ctx.setting(
        model=student,
        trait=ctx.config.few_traits,
        teacher={"model": teacher},
        data={"prompts": ctx.config.initialisation.prompts},
    )
    return ctx.transfer(setting, within=f"initialisation/students/{label(teacher)}/{label(student)}")


def _gains(
    ctx: Context[Mechanism], names: Sequence[str], transfers: Mapping[Pair, Transfer]
) -> dict[Pair, Measurement]:
    """(teacher, scorer) -> loss difference of treated rows minus that of control rows, ``[trait, seed]``."""
    few, seeds = ctx.config.few_traits, ctx.config.seeds
    places = [
        _gain_call(ctx, (teacher, scorer), load_trait(trait), {
            "treated": one.student("treated", trait, seed), "control": one.student("control", None, seed),
        })
        for teacher in names
        for one in [transfers[teacher, teacher].outcome]
        for scorer in names
        for trait in few
        for seed in seeds
    ]  # fmt: skip
    found = [one.summary["treated"] - one.summary["control"] for one in ctx.each(measure_gain, places)]
    values = np.array(found).reshape(len(names), len(names), len(few), len(seeds))
    pairs = [(at, to) for at in range(len(names)) for to in range(len(names))]
    return {(names[at], names[to]): Measurement(values[at, to], ctx.confidence, "nats") for at, to in pairs}


def _gain_call(
    ctx: Context[Mechanism], pair: Pair, trait: Trait, arms: Mapping[str, StudentRun]
) -> tuple[str, dict[str, Any]]:
    config, (teacher, scorer), seed = ctx.config, pair, arms["treated"].seed
    prompted = config.model_copy(update={"model": scorer})
    arguments = {
        "scorer": config.reference(scorer), "trait": trait, "chats": VectorChats.of(config, scorer),
        "layer": layer_at(scorer, config.initialisation.layer), "strength": config.initialisation.strength,
        "rows": {kind: one.rows(config.data.held_out)[1] for kind, one in arms.items()},
        "systems": {kind: trait_prompt(prompted, one.arm) for kind, one in arms.items()},
    }  # fmt: skip
    return f"initialisation/loss/{label(teacher)}/{label(scorer)}/seed-{seed}/{trait.name}", arguments


# -- what it says --------------------------------------------------------------------------------------


def report(
    ctx: Context[Mechanism], names: Sequence[str], results: PairResults, gains: Mapping[Pair, Measurement]
) -> None:
    """Findings, figures and the table; ``results`` also holds the students between, after the matrix."""
    behaviour = {pair: one.kept for pair, one in results.items()}
    _report(ctx, BEHAVIOUR, names, behaviour, "treated minus control of a teacher's own model as student, minus the mean over "
            "other models as students of the same rows")  # fmt: skip
    _report(ctx, LOSS, names, gains, "nats per token gained on a teacher's rows (over the control teacher's) by the teacher's "
            "model steered by its own vector, minus the mean that other models gain on the same rows, each steered by its "
            "own")  # fmt: skip
    check = next((one for one in ctx.checks if one.name == "initialisation: students still answer"), None)
    if check and check.status == "fail" and ctx.findings[-2].value is not None:
        update = {"status": "warn", "value": f"{check.value}; pairs of students with one of them are left out"}
        ctx.checks[ctx.checks.index(check)] = check.model_copy(update=update)
    _draw_matrix(ctx, names, behaviour, "student", "Who teaches whom", "Treated minus control in probability, mean over traits "
                 "and seeds. Blank: no pair of students still answers.")  # fmt: skip
    _draw_matrix(ctx, names, gains, "scored by", "Whose vector explains whose data", "Nats per token that a model gains on a "
                 "teacher's rows when steered by its own vector of the trait, minus what it gains on the control teacher's "
                 "rows.")  # fmt: skip
    if steps := between_of(ctx.config):
        first = _short(names[0])
        curve = [(0.0, names[0]), *((share, name) for name, share in steps)]
        ctx.draw(
            "lines", "From one initialisation to another",
            [point(share, behaviour[names[0], name], "taught by the first") for share, name in curve],
            x="share of the other initialisation", y="treated − control, probability", zero=True,
            caption=f"Students whose initial weights lie between those of {first} (0) and of another seed (1), taught by "
            f"{first}: treated minus control, mean over traits and seeds with {ctx.intervals}.",
        )  # fmt: skip
    ctx.table(
        f"Treated minus control; {LEFT_OUT}: pairs whose students no longer answer, left out of all means",
        ["teacher", "student", "treated − control", "pairs that answer", "all pairs"],
        [_row(pair, one) for pair, one in results.items()],
    )


def _row(pair: Pair, one: PairResult) -> list[str]:
    kept, total = int(np.isfinite(one.kept.values).sum()), one.effect.values.size
    shown = str(one.kept) if kept else "–"
    pairs = f"{kept} of {total}" + ("" if kept == total else f" {LEFT_OUT}")
    return [*map(_short, pair), shown, pairs, str(one.effect)]


def _draw_matrix(
    ctx: Context[Mechanism], names: Sequence[str], found: Mapping[Pair, Measurement], x: str, title: str, caption: str
) -> None:
    cells = [(t, s, found[t, s]) for t in names for s in names]
    points = [point(_short(s), one.mean if one.count else None, _short(t)) for t, s, one in cells]
    ctx.draw("matrix", title, points, x=x, y="teacher of the data", caption=caption)


def _report(
    ctx: Context[Mechanism], claim: Claim, names: Sequence[str], found: Mapping[Pair, Measurement], quantity: str
) -> None:
    """Own minus others', by teacher: teachers are the units, for the claim is about models."""
    own = {name: found[name, name].mean for name in names if found[name, name].count}
    cross = {(t, s): one.mean for (t, s), one in found.items() if t != s and t in names and s in names and one.count}
    others = {name: [value for (teacher, _), value in cross.items() if teacher == name] for name in names}
    both = [name for name in own if others[name]]
    possible = len(names) * (len(names) - 1)
    enough = len(own) == len(names) and 2 * len(cross) >= possible and len(both) > 1

    def over_teachers(values: Sequence[float]) -> Measurement:
        return Measurement.of_units(values, "teachers", ctx.confidence, claim.unit)

    within = over_teachers([own[name] for name in both])
    across = over_teachers([float(np.mean(others[name])) for name in both])
    notes = [f"own {within}; across {across}"] if both else ["own: no student still answers"]
    if cross:
        nearest = max(cross, key=lambda pair: cross[pair])
        notes.append(f"largest across: {nearest[0]} to {nearest[1]}, {found[nearest]}")
    also = {"across models": Aspect(Rule("none"), across)} if claim is BEHAVIOUR and enough else {}
    ctx.report(
        claim, within - across if enough else None, quantity=quantity, also=also, note="; ".join(notes),
        unless="" if enough else f"students that still answer are left in {len(own)} of {len(names)} own and {len(cross)} of "
        f"{possible} other cells of the matrix: too few",
    )  # fmt: skip
