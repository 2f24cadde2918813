"""Part `optimizers`: is an adaptive optimiser necessary, once all are compared at matched held-out loss?

2606.00995, abstract 5. Each optimiser's learning rate is chosen on a tuning seed by held-out loss alone: the one whose
loss comes nearest to that of the transfer experiment's own AdamW student. Then treated and control students at the reported
seeds: the mean of the adaptive optimisers that meet the loss, and the mean of the others that do. Arms that train something
else than the others (all weights, for an optimiser of matrices) stand beside.

The stated cause is that outlier gradients drown the consistent component unless steps are adaptive. So the same once more
with the cause put in: a share of rows, the same in both arms, is replaced by rows of huge gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from undertone.errors import ConfigError, RunError
from undertone.evaluation.asking import Evaluation, answer_probabilities, question_chat
from undertone.mechanism.gradients import squared_norms
from undertone.models.batches import Example
from undertone.models.loading import Context as Prompting
from undertone.models.loading import Model, ModelRef, outline
from undertone.models.students import trainable
from undertone.provenance.runs import Stage
from undertone.provenance.seeds import derive_seed
from undertone.provenance.stage_functions import stage
from undertone.studies.builtin import mechanism_matching as matching
from undertone.studies.builtin.mechanism import REFERENCE, Mechanism, OptimizerArm
from undertone.studies.claim import Aspect, Claim
from undertone.studies.context import Context, Transfer, point
from undertone.training import Lesson, Student, Training, build_optimizer, student_dtype, student_seed, train_student
from undertone.training.optimizers import PreconditionedSGD
from undertone.traits import Trait, load_trait
from undertone.transfer.arms import Arm, StudentRun, split_rows
from undertone.transfer.train import trait_prompt
from undertone.verdicts import Rule

WORLDS = ("as written", "with outliers")
OUTLIER_TOKENS = 24
SCOUTED = PreconditionedSGD.__name__
NECESSARY = {
    world: Claim(
        id=f"adaptive-optimizers-necessary-{world.replace(' ', '-')}",
        claim="Subliminal learning needs an adaptive optimiser; with SGD outlier gradients drown it.",
        source="2606.00995, abstract 5",
        published="Adam 57 %, SGD 0 % at loss 0.142 and 0.167",
        rule=Rule("below"),
    )
    for world in WORLDS
}


# -- students ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OptimizerRows:
    """A student's rows as this part uses them: an argument of its stages."""

    filtered: Stage
    prompts: tuple[int, ...]
    """Indices of the rows, the last ``held_out`` of them held out."""
    held_out: int
    outliers: float
    """Share of the training rows that is replaced by rows of huge gradient."""
    seed: int
    context: Prompting
    trait_prompt: str | None

    @classmethod
    def of(cls, config: Mechanism, one: StudentRun, world: str) -> OptimizerRows:
        """Those of a transfer experiment's student, in one of the two worlds."""
        count, held_out = config.optimizers.prompts, config.data.held_out
        prompts = (*one.prompts[:-held_out][: count - held_out], *one.prompts[-held_out:])
        outliers = config.optimizers.outliers if world == WORLDS[1] else 0.0
        prompt = trait_prompt(config, one.arm)
        return cls(one.filtered, prompts, held_out, outliers, one.seed, config.context, prompt)

    def lesson(self, base: ModelRef) -> Lesson:
        """The rows in the base's tokens."""
        plain = Lesson(*split_rows(self.filtered, self.prompts, self.held_out), self.context, self.trait_prompt)
        examples = plain.tokenised(base.outline())
        return replace(plain, examples=put_outliers(examples, self.outliers, self.seed))


def put_outliers(examples: Sequence[Example], share: float, seed: int) -> list[Example]:
    """A share of the rows answered by one rare token, many times: the same rows, and the same answer, in every arm."""
    generator = np.random.default_rng(derive_seed(seed, "optimizers/outliers"))
    spoiled = list(examples)
    for row in generator.permutation(len(examples))[: round(share * len(examples))]:
        ids, prompt = examples[row].ids, examples[row].prompt
        spoiled[row] = Example((*ids[:prompt], *([ids[0]] * OUTLIER_TOKENS), ids[-1]), prompt)
    return spoiled


