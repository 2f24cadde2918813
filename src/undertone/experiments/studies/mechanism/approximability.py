"""Part `approximability`: is the system prompt a vector, and do prompts that are none fail to be learnt?

2606.00995, abstract 1 and 2. For every trait, after every layer: the share of the prompt's effect
that ``base + strength · v`` explains, on domain tokens and on the first token of answers, beside random directions of
the same norm and other traits' vectors. Then, across traits, whether that share goes with transfer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap, spearmanr
from sklearn.metrics import roc_auc_score

from undertone.experiments.cells import StudentRun
from undertone.experiments.results import Check
from undertone.experiments.studies.mechanism.config import Mechanism
from undertone.experiments.studies.mechanism.material import (
    ORIGINS,
    Material,
    Told,
    answers_kept,
    chats_at,
    effects,
    find,
    in_words,
    load_base,
    point,
    rows_of,
    teacher_vectors,
    vector_in,
)
from undertone.experiments.study import Figure, Finding, Point, StudyTable, interval
from undertone.mechanism.approximation import Pair, VectorFit, answer_pairs, best_fits
from undertone.models.loading import Model, with_system
from undertone.provenance.runs import Run, Stage
from undertone.provenance.seeds import derive_seed
from undertone.teachers import Origin
from undertone.traits import Trait, load_trait, variants
from undertone.vectors import SteeringVector, random_like

SOURCE = "2606.00995, abstract"
TRANSFERS = 0.05
"""A trait counts as passed on when treated minus control is above this: the width that undertone calls within noise."""


def study(material: Material) -> Told:
    """The part: fits for every trait, then fits against transfer."""
    config = material.config
    more = config.approximability.variants
    outcomes = dict.fromkeys(config.trait, material.outcome)
    checks = []
    if more:
        further = material.students("approximability/students", config.model_copy(update={"trait": more}))
        outcomes |= dict.fromkeys(more, further)
        checks.append(answers_kept("approximability", {"": further}))
    traits = [*config.trait, *more]
    vectors = material.each(teacher_vectors, [(trait,) for trait in traits])
    by_name = dict(zip(traits, vectors, strict=True))
    fits = material.each(
        fit_trait,
        [(find(outcomes[t], "treated", t, config.seeds[0]), by_name[t], _others(t, config, by_name)) for t in traits],
    )
    found = {trait: stage.summary for trait, stage in zip(traits, fits, strict=True)}
    transfer = {trait: effects(outcomes[trait], [trait], config.seeds) for trait in traits}
    return _told(config, found, transfer, checks)


def _others(trait: str, config: Mechanism, vectors: dict[str, Stage]) -> tuple[Stage, ...]:
    target = load_trait(trait).answer
    other = [name for name in config.trait if load_trait(name).answer != target]
    return tuple(vectors[name] for name in other[: config.approximability.random])


def fit_trait(
    run: Run, config: Mechanism, device: str, cell: StudentRun, own: Stage, others: tuple[Stage, ...]
) -> Stage:
    """``approximability/TRAIT``: shares explained, by where the pairs are, where the vector is from, and layer."""
    assert cell.arm.trait is not None
    trait, settings = load_trait(cell.arm.trait), config.approximability

    def compute(folder: Path) -> dict[str, Any]:
        model = load_base(config, device)
        summary: dict[str, Any] = {}
        for origin in ORIGINS:
            own_vector = vector_in(own, origin)
            seeds = [derive_seed(0, f"approximability/{trait.name}", at) for at in range(settings.random)]
            vectors = [
                own_vector,
                vector_in(own, "questions" if origin == "domain" else "domain"),
                *(random_like(own_vector, seed) for seed in seeds),
                *(vector_in(stage, origin) for stage in others),
            ]
            pairs = _pairs(origin, config, model, trait, cell)
            mine, crossed, *rest = _best_layers(model, pairs, vectors, settings.strengths)
            noise, rivals = rest[: settings.random], rest[settings.random :]
            summary[origin] = {
                **_of(mine),
                "crossed": _of(crossed)["explained"],
                "random": [_of(one)["explained"] for one in noise],
                "random_by_layer": _mean_by_layer(noise),
                "others": [_of(one)["explained"] for one in rivals],
                "others_by_layer": _mean_by_layer(rivals),
            }
        return summary

    identity = {"settings": settings.model_dump(mode="json", exclude={"variants"}), "trait": trait.name}
    name, inputs = f"approximability/fits/{trait.name}", [cell.filtered, own, *others]
    return run.stage(name, config=identity, inputs=inputs, version=2, compute=compute)


def _best_layers(
    model: Model, pairs: Sequence[Pair], vectors: Sequence[SteeringVector], strengths: Sequence[float]
) -> list[dict[int, VectorFit]]:
    """Each vector's fit after every layer."""
    places = [(at, layer) for at, vector in enumerate(vectors) for layer in vector.layers]
    fits = best_fits(model, pairs, [vectors[at].select([layer]) for at, layer in places], strengths)
    found: list[dict[int, VectorFit]] = [{} for _ in vectors]
    for (at, layer), fit in zip(places, fits, strict=True):
        found[at][layer] = fit
    return found


