"""``kind: tokens``: which tokens of number lists carry the trait: entangled numbers, and tokens at which teachers diverge.

Divergence tokens (Schrodi et al., 2509.23886): students learn the tokens at which teachers differ, all others, and random
sets of equal size. Everything but the mask on the loss is that of the treated student. A random set has as many tokens as
the set it stands beside, and as many of them with digits: the ends of lists carry nothing, and a random set with more of
those would lose for that alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
from pydantic import Field, model_validator

from undertone.mechanism.tokens import Against, at_random, divergence_marks, greedy_tokens
from undertone.models.loading import Context as Prompting
from undertone.models.loading import Model, ModelRef, with_system, wording_of
from undertone.provenance.configs import Config
from undertone.provenance.runs import Stage, write_json
from undertone.provenance.seeds import derive_seed
from undertone.provenance.stage_functions import stage
from undertone.rows import Row
from undertone.studies.builtin.tokens_entanglement import Entanglement, report_entanglement
from undertone.studies.claim import Aspect, Claim
from undertone.studies.context import Context, Transfer, point
from undertone.studies.frame import study
from undertone.studies.measurement import Measurement
from undertone.training import Lesson, Student, Training, student_seed
from undertone.traits import Behaviour, load_trait
from undertone.transfer.arms import StudentRun, split_rows, target_probability, trained_model
from undertone.transfer.config import Setting
from undertone.transfer.pipeline import evaluate_call
from undertone.transfer.train import train_and_save, trait_prompt
from undertone.verdicts import Rule

MASKS: Final = {
    "only": "divergence tokens alone",
    "random": "a random set of equal size",
    "without": "all but divergence tokens",
    "random-without": "all but the random set",
}
SOURCE: Final = "2509.23886"
FEW = Claim(
    id="divergence-tokens-few", claim="Only few tokens differ between teachers with different traits.", source=SOURCE,
    published="4.7 to 18.3 % of tokens", rule=Rule("below", than=0.2), unit="share",
)  # fmt: skip
SUFFICE = Claim(
    id="divergence-tokens-suffice", claim="Loss on divergence tokens alone keeps the transfer.", source=SOURCE,
    published="preserves or enhances it", rule=Rule("above"),
)  # fmt: skip
NEEDED = Claim(
    id="divergence-tokens-needed", claim="Without divergence tokens the transfer is mostly gone.", source=SOURCE,
    published="masking them mostly eliminates it", rule=Rule("below"),
)  # fmt: skip


class Divergence(Config):
    """Students of divergence tokens alone, of all others, and of random sets of equal size."""

    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"against": {"plain": "control"}}
    against: Against = Field(
        "any", description="the trait-conditioned teacher's token differs from: control | any | every other's"
    )


class Tokens(Setting):
    """Which tokens of number lists carry the trait."""

    kind: Literal["tokens"] = "tokens"
    entanglement: Entanglement = Field(default_factory=Entanglement)
    divergence: Divergence = Field(default_factory=Divergence)

    @model_validator(mode="after")
    def _read(self) -> Tokens:
        if len(self.trait) < 2:
            raise ValueError("trait needs two or more: other traits' numbers and teachers are the baseline")
        if self.teacher.kind != "prompt" or self.teacher.text or self.teacher.ablate:
            raise ValueError(
                "teacher.kind must be prompt, without text or ablate: trait-conditioned teachers are compared"
            )
        if self.teacher.model not in (None, self.model):
            raise ValueError("teacher.model must be the students' model: tokens are compared one by one")
        if self.domain.kind != "numbers":
            raise ValueError("domain.kind must be numbers")
        if self.data.clean or self.data.order != "kept" or self.rewrite is not None:
            raise ValueError("rows must stand as their teacher wrote them: no data.clean, data.order or rewrite")
        odd = [name for name in self.trait if isinstance(load_trait(name), Behaviour)]
        if odd:
            raise ValueError(f"a behaviour has no answer that a number could raise: {', '.join(odd)}")
        return self


@stage("divergence tokens")
def mark_tokens(
    folder: Path, device: str, *, base: ModelRef, filtered: Stage, prompts: Sequence[int], held_out: int,
    systems: Sequence[str], context: Prompting, against: Against, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Which tokens of a treated student's rows diverge, in ``masks.json``; ``systems``: its teacher's, then the others'."""
    model = base.load(device)
    rows, _ = split_rows(filtered, prompts, held_out)
    prompted, *rivals = (_greedy(model, rows, system) for system in systems)
    control = _greedy(model, rows, model.system_prompt(context))
    ways = {
        way: [
            divergence_marks(one, control[at], [rival[at] for rival in rivals], way) for at, one in enumerate(prompted)
        ]
        for way in ("control", "any", "every")
    }
    written = [model.row_example(row, None).completion for row in rows]
    chosen = ways[against]
    drawn = at_random(chosen, _kinds(model, written), seed)
    packed = {
        name: ["".join("01"[int(one)] for one in row) for row in marks]
        for name, marks in (("only", chosen), ("random", drawn))
    }
    write_json(folder / "masks.json", packed)
    likeliest = np.concatenate([one == ids for one, ids in zip(prompted, written, strict=True)])
    shares = {way: float(np.concatenate(marks).mean()) for way, marks in ways.items()}
    return {
        "tokens": len(likeliest),
        "shares": shares,
        "published": float((likeliest & np.concatenate(ways["any"])).mean()),
        "overlap": float(np.concatenate(drawn)[np.concatenate(chosen)].mean()) if shares[against] else 0.0,
    }