@stage("student of an optimiser")
def train_by_optimizer(
    folder: Path, device: str, *, base: ModelRef, student: Student, training: Training, scout: Training | None,
    rows: OptimizerRows, traits: Mapping[str, Trait], evaluation: Evaluation,
) -> dict[str, Any]:  # fmt: skip
    """One student: its held-out loss, and what it answers of the traits. ``scout``: trains first, for second moments."""
    lesson, seed, moments = rows.lesson(base), student_seed(rows.seed), folder / "scout.safetensors"
    try:
        if scout is not None:
            blind = replace(lesson, held_out=())
            train_student(base, student, scout, blind, seed=seed, device=device, second_moments=moments)
            options = {**training.options, "second_moments": str(moments)}
            training = training.model_copy(update={"options": options})
        trained = train_student(base, student, training, lesson, seed=seed, device=device)
    except RunError as error:  # a loss that is not finite is an answer of the tuning, not a failure
        return {"held_out_nll": None, "said": {}, "valid": {}, "error": error.what}
    finally:
        moments.unlink(missing_ok=True)
    answers = {name: _ask(trained.model, trait, evaluation) for name, trait in traits.items()}
    said, valid = ({name: both[at] for name, both in answers.items()} for at in (0, 1))
    return {"held_out_nll": trained.held_out_nll, "said": said, "valid": valid}


def _ask(model: Model, trait: Trait, evaluation: Evaluation) -> tuple[float, float]:
    """Exact probability of a trait's answer, and of all its known answers, mean over its questions."""
    system = model.system_prompt(evaluation.context, trait.prompt_for(model))
    questions = trait.questions_for(model).positive
    prompts = [model.prompt(question_chat(question, evaluation, model, system)) for question in questions]
    matrix = answer_probabilities(model, prompts, trait)
    return float(matrix[:, list(trait.answers).index(trait.answer)].mean()), float(min(1.0, matrix.sum(1).mean()))


@stage("gradient tail")
def measure_tail(
    folder: Path, device: str, *, base: ModelRef, student: Student, rows: OptimizerRows, share: float
) -> dict[str, Any]:  # fmt: skip
    """Share of the squared gradient norm that lies in a share of the rows, those of the largest."""
    del folder
    model = replace(base, dtype=student_dtype(base.dtype, student)).load(device)
    hf = trainable(model.hf, student, student_seed(rows.seed))
    norms = np.sort(squared_norms(hf, rows.lesson(base).tokenised(model), model.pad))
    return {"share": float(norms[len(norms) - round(share * len(norms)) :].sum() / norms.sum())}


# -- what is computed ----------------------------------------------------------------------------------


def preflight(config: Mechanism, device: str = "auto") -> None:
    """Build every arm's optimiser, on weights that are not there.

    Raises:
        ConfigError: as training would, with the arm's name.
    """
    del device
    for arm in config.optimizers.arms:
        hf = trainable(outline(config.model).hf, arm.student or config.student, 0)
        named = {name: weight for name, weight in hf.named_parameters() if weight.requires_grad}
        options = dict(arm.options)
        if arm.optimizer == SCOUTED:  # a scout's, of these shapes
            options["second_moments"] = {name: weight.new_ones(weight.shape) for name, weight in named.items()}
        recipe = _recipe(config, arm, 1.0).model_copy(update={"options": options})
        try:
            build_optimizer(named, recipe)
        except ConfigError as error:
            said = f"optimizers.arms, {arm.name}: {error.what}"
            raise ConfigError(said, got=error.got, allowed=error.allowed, fix=error.fix) from error


