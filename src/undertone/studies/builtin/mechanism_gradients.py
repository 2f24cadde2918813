"""Part ``gradients``: do the gradients of a treated student's rows carry a small consistent component along the vector?

2606.00995, Fig. 7, in the descent direction. Baselines: control rows against control rows, other traits' vectors, a random
direction; and what the rows of the largest gradients do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from undertone.mechanism.gradients import consistency, cosine, descent_directions, growth, tails
from undertone.models.loading import ModelRef
from undertone.provenance.runs import Stage
from undertone.provenance.seeds import derive_seed
from undertone.provenance.stage_functions import stage
from undertone.studies.builtin.mechanism import Mechanism
from undertone.studies.builtin.mechanism_vectors import stack, teacher_vectors, vector_in
from undertone.studies.claim import Claim
from undertone.studies.context import Context, Transfer, point
from undertone.studies.measurement import Measurement
from undertone.training import Lesson
from undertone.transfer.arms import StudentRun
from undertone.transfer.train import lesson_of
from undertone.verdicts import Rule

SOURCE: Final = "2606.00995, abstract 5 and Fig. 7"
ALONG = Claim(
    id="gradients-along-the-vector",
    claim="Activation gradients on the trait's data carry a small consistent component along the teacher's vector.",
    source=SOURCE,
    published="cosine rises to 0.08–0.10, visible from 64 rows",
    rule=Rule("above", beyond_baselines=True),
    unit="cosine",
)
OUTLIERS = Claim(
    id="gradient-outliers-dominate",
    claim="Outlier gradients hide the component: without them (or with steps that tame them) it would be learnt.",
    source=SOURCE,
    published=None,
    rule=Rule("above"),
    unit="cosine",
)
LINES: Final = {
    "own": "own vector",
    "others": "other traits' vectors",
    "random": "random direction",
    "clean": "own vector, control minus control rows",
    "centred": "own vector minus the other traits' mean",
}
STEADY: Final = {
    "mean": "mean component, share of a row's norm",
    "t": "mean over standard error",
    "share": "share of the averaged gradient's norm",
}
ROWS: Final = {"induced": "trait's rows", "clean": "control rows"}
"""A stage's names for the two sets of rows, and ours."""


