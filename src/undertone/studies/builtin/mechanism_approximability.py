"""Part `approximability`: is the system prompt a vector, and do prompts that are none fail to be learnt?

2606.00995, abstract 1 and 2. For every trait, after every layer: the share of the prompt's effect that
``base + strength · v`` explains, on rows of the domain and on the first token of answers, beside random directions of the
same norm and other traits' vectors. Then, across traits, whether that share goes with transfer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from undertone.mechanism.approximation import Fit, Pair, answer_pairs, best_fits
from undertone.models.loading import Model, ModelRef, with_system
from undertone.provenance.runs import Stage
from undertone.provenance.seeds import derive_seed
from undertone.provenance.stage_functions import stage
from undertone.rows import Row
from undertone.studies.builtin.mechanism import Mechanism
from undertone.studies.builtin.mechanism_vectors import ORIGINS, VectorChats, stranger, teacher_vectors, vector_in
from undertone.studies.claim import Aspect, Claim
from undertone.studies.context import Context, Transfer, point
from undertone.studies.measurement import BOOTSTRAP_NEEDS, Measurement, Statistic
from undertone.studies.results import Point
from undertone.teachers import Origin
from undertone.traits import Trait, load_trait, variants
from undertone.vectors import random_like
from undertone.verdicts import Rule

PANELS: Final[Mapping[Origin, str]] = {"carrier": "carrier tokens", "questions": "answers"}
IS_A_VECTOR = {
    origin: Claim(
        f"prompt-is-a-vector-on-{origin}", "A system prompt that states a preference acts as one steering vector.",
        "2606.00995, abstract 1", None, Rule("above", beyond_baselines=True), "share",
    )
    for origin in ORIGINS
}  # fmt: skip
PREDICTS = {
    origin: Claim(
        f"approximability-predicts-transfer-{origin}",
        "System prompts that no vector approximates well are not learnt subliminally.",
        "2606.00995, abstract 2", "AUC 0.86 for steerability over 16 animals and 3 models", Rule("above"), "correlation",
    )
    for origin in ORIGINS
}  # fmt: skip
TRANSFERS: Final = 0.05
"""A trait counts as passed on when treated minus control is above this: the width that undertone calls within noise."""

NO_INTERVAL: Final = f"no bootstrap interval: fewer than {BOOTSTRAP_NEEDS} traits, or resamples that are all alike"


def preflight(config: Mechanism, device: str) -> None:
    """Every trait has another one to be held against."""
    del device
    for name in (*config.trait, *config.approximability.variants):
        stranger(name, config.trait)


def approximability(ctx: Context[Mechanism], students: Transfer) -> None:
    """Fits for every trait, then fits against transfer."""
    config, more = ctx.config, ctx.config.approximability.variants
    transfers, effect = dict.fromkeys(config.trait, students), students.effect
    if more:
        further = ctx.transfer(ctx.setting(trait=more), within="approximability/students")
        transfers |= dict.fromkeys(more, further)
        effect = replace(effect, values=np.concatenate([effect.values, further.effect.values]))
        ctx.check_answers("approximability", {"": further})
    found = _fits(ctx, transfers)
    moved = dict(zip(found, effect.values.mean(axis=1).tolist(), strict=True))
    plain = [trait for trait in found if _kind(trait) in ("own prompt", "plain")]
    for origin in ORIGINS:
        _report_vector(ctx, [found[trait][origin] for trait in plain], origin)
    for origin in ORIGINS:
        _report_prediction(ctx, [one[origin]["explained"] for one in found.values()], list(moved.values()), origin)
    _draw(ctx, found, moved, plain)


def _fits(ctx: Context[Mechanism], transfers: Mapping[str, Transfer]) -> dict[str, Mapping[str, Any]]:
    """Trait -> origin -> what :func:`fit_vectors` found, at the rows of the first seed's treated student."""
    config, settings = ctx.config, ctx.config.approximability
    vectors, chats = teacher_vectors(ctx, list(transfers)), VectorChats.of(config)
    places = []
    for name, transfer in transfers.items():
        trait = load_trait(name)
        others = [vectors[other] for other in config.trait if load_trait(other).answer != trait.answer]
        rows = transfer.outcome.student("treated", name, config.seeds[0]).all_rows()[: settings.pairs]
        arguments = {"base": ctx.base, "trait": trait, "rows": rows, "own": vectors[name],
                     "others": others[: settings.random], "chats": chats, "strengths": settings.strengths,
                     "directions": settings.random}  # fmt: skip
        places.append((f"approximability/fits/{trait.name}", arguments))
    stages = ctx.each(fit_vectors, places)
    return {name: one.summary for name, one in zip(transfers, stages, strict=True)}


