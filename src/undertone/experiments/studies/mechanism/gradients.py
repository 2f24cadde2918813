"""Part `gradients`: do the gradients of treated rows carry a small consistent component along the teacher's vector?

2606.00995, Fig. 7, in the descent direction. Baselines: clean rows against clean rows, other traits'
vectors, a random direction; and what the rows of the largest gradients do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from undertone.experiments.cells import StudentRun
from undertone.experiments.learning import split_rows, student_system
from undertone.experiments.studies.mechanism.config import Mechanism
from undertone.experiments.studies.mechanism.material import (
    Material,
    Told,
    in_words,
    load_base,
    point,
    stack,
    teacher_vectors,
    vector_in,
)
from undertone.experiments.study import Figure, Finding, Point, StudyTable, interval
from undertone.mechanism.gradients import consistency, cosine, descent_directions, growth, tails
from undertone.models.loading import Model
from undertone.provenance.runs import Run, Stage
from undertone.provenance.seeds import derive_seed

SOURCE = "2606.00995, abstract 5 and Fig. 7"


def study(material: Material) -> Told:
    """The part: one stage a trait and seed."""
    config = material.config
    vectors = dict(zip(config.trait, material.each(teacher_vectors, [(trait,) for trait in config.trait]), strict=True))
    arguments = [
        (material.cell("treated", trait, seed), material.cell("control", None, seed), vectors[trait],
         tuple(vectors[other] for other in config.trait if other != trait))
        for trait in material.few
        for seed in config.seeds
    ]  # fmt: skip
    found = [stage.summary for stage in material.each(measure, arguments)]
    return _told(config, found)


def measure(
    run: Run,
    config: Mechanism,
    device: str,
    treated: StudentRun,
    control: StudentRun,
    own: Stage,
    others: tuple[Stage, ...],
) -> Stage:
    """``gradients/seed-S/TRAIT``: alignment by number of rows and layer, its consistency, and outlier rows."""
    settings = config.gradients

    def compute(folder: Path) -> dict[str, Any]:
        model = load_base(config, device)
        direction = stack(vector_in(own, "domain"))
        rivals = [stack(vector_in(stage, "domain")) for stage in others]
        layers = list(range(len(direction)))
        treated_rows, control_rows = (_directions(config, model, cell, layers) for cell in (treated, control))
        middle = len(layers) // 2
        rows, plain = treated_rows[middle], control_rows[middle]
        most = min(len(rows), len(plain))
        counts = sorted({*(2**power for power in range(12) if 2**power < most), most})
        seed = derive_seed(treated.seed, "gradients")
        noise: np.ndarray = np.random.default_rng(seed).normal(size=(direction.shape[1],))
        half = len(plain) // 2

        def grown(a: np.ndarray, b: np.ndarray, goal: np.ndarray) -> list[float]:
            return [
                found.mean for found in growth(a, b, goal, [n for n in counts if n <= min(len(a), len(b))], seed=seed)
            ]

        steady = {
            kind: [vars(one) for one in consistency(each, direction[middle], counts, seed=seed)]
            for kind, each in (("treated", rows), ("control", plain))
        }
        return {
            "counts": counts,
            "own": grown(rows, plain, direction[middle]),
            "others": np.mean([grown(rows, plain, rival[middle]) for rival in rivals], axis=0).tolist(),
            "random": grown(rows, plain, noise),
            "clean": grown(plain[:half], plain[half:], direction[middle]),
            "centred": grown(rows, plain, direction[middle] - np.mean([rival[middle] for rival in rivals], axis=0)),
            "by_layer": [
                cosine(treated_rows[layer].mean(0) - control_rows[layer].mean(0), direction[layer]) for layer in layers
            ],
            "row": float(np.mean([cosine(row, direction[middle]) for row in rows])),
            "steady": steady,
            "tails": [vars(tail) for tail in tails(rows, plain, direction[middle], settings.shares)],
        }

    name = f"gradients/seed-{treated.seed}/{treated.arm.folder}"
    identity = settings.model_dump(mode="json")
    inputs = [treated.filtered, control.filtered, treated.trained, own, *others]
    return run.stage(name, config=identity, inputs=inputs, version=2, compute=compute)


def _directions(config: Mechanism, model: Model, cell: StudentRun, layers: list[int]) -> dict[int, np.ndarray]:
    rows, _ = split_rows(cell.filtered, cell.prompts, config.data.held_out)
    system = student_system(config, model, cell.arm)
    examples = [model.row_example(row, system) for row in rows[: config.gradients.rows]]
    return descent_directions(model, examples, layers)


# -- what it says ------------------------------------------------------------------------------------


def _told(config: Mechanism, found: list[dict[str, Any]]) -> Told:
    own, clean, others, noise = ([one[name][-1] for one in found] for name in ("own", "clean", "others", "random"))
    mean, low, high = interval(own, config.confidence)
    apart = [one["centred"][-1] for one in found]
    beyond = [
        interval([a - b for a, b in zip(own, rival, strict=True)], config.confidence)[1]
        for rival in (clean, others, noise)
    ]
    steady = all(value is not None and value > 0 for value in (low, *beyond))
    carried = Finding(
        id="gradients-along-the-vector",
        claim="Activation gradients on treated data carry a small consistent component along the teacher's vector.",
        source=SOURCE,
        published="cosine rises to 0.08–0.10, visible from 64 rows",
        quantity="cosine of the mean descent direction (treated minus control rows, all rows, middle layer) with the vector",
        value=mean,
        low=low,
        high=high,
        unit="cosine",
        pairs=len(own),
        method="t interval over trait–seed pairs",
        baseline=f"clean minus clean rows {in_words(clean, config.confidence)}; other traits' vectors "
        f"{in_words(others, config.confidence)}; random {in_words(noise, config.confidence)}; own vector minus the other "
        f"traits' mean {in_words(apart, config.confidence)}; single treated row "
        f"{in_words([one['row'] for one in found], config.confidence)}; {_single_rows(config, found)}",
        verdict="reproduced" if steady else "not reproduced",
        why="above 0, and beyond clean rows, other traits' vectors and random directions"
        if steady
        else "not above 0 and beyond clean rows, other traits' vectors and random directions",
    )
    tables = [_steady_table(config, found), _tail_table(config, found)]
    return Told(
        [carried, _outliers(config, found, own)], [*_figures(config, found), *_steady_figures(config, found)], tables
    )


def _single_rows(config: Mechanism, found: list[dict[str, Any]]) -> str:
    """What all rows say of the component of single ones."""
    last = min(len(one["counts"]) for one in found) - 1
    told = {
        kind: [in_words(_steady(found, kind, name, last), config.confidence) for name in ("mean", "t")]
        for kind in ("treated", "control")
    }
    return "component of single rows, share of their norm: " + ", ".join(
        f"{kind} {mean}, t {t}" for kind, (mean, t) in told.items()
    )


def _outliers(config: Mechanism, found: list[dict[str, Any]], own: list[float]) -> Finding:
    dropped = [one["tails"][-1]["dropped"] - whole for one, whole in zip(found, own, strict=True)]
    held = [one["tails"][-1]["of_norm"] for one in found]
    share = config.gradients.shares[-1]
    mean, low, high = interval(dropped, config.confidence)
    better = low is not None and low > 0
    return Finding(
        id="gradient-outliers-dominate",
        claim="Outlier gradients hide the component: without them (or with steps that tame them) it would be learnt.",
        source=SOURCE,
        published=None,
        quantity=f"change of that cosine when the {share:.1%} rows with the largest gradients are left out",
        value=mean,
        low=low,
        high=high,
        unit="cosine",
        pairs=len(own),
        method="t interval over trait–seed pairs",
        baseline=f"those rows hold {in_words(held, config.confidence)} of the squared norm ({share:.3f} if all were alike)",
        verdict="reproduced" if better and mean > 0.05 else "not reproduced",
        why="leaving them out changes the direction by more than 0.05" if better and mean > 0.05
        else "leaving them out hardly changes the direction: no outliers dominate here",
    )  # fmt: skip


def _figures(config: Mechanism, found: list[dict[str, Any]]) -> list[Figure]:
    labels = {
        "own": "own vector",
        "others": "other traits' vectors",
        "random": "random direction",
        "clean": "own vector, clean minus clean rows",
        "centred": "own vector minus the other traits' mean",
    }
    lines: list[Point] = []
    for name, label in labels.items():
        for at, count in enumerate(found[0]["counts"]):
            values = [one[name][at] for one in found if at < len(one[name])]
            if values:
                lines.append(point(count, values, label, config.confidence))
    marks = [
        point(layer, [one["by_layer"][layer] for one in found], "treated minus control", config.confidence)
        for layer in range(len(found[0]["by_layer"]))
    ]
    return [
        Figure(
            kind="lines",
            title="Gradients add up along the vector",
            caption="Cosine of the mean descent direction with a direction, by how many rows are averaged (middle layer, "
            "last prompt token). Descent direction: learning +v reads positive.",
            x="rows averaged",
            y="cosine",
            points=lines,
            log_x=True,
        ),
        Figure(
            kind="lines",
            title="Gradient alignment by layer",
            caption="The same with all rows, after each layer.",
            x="layer",
            y="cosine",
            points=marks,
            zero=True,
        ),
    ]


STEADY = {"mean": "mean component, share of a row's norm", "t": "mean over standard error",
          "share": "share of the averaged gradient's norm"}  # fmt: skip


def _steady(found: list[dict[str, Any]], kind: str, name: str, at: int) -> list[float]:
    """A gauge at a count, over trait–seed pairs; the last count is all rows, which are not equally many everywhere."""
    last = min(len(one["counts"]) for one in found) - 1
    values = [one["steady"][kind][-1 if at == last else at][name] for one in found]
    return [value for value in values if value is not None]


def _steady_figures(config: Mechanism, found: list[dict[str, Any]]) -> list[Figure]:
    counts = min((one["counts"] for one in found), key=len)
    points = {
        name: [
            point(count, values, f"{kind} rows", config.confidence, panel)
            for kind in ("treated", "control")
            for at, count in enumerate(counts)
            if (values := _steady(found, kind, name, at))
        ]
        for name, panel in STEADY.items()
    }
    return [
        Figure(
            kind="lines",
            title=title,
            caption="Descent directions of treated and of control rows by themselves, along the teacher's vector, by how many "
            "rows are averaged (middle layer, last prompt token); mean over traits and seeds with 95 % interval.",
            x="rows averaged",
            y=y,
            points=[one for name in names for one in points[name]],
            log_x=True,
        )
        for title, y, names in (
            ("How large the component along the vector is", "share along the vector", ("mean", "share")),
            ("How steady the component along the vector is", STEADY["t"], ("t",)),
        )
    ]


def _steady_table(config: Mechanism, found: list[dict[str, Any]]) -> StudyTable:
    counts = min((one["counts"] for one in found), key=len)
    rows = []
    for at, count in enumerate(counts):
        cells = [_steady(found, kind, name, at) for kind in ("treated", "control") for name in STEADY]
        told = [in_words(values, config.confidence, 3) if values else "–" for values in cells]
        rows.append([f"all ({count})" if at == len(counts) - 1 else str(count), *told])
    return StudyTable(
        title="The component of the gradients along the vector, by how many rows are averaged",
        columns=["rows", *(f"{kind}: {told}" for kind in ("treated", "control") for told in STEADY.values())],
        rows=rows,
    )


def _tail_table(config: Mechanism, found: list[dict[str, Any]]) -> StudyTable:
    rows = []
    for at, share in enumerate(config.gradients.shares):
        tails_at = [one["tails"][at] for one in found]
        rows.append(
            [f"{share:.1%}", *(in_words([tail[name] for tail in tails_at], config.confidence)
                               for name in ("of_norm", "dropped", "clipped"))]
        )  # fmt: skip
    return StudyTable(
        title="Rows with the largest gradients",
        columns=["rows", "share of squared norm", "cosine without them", "cosine with them clipped"],
        rows=rows,
    )
