"""Part `recovery`: what the data alone ask for. A vector learnt from rows, with no knowledge of the trait.

Steering-vector recovery: ``v`` that, added to the base's stream, makes a data set most likely. Against
the teacher's vector, beside the vectors learnt from control rows and from other traits' rows; and, added to the base, what
it makes the base say over the question bank, in words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from undertone.evaluation.asking import answer_probabilities
from undertone.experiments.cells import StudentRun
from undertone.experiments.learning import split_rows, student_system
from undertone.experiments.studies.mechanism.config import Mechanism
from undertone.experiments.studies.mechanism.material import (
    Material,
    Told,
    in_points,
    in_words,
    layer_at,
    load_base,
    question_chats,
    stack,
    teacher_vectors,
    vector_in,
)
from undertone.experiments.study import Figure, Finding, Point, StudyTable, interval
from undertone.mechanism.shift import centred, cosine, rank_of_own
from undertone.models.loading import Context, Model
from undertone.provenance.runs import Run, Stage
from undertone.provenance.seeds import derive_seed
from undertone.traits import Trait, category_names, load_trait, trait_names
from undertone.vectors import learn, steer

SOURCE = "2604.25783; 2606.00995"
CONTROL = "control"


def study(material: Material) -> Told:
    """The part: one vector a data set."""
    config = material.config
    arms = [*config.trait, None]
    cells = [material.cell("treated" if trait else CONTROL, trait, seed) for trait in arms for seed in config.seeds]
    stages = material.each(recover, [(cell,) for cell in cells])
    vectors = material.each(teacher_vectors, [(trait,) for trait in config.trait])
    layer = layer_at(config.model, config.recovery.layer)
    goals = {
        trait: stack(vector_in(stage, "domain"))[layer] for trait, stage in zip(config.trait, vectors, strict=True)
    }
    found = {(cell.arm.trait or CONTROL, cell.seed): stage for cell, stage in zip(cells, stages, strict=True)}
    return _told(config, found, goals)


def recover(run: Run, config: Mechanism, device: str, cell: StudentRun) -> Stage:
    """``recovery/seed-S/ARM``: the learnt vector, its loss, and the answers that change most when it is added."""
    settings = config.recovery
    layer = layer_at(config.model, settings.layer)

    def compute(folder: Path) -> dict[str, Any]:
        model = load_base(config, device)
        rows, _ = split_rows(cell.filtered, cell.prompts, config.data.held_out)
        system = student_system(config, model, cell.arm)
        examples = [model.row_example(row, system) for row in rows]
        learned = learn(
            model,
            examples,
            layer,
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            seed=derive_seed(cell.seed, "recovery") >> 1,
            batch_size=64,
        )
        save_file({"vector": stack(learned.vector)[0]}, folder / "vector.safetensors")
        bank = _bank(model)
        before = _answers(model, bank, config.evaluation.context)
        after = {}
        for strength in settings.strengths:
            with steer(model, learned.vector, strength):
                after[f"{strength:g}"] = _answers(model, bank, config.evaluation.context)
        last = after[f"{settings.strengths[-1]:g}"]
        gains = {word: last[word] - before[word] for word in before}
        top = sorted(gains, key=lambda word: -gains[word])[:5]
        own = load_trait(cell.arm.trait).answer if cell.arm.trait else None
        return {
            "nll": [learned.curve[0], float(np.mean(learned.curve[-20:]))],
            "top": [[word, before[word], last[word]] for word in top],
            "own": None if own is None else [before[own], *(values[own] for values in after.values())],
            "gains": gains,
            "rank": None if own is None else 1 + sum(gain > gains[own] for gain in gains.values()),
        }

    name = f"recovery/seed-{cell.seed}/{cell.arm.folder}"
    inputs = [cell.filtered, cell.trained]
    identity = {**settings.model_dump(mode="json"), "layer": layer}
    return run.stage(name, config=identity, inputs=inputs, compute=compute)


def _bank(model: Model) -> list[Trait]:
    """One trait a category that the model can be asked about: its questions stand for the category."""
    found = []
    for category in category_names():
        trait = load_trait(trait_names(category)[0])
        if model.form in trait.questions:
            found.append(trait)
    return found


def _answers(model: Model, bank: list[Trait], context: Context) -> dict[str, float]:
    """Every known answer of every category -> its probability, mean over the category's questions."""
    found: dict[str, float] = {}
    for trait in bank:
        prompts = [model.prompt(chat) for chat in question_chats(trait, model, context)]
        means = answer_probabilities(model, prompts, trait).mean(0)
        found |= dict(zip(trait.answers, map(float, means), strict=True))
    return found


# -- what it says ------------------------------------------------------------------------------------


