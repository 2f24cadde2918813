"""Part `emergence`: when does the student's shift appear, and is it the teacher's vector more than every student's is?

2606.00995, Fig. 2, with the baselines that it lacked: the control student, the other traits' students,
and the alignment after what all arms share is subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from undertone.experiments.cells import StudentRun
from undertone.experiments.learning import split_rows, student_dtype, student_seed, student_system
from undertone.experiments.studies.mechanism.config import Mechanism
from undertone.experiments.studies.mechanism.material import (
    Material,
    Told,
    domain_chats,
    in_words,
    point,
    probability,
    stack,
    teacher_vectors,
    vector_in,
)
from undertone.experiments.study import Figure, Finding, Point, interval
from undertone.mechanism.shift import by_layer, centred, cosine, rank_of_own
from undertone.models.loading import Model, load
from undertone.models.students import trainable
from undertone.provenance.runs import Run, Stage
from undertone.training import fit
from undertone.traits import load_trait
from undertone.vectors import activations

SOURCE = "2606.00995, Fig. 2"
CONTROL = "control"


def study(material: Material) -> Told:
    """The part: students trained once more, measured on the way."""
    config = material.config
    arms = [*material.few, None]
    cells = [material.cell("treated" if trait else CONTROL, trait, seed) for trait in arms for seed in config.seeds]
    stages = material.each(follow, [(cell, material.few) for cell in cells])
    vectors = material.each(teacher_vectors, [(trait,) for trait in config.trait])
    directions = {trait: stack(vector_in(stage, "domain")) for trait, stage in zip(config.trait, vectors, strict=True)}
    traces = {(cell.arm.trait or CONTROL, cell.seed): stage for cell, stage in zip(cells, stages, strict=True)}
    return _told(config, material.few, traces, directions)


def follow(run: Run, config: Mechanism, device: str, cell: StudentRun, few: Sequence[str]) -> Stage:
    """``emergence/seed-S/ARM``: shift ``[moment, layer, hidden]`` and P(trait) ``[moment, trait]`` during training."""
    traits = [load_trait(name) for name in few]

    def compute(folder: Path) -> dict[str, Any]:
        model = load(config.model, dtype=student_dtype(config), device=device)  # it is trained
        training, _ = split_rows(cell.filtered, cell.prompts, config.data.held_out)
        system = student_system(config, model, cell.arm)
        examples = [model.row_example(row, system) for row in training]
        chats = domain_chats(config, model)
        start = _mean(model, chats)
        steps = -(-len(examples) // config.training.batch_size) * config.training.epochs
        moments = sorted({round(step) for step in np.geomspace(min(4, steps), steps, config.emergence.points)})
        shifts = [np.zeros_like(start)]
        said = [[probability(model, trait, config.evaluation.context) for trait in traits]]
        hf = trainable(model.hf, config.student.model_dump(mode="json"), student_seed(cell.seed))
        moving = Model(model.name, hf, model.tokenizer, model.identity, model.form)

        def look(step: int, _steps: int, _loss: float) -> None:
            if step not in moments:
                return
            hf.eval()
            shifts.append(_mean(moving, chats) - start)
            said.append([probability(moving, trait, config.evaluation.context) for trait in traits])
            hf.train()

        fit(hf, examples, config.training, seed=student_seed(cell.seed), pad=model.pad, on_step=look)
        arrays = {"shift": np.stack(shifts).astype(np.float32), "probability": np.array(said, dtype=np.float32)}
        save_file(arrays, folder / "trace.safetensors")
        return {"steps": [0, *moments]}

    identity = {"points": config.emergence.points, "traits": [trait.name for trait in traits]}
    name = f"emergence/seed-{cell.seed}/{cell.arm.folder}"
    return run.stage(name, config=identity, inputs=[cell.filtered, cell.trained], compute=compute)


def _mean(model: Model, chats: Any) -> np.ndarray:
    read = activations(model, chats)
    return np.stack([rows.mean(0).numpy() for _, rows in sorted(read.items())])


# -- what it says ------------------------------------------------------------------------------------


def _told(
    config: Mechanism, few: Sequence[str], traces: dict[tuple[str, int], Stage], directions: dict[str, np.ndarray]
) -> Told:
    steps = min((stage.summary["steps"] for stage in traces.values()), key=len)
    read = {key: _last(len(steps), load_file(stage.path / "trace.safetensors")) for key, stage in traces.items()}
    own = centred(directions, list(directions))
    layer = directions[few[0]].shape[0] // 2
    raw: dict[str, list[list[float]]] = {}
    clean: dict[str, list[list[float]]] = {}
    profiles: dict[str, list[list[float]]] = {"raw": [], "what all share subtracted": []}
    ranks = []
    for seed in config.seeds:
        for moment in range(1, len(steps)):
            now = {name: read[name, seed]["shift"][moment] for name in (*few, CONTROL)}
            apart = centred(now, list(now))
            for trait in few:
                for kind, shifts, goal in (("raw", now, directions), ("apart", apart, own)):
                    store = raw if kind == "raw" else clean
                    lines = {
                        "own vector": cosine(shifts[trait][layer], goal[trait][layer]),
                        "other traits' vectors": _others(shifts[trait], goal, trait, layer),
                        "control student": cosine(shifts[CONTROL][layer], goal[trait][layer]),
                    }
                    for name, value in lines.items():
                        store.setdefault(name, [[] for _ in steps])[moment].append(value)
                if moment == len(steps) - 1:
                    profiles["raw"].append(by_layer(now[trait], directions[trait]))
                    profiles["what all share subtracted"].append(by_layer(apart[trait], own[trait]))
                    goals = {name: direction[layer] for name, direction in own.items()}
                    ranks.append(rank_of_own(apart[trait][layer], goals, trait))
    findings = [_finding(config, raw, "raw", []), _finding(config, clean, "after what all arms share", ranks)]
    return Told(findings, _figures(config, few, steps, read, raw, clean, profiles, layer))


def _last(moments: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same number of moments of every trace, ends together: seeds whose rows differ in number differ in steps."""
    return {name: array[-moments:] for name, array in arrays.items()}