@stage("fit vectors")
def fit_vectors(
    folder: Path, device: str, *, base: ModelRef, trait: Trait, rows: Sequence[Row], own: Stage,
    others: Sequence[Stage], chats: VectorChats, strengths: Sequence[float], directions: int,
) -> dict[str, Any]:  # fmt: skip
    """Origin -> shares of a prompt's effect on the base that vectors explain, each at its best of ``strengths``.

    ``own`` and ``others`` are stages of :func:`teacher_vectors`; ``directions`` of equal norm are drawn at random.
    """
    del folder
    model = base.load(device)
    summary: dict[str, Any] = {}
    for origin in ORIGINS:
        vector = vector_in(own, origin)
        seeds = [derive_seed(0, f"approximability/{trait.name}", at) for at in range(directions)]
        vectors = [
            vector,
            vector_in(own, "questions" if origin == "carrier" else "carrier"),
            *(random_like(vector, seed) for seed in seeds),
            *(vector_in(stage, origin) for stage in others),
        ]
        layers = [(at, layer) for at, one in enumerate(vectors) for layer in one.blocks]
        pairs = _pairs(origin, model, trait, rows, chats)
        fits: list[dict[int, Fit]] = [{} for _ in vectors]
        tried = best_fits(model, pairs, [vectors[at].select([layer]) for at, layer in layers], strengths)
        for (at, layer), fit in zip(layers, tried, strict=True):
            fits[at][layer] = fit
        mine, crossed, *rest = fits
        summary[origin] = {**best_of(mine), "crossed": best_of(crossed)["explained"]}
        for name, baselines in {"random": rest[:directions], "others": rest[directions:]}.items():
            summary[origin][name] = [best_of(one)["explained"] for one in baselines]
            summary[origin][f"{name}_by_block"] = {
                str(layer): float(np.mean([one[layer].explained for one in baselines])) for layer in mine
            }
    return summary


def best_of(fits: Mapping[int, Fit]) -> dict[str, Any]:
    """What is reported of a vector: its fit after the layer that is best on the pairs that strengths are chosen on."""
    best = max(fits, key=lambda layer: fits[layer].chosen)
    return {
        "effect": fits[best].effect,
        "by_block": {str(layer): fit.explained for layer, fit in fits.items()},
        "block": best,
        "strength": fits[best].strength,
        "explained": fits[best].explained,
    }


def _pairs(origin: Origin, model: Model, trait: Trait, rows: Sequence[Row], chats: VectorChats) -> list[Pair]:
    prompt = trait.told(model.form)
    if origin == "questions":
        asked = chats.at(origin, trait, model)
        prompted = [model.prompt(with_system(chat, prompt)) for chat in asked]
        return answer_pairs(model, prompted, [model.prompt(chat) for chat in asked])
    plain = model.system_prompt(chats.context)
    return [Pair(model.row_example(row, prompt), model.row_example(row, plain)) for row in rows]


# -- what is claimed, and drawn ----------------------------------------------------------------------


def _report_vector(ctx: Context[Mechanism], found: Sequence[Mapping[str, Any]], origin: Origin) -> None:
    own, noise, rivals, crossed = (
        Measurement.of_units([float(np.mean(one[name])) for one in found], "traits", ctx.confidence, "share")
        for name in ("explained", "random", "others", "crossed")
    )
    where = "carrier tokens" if origin == "carrier" else "the first token of answers"
    ctx.report(
        IS_A_VECTOR[origin],
        own,
        quantity=f"share of the prompt's effect on {where} that its vector explains, mean over {own.count} traits",
        baselines={"random directions": noise, "other traits' vectors": rivals},
        also={"most of it": Aspect(Rule("above", than=0.5), own)},
        note=f"the trait's own vector from the other context {crossed}; each at its own best layer and strength, chosen on "
        "other pairs than reported",
    )


