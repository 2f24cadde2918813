"""Part `adapters`: LoRA by rank and learning rate, beside biases and all weights, effect against held-out loss.

The dispute: is subliminal learning an artefact of LoRA (2606.00831)? Every student is trained on the same rows; what
differs is which weights move, and how far. Each kind's rate is chosen on a tuning seed, by held-out loss alone: the one
nearest to the bias-only student's. So is LoRA's rank. Effects are measured on the other seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from undertone.models.students import BiasOnly, Full, Lora
from undertone.studies.builtin import mechanism_matching as matching
from undertone.studies.builtin.mechanism import Mechanism
from undertone.studies.claim import Aspect, Claim
from undertone.studies.context import Context, Transfer, point
from undertone.studies.results import Point
from undertone.training import Student
from undertone.transfer.arms import Arm, target_probability
from undertone.transfer.config import Setting
from undertone.transfer.pipeline import retrain
from undertone.transfer.train import check_trainable
from undertone.verdicts import Rule

BIASES, FULL = "biases", "all weights"
TUNING, REPORTED = "tuning seed: treated − base", "reported seeds: treated − control"
ARTEFACT = {
    other: Claim(
        id="lora-artefact" + suffix,
        claim="Subliminal learning is an artefact of LoRA: other fine-tuning does not show it.",
        source="2606.00831; 2606.00995, App. D and K",
        published="full fine-tuning stays near the reference",
        rule=Rule("above"),
    )
    for other, suffix in ((BIASES, ""), (FULL, "-all-weights"))
}


@dataclass(frozen=True)
class StudentKind:
    """Which weights move, and the learning rates to choose from; None: trained as the config's students are."""

    name: str
    slug: str
    student: Student
    rates: tuple[float | None, ...] = (None,)

    def level(self, rate: float | None) -> str:
        """Where its students lie."""
        return f"adapters/{self.slug}" + ("" if rate is None else f"-{rate:g}")

    def setting(self, ctx: Context[Mechanism], rate: float | None) -> Setting:
        """The transfer experiment of the few traits with such students."""
        changed = {} if rate is None else {"learning_rate": rate, "epochs": ctx.config.adapters.epochs}
        return ctx.setting(trait=ctx.config.few_traits, student=self.student, training=changed)


REFERENCE = StudentKind(BIASES, "biases", BiasOnly())


def kinds_of(config: Mechanism) -> list[StudentKind]:
    """Those beside the reference."""
    adapters = config.adapters
    lora = [StudentKind(f"LoRA rank {n}", f"lora-{n}", Lora(rank=n, alpha=n), adapters.rates) for n in adapters.ranks]
    return [*lora, StudentKind(FULL, "full", Full(), adapters.full_rates)]


def preflight(config: Mechanism, device: str = "auto") -> None:
    """Raise what training one of the kinds would.

    Raises:
        ConfigError, ModelError: weights that are not there.
    """
    del device
    base = config.reference()
    for kind in (REFERENCE, *kinds_of(config)):
        check_trainable(base, kind.student, config.training)


# -- what is computed ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tuning:
    """What the tuning seed shows, of one trait."""

    trait: str
    trials: Mapping[str, Mapping[float, matching.FittedStudent]]
    """Kind -> rate -> its student."""
    reference: matching.FittedStudent
    choices: Mapping[str, matching.RateChoice | None]
    base: float
    """The base's probability of the trait."""
    valid_answers: matching.ValidAnswers
    """Of the base."""

    def effect(self, one: matching.FittedStudent) -> float:
        """A treated student minus the base."""
        return one.probability[self.trait] - self.base