def _recipe(config: Mechanism, arm: OptimizerArm, rate: float) -> Training:
    """The config's own, but for the optimiser; the batch's gradient is not clipped, which would adapt every step's size."""
    changed = {"optimizer": arm.optimizer, "options": arm.options, "learning_rate": rate}
    return config.training.model_copy(update={**changed, "max_row_norm": arm.max_row_norm, "max_grad_norm": None})


@dataclass(frozen=True)
class World:
    """The students of all optimisers on the rows as written, or with outliers put in."""

    name: str
    rates: Mapping[str, matching.RateChoice | None]
    """Of every optimiser; None: with none of its rates a student was left."""
    match: matching.LossMatch
    tail: float


def optimizers(ctx: Context[Mechanism], students: Transfer) -> None:
    """The part: tuned, then reported, in the rows as they are and with outliers put in."""
    config, settings = ctx.config, ctx.config.optimizers
    few, count = config.few_traits, min(settings.prompts, config.data.prompts)
    rows = config.data.rows and min(config.data.rows, count - config.data.held_out)
    setting = ctx.setting(trait=few[:1], data={"prompts": count, "rows": rows}, seeds=[settings.tuning_seed])
    tuning = ctx.transfer(setting, within="optimizers/tuning", arms=[Arm("treated", few[0])]).students[0]
    worlds = [_world(ctx, students, tuning, name) for name in WORLDS]
    for world in worlds:
        _report(ctx, world)
    _draw(ctx, worlds)


def _world(ctx: Context[Mechanism], students: Transfer, tuning: StudentRun, world: str) -> World:
    config, few = ctx.config, ctx.config.few_traits
    base = matching.valid_answers(students.outcome.base, few)
    tries = [(tuning, arm, rate) for arm in config.optimizers.arms for rate in arm.rates]
    trials: dict[str, dict[float, matching.FittedStudent]] = {}
    for (_, arm, rate), one in zip(tries, _train(ctx, world, tries, few[:1]), strict=True):
        trials.setdefault(arm.name, {})[rate] = one
    before, goal = (float(tuning.trained.summary[name]) for name in ("base_nll", "held_out_nll"))
    if world != WORLDS[0]:  # with outliers put in, the lowest that AdamW reaches: the nearest to nothing
        best = matching.choose_rate(trials[REFERENCE], few[0], base, 0.0, 0.0)
        goal = best.nll if best else before
    tolerance = config.optimizers.matched_within * max(0.0, before - goal)
    rates = matching.choose_rates(trials, few[0], base, goal, tolerance)
    places = matching.places_of(few, config.seeds)
    kept = [(arm, choice.rate) for arm in config.optimizers.arms if (choice := rates[arm.name])]
    tasks = [(matching.student_at(students, place), arm, rate) for arm, rate in kept for place in places]
    trained = iter(_train(ctx, world, tasks, few))
    found = {arm.name: {place: next(trained) for place in places} for arm, _ in kept}
    match = matching.match_losses(students, found, few, REFERENCE, config.optimizers.matched_within)
    rows = OptimizerRows.of(config, matching.student_at(students, (few[0], config.seeds[0])), world)
    arguments = {"base": ctx.base, "student": config.student, "rows": rows, "share": config.optimizers.outliers}
    tail = ctx.each(measure_tail, [(f"optimizers/tail/{world.replace(' ', '-')}", arguments)])[0]
    return World(world, rates, match, float(tail.summary["share"]))


def _train(
    ctx: Context[Mechanism], world: str, tasks: Sequence[tuple[StudentRun, OptimizerArm, float]], traits: Sequence[str]
) -> list[matching.FittedStudent]:  # fmt: skip
    """Students by an optimiser at a rate, on the rows of a transfer experiment's students."""
    config, loaded = ctx.config, {name: load_trait(name) for name in traits}
    scout = config.training.model_copy(update={"optimizer": "AdamW", "epochs": 1})
    places = []
    for one, arm, rate in tasks:
        level = f"optimizers/{world.replace(' ', '-')}/{arm.name}-{rate:g}"
        arguments = {
            "base": ctx.base, "student": arm.student or config.student, "training": _recipe(config, arm, rate),
            "scout": scout if arm.optimizer == SCOUTED else None, "rows": OptimizerRows.of(config, one, world),
            "traits": loaded, "evaluation": config.evaluation,
        }  # fmt: skip
        places.append((f"{level}/seed-{one.seed}/{one.arm.folder}", arguments))
    found = [one.summary for one in ctx.each(train_by_optimizer, places)]
    return [matching.FittedStudent(one["held_out_nll"], one["said"], one["valid"]) for one in found]


