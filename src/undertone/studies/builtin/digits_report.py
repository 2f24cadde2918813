"""What ``kind: digits`` says of its networks: claims, checks, figures, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from undertone.mechanism.digits import Trace, accuracy_by_loss, matched_accuracy
from undertone.provenance.runs import Stage
from undertone.studies.builtin.digits_students import STUDENTS
from undertone.studies.claim import Aspect, Claim
from undertone.studies.context import Context, point
from undertone.studies.measurement import Measurement, Statistic, in_words
from undertone.studies.results import Point
from undertone.verdicts import SMALLEST_EFFECT, Rule

LEARNS = Claim(
    id="same-start-learns",
    claim="Matching auxiliary logits on noise teaches a student of the teacher's initialisation the classes.",
    source="2507.14805, MNIST experiment",
    published="over 50 % of MNIST from the same initialisation, no gain from another (63 % in a re-run)",
    rule=Rule("above"),
    unit="accuracy",
)
LEARNS_NOTHING: Final = {
    kind: Claim(
        id=f"other-{what}-learns-nothing", claim=f"A student of another {words} gains nothing.",
        source="2507.14805, MNIST experiment and cross-model arms", published="no gain (9 % in a re-run)",
        rule=Rule("none"), unit="accuracy",
    )
    for kind, what, words in (("other", "start", "initialisation"), ("shape", "shape", "architecture"))
}  # fmt: skip
ADAPTIVE = Claim(
    id="adaptive-optimisers-needed",
    claim="Adaptive optimisers are necessary: plain ones pass nothing on at the same loss.",
    source="2606.00995, abstract 5 (of language models)",
    published="language model, matched loss: Adam 57 %, SGD 0 %",
    rule=Rule("above"),
    unit="accuracy",
)


@dataclass(frozen=True)
class TrainedNetworks:
    """All networks of a study, and what is read of them: accuracies on test images, one a reported seed.

    Attributes:
        teachers: the stage of all teachers, those of the reported seeds first.
        tuned: optimiser -> the stage with its learning rate; the first trained all arms.
        traces: optimiser -> arm -> how its students went.
        seeds: how many are reported.
        confidence: of every interval.
    """

    teachers: Stage
    tuned: Mapping[str, Stage]
    traces: Mapping[str, Mapping[str, Trace]]
    seeds: int
    confidence: float

    @property
    def first(self) -> str:
        """The optimiser that trained all arms."""
        return next(iter(self.traces))

    def teacher(self, what: str = "accuracy") -> Measurement:
        """Of teachers, or (``untrained``) of the same networks before anything was learnt."""
        return self.measured(self.teachers.summary[what])

    def student(self, kind: str, optimizer: str | None = None, at: int = -1) -> Measurement:
        """Of an arm's students at a checkpoint: the last, or (0) before anything was learnt."""
        return self.measured(self.traces[optimizer or self.first][kind].accuracy[at])

    def gain(self, optimizer: str | None = None) -> Measurement:
        """Of the teacher's initialisation beyond another, at the end."""
        return self.student("same", optimizer) - self.student("other", optimizer)

    @cached_property
    def matched(self) -> dict[str, Measurement]:
        """Optimiser -> at equal loss; empty where there is one optimiser."""
        matched = matched_accuracy({name: found["same"] for name, found in self.traces.items()})
        return {name: self.measured(values) for name, values in matched.items()}

    @property
    def columns(self) -> dict[str, Measurement]:
        """Name -> of teachers, and of all arms of the first optimiser."""
        arms = {STUDENTS[kind]: self.student(kind) for kind in self.traces[self.first]}
        return {"teacher": self.teacher(), **arms}

    def measured(self, values: Sequence[float]) -> Measurement:
        """Values of all seeds, of which the reported ones come first."""
        return Measurement.of_units(values[: self.seeds], "seeds", self.confidence, "accuracy")


def sentence_of(networks: TrainedNetworks, auxiliary: int) -> str:
    """The result in a sentence."""
    summary, gain = networks.teachers.summary, networks.gain()
    same, other = (_percent(networks.student(kind)) for kind in ("same", "other"))
    return (
        f"On {summary['data']} ({summary['images'][0]} images), students that matched nothing but {auxiliary} auxiliary logits "
        f"on noise name {same} of the digits from their teacher's initialisation and {other} from another one (teachers "
        f"{_percent(networks.teacher())}, untrained {_percent(networks.teacher('untrained'))}): "
        f"{in_words(gain.quantity, 'points')}, {gain.unit_words}."
    )