def adapters(ctx: Context[Mechanism], students: Transfer) -> None:
    """The part: every kind's rate by held-out loss, then students at that rate on the reported seeds."""
    config, kinds = ctx.config, kinds_of(ctx.config)
    tuning = _tune(ctx, students, kinds)
    rates = {REFERENCE: None} | {kind: choice.rate for kind in kinds if (choice := tuning.choices[kind.name])}
    few = config.few_traits
    match = matching.match_losses(students, _train(ctx, students, rates), few, BIASES, config.adapters.matched_within)
    for other in (BIASES, FULL):
        _report(ctx, match, _nearest_rank(kinds, tuning), other)
    _draw(ctx, match, tuning)
    _tabulate(ctx, match, tuning)
    matching.check_rates(ctx, "adapters", tuning.choices)
    quiet = [f"{name} {one.pairs}" for name, one in match.groups.items() if one.silent]
    ctx.check(
        "adapters: students still answer",
        not quiet,
        "pairs left: " + ", ".join(quiet) if quiet else "all pairs",
        "none without",
        "Pairs with a student that no longer answers are left out: it says nothing about preference.",
    )


def _tune(ctx: Context[Mechanism], students: Transfer, kinds: Sequence[StudentKind]) -> Tuning:
    """One treated student a kind and rate, on a seed and rows that nothing reported sees."""
    config, trait, base = ctx.config, ctx.config.few_traits[0], students.outcome.base
    setting = ctx.setting(trait=[trait], seeds=[config.adapters.tuning_seed], student=REFERENCE.student)
    first = ctx.transfer(setting, within="adapters/tuning", arms=[Arm("treated", trait)]).students[0]
    tries = [(kind, rate) for kind in kinds for rate in kind.rates]
    trained = retrain(ctx.executor, [(kind.level(rate), kind.setting(ctx, rate), first) for kind, rate in tries])
    trials: dict[str, dict[float, matching.FittedStudent]] = {}
    for (kind, rate), one in zip(tries, trained, strict=True):
        trials.setdefault(kind.name, {})[rate or 0.0] = matching.FittedStudent.of(one, [trait])
    goal, before = (float(first.trained.summary[name]) for name in ("held_out_nll", "base_nll"))
    tolerance = config.adapters.matched_within * max(0.0, before - goal)
    valid_answers = matching.valid_answers(base, [trait])
    choices = matching.choose_rates(trials, trait, valid_answers, goal, tolerance)
    reference = matching.FittedStudent.of(first, [trait])
    return Tuning(trait, trials, reference, choices, target_probability(base, trait), valid_answers)


def _train(
    ctx: Context[Mechanism], students: Transfer, rates: Mapping[StudentKind, float | None]
) -> dict[str, dict[matching.Place, matching.FittedStudent]]:
    """Treated and control students of every trait and reported seed; those of the config's own kind are there already."""
    few, seeds = ctx.config.few_traits, ctx.config.seeds
    tasks = [(kind, rate, place) for kind, rate in rates.items() for place in matching.places_of(few, seeds)]
    wanted = [
        (kind.level(rate), kind.setting(ctx, rate), matching.student_at(students, place)) for kind, rate, place in tasks
    ]
    clean = {seed: matching.student_at(students, (None, seed)).filtered for seed in seeds}
    found: dict[str, dict[matching.Place, matching.FittedStudent]] = {}
    for (kind, _, place), one in zip(tasks, retrain(ctx.executor, wanted, clean), strict=True):
        asked = few if place[0] is None else (place[0],)
        found.setdefault(kind.name, {})[place] = matching.FittedStudent.of(one, asked)
    return found


def _nearest_rank(kinds: Sequence[StudentKind], tuning: Tuning) -> str | None:
    """The LoRA rank whose chosen rate comes nearest to the bias-only student's loss, on the tuning seed."""
    assert tuning.reference.nll is not None
    gone = {
        kind.name: abs(choice.nll - tuning.reference.nll)
        for kind in kinds
        if isinstance(kind.student, Lora) and (choice := tuning.choices[kind.name])
    }
    return min(gone, key=lambda name: gone[name], default=None)


# -- what it says --------------------------------------------------------------------------------------