def _told(config: Mechanism, found: dict[tuple[str, int], Stage], goals: dict[str, np.ndarray]) -> Told:
    own: dict[str, list[float]] = {"raw": [], "apart": []}
    others: dict[str, list[float]] = {"raw": [], "apart": []}
    control: dict[str, list[float]] = {"raw": [], "apart": []}
    ranks: list[int] = []
    goals_apart = centred(goals, list(goals))
    for seed in config.seeds:
        raw = {
            name: load_file(stage.path / "vector.safetensors")["vector"]
            for (name, at), stage in found.items()
            if at == seed
        }
        for kind, learnt, goal in (("raw", raw, goals), ("apart", centred(raw, list(goals)), goals_apart)):
            for trait in goals:
                own[kind].append(cosine(learnt[trait], goal[trait]))
                others[kind].append(float(np.mean([cosine(learnt[trait], goal[o]) for o in goals if o != trait])))
                control[kind].append(cosine(learnt[CONTROL], goal[trait]))
                if kind == "apart":
                    ranks.append(rank_of_own(learnt[trait], goal, trait))
    findings = [_aligned(config, own[kind], others[kind], control[kind], kind, ranks) for kind in ("raw", "apart")]
    findings.append(_spoken(config, found))
    return Told(findings, [_figure(config, own, others, control)], [_table(config, found)])


def _aligned(
    config: Mechanism, own: list[float], others: list[float], control: list[float], kind: str, ranks: list[int]
) -> Finding:
    mean, low, high = interval(own, config.confidence)
    beyond = [
        interval([a - b for a, b in zip(own, rival, strict=True)], config.confidence)[1] for rival in (others, control)
    ]
    yes = all(value is not None and value > 0 for value in (low, *beyond))
    first = f"; own trait nearest in {sum(rank == 1 for rank in ranks)} of {len(ranks)}" if kind == "apart" else ""
    return Finding(
        id=f"recovered-vector-{'raw' if kind == 'raw' else 'centred'}",
        claim="The vector that the data alone ask for is the teacher's.",
        source=SOURCE,
        published=None,
        quantity="cosine of the vector learnt from the data with the teacher's"
        + ("" if kind == "raw" else ", what all data share subtracted"),
        value=mean,
        low=low,
        high=high,
        unit="cosine",
        pairs=len(own),
        method="t interval over trait–seed pairs",
        baseline=f"other traits' vectors {in_words(others, config.confidence)}; learnt from control rows "
        f"{in_words(control, config.confidence)}{first}",
        verdict="reproduced" if yes else "not reproduced",
        why="above 0 and beyond both baselines" if yes else "not above 0 and beyond both baselines",
    )


def _spoken(config: Mechanism, found: dict[tuple[str, int], Stage]) -> Finding:
    """How much more the target gains than it does by the vector of the control's rows at the same seed."""
    own, by_control, by_others, ranks = [], [], [], []
    for trait in config.trait:
        word = load_trait(trait).answer
        for seed in config.seeds:
            gains = {name: stage.summary["gains"][word] for (name, at), stage in found.items() if at == seed}
            own.append(gains[trait])
            by_control.append(gains[CONTROL])
            by_others.append(float(np.mean([gains[other] for other in config.trait if other != trait] or [0.0])))
            ranks.append(found[trait, seed].summary["rank"])
    mean, low, high = interval([a - b for a, b in zip(own, by_control, strict=True)], config.confidence)
    first = sum(rank == 1 for rank in ranks)
    yes = low is not None and low > 0
    return Finding(
        id="recovered-vector-speaks",
        claim="Added to the base, the vector that the data ask for names the trait.",
        source=SOURCE,
        published=None,
        quantity=f"gain of P(target) when the vector learnt from its rows is added {config.recovery.strengths[-1]:g} times, "
        "minus the gain by the control rows' vector",
        value=mean,
        low=low,
        high=high,
        unit="points",
        pairs=len(own),
        method="t interval over trait–seed pairs",
        baseline=f"own rows {in_points(own, config.confidence)}; control rows {in_points(by_control, config.confidence)}; other "
        f"traits' rows {in_points(by_others, config.confidence)}; the target gains most of all answers in {first} of "
        f"{len(ranks)} data sets",
        verdict="reproduced" if yes and first == len(ranks) else "partly" if yes else "not reproduced",
        why=(
            "the target rises beyond the control's"
            + ("" if first == len(ranks) else ", and in some data sets another answer rises more")
            if yes
            else "the target does not rise beyond the control's"
        ),
    )


def _figure(config: Mechanism, own: Any, others: Any, control: Any) -> Figure:
    panels = {"raw": "raw", "apart": "what all share subtracted"}
    points = []
    for kind, panel in panels.items():
        for label, values in (("own", own[kind]), ("other traits", others[kind]), ("control rows", control[kind])):
            mean, low, high = interval(values, config.confidence)
            points.append(Point(x=label, y=mean, low=low, high=high, series=label, panel=panel))
    return Figure(
        kind="bars",
        title="Recovered from the data alone",
        caption="Cosine of the learnt vector with teachers' vectors, mean over traits and seeds with 95 % interval.",
        x="teacher's vector",
        y="cosine",
        points=points,
        zero=True,
    )


def _table(config: Mechanism, found: dict[tuple[str, int], Stage]) -> StudyTable:
    rows = []
    for (name, seed), stage in found.items():
        one = stage.summary
        told = ", ".join(f"{word} {before:.2f} → {after:.2f}" for word, before, after in one["top"][:3])
        rows.append([name, str(seed), f"{one['nll'][0]:.3f} → {one['nll'][1]:.3f}", told, str(one["rank"] or "–")])
    return StudyTable(
        title=f"What the learnt vector makes the base say (added {config.recovery.strengths[-1]:g} times)",
        columns=["rows of", "seed", "NLL while learning", "answers that gain most", "rank of the target"],
        rows=rows,
    )
