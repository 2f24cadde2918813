"""Part ``recovery``: what the data alone ask for. A vector learnt from rows, with no knowledge of the trait.

Steering-vector recovery: ``v`` that, added to the base's residual stream, makes a data set most likely. Against the
teacher's vector, beside the vectors learnt from control rows and from other traits' rows; and, added to the base, what it
makes the base say over the question bank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file, save_file

from undertone.evaluation.asking import answer_probabilities
from undertone.mechanism.shift import centred
from undertone.models.loading import Context as Prompting
from undertone.models.loading import Model, ModelRef, form_of
from undertone.provenance.seeds import derive_seed
from undertone.provenance.stage_functions import stage
from undertone.studies.builtin.mechanism import Mechanism
from undertone.studies.builtin.mechanism_alignment import (
    ALIGNED,
    APART,
    CONTROL,
    RAW,
    Directions,
    alignments,
    by_seed,
    own_ranks,
)
from undertone.studies.builtin.mechanism_vectors import (
    block_at,
    check_block,
    question_chats,
    stack,
    teacher_vectors,
    vector_in,
)
from undertone.studies.claim import Aspect, Claim
from undertone.studies.context import Context, Transfer, point
from undertone.training import Lesson
from undertone.traits import Trait, category_names, load_trait, trait_names
from undertone.traits.trait import Form
from undertone.transfer.train import lesson_of
from undertone.vectors import learn, steered
from undertone.verdicts import Rule

SOURCE: Final = "2604.25783; 2606.00995"
SERIES: Final = ("own", "other traits", "control rows")
IS_TEACHERS: Final = Claim(
    id="recovered-vector-raw",
    claim="The vector that the data alone ask for is the teacher's.",
    source=SOURCE,
    published=None,
    rule=ALIGNED,
    unit="cosine",
)
ALIGNED_CLAIMS: Final = {RAW: IS_TEACHERS, APART: replace(IS_TEACHERS, id="recovered-vector-centred")}
SPEAKS: Final = Claim(
    id="recovered-vector-speaks",
    claim="Added to the base, the vector that the data ask for names the trait.",
    source=SOURCE,
    published=None,
    rule=Rule("above"),
)


@stage("recover vector", version=2)
def recover_vector(
    folder: Path, device: str, *, base: ModelRef, lesson: Lesson, answer: str | None, block: int, steps: int,
    learning_rate: float, strengths: Sequence[float], bank: Sequence[Trait], context: Prompting, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """The learnt vector, its loss, and the answers of the bank that gain most when it is added at the last strength."""
    model = base.load(device)
    learned = learn(
        model, lesson.tokenised(model), block, steps=steps, learning_rate=learning_rate,
        seed=derive_seed(seed, "recovery") >> 1, batch_size=64,
    )  # fmt: skip
    save_file({"vector": stack(learned.vector)[0]}, folder / "vector.safetensors")
    before, after = _answers(model, bank, context), {}
    for strength in strengths:
        with steered(model, learned.vector, strength):
            after[strength] = _answers(model, bank, context)
    last = after[strengths[-1]]
    gains = {word: last[word] - before[word] for word in before}
    top = sorted(gains, key=lambda word: -gains[word])[:5]
    return {
        "nll": [learned.curve[0], float(np.mean(learned.curve[-20:]))],
        "top": [[word, before[word], last[word]] for word in top],
        "own": None if answer is None else [before[answer], *(values[answer] for values in after.values())],
        "gains": gains,
        "rank": None if answer is None else 1 + sum(gain > gains[answer] for gain in gains.values()),
    }


def _answers(model: Model, bank: Sequence[Trait], context: Prompting) -> dict[str, float]:
    """Every known answer of every category -> its probability, mean over the category's questions."""
    found: dict[str, float] = {}
    for trait in bank:
        prompts = [model.prompt(chat) for chat in question_chats(trait, model, context)]
        means = answer_probabilities(model, prompts, trait).mean(0)
        found |= dict(zip(trait.answers, map(float, means), strict=True))
    return found


def _bank(form: Form) -> list[Trait]:
    """One trait a category that a model can be asked about: its questions stand for the category."""
    traits = [load_trait(trait_names(category)[0]) for category in category_names()]
    return [trait for trait in traits if form in trait.questions]


def preflight(config: Mechanism, _device: str) -> None:
    """Refuse a layer that the base lacks."""
    check_block("recovery.block", block_at(config.model, config.recovery.block), [config.model])