# -- claims ----------------------------------------------------------------------------------------


def report_students(ctx: Context[Any], networks: TrainedNetworks) -> None:
    """Students of the teacher's initialisation learn; those of another, or of another shape, do not."""
    same, other, permuted = (networks.student(kind) for kind in ("same", "other", "permuted"))
    ctx.report(
        LEARNS, same - other,
        quantity="test accuracy, same initialisation − another",
        also={"more than half of the images": Aspect(Rule("above", than=0.5), same)},
        note=f"same {_percent(same)}; another initialisation {_percent(other)}, targets permuted {_percent(permuted)}, "
        f"untrained {_percent(networks.teacher('untrained'))}",
    )  # fmt: skip
    for kind, claim in LEARNS_NOTHING.items():
        untrained = networks.student(kind, at=0)
        ctx.report(
            claim, networks.student(kind) - untrained,
            quantity=f"test accuracy, {STUDENTS[kind]}: trained − untrained",
            note=f"the same students untrained {_percent(untrained)}; largest class "
            f"{100 * networks.teachers.summary['majority']:.0f} %",
        )  # fmt: skip


def report_optimizers(
    ctx: Context[Any], networks: TrainedNetworks, adaptive: Mapping[str, bool], tuned_on: str
) -> None:
    """Adaptive ones beyond plain ones at equal loss, and what plain ones pass on; nothing where one kind is missing."""
    matched, names = (
        networks.matched,
        {kind: [n for n, one in adaptive.items() if one == kind] for kind in (True, False)},
    )
    if not matched or not all(names.values()):
        return
    scaled, plain = (_average([matched[name] for name in names[kind]]) for kind in (True, False))
    gains = {name: networks.gain(name) for name in names[False]}
    ctx.report(
        ADAPTIVE, scaled - plain,
        quantity=f"accuracy at equal imitation loss, mean of {', '.join(names[True])} − mean of {', '.join(names[False])}",
        also={f"{name} passes nothing on": Aspect(Rule("none"), gain) for name, gain in gains.items()},
        note="same − another initialisation at the end: "
        + "; ".join(f"{name} {gain}" for name, gain in gains.items())
        + f"; rates tuned on {tuned_on}; networks of this kind are no evidence about transformers",
    )  # fmt: skip


def _average(each: Sequence[Measurement]) -> Measurement:
    return each[0].like(np.mean([one.values for one in each], axis=0))


def check_networks(ctx: Context[Any], networks: TrainedNetworks) -> None:
    """Whether the claims may be believed."""
    worst, same = min(networks.teacher().units), networks.traces[networks.first]["same"]
    fitted = max(last / first for last, first in zip(same.loss[-1], same.loss[0], strict=True))
    placebo = networks.student("permuted") - networks.teacher("untrained")
    edges = [name for name, one in networks.tuned.items() if _at_edge(one)]
    few = f"{networks.seeds} seed{'s' if networks.seeds != 1 else ''}"
    ctx.check("teachers know the digits", worst >= 0.8, f"worst {100 * worst:.1f} %", "at least 80 %",
              "A teacher that knows nothing has nothing to pass on: more teacher.epochs.", "fail")  # fmt: skip
    ctx.check("students fit the auxiliary logits", fitted <= 0.2,
              f"worst: held-out loss {fitted:.3f} of what it began with", "at most 0.2",
              "Too few steps are the main reason for a null: raise steps.")  # fmt: skip
    ctx.check("permuted targets teach nothing", abs(placebo.mean) < SMALLEST_EFFECT["accuracy"],
              in_words(placebo.quantity, "points"), "within ten points",
              "If they did, it would be the training as such that shows digits, and not the lesson.")  # fmt: skip
    ctx.check("tuned rates lie inside their grids", not edges, ", ".join(edges) + " at the edge" if edges else "all",
              "none at an edge", "A better rate may lie beyond the grid: widen rates of these optimizers.")  # fmt: skip
    ctx.check("seeds are replicated", networks.seeds >= 3, few, "at least 3",
              "With fewer, an interval does not cover the variance between networks.")  # fmt: skip