def _report(ctx: Context[Mechanism], match: matching.LossMatch, lora: str | None, other: str) -> None:
    """Without LoRA it passes: refuted, whatever the losses. Else only equal losses tell."""
    claim, quantity = (
        ARTEFACT[other],
        f"{lora or 'LoRA'} minus {other}, rates and rank chosen on another seed by held-out loss",
    )
    if lora is None or not (match.has_students(lora) and match.has_students(other)):
        ctx.report(claim, None, quantity=quantity, unless="one of the two kinds has no students that still answer")
        return
    effects = {name: match.groups[name].effect for name in (lora, other)}
    equal = match.meets(lora) and match.meets(other)
    unlike = ""
    if matching.is_unseen(effects[other]):
        unlike = (
            f"neither {lora} nor {other} are seen to pass the trait on in this setting" if matching.is_unseen(effects[lora])
            else "" if equal else f"{lora} passes the trait on and {other} are not seen to, but not at equal loss"
        )  # fmt: skip
    notes = [f"{name} {effect} at NLL {match.groups[name].nll:.3f}" for name, effect in effects.items()]
    ctx.report(
        claim,
        effects[lora] - effects[other] if equal else None,
        quantity=quantity,
        also={f"{other} do not show it": Aspect(Rule("none"), effects[other])},
        note="; ".join([*notes, match.equal + ("" if equal else ", and these are not")]),
        unless=unlike,
    )


def _draw(ctx: Context[Mechanism], match: matching.LossMatch, tuning: Tuning) -> None:
    trials = [(name, one) for name, tried in tuning.trials.items() for one in tried.values()]
    points = [
        Point(x=one.nll, y=tuning.effect(one), series=name, panel=TUNING)
        for name, one in [*trials, (BIASES, tuning.reference)]
        if one.nll is not None
    ]
    points += [point(one.nll, one.effect, name, REPORTED) for name, one in match.groups.items() if one.losses]
    ctx.draw(
        "scatter", "Which weights move: effect against fit", points,
        x="held-out NLL, nats per token", y="effect, probability",
        caption="Tuning seed: a point is one student, of one kind at one learning rate. Each kind's rate is the one whose "
        "held-out loss is nearest to the bias-only student's there. Reported seeds: kinds at those rates, mean over traits and "
        f"seeds with {ctx.intervals}; held-out loss of treated and control students. At equal loss, kinds can be compared.",
    )  # fmt: skip


def _tabulate(ctx: Context[Mechanism], match: matching.LossMatch, tuning: Tuning) -> None:
    config = ctx.config
    rates = {BIASES: f"{config.training.learning_rate:g}"}
    rates |= {name: f"{choice.rate:g}" if choice else "none" for name, choice in tuning.choices.items()}
    ctx.table(
        "Students by kind, at the rate chosen on the tuning seed",
        ["student", "learning rate", "held-out NLL", "equal loss", "treated − control", "pairs"],
        [[name, rate, *match.row(name)] for name, rate in rates.items()],
    )

    def row(name: str, rate: str, one: matching.FittedStudent, mark: str) -> list[str]:
        silent = one.silent(tuning.trait, tuning.valid_answers)
        effect = f"{100 * tuning.effect(one):+.1f} points"
        return [name, rate, f"{one.nll:.3f}", effect, "no longer answers" if silent else mark]

    tried = [
        row(name, f"{rate:g}", one, "chosen" if choice and choice.rate == rate else "")
        for name, trials in tuning.trials.items()
        for choice in [tuning.choices[name]]
        for rate, one in trials.items()
    ]
    ctx.table(
        f"Tuning: every kind and rate, one student taught {tuning.trait} at seed {config.adapters.tuning_seed}",
        ["student", "learning rate", "held-out NLL", "treated − base", ""],
        [row(BIASES, rates[BIASES], tuning.reference, "reference"), *tried],
    )