def _others(shift: np.ndarray, goal: dict[str, np.ndarray], trait: str, layer: int) -> float:
    return float(np.mean([cosine(shift[layer], other[layer]) for name, other in goal.items() if name != trait]))


def _finding(config: Mechanism, lines: dict[str, list[list[float]]], which: str, ranks: list[int]) -> Finding:
    own, others, control = (lines[name][-1] for name in ("own vector", "other traits' vectors", "control student"))
    mean, low, high = interval(own, config.confidence)
    beyond = [
        interval([a - b for a, b in zip(own, rival, strict=True)], config.confidence)[1] for rival in (others, control)
    ]
    yes = all(value is not None and value > 0 for value in (low, *beyond))
    told = f"; rank of the own vector among {len(config.trait)}: {', '.join(map(str, ranks))}" if ranks else ""
    return Finding(
        id="emergence-raw" if which == "raw" else "emergence-centred",
        claim="Training turns the student's shift towards the teacher's vector, and a control's not.",
        source=SOURCE,
        published="cosine 0.7–0.9 against 0.1 for controls",
        quantity=f"cosine of student's shift and teacher's vector at the end, {which}",
        value=mean,
        low=low,
        high=high,
        unit="cosine",
        pairs=len(own),
        method="t interval over trait–seed pairs, middle layer, last prompt token of domain prompts",
        baseline=f"other traits' vectors {in_words(others, config.confidence)}; control student "
        f"{in_words(control, config.confidence)}{told}",
        verdict="reproduced" if yes else "not reproduced",
        why="above 0 and beyond both baselines" if yes else "not above 0 and beyond both baselines",
    )


def _figures(
    config: Mechanism,
    few: Sequence[str],
    steps: list[int],
    read: dict[tuple[str, int], dict[str, np.ndarray]],
    raw: dict[str, list[list[float]]],
    clean: dict[str, list[list[float]]],
    profiles: dict[str, list[list[float]]],
    layer: int,
) -> list[Figure]:
    curves: list[Point] = []
    for panel, lines in (("cosine, raw", raw), ("cosine, what all share subtracted", clean)):
        for name, values in lines.items():
            curves += [point(steps[at], values[at], name, config.confidence, panel) for at in range(1, len(steps))]
    for at in range(1, len(steps)):
        said = {
            "own vector": [
                float(read[trait, seed]["probability"][at, few.index(trait)]) for trait in few for seed in config.seeds
            ],
            "control student": [
                float(read[CONTROL, seed]["probability"][at, few.index(trait)])
                for trait in few
                for seed in config.seeds
            ],
        }
        curves += [point(steps[at], values, name, config.confidence, "P(target)") for name, values in said.items()]
    by_layer = [
        point(at, [values[at] for values in rows], name, config.confidence)
        for name, rows in profiles.items()
        for at in range(len(rows[0]))
    ]
    return [
        Figure(
            kind="lines",
            title="Emergence during training",
            caption=f"Alignment of the student's shift with the teacher's vector at layer {layer}, and the trait's "
            "probability, by training step; mean over traits and seeds with 95 % interval. A gauge means something only "
            "where the own vector leaves the other traits' and the control's.",
            x="training step",
            y="cosine, or probability",
            points=curves,
            log_x=True,
        ),
        Figure(
            kind="lines",
            title="Alignment by layer at the end",
            caption="Cosine of the student's shift with its teacher's vector after each layer.",
            x="layer",
            y="cosine",
            points=by_layer,
            zero=True,
        ),
    ]
