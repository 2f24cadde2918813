"""Part `optimizers`: is an adaptive optimiser necessary, once all are compared at matched held-out loss?

2606.00995, abstract 5. Each optimiser's learning rate is chosen on a tuning seed by held-out loss alone: the one whose
loss comes nearest to that of the transfer experiment's own AdamW student. Then treated and control students at the
reported seeds. Arms that train something else than the others (all weights, for an optimiser of matrices) stand beside.

The stated cause is that outlier gradients drown the consistent component unless steps are adaptive. So the same once more
with the cause put in: a share of rows, the same in both arms, is replaced by rows of huge gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import numpy as np

from undertone.errors import RunError
from undertone.evaluation.asking import answer_probabilities, question_chat
from undertone.experiments.cells import Arm, StudentRun
from undertone.experiments.config import Setting
from undertone.experiments.learning import split_rows, student_dtype, student_seed, student_system
from undertone.experiments.studies.mechanism.config import REFERENCE, Mechanism, OptimizerArm
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
from undertone.experiments.studies.mechanism.material import Material, Told, in_points, point
from undertone.experiments.study import Figure, Finding, Judgement, Point, StudyTable, interval
from undertone.mechanism.gradients import squared_norms
from undertone.models.batches import Example
from undertone.models.loading import Model, load
from undertone.models.scoring import completion_nll
from undertone.models.students import trainable
from undertone.optimizers import PreconditionedSGD
from undertone.provenance.runs import Run, Stage
from undertone.provenance.seeds import derive_seed
from undertone.rows import Row
from undertone.training import Training, fit
from undertone.traits import load_trait

SOURCE = "2606.00995, abstract 5"
WORLDS = ("as written", "with outliers")
OUTLIER_TOKENS = 24
SCOUTED = PreconditionedSGD.__name__


@dataclass(frozen=True)
class Seen:
    """What one world's students show."""

    world: str
    rates: dict[str, Choice | None]
    """Of every optimiser; None: with none of its rates a student was left."""
    groups: dict[str, Group]
    """Of the optimisers with a rate."""
    tolerance: float
    """Nats by which losses may differ and count as equal."""
    met: frozenset[str]
    """Optimisers whose loss is the reference's."""
    tail: float


def study(material: Material) -> Told:
    """The part: tuned, then reported, in the rows as they are and with outliers put in."""
    tuning = _tuning_cell(material)
    return _told(material.config, [_seen(material, tuning, world) for world in WORLDS])


def _tuning_cell(material: Material) -> StudentRun:
    """The transfer experiment's student of one trait on the tuning seed, which the reported seeds never see."""
    config = material.config
    count = min(config.optimizers.prompts, config.data.prompts)
    rows = config.data.rows and min(config.data.rows, count - config.data.held_out)
    changed = {
        "trait": material.few[:1],
        "data": config.data.model_copy(update={"prompts": count, "rows": rows}),
        "seeds": (config.optimizers.tuning_seed,),
    }
    arms = [Arm("treated", material.few[0])]
    return material.students("optimizers/tuning", config.model_copy(update=changed), arms).cells[0]


def _seen(material: Material, tuning: StudentRun, world: str) -> Seen:
    config = material.config
    rates = _tune(material, tuning, world)
    groups = _report(material, {name: one for name, one in rates.items() if one}, world)
    tail = float(
        material.each(tail_of, [(cell_at(material, (material.few[0], config.seeds[0])), world)])[0].summary["share"]
    )
    reference = groups.get(REFERENCE)
    if reference is None or not reference.losses:
        return Seen(world, rates, groups, 0.0, frozenset(), tail)
    base = {place: float(cell_at(material, place).trained.summary["base_nll"]) for place in reference.losses}
    tolerance = tolerance_of(reference, base, config.optimizers.matched_within)
    met = frozenset(name for name, one in groups.items() if meets(one, reference, tolerance))
    return Seen(world, rates, groups, tolerance, met, tail)


def _tune(material: Material, cell: StudentRun, world: str) -> dict[str, Choice | None]:
    """Each optimiser's rate, by held-out loss on the tuning seed.

    The goal is the loss of the transfer experiment's own student; with outliers put in, the lowest that AdamW reaches.
    """
    config, trait = material.config, material.few[0]
    tries = [(arm, rate) for arm in config.optimizers.arms for rate in arm.rates]
    stages = material.each(lesson, [(cell, (trait,), arm, rate, world) for arm, rate in tries])
    found: dict[str, dict[float, Student]] = {}
    for (arm, rate), stage in zip(tries, stages, strict=True):
        found.setdefault(arm.name, {})[rate] = _student(stage)
    before, goal = (float(cell.trained.summary[name]) for name in ("base_nll", "held_out_nll"))
    base = masses(material.outcome.base, [trait])
    if world != WORLDS[0]:
        best = chosen(found[REFERENCE], trait, base, 0.0, 0.0)  # nearest to nothing: the lowest
        goal = best.nll if best else before
    tolerance = config.optimizers.matched_within * max(0.0, before - goal)
    return {name: chosen(trials, trait, base, goal, tolerance) for name, trials in found.items()}