def _chosen(rate: str, tuned: Stage) -> bool:
    """Whether tuning chose this rate."""
    return rate == f"{tuned.summary['rate']:g}"


def _at_edge(tuned: Stage) -> bool:
    rates = list(tuned.summary["losses"])
    return len(rates) > 1 and any(_chosen(rates[end], tuned) for end in (0, -1))


# -- figures and tables ----------------------------------------------------------------------------


def _bar(x: float | str, accuracy: Measurement, series: str) -> Point:
    """A mean over seeds, with an interval that stays in [0, 1]."""
    return point(x, Statistic.rate([[value] for value in accuracy.units], confidence=accuracy.confidence), series)


def draw_students(ctx: Context[Any], networks: TrainedNetworks) -> None:
    """Accuracy of teachers, students, controls; and of every arm of the first optimiser by step."""
    groups = {"teacher": "teacher", STUDENTS["same"]: "student"}
    rows = networks.columns | {"untrained": networks.teacher("untrained")}
    ctx.draw(
        "bars", "Who knows the digits", [_bar(name, one, groups.get(name, "control")) for name, one in rows.items()],
        x="network", y="accuracy", zero=True,
        caption=f"Accuracy on test images; lines are {ctx.intervals} over {networks.seeds} seeds. Controls differ from the "
        "student in one thing each.",
    )  # fmt: skip
    ctx.draw(
        "lines", "While they learn to match the auxiliary logits",
        [_bar(float(step), networks.measured(row), STUDENTS[kind])
         for kind, trace in networks.traces[networks.first].items()
         for step, row in zip(trace.steps, trace.accuracy, strict=True)],
        x="optimiser step", y="accuracy", zero=True,
        caption=f"Accuracy on test images by optimiser step ({networks.first}); bands are {ctx.intervals} over seeds. No "
        "student is ever shown a digit.",
    )  # fmt: skip


def draw_optimizers(ctx: Context[Any], networks: TrainedNetworks) -> None:
    """Accuracy at the end, at equal loss, and by loss; nothing where there is one optimiser."""
    if not networks.matched:
        return
    rates = ", ".join(f"{name} {one.summary['rate']:g}" for name, one in networks.tuned.items())
    ctx.draw(
        "bars", "Optimisers",
        [_bar(name, one, series) for name in networks.traces for series, one in (
            ("at the end", networks.student("same", name)), ("at equal loss", networks.matched[name]),
            ("another initialisation", networks.student("other", name)))],
        x="optimiser", y="accuracy", zero=True,
        caption=f"Rates tuned on other seeds: {rates}. At equal loss: when the student's imitation loss was that of the "
        "optimiser that got least far.",
    )  # fmt: skip
    lines = [
        _bar(loss, networks.measured(values), name)
        for name, found in networks.traces.items()
        for loss, values in accuracy_by_loss(found["same"])
    ]
    if lines:  # after a few steps there may be no loss that all students passed
        ctx.draw(
            "lines", "Accuracy by imitation loss", lines, x="held-out imitation loss", y="accuracy", log_x=True, zero=True,
            caption="Students of the same initialisation; training runs from right to left. Where lines lie on each other, "
            "what is passed on depends on the fit and not on the optimiser.",
        )  # fmt: skip


def tabulate(ctx: Context[Any], networks: TrainedNetworks, seeds: Sequence[int]) -> None:
    """Held-out loss of every rate on the tuning seeds; accuracy of every network."""
    ctx.table(
        "Learning rates", ["optimiser", "rate", "held-out loss", ""],
        [[name, rate, "not finite" if loss is None else f"{loss:.3g}", "chosen" if _chosen(rate, one) else ""]
         for name, one in networks.tuned.items() for rate, loss in one.summary["losses"].items()],
    )  # fmt: skip
    columns = networks.columns
    ctx.table(
        "Accuracy by seed", ["seed", *columns],
        [[str(seed), *(f"{100 * one.units[at]:.1f} %" for one in columns.values())] for at, seed in enumerate(seeds)],
    )  # fmt: skip


def _percent(accuracy: Measurement) -> str:
    return f"{100 * accuracy.mean:.1f} %"