@stage("activation gradients", version=3)
def measure_gradients(
    folder: Path, device: str, *, base: ModelRef, treated: Lesson, control: Lesson, own: Stage, others: Sequence[Stage],
    shares: Sequence[float], seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Alignment by number of rows and by layer, its consistency, and outlier rows; otherwise at the middle layer."""
    del folder
    model = base.load(device)
    direction = stack(vector_in(own, "carrier"))
    layers = range(len(direction))
    induced, clean = (descent_directions(model, each.tokenised(model), list(layers)) for each in (treated, control))
    middle = len(layers) // 2
    rows, plain, goal = induced[middle], clean[middle], direction[middle]
    rivals = [stack(vector_in(one, "carrier"))[middle] for one in others]
    apart = goal - np.mean(rivals, axis=0)
    most, half = min(len(rows), len(plain)), len(plain) // 2
    counts = sorted({*(2**power for power in range(12) if 2**power < most), most})
    stream = derive_seed(seed, "gradients")
    noise: np.ndarray = np.random.default_rng(stream).normal(size=goal.shape)

    def grown(a: np.ndarray, b: np.ndarray, along: np.ndarray) -> list[float]:
        few = [count for count in counts if count <= min(len(a), len(b))]
        return [found.mean for found in growth(a, b, along, few, seed=stream)]

    return {
        "counts": counts,
        "own": grown(rows, plain, goal),
        "others": np.mean([grown(rows, plain, rival) for rival in rivals], axis=0).tolist(),
        "random": grown(rows, plain, noise),
        "clean": grown(plain[:half], plain[half:], goal),
        "centred": grown(rows, plain, apart),
        "by_block": [cosine(induced[at].mean(0) - clean[at].mean(0), direction[at]) for at in layers],
        "row": float(np.mean([cosine(row, goal) for row in rows])),
        "steady": {
            kind: [vars(one) for one in consistency(each, goal, counts, seed=stream)]
            for kind, each in (("induced", rows), ("clean", plain))
        },
        "tails": [vars(tail) for tail in tails(rows, plain, goal, shares)],
    }


def gradients(ctx: Context[Mechanism], students: Transfer) -> None:
    """One stage a trait and seed; judged with all rows."""
    config = ctx.config
    vectors = teacher_vectors(ctx, config.trait)

    def lesson(one: StudentRun) -> Lesson:
        return lesson_of(config, one, one.rows(config.data.held_out)[0][: config.gradients.rows])

    control = {one.seed: lesson(one) for one in students.outcome.of("control")}
    runs = [one for one in students.outcome.of("treated") if one.arm.trait in config.few_traits]
    stages = ctx.beside(runs, measure_gradients, "gradients", lambda one: {
        "base": ctx.base, "treated": lesson(one), "control": control[one.seed], "own": vectors[one.arm.trait or ""],
        "others": [vector for trait, vector in vectors.items() if trait != one.arm.trait],
        "shares": config.gradients.shares, "seed": one.seed,
    })  # fmt: skip
    report(ctx, {(one.arm.trait, one.seed): stage.summary for one, stage in zip(runs, stages, strict=True)})


def report(ctx: Context[Mechanism], found: Mapping[tuple[str | None, int], Mapping[str, Any]]) -> None:
    """Both findings, figures and tables, from the summaries by trait and seed."""

    def at(*path: str | int) -> Measurement:
        """What lies there in every summary; of fewer rows some counts are missing."""

        def value(trait: str, seed: int) -> Any:
            inner: Any = found[trait, seed]
            for key in path:
                if isinstance(key, int) and key >= len(inner):
                    return None
                inner = inner[key]
            return inner

        return ctx.measure(value, ctx.config.few_traits, "cosine")

    single = ", ".join(
        f"{words} {at('steady', kind, -1, 'mean')}, t {at('steady', kind, -1, 't')}" for kind, words in ROWS.items()
    )
    ctx.report(
        ALONG, at("own", -1), quantity="cosine of the mean descent direction (trait's minus control rows, all rows, middle "
        "layer) with the vector",
        baselines={LINES[name]: at(name, -1) for name in ("clean", "others", "random")},
        note=f"{LINES['centred']} {at('centred', -1)}; a single row of the trait's {at('row')}; "
        f"component of single rows, share of their norm: {single}",
    )  # fmt: skip
    share = ctx.config.gradients.shares[-1]
    ctx.report(
        OUTLIERS, at("tails", -1, "dropped") - at("own", -1),
        quantity=f"change of that cosine when the {share:.1%} rows with the largest gradients are left out",
        note=f"those rows hold {at('tails', -1, 'of_norm')} of the squared norm ({share:.3f} if all were alike)",
    )  # fmt: skip
    summaries = list(found.values())
    _draw(ctx, at, summaries[0]["counts"], len(summaries[0]["by_block"]))
    _show_steadiness(ctx, at, min((one["counts"] for one in summaries), key=len))
    ctx.table(
        "Rows with the largest gradients",
        ["rows", "share of squared norm", "cosine without them", "cosine with them clipped"],
        [[f"{share:.1%}", *(str(at("tails", place, name)) for name in ("of_norm", "dropped", "clipped"))]
         for place, share in enumerate(ctx.config.gradients.shares)],
    )  # fmt: skip


def _draw(ctx: Context[Mechanism], at: Callable[..., Measurement], counts: Sequence[int], depth: int) -> None:
    words = f"{ctx.intervals} over {at('row').unit_words}"
    ctx.draw(
        "lines", "Gradients add up along the vector",
        [point(count, line, label) for name, label in LINES.items() for place, count in enumerate(counts)
         if (line := at(name, place)).units],
        x="rows averaged", y="cosine", log_x=True,
        caption="Cosine of the mean descent direction with a direction, by how many rows are averaged (middle layer, last "
        f"prompt token). Descent direction: learning +v reads positive. {words}.",
    )  # fmt: skip
    ctx.draw(
        "lines", "Gradient alignment by layer",
        [point(layer, at("by_block", layer), "trait's minus control rows") for layer in range(depth)],
        x="layer", y="cosine", zero=True, caption=f"The same with all rows, after each layer; {words}.",
    )  # fmt: skip


def _show_steadiness(ctx: Context[Mechanism], at: Callable[..., Measurement], counts: Sequence[int]) -> None:
    """By how many rows are averaged; the last count is all rows, which are not equally many everywhere."""
    places = {count: place for place, count in enumerate(counts[:-1])} | {counts[-1]: -1}
    for title, y, names in (
        ("How large the component along the vector is", "share along the vector", ("mean", "share")),
        ("How steady the component along the vector is", STEADY["t"], ("t",)),
    ):
        ctx.draw(
            "lines", title,
            [point(count, line, label, STEADY[name]) for name in names for kind, label in ROWS.items()
             for count, place in places.items() if (line := at("steady", kind, place, name)).units],
            x="rows averaged", y=y, log_x=True,
            caption="Descent directions of the trait's and of control rows by themselves, along the teacher's vector, by how "
            f"many rows are averaged (middle layer, last prompt token); {ctx.intervals} over {at('row').unit_words}.",
        )  # fmt: skip
    every = [(kind, name) for kind in ROWS for name in STEADY]
    ctx.table(
        "The component of the gradients along the vector, by how many rows are averaged",
        ["rows", *(f"{ROWS[kind]}: {STEADY[name]}" for kind, name in every)],
        [[f"all ({count})" if place == -1 else str(count),
          *(str(line) if (line := at("steady", kind, place, name)).units else "–" for kind, name in every)]
         for count, place in places.items()],
    )  # fmt: skip