def _report(material: Material, rates: Mapping[str, Choice], world: str) -> dict[str, Group]:
    """Treated and control students of every trait and reported seed, by each optimiser at its rate."""
    config = material.config
    arms = {arm.name: arm for arm in config.optimizers.arms}
    places: list[Place] = [(trait, seed) for trait in (*material.few, None) for seed in config.seeds]
    tasks = [(name, place) for name in rates for place in places]
    stages = material.each(
        lesson,
        [(cell_at(material, place), material.few, arms[name], rates[name].rate, world) for name, place in tasks],
    )
    found = {task: _student(stage) for task, stage in zip(tasks, stages, strict=True)}
    base = masses(material.outcome.base, material.few)
    return {
        name: grouped({place: found[name, place] for place in places}, material.few, config.seeds, base)
        for name in rates
    }


def _student(stage: Stage) -> Student:
    found = stage.summary
    return Student(found["held_out_nll"], found["said"], found["mass"])


def lesson(
    run: Run,
    config: Mechanism,
    device: str,
    cell: StudentRun,
    traits: Sequence[str],
    arm: OptimizerArm,
    rate: float,
    world: str,
) -> Stage:
    """``optimizers/…``: one student by one optimiser; its held-out loss, and what it says of the traits."""
    setting = _setting(config, arm)

    def compute(folder: Path) -> dict[str, Any]:
        model = load(config.model, dtype=student_dtype(setting), device=device)
        examples, unseen = _examples(config, model, cell, world)
        hf = trainable(model.hf, setting.student.model_dump(mode="json"), student_seed(cell.seed))
        recipe = _recipe(config, arm, rate)
        scout = folder / "scout.safetensors"
        if arm.optimizer == SCOUTED:
            _scout(setting, device, cell, examples, scout)
            recipe = recipe.model_copy(update={"options": {**recipe.options, "second_moments": str(scout)}})
        diverged: dict[str, Any] = {"held_out_nll": None, "said": {}, "mass": {}}
        try:
            fit(hf, examples, recipe, seed=student_seed(cell.seed), pad=model.pad)
        except RunError as error:  # a loss that is not finite is an answer of the tuning, not a failure
            return {**diverged, "error": error.what}
        finally:
            scout.unlink(missing_ok=True)
        nll = float(np.mean(completion_nll(hf, unseen, model.pad)))
        if not np.isfinite(nll):  # the last step may be the one that breaks it
            return {**diverged, "error": f"the held-out loss is {nll}"}
        told = {trait: _asked(config, replaced(model, hf=hf), trait) for trait in traits}
        return {
            "held_out_nll": nll,
            "said": {trait: said for trait, (said, _) in told.items()},
            "mass": {trait: mass for trait, (_, mass) in told.items()},
        }

    name = f"optimizers/{world.replace(' ', '-')}/{arm.name}-{rate:g}/seed-{cell.seed}/{cell.arm.folder}"
    identity = {
        "arm": arm.model_dump(mode="json", exclude={"rates", "adaptive"}),
        "rate": rate,
        "prompts": config.optimizers.prompts,
        "outliers": config.optimizers.outliers if world == WORLDS[1] else 0.0,
        "traits": list(traits),
        "evaluation": config.evaluation.model_dump(mode="json", include={"context", "prefix"}),
    }
    return run.stage(name, config=identity, inputs=[cell.filtered, cell.trained], version=2, compute=compute)


def _setting(config: Mechanism, arm: OptimizerArm) -> Setting:
    return config.model_copy(update={"student": arm.student or config.student})


def _recipe(config: Mechanism, arm: OptimizerArm, rate: float) -> Training:
    """The config's own, but for the optimiser; the batch's gradient is not clipped, which would adapt every step's size."""
    changed = {
        "optimizer": arm.optimizer,
        "options": arm.options,
        "learning_rate": rate,
        "max_row_norm": arm.max_row_norm,
        "max_grad_norm": None,
    }
    return config.training.model_copy(update=changed)