def _report_prediction(ctx: Context[Mechanism], share: Sequence[float], moved: Sequence[float], origin: Origin) -> None:
    seed = derive_seed(0, "approximability/bootstrap")
    found = Statistic.rank_correlation(share, moved, over="traits", confidence=ctx.confidence, seed=seed)
    auc = _auc(np.greater(moved, TRANSFERS), np.array(share), ctx.confidence)
    ctx.report(
        PREDICTS[origin],
        found,
        quantity=f"rank correlation over {len(share)} traits: share explained on {PANELS[origin]} with treated minus control",
        note=f"0 if unrelated; AUC for passing by more than {100 * TRANSFERS:.0f} points: {auc}",
        unless="" if found.quantity.low is not None else NO_INTERVAL,
    )


def _auc(passed: np.ndarray, share: np.ndarray, confidence: float) -> str:
    if passed.all() or not passed.any():
        return f"not defined: {'all' if passed.any() else 'none'} of them pass"
    wins = np.greater.outer(share, share) + 0.5 * np.equal.outer(share, share)
    generator = np.random.default_rng(derive_seed(0, "approximability/auc"))
    draws = [np.arange(len(share)), *generator.integers(0, len(share), (2000, len(share)))]
    found = [wins[np.ix_(drawn[passed[drawn]], drawn[~passed[drawn]])].mean()
             for drawn in draws if 0 < passed[drawn].sum() < len(drawn)]  # fmt: skip
    low, high = np.quantile(found[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
    return f"{found[0]:.2f} ({low:.2f} to {high:.2f}, bootstrap; {int(passed.sum())} pass)"


def _kind(trait: str) -> str:
    variant = trait.partition("@")[2]
    return variants().get(variant, "own prompt") if variant else "own prompt"


def _draw(
    ctx: Context[Mechanism], found: Mapping[str, Mapping[str, Any]], moved: Mapping[str, float], plain: Sequence[str]
) -> None:
    lines = {
        "by_block": "own vector",
        "random_by_block": "random directions",
        "others_by_block": "other traits' vectors",
    }

    def over_traits(origin: Origin, name: str, layer: str) -> Measurement:
        values = [found[trait][origin][name][layer] for trait in plain]
        return Measurement.of_units(values, "traits", ctx.confidence, "share")

    ctx.draw(
        "lines", "How much of a system prompt is one vector",
        [point(int(layer), over_traits(origin, name, layer), series, panel)
         for name, series in lines.items() for origin, panel in PANELS.items()
         for layer in sorted(found[plain[0]][origin][name], key=int)],
        x="layer", y="share explained", zero=True,
        caption=f"Share of the prompt's effect (KL) that base + strength · v explains, by layer; mean over traits, "
        f"{ctx.intervals}. 1: the steered model says what the prompted one says. 0: no better than the plain model.",
    )  # fmt: skip
    ctx.draw(
        "scatter", "Well approximated, well learnt?",
        [Point(x=found[trait][origin]["explained"], y=moved[trait], series=_kind(trait), panel=panel)
         for trait in found for origin, panel in PANELS.items()],
        x="share explained", y="treated − control, probability",
        caption="A point is a trait: share of its prompt that its vector explains against treated minus control.",
    )  # fmt: skip
    ctx.table(
        "Traits: what the prompt does, how much of it is a vector, what passes",
        ["trait", "prompt", "teacher KL", "explained", "answer KL", "explained", "treated − control, points"],
        [[trait, _kind(trait), *(cell for origin in ORIGINS for cell in _cells(both[origin])), f"{100 * moved[trait]:+.1f}"]
         for trait, both in found.items()],
    )  # fmt: skip


def _cells(one: Mapping[str, Any]) -> tuple[str, str]:
    return f"{one['effect']:.3f}", f"{one['explained']:.2f} (layer {one['block']}, × {one['strength']:g})"