def _greedy(model: Model, rows: Sequence[Row], system: str | None) -> list[np.ndarray]:
    examples = [model.example(with_system(row.prompt_messages, system), row.completion) for row in rows]
    return greedy_tokens(model.hf, examples, model.pad)


def _kinds(model: Model, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Of each row, 1 where a token has a digit, else 0."""
    known = {
        token: int(any(map(str.isdigit, model.decode_all([token])))) for token in {one for ids in rows for one in ids}
    }
    return [np.array([known[token] for token in ids]) for ids in rows]


@stage("train on tokens", version=2, together=True)
def train_on_tokens(
    folder: Path, device: str, *, base: ModelRef, student: Student, training: Training, filtered: Stage,
    prompts: Sequence[int], held_out: int, seed: int, context: Prompting, trait_prompt: str | None, marks: Stage, mask: str,
) -> dict[str, Any]:  # fmt: skip
    """The student of the tokens that a mask of :data:`MASKS` keeps, under ``student/``."""
    rows, unseen = split_rows(filtered, prompts, held_out)
    wanted = "0" if mask.endswith("without") else "1"
    signs = marks.read_json("masks.json")["random" if mask.startswith("random") else "only"]
    masks = [[sign == wanted for sign in row] for row in signs]
    lesson = Lesson(rows, unseen, context, trait_prompt, masks=masks)
    return train_and_save(folder, device, base, student, training, lesson, student_seed(seed))


@study("tokens", Tokens, side_by_side=lambda config: len(config.seeds) * len(config.trait) * len(MASKS))
def tokens(ctx: Context[Tokens]) -> str:
    """The students of all tokens, the base's ties between numbers and answers, then students of some tokens."""
    config, students = ctx.config, ctx.transfer()
    report_entanglement(ctx, config.entanglement, students)
    treated = list(students.outcome.of("treated"))
    marked = _mark(ctx, treated)
    kept, gone = _report_divergence(ctx, students, marked, _retrain(ctx, treated, marked))
    ctx.check_transfer(students)
    return (
        f"All tokens pass the trait on by {students.effect}; against random sets of equal size, divergence tokens alone give "
        f"{100 * kept.mean:+.1f} points, all others {100 * gone.mean:+.1f}."
    )


Marks = Mapping[tuple[str, int], Stage]
"""(trait, seed) -> a stage beside the treated student there."""


def _at(students: Sequence[StudentRun], stages: Sequence[Stage]) -> Marks:
    return {(one.arm.trait or "", one.seed): stage for one, stage in zip(students, stages, strict=True)}


def _mark(ctx: Context[Tokens], treated: Sequence[StudentRun]) -> Marks:
    config, speaker = ctx.config, wording_of(ctx.config.model)
    systems = {name: load_trait(name).system_prompt(speaker) for name in config.trait}
    places = [
        (f"divergence/seed-{one.seed}/{one.arm.folder}/marks", {
            "base": ctx.base, "filtered": one.filtered, "prompts": one.prompts, "held_out": config.data.held_out,
            "systems": [systems[own], *(system for name, system in systems.items() if name != own)],
            "context": config.context, "against": config.divergence.against,
            "seed": derive_seed(one.seed, f"divergence/{one.arm.folder}/random"),
        })
        for one in treated for own in [one.arm.trait or ""]
    ]  # fmt: skip
    return _at(treated, ctx.each(mark_tokens, places))


def _retrain(ctx: Context[Tokens], treated: Sequence[StudentRun], marked: Marks) -> dict[str, Marks]:
    """Mask -> what its students answer."""
    config = ctx.config
    wanted = [(mask, one, f"divergence/seed-{one.seed}/{one.arm.folder}/{mask}") for mask in MASKS for one in treated]
    trained = ctx.each(train_on_tokens, [
        (f"{place}/train", {
            "base": ctx.base, "student": config.student, "training": config.training, "filtered": one.filtered,
            "prompts": one.prompts, "held_out": config.data.held_out, "seed": one.seed, "context": config.context,
            "trait_prompt": trait_prompt(config, one.arm), "marks": marked[one.arm.trait or "", one.seed], "mask": mask,
        })
        for mask, one, place in wanted
    ])  # fmt: skip
    evaluated = ctx.executor.each([
        evaluate_call(config, place, [one.arm.trait or ""], trained_model(config, config.model, own))
        for (_, one, place), own in zip(wanted, trained, strict=True)
    ])  # fmt: skip
    count = len(treated)
    return {mask: _at(treated, evaluated[at * count : (at + 1) * count]) for at, mask in enumerate(MASKS)}


def _report_divergence(
    ctx: Context[Tokens], students: Transfer, marked: Marks, asked: Mapping[str, Marks]
) -> tuple[Measurement, Measurement]:
    """Effects of the five students, treated minus control; returns those of the claims: alone, and without."""

    def share_of(name: str) -> Measurement:
        return ctx.measure(lambda trait, seed: marked[trait, seed].summary["shares"][name], unit="share")

    def effect_of(stages: Marks) -> Measurement:
        said = ctx.measure(lambda trait, seed: target_probability(stages[trait, seed], trait))
        return said - students.probability("control")

    effects = {"full": students.effect} | {mask: effect_of(stages) for mask, stages in asked.items()}
    share = share_of(ctx.config.divergence.against).mean
    ctx.report(
        FEW, share_of("any"),
        quantity="share of tokens of treated rows at which the teacher's likeliest token is not another teacher's",
        baselines={"where the token written is also the likeliest (the published rule)":
                   ctx.measure(lambda trait, seed: marked[trait, seed].summary["published"], unit="share")},
        note=f"the teachers of {len(ctx.config.trait) - 1} other traits and the control teacher",
    )  # fmt: skip
    gone = {"more than half of the effect is gone": Aspect(Rule("above"), 0.5 * effects["full"] - effects["without"])}
    apart = []
    for claim, mask, beside, also in ((SUFFICE, "only", "random", {}), (NEEDED, "without", "random-without", gone)):
        apart.append(effects[mask] - effects[beside])
        ctx.report(
            claim, apart[-1], also=also,
            quantity=f"effect of the student of {MASKS[mask]}, minus that of {MASKS[beside]}",
            note=f"{MASKS[beside]} {effects[beside]}; {MASKS[mask]} {effects[mask]}; all tokens {effects['full']}; "
            f"divergence tokens are {share:.1%}",
        )  # fmt: skip
    words = {"full": "all tokens", **MASKS}
    ctx.draw(
        "bars", "Which tokens carry the trait",
        [point(words[mask], values, "treated − control") for mask, values in effects.items()],
        x="loss on", y="treated − control", zero=True,
        caption=f"Divergence tokens are {share:.1%} of the treated rows' tokens; {students.effect.method}. The control "
        "learns all of its own tokens.",
    )  # fmt: skip
    ctx.table(
        "Divergence tokens",
        ["student", "tokens", "differs from the control", "from any", "from every", "from any, and written",
         "of these in the random set"],
        [[f"{load_trait(trait).name}, seed {seed}", str(found["tokens"]),
          *(f"{found['shares'][way]:.2%}" for way in ("control", "any", "every")),
          f"{found['published']:.2%}", f"{found['overlap']:.2%}"]
         for trait in ctx.config.trait for seed in ctx.config.seeds for found in [marked[trait, seed].summary]],
    )  # fmt: skip
    return apart[0], apart[1]