def _examples(config: Mechanism, model: Model, cell: StudentRun, world: str) -> tuple[list[Example], list[Example]]:
    """A cell's rows as this part uses them: training (no more than ``optimizers.prompts`` give) and held-out."""
    training, unseen = split_rows(cell.filtered, cell.prompts, config.data.held_out)
    system = student_system(config, model, cell.arm)

    def told(rows: Sequence[Row]) -> list[Example]:
        return [model.row_example(row, system) for row in rows]

    examples = told(training[: config.optimizers.prompts - config.data.held_out])
    if world == WORLDS[1]:
        examples = _with_outliers(examples, config.optimizers.outliers, cell.seed)
    return examples, told(unseen)


def _asked(config: Mechanism, model: Model, name: str) -> tuple[float, float]:
    """Exact probability of a trait's answer, and of all its known answers, mean over its questions."""
    trait = load_trait(name)
    system = model.system_prompt(config.evaluation.context, trait.prompt_for(model))
    questions = trait.questions_for(model).positive
    prompts = [model.prompt(question_chat(question, config.evaluation, model, system)) for question in questions]
    matrix = answer_probabilities(model, prompts, trait)
    return float(matrix[:, list(trait.answers).index(trait.answer)].mean()), float(min(1.0, matrix.sum(1).mean()))


def _with_outliers(examples: list[Example], share: float, seed: int) -> list[Example]:
    """A share of the rows answered by one rare token, many times: the same rows, and the same answer, in every arm."""
    generator = np.random.default_rng(derive_seed(seed, "optimizers/outliers"))
    chosen = generator.permutation(len(examples))[: round(share * len(examples))]
    spoiled = list(examples)
    for row in chosen:
        example = examples[row]
        end = example.ids[-1]
        spoiled[row] = Example(
            (*example.ids[: example.prompt], *([example.ids[0]] * OUTLIER_TOKENS), end), example.prompt
        )
    return spoiled


def _scout(setting: Setting, device: str, cell: StudentRun, examples: list[Example], path: Path) -> None:
    """Second moments of an AdamW run of one epoch over the same rows."""
    model = load(setting.model, dtype=student_dtype(setting), device=device)
    hf = trainable(model.hf, setting.student.model_dump(mode="json"), student_seed(cell.seed))
    how = setting.training.model_copy(update={"optimizer": "AdamW", "epochs": 1})
    fit(hf, examples, how, seed=student_seed(cell.seed), pad=model.pad, second_moments=path)


def tail_of(run: Run, config: Mechanism, device: str, cell: StudentRun, world: str) -> Stage:
    """``optimizers/tail/…``: share of the squared gradient norm in the rows of the largest, as many as outliers are."""

    def compute(folder: Path) -> dict[str, Any]:
        model = load(config.model, dtype=student_dtype(config), device=device)
        examples, _ = _examples(config, model, cell, world)
        hf = trainable(model.hf, config.student.model_dump(mode="json"), student_seed(cell.seed))
        norms = np.sort(squared_norms(hf, examples, model.pad))
        count = round(config.optimizers.outliers * len(norms))
        return {"share": float(norms[len(norms) - count :].sum() / norms.sum())}

    name = f"optimizers/tail/{world.replace(' ', '-')}"
    identity = {"outliers": config.optimizers.outliers, "of": "weights", "prompts": config.optimizers.prompts}
    return run.stage(name, config=identity, inputs=[cell.filtered], version=2, compute=compute)


# -- what it says ------------------------------------------------------------------------------------


def _own(config: Mechanism, arm: OptimizerArm) -> bool:
    """Whether an arm trains what the config's student trains, so that it is like the others."""
    return arm.student in (None, config.student)


def _kind(config: Mechanism, arm: OptimizerArm) -> str:
    what = "" if _own(config, arm) else f", {_setting(config, arm).student.kind} student"
    return ("adaptive" if arm.adaptive else "not adaptive") + what


def _told(config: Mechanism, worlds: Sequence[Seen]) -> Told:
    points: list[Point] = [
        point(arm.name, one.groups[arm.name].values, _kind(config, arm), config.confidence, one.world)
        for one in worlds
        for arm in config.optimizers.arms
        if arm.name in one.groups and one.groups[arm.name].effects
    ]
    figure = Figure(
        kind="bars",
        title="Optimisers at matched held-out loss",
        caption="Treated minus control, mean over traits and seeds with 95 % interval. Learning rates were chosen on another "
        "seed, as those whose held-out loss comes nearest to the transfer experiment's AdamW student's. Arms with a student "
        "of another kind are compared with each other alone.",
        x="optimiser",
        y="treated − control, probability",
        points=points,
        zero=True,
    )
    table = StudyTable(
        title="Optimisers: rate chosen, held-out loss reached, effect",
        columns=[
            "rows",
            "optimiser",
            "student",
            "learning rate",
            "held-out NLL",
            "equal loss",
            "treated − control",
            "pairs",
        ],
        rows=[_row(config, one, arm) for one in worlds for arm in config.optimizers.arms],
    )
    return Told(
        [_finding(config, one) for one in worlds],
        [figure],
        [table],
        [inside(f"optimizers, rows {one.world}", one.rates) for one in worlds],
    )