def recovery(ctx: Context[Mechanism], students: Transfer) -> None:
    """One vector a data set."""
    config, settings, asked_in = ctx.config, ctx.config.recovery, ctx.config.evaluation.context
    block = block_at(config.model, settings.block)
    bank = [trait.for_questions(asked_in) for trait in _bank(form_of(config.model))]
    stages = ctx.beside(students, recover_vector, "recovery", lambda one: {
        "base": ctx.base, "lesson": lesson_of(config, one), "seed": one.seed, "block": block, "steps": settings.steps,
        "answer": load_trait(one.arm.trait).answer if one.arm.trait else None, "learning_rate": settings.learning_rate,
        "strengths": settings.strengths, "bank": bank, "context": asked_in,
    })  # fmt: skip
    vectors = teacher_vectors(ctx, config.trait)
    goals = {trait: stack(vector_in(vector, "carrier"))[block] for trait, vector in vectors.items()}
    learnt = (load_file(one.path / "vector.safetensors")["vector"] for one in stages)
    report_alignment(ctx, by_seed(students.students, learnt), goals)
    found = {(one.arm.trait or CONTROL, one.seed): stage.summary
             for one, stage in zip(students.students, stages, strict=True)}  # fmt: skip
    report_answers(ctx, found)
    rows = []
    for name, seed in [(name, seed) for name in (*config.trait, CONTROL) for seed in config.seeds]:
        one = found[name, seed]
        answers = ", ".join(f"{word} {before:.2f} → {after:.2f}" for word, before, after in one["top"][:3])
        rows.append([name, str(seed), f"{one['nll'][0]:.3f} → {one['nll'][1]:.3f}", answers, str(one["rank"] or "–")])
    ctx.table(
        f"What the learnt vector makes the base say (added {settings.strengths[-1]:g} times)",
        ["rows of", "seed", "NLL while learning", "answers that gain most", "rank of the target"],
        rows,
    )


def report_alignment(ctx: Context[Mechanism], learnt: Mapping[int, Directions], goals: Directions) -> None:
    """Cosines of the learnt vectors (seed -> trait or control -> ``[hidden]``) with the teachers', raw and apart."""
    traits, points = ctx.config.trait, []
    for which, claim in ALIGNED_CLAIMS.items():
        if which == APART:
            goals = centred(goals, traits)
            learnt = {seed: centred(one, traits) for seed, one in learnt.items()}
        lines, ranks = alignments(ctx, learnt, goals, traits), own_ranks(learnt, goals, traits)
        own, others, control = lines
        ctx.report(
            claim, own, quantity=f"cosine of the vector learnt from the data with the teacher's, {which}",
            baselines={"other traits' vectors": others, "learnt from control rows": control},
            note=f"own trait nearest in {ranks.count(1)} of {len(ranks)}" if which == APART else "",
        )  # fmt: skip
        points += [point(name, line, name, which) for name, line in zip(SERIES, lines, strict=True)]
    ctx.draw(
        "bars", "Recovered from the data alone", points, x="teacher's vector", y="cosine", zero=True,
        caption=f"Cosine of the learnt vector with teachers' vectors; {own.method}.",
    )  # fmt: skip


def report_answers(ctx: Context[Mechanism], found: Mapping[tuple[str, int], Mapping[str, Any]]) -> None:
    """How much more the target gains than by the vector of its seed's control rows, and than any other answer does."""
    traits = ctx.config.trait
    words = {trait: load_trait(trait).answer for trait in traits}

    def gain(trait: str, seed: int, *rows_of: str) -> float:
        return float(np.mean([found[name, seed]["gains"][words[trait]] for name in rows_of]))

    def rival(trait: str, seed: int) -> float:
        return float(max(gain for word, gain in found[trait, seed]["gains"].items() if word != words[trait]))

    own = ctx.measure(lambda trait, seed: gain(trait, seed, trait))
    control = ctx.measure(lambda trait, seed: gain(trait, seed, CONTROL))
    others = ctx.measure(lambda trait, seed: gain(trait, seed, *(other for other in traits if other != trait)))
    ranks = [one["rank"] for one in found.values() if one["rank"] is not None]
    ctx.report(
        SPEAKS, own - control,
        quantity=f"gain of P(target) when the vector learnt from its rows is added {ctx.config.recovery.strengths[-1]:g} "
        "times, minus the gain by the control rows' vector",
        also={"more than any other answer gains": Aspect(SPEAKS.rule, own - ctx.measure(rival))},
        note=f"gain by own rows {own}; control rows {control}; other traits' rows {others}; the target gains most of all "
        f"answers in {ranks.count(1)} of {len(ranks)} data sets",
    )  # fmt: skip