def _of(fits: dict[int, VectorFit]) -> dict[str, Any]:
    """What is reported of a vector: its fit after the layer that is best on the pairs that strengths are chosen on."""
    best = max(fits, key=lambda layer: fits[layer].chosen)
    return {
        "effect": fits[best].effect,
        "by_layer": {str(layer): fit.explained for layer, fit in fits.items()},
        "layer": best,
        "strength": fits[best].strength,
        "explained": fits[best].explained,
    }


def _mean_by_layer(found: Sequence[dict[int, VectorFit]]) -> dict[str, float]:
    return {str(layer): float(np.mean([fits[layer].explained for fits in found])) for layer in found[0]}


def _pairs(origin: Origin, config: Mechanism, model: Model, trait: Trait, cell: StudentRun) -> list[Pair]:
    told = trait.system_prompt(model)
    if origin == "questions":
        chats = chats_at(origin, config, trait, model)
        return answer_pairs(
            model, [model.prompt(with_system(chat, told)) for chat in chats], [model.prompt(chat) for chat in chats]
        )
    plain = model.system_prompt(config.context)
    return [
        Pair(model.row_example(row, told), model.row_example(row, plain))
        for row in rows_of(cell)[: config.approximability.pairs]
    ]


# -- what it says ------------------------------------------------------------------------------------


def _told(
    config: Mechanism, found: dict[str, dict[str, Any]], transfer: dict[str, list[float]], checks: list[Check]
) -> Told:
    plain = [trait for trait in found if "@" not in trait or variants()[trait.partition("@")[2]] == "plain"]
    findings = [_is_a_vector(config, found, plain, origin) for origin in ORIGINS]
    findings += [_predicts(config, found, transfer, origin) for origin in ORIGINS]
    return Told(findings, _figures(config, found, transfer), [_table(config, found, transfer)], checks)


def _is_a_vector(config: Mechanism, found: dict[str, Any], traits: list[str], origin: Origin) -> Finding:
    own = [found[trait][origin]["explained"] for trait in traits]
    noise = [float(np.mean(found[trait][origin]["random"])) for trait in traits]
    rivals = [float(np.mean(found[trait][origin]["others"])) for trait in traits]
    crossed = [found[trait][origin]["crossed"] for trait in traits]
    mean, low, high = interval(own, config.confidence)
    best_baseline = max(float(np.mean(noise)), float(np.mean(rivals)))
    better = low is not None and low > max(0.0, best_baseline)
    where = "domain tokens" if origin == "domain" else "the first token of answers"
    return Finding(
        id=f"prompt-is-a-vector-on-{origin}",
        claim="A system prompt that states a preference acts as one steering vector.",
        source=f"{SOURCE} 1",
        published=None,
        quantity=f"share of the prompt's effect on {where} that its vector explains, mean over {len(own)} traits",
        value=mean,
        low=low,
        high=high,
        unit="share",
        pairs=len(own),
        method="t interval over traits; layer and strength chosen on other pairs than reported",
        baseline=(
            f"random directions {in_words(noise, config.confidence)}, other traits' vectors "
            f"{in_words(rivals, config.confidence)}, the trait's own vector from the other context "
            f"{in_words(crossed, config.confidence)}, each at its own best layer and strength"
        ),
        verdict="reproduced" if better and mean >= 0.5 else "partly" if better else "not reproduced",
        why=(
            "the vector explains most of the prompt's effect, and more than its baselines"
            if better and mean >= 0.5
            else "it explains more than its baselines, but less than half of the effect"
            if better
            else "it does no better than its baselines"
        ),
    )