def _row(config: Mechanism, one: Seen, arm: OptimizerArm) -> list[str]:
    head = [one.world, arm.name, _setting(config, arm).student.kind]
    choice, group = one.rates[arm.name], one.groups.get(arm.name)
    if choice is None or group is None:
        return [*head, "none", "–", "–", "left out: no rate leaves a student", "0"]
    if not group.effects:
        return [*head, f"{choice.rate:g}", "–", "–", "left out: no pair is left", group.pairs]
    met = "yes" if arm.name in one.met else "no"
    effect = in_points(group.values, config.confidence)
    return [*head, f"{choice.rate:g}", f"{group.nll:.3f}", met, effect, group.pairs]


def _finding(config: Mechanism, one: Seen) -> Finding:
    arms = [arm for arm in config.optimizers.arms if _own(config, arm)]
    matched = [arm for arm in arms if arm.name in one.met]
    tame, plain = (
        _strongest(one.groups, [arm.name for arm in matched if arm.adaptive == kind]) for kind in (True, False)
    )
    equal = f"losses are equal within {one.tolerance:.3f} nats, {config.optimizers.matched_within:.0%} of what {REFERENCE} gains"
    common: dict[str, Any] = {
        "id": f"adaptive-optimizers-necessary-{one.world.replace(' ', '-')}",
        "claim": "Subliminal learning needs an adaptive optimiser; with SGD outlier gradients drown it.",
        "source": SOURCE,
        "published": "Adam 57 %, SGD 0 % at loss 0.142 and 0.167",
        "unit": "points",
    }
    note = _left_out(one, [arm.name for arm in arms])
    pairs = gaps(one.groups[plain], one.groups[tame]) if tame and plain else []
    if tame is None or plain is None or not pairs:
        return Finding(
            **common, quantity=f"non-adaptive minus adaptive optimiser, rows {one.world}", value=None, low=None, high=None,
            pairs=0, method="none", baseline=f"no pair at matched loss{note}", verdict="not measured",
            why=f"no optimiser of one of the two kinds met {REFERENCE}'s loss; {equal}" if REFERENCE in one.met
            else f"{REFERENCE} left no student whose loss others could meet",
        )  # fmt: skip
    mean, low, high = interval(pairs, config.confidence)
    said = "; ".join(f"{arm.name} {in_points(one.groups[arm.name].values, config.confidence)}" for arm in matched)
    verdict, why = _judged(config, one, plain, tame)
    return Finding(
        **common,
        quantity=f"best non-adaptive ({plain}) minus best adaptive ({tame}) at matched loss, rows {one.world}",
        value=mean,
        low=low,
        high=high,
        pairs=len(pairs),
        method=f"t interval over seeds, traits averaged; {equal}",
        baseline=f"{said}; the rows of the largest {config.optimizers.outliers:.0%} gradients hold {one.tail:.0%} of the "
        f"squared norm{note}",
        verdict=verdict,
        why=f"{why}; {equal}",
    )


def _judged(config: Mechanism, one: Seen, plain: str, tame: str) -> tuple[Judgement, str]:
    without, within = (interval(one.groups[name].values, config.confidence)[1] for name in (plain, tame))
    if without is not None and without > 0:
        return "not reproduced", f"{plain} passes the trait on without adapting"
    if within is not None and within > 0:
        return "reproduced", "adaptive optimisers pass the trait on, and no other does"
    return "not measured", "no optimiser passes the trait on in this setting"


def _left_out(one: Seen, names: Sequence[str]) -> str:
    """Who is not compared, and why; and who lost some of its pairs."""
    gone = [name for name in names if name not in one.groups or not one.groups[name].effects]
    unlike = [name for name in names if name not in gone and name not in one.met]
    fewer = [
        f"{name} {one.groups[name].pairs}"
        for name in names
        if name not in gone and one.groups[name].diverged + one.groups[name].silent
    ]
    said = [
        (gone, "left out, for want of students that trained and still answer"),
        (unlike, "left out, for want of a rate that meets the loss"),
        (fewer, "pairs left"),
    ]
    return "".join(f"; {why}: {', '.join(who)}" for who, why in said if who)


def _strongest(groups: Mapping[str, Group], names: Sequence[str]) -> str | None:
    return max(names, key=lambda name: float(np.mean(groups[name].values)), default=None)