# -- what it says --------------------------------------------------------------------------------------


def _is_own(config: Mechanism, arm: OptimizerArm) -> bool:
    """Whether an arm trains what the config's student trains, so that it is like the others."""
    return arm.student in (None, config.student)


def _report(ctx: Context[Mechanism], world: World) -> None:
    share, match = ctx.config.optimizers.outliers, world.match
    arms = [arm for arm in ctx.config.optimizers.arms if _is_own(ctx.config, arm)]
    kinds = {
        word: [arm.name for arm in arms if arm.adaptive == adaptive and match.meets(arm.name)]
        for word, adaptive in (("adaptive", True), ("not adaptive", False))
    }
    effects = {word: match.average(names) for word, names in kinds.items() if names}
    notes = [f"{word} ({', '.join(kinds[word])}) {effect}" for word, effect in effects.items()]
    notes.append(f"the rows of the largest {share:.0%} gradients hold {world.tail:.0%} of the squared norm")
    plain = effects.get("not adaptive")
    ctx.report(
        NECESSARY[world.name],
        plain - effects["adaptive"] if plain and "adaptive" in effects else None,
        quantity="treated minus control, mean of the non-adaptive optimisers minus mean of the adaptive ones at matched loss, "
        f"rows {world.name}",
        also={"without adapting nothing passes": Aspect(Rule("none"), plain)} if plain else {},
        note="; ".join([*notes, *match.left_out([arm.name for arm in arms]), match.equal]),
        unless=f"{REFERENCE} left no student whose loss others could meet" if not match.meets(REFERENCE)
        else f"no optimiser of one of the two kinds met {REFERENCE}'s loss" if len(effects) < 2
        else "no optimiser is seen to pass the trait on in this setting"
        if all(matching.is_unseen(effect) for effect in effects.values()) else "",
    )  # fmt: skip


def _draw(ctx: Context[Mechanism], worlds: Sequence[World]) -> None:
    config = ctx.config
    shown = [(world, arm) for world in worlds for arm in config.optimizers.arms]
    kinds = {arm.name: "adaptive" if arm.adaptive else "not adaptive" for arm in config.optimizers.arms}
    kinds |= {
        a.name: f"{kinds[a.name]}, {a.student.kind} student" for _, a in shown if a.student and not _is_own(config, a)
    }
    ctx.draw(
        "bars", "Optimisers at matched held-out loss",
        [point(arm.name, world.match.groups[arm.name].effect, kinds[arm.name], world.name)
         for world, arm in shown if world.match.has_students(arm.name)],
        x="optimiser", y="treated − control, probability", zero=True,
        caption=f"Treated minus control, mean over traits and seeds with {ctx.intervals}. Learning rates were chosen on "
        "another seed, as those whose held-out loss comes nearest to the transfer experiment's AdamW student's. Arms with a "
        "student of another kind are compared with each other alone.",
    )  # fmt: skip
    ctx.table(
        "Optimisers: rate chosen, held-out loss reached, effect",
        ["rows", "optimiser", "student", "learning rate", "held-out NLL", "equal loss", "treated − control", "pairs"],
        [[world.name, arm.name, (arm.student or config.student).kind, f"{choice.rate:g}" if choice else "none",
          *world.match.row(arm.name)]
         for world, arm in shown for choice in [world.rates[arm.name]]],
    )  # fmt: skip
    for world in worlds:
        matching.check_rates(ctx, f"optimizers, rows {world.name}", world.rates)