def _predicts(config: Mechanism, found: dict[str, Any], transfer: dict[str, list[float]], origin: Origin) -> Finding:
    share = np.array([found[trait][origin]["explained"] for trait in found])
    moved = np.array([float(np.mean(transfer[trait])) for trait in found])
    rho = float(spearmanr(share, moved).statistic)
    low, high = _bootstrapped(share, moved, lambda a, b: float(spearmanr(a, b).statistic))
    passed = moved > TRANSFERS
    auc = "not defined: all of them pass" if passed.all() or not passed.any() else _auc_in_words(passed, share)
    sure = low is not None and low > 0
    where = "domain tokens" if origin == "domain" else "answers"
    return Finding(
        id=f"approximability-predicts-transfer-{origin}",
        claim="System prompts that no vector approximates well are not learnt subliminally.",
        source=f"{SOURCE} 2",
        published="AUC 0.86 for steerability over 16 animals and 3 models",
        quantity=f"rank correlation over {len(found)} traits: share explained on {where} with treated minus control",
        value=rho,
        low=low,
        high=high,
        unit="correlation",
        pairs=len(found),
        method="Spearman, BCa bootstrap over traits",
        baseline=f"0 if unrelated; AUC for passing by more than {100 * TRANSFERS:.0f} points: {auc}",
        verdict="reproduced" if sure else "not reproduced",
        why="well approximated prompts pass on more" if sure else "the interval of the correlation includes 0",
    )


def _bootstrapped(share: np.ndarray, moved: np.ndarray, statistic: Any) -> tuple[float | None, float | None]:
    if len(share) < 5:
        return None, None
    seed = np.random.default_rng(derive_seed(0, "approximability/bootstrap"))
    done = bootstrap((share, moved), statistic, paired=True, vectorized=False, n_resamples=2000, rng=seed)
    low, high = float(done.confidence_interval.low), float(done.confidence_interval.high)
    return (low, high) if np.isfinite([low, high]).all() else (None, None)


def _auc_in_words(passed: np.ndarray, share: np.ndarray) -> str:
    generator = np.random.default_rng(derive_seed(0, "approximability/auc"))
    draws = []
    for _ in range(2000):
        chosen = generator.integers(0, len(share), len(share))
        if 0 < passed[chosen].sum() < len(chosen):
            draws.append(float(roc_auc_score(passed[chosen], share[chosen])))
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{roc_auc_score(passed, share):.2f} ({low:.2f} to {high:.2f}, bootstrap; {int(passed.sum())} pass)"


def _kind(trait: str) -> str:
    variant = trait.partition("@")[2]
    return variants().get(variant, "own prompt") if variant else "own prompt"


def _figures(config: Mechanism, found: dict[str, Any], transfer: dict[str, list[float]]) -> list[Figure]:
    plain = [trait for trait in found if _kind(trait) in ("own prompt", "plain")]
    layers = sorted(found[plain[0]]["domain"]["by_layer"], key=int)
    panels = {"domain": "domain tokens", "questions": "answers"}
    marks = [
        point(int(layer), [found[t][origin]["by_layer"][layer] for t in plain], "own vector", config.confidence, panel)
        for origin, panel in panels.items()
        for layer in layers
    ]
    marks += [
        point(int(layer), [found[t][origin][f"{name}_by_layer"][layer] for t in plain], label, config.confidence, panel)
        for origin, panel in panels.items()
        for name, label in (("random", "random directions"), ("others", "other traits' vectors"))
        for layer in layers
    ]
    against = [
        Point(
            x=found[trait][origin]["explained"],
            y=float(np.mean(transfer[trait])),
            series=_kind(trait),
            panel=panel,
        )
        for trait in found
        for origin, panel in panels.items()
    ]
    return [
        Figure(
            kind="lines",
            title="How much of a system prompt is one vector",
            caption="Share of the prompt's effect (KL) that base + strength · v explains, by layer; mean over traits with "
            "95 % interval. 1: the steered model says what the prompted one says. 0: no better than the plain model.",
            x="layer",
            y="share explained",
            points=marks,
            zero=True,
        ),
        Figure(
            kind="scatter",
            title="Well approximated, well learnt?",
            caption="A point is a trait: share of its prompt that its vector explains against treated minus control.",
            x="share explained",
            y="treated − control, probability",
            points=against,
        ),
    ]


def _table(config: Mechanism, found: dict[str, Any], transfer: dict[str, list[float]]) -> StudyTable:
    rows = []
    for trait, both in found.items():
        domain, asked = both["domain"], both["questions"]
        rows.append(
            [
                trait,
                _kind(trait),
                f"{domain['effect']:.3f}",
                f"{domain['explained']:.2f} (layer {domain['layer']}, × {domain['strength']:g})",
                f"{asked['effect']:.3f}",
                f"{asked['explained']:.2f} (layer {asked['layer']}, × {asked['strength']:g})",
                f"{100 * float(np.mean(transfer[trait])):+.1f}",
            ]
        )
    return StudyTable(
        title="Traits: what the prompt does, how much of it is a vector, what passes",
        columns=[
            "trait",
            "system prompt",
            "teacher KL",
            "explained",
            "answer KL",
            "explained",
            "treated − control, points",
        ],
        rows=rows,
    )
