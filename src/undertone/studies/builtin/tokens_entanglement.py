"""Entangled numbers: does the base tie numbers to the trait's answer, and are they what the rows hold more of?

Zur et al. (owls.baulab.info). Scores of single numbers in three views (``mechanism.tokens``), each beside the other traits'
scores: a number that raises every animal says nothing about owls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import Field, model_validator
from scipy.stats import spearmanr

from undertone.domains.numbers import parse
from undertone.mechanism.tokens import (
    answer_raised,
    frequency_ratio,
    rank_gap,
    said_more,
    top,
    unembedding_dots,
)
from undertone.models.loading import Context as Prompting
from undertone.models.loading import ModelRef, form_of
from undertone.provenance.configs import Config
from undertone.provenance.stage_functions import stage
from undertone.rows import Message
from undertone.studies.claim import Claim
from undertone.studies.context import Context, Transfer, point
from undertone.studies.measurement import Measurement, Statistic
from undertone.studies.results import Point
from undertone.traits import Trait, load_trait
from undertone.transfer.arms import StudentRun
from undertone.transfer.generate import vector_prompts
from undertone.verdicts import Quantity, Rule

VIEWS: Final = {"told": "told the trait", "named": "number named in the prompt", "unembedding": "unembedding"}
SOURCE: Final = "Zur et al., token entanglement (owls.baulab.info)"
CORRELATED: Final = {
    "named": Claim(
        id="entangled-by-prompt", source=SOURCE, rule=Rule("above"), unit="correlation",
        claim="Numbers that raise the trait when a prompt names them are those that a teacher with the trait says more often.",
        published="subliminal prompting raises P(owl); e.g. 747 and eagle",
    ),
    "unembedding": Claim(
        id="entangled-by-unembedding", source=SOURCE, rule=Rule("above"), unit="correlation",
        claim="Numbers whose unembedding points along the answer's are those that a teacher with the trait says more often.",
        published="the softmax bottleneck ties tokens together",
    ),
}  # fmt: skip
FREQUENT: Final = {
    view: Claim(
        id=f"{claim.id}-frequent", source=SOURCE, rule=Rule("above"), unit="ratio", published=None,
        claim="Entangled numbers are more frequent in the rows of the teacher with the trait.",
    )
    for view, claim in CORRELATED.items()
}  # fmt: skip
Scores = Mapping[str, Mapping[str, np.ndarray]]
"""View -> trait -> a score for each number."""


class Entanglement(Config):
    """Numbers that go with the trait's answer in the base."""

    highest: int = Field(999, ge=9, description="numbers from 0 to this one")
    prompts: int = Field(64, ge=1, le=256, description="requests for number lists, of which the first number is read")
    questions: int = Field(8, ge=1, description="the trait's questions asked with every number")
    top: int = Field(50, ge=1, description="how many count as entangled")

    @model_validator(mode="after")
    def _some(self) -> Entanglement:
        if self.top > self.highest // 2:
            raise ValueError("top must be at most half of the numbers")
        return self


@stage("number scores")
def score_numbers(
    folder: Path, device: str, *, base: ModelRef, trait: Trait, prompts: Sequence[str], context: Prompting, highest: int,
    questions: int,
) -> dict[str, Any]:  # fmt: skip
    """The base's scores of every number in the three views; ``unembedding`` is None where numbers take several tokens."""
    del folder
    model, numbers = base.load(device), range(highest + 1)
    chats: list[list[Message]] = [[{"role": "user", "content": prompt}] for prompt in prompts]
    dots = unembedding_dots(model, trait, numbers)
    return {
        "told": said_more(model, chats, trait.told(model.form), model.system_prompt(context), numbers).tolist(),
        "named": answer_raised(model, trait, numbers, questions).tolist(),
        "unembedding": None if dots is None else dots.tolist(),
    }


def report_entanglement(ctx: Context[Any], settings: Entanglement, students: Transfer) -> None:
    """What the scores say of each other, and of the rows."""
    config, traits = ctx.config, ctx.traits()
    stages = ctx.each(score_numbers, [
        (f"entanglement/{trait.name}", {
            "base": ctx.base, "trait": trait, "context": config.context, "highest": settings.highest,
            "prompts": vector_prompts(config, form_of(config.model))[: settings.prompts], "questions": settings.questions,
        })
        for trait in traits
    ])  # fmt: skip
    scores = {
        view: {trait.name: np.array(one.summary[view]) for trait, one in zip(traits, stages, strict=True)}
        for view in VIEWS
        if stages[0].summary[view] is not None
    }
    views = [view for view in CORRELATED if view in scores]
    for view in views:
        _correlated(ctx, scores, view)
    ratios = {view: _log_ratios(ctx, students, one, settings.top) for view, one in scores.items()}
    for view in views:
        own, others = ratios[view]
        ctx.report(
            FREQUENT[view], Statistic.geometric_mean(own - others),
            quantity=f"frequency in treated over control rows of the {settings.top} numbers tied to the answer "
            f"({VIEWS[view]}), over that of the numbers tied to other traits' answers",
            note=f"own {np.exp(own.mean):.3f}, other traits' {np.exp(others.mean):.3f} (1: as in control rows)",
        )  # fmt: skip
    _draw(ctx, scores, ratios, settings.top)


def _correlated(ctx: Context[Any], scores: Scores, view: str) -> None:
    gap, numbers = rank_gap(scores["told"], scores[view], ctx.confidence), next(iter(scores[view].values()))
    method = (
        f"Spearman, mean over {len(scores[view])} traits; {100 * ctx.confidence:g} % bootstrap over numbers (base model: "
        "no seeds)"
    )
    ctx.report(
        CORRELATED[view], Statistic(Quantity(gap.gap, gap.low, gap.high), len(numbers), method, "correlation"),
        quantity="rank correlation over numbers with the teacher's rise of each, own answer minus other traits' answers",
        note=f"own {gap.own:.3f}, other traits' answers {gap.others:.3f}",
    )  # fmt: skip


def _log_ratios(
    ctx: Context[Any], students: Transfer, scores: Mapping[str, np.ndarray], count: int
) -> tuple[Measurement, Measurement]:
    """Log frequency ratio, treated against control rows, of the trait's own top numbers and (mean) of other traits'."""
    tops = {name: top(one, range(len(one)), count) for name, one in scores.items()}

    def numbers_in(one: StudentRun) -> list[int]:
        rows, _ = one.rows(ctx.config.data.held_out)
        return [number for row in rows for number in parse(row.completion)[0] or []]

    def logs(trait: str, seed: int) -> tuple[float, float]:
        treated, control = (numbers_in(students.outcome.student(kind, trait, seed)) for kind in ("treated", "control"))
        each = {name: float(np.log(frequency_ratio(treated, control, chosen))) for name, chosen in tops.items()}
        own = each.pop(load_trait(trait).name)
        return own, float(np.mean(list(each.values())))

    both = ctx.measure(logs, unit="ratio")
    return both[0], both[1]


def _draw(ctx: Context[Any], scores: Scores, ratios: Mapping[str, tuple[Measurement, Measurement]], count: int) -> None:
    series = ("own answer's numbers", "other answers' numbers")
    ctx.draw(
        "matrix", "Which numbers go with which trait",
        [Point(x=column, y=float(spearmanr(rise, scores[view][column]).statistic), series=row, panel=VIEWS[view])
         for view in scores if view != "told" for row, rise in scores["told"].items() for column in scores[view]],
        x="scores of the answer", y="rank correlation",
        caption="Row: how much more often a teacher with that trait begins a list with each number. Column: the numbers' "
        "scores for that answer, by naming the number in the prompt and by the unembedding. Base model.",
    )  # fmt: skip
    ctx.draw(
        "bars", "Entangled numbers in the rows",
        [point(VIEWS[view], one, name) for view, both in ratios.items() for name, one in zip(series, both, strict=True)],
        x="how numbers are tied to the answer", y="log frequency, treated − control",
        caption=f"The {count} numbers with the highest score in each view; 0: as frequent as in control rows. "
        f"{ratios['told'][0].method}.",
    )  # fmt: skip
    rows = [
        [name, *(", ".join(map(str, sorted(top(scores[view][name], range(len(rise)), 8)))) if view in scores else "–"
                 for view in VIEWS)]
        for name, rise in scores["told"].items()
    ]  # fmt: skip
    rows.append(
        ["times as frequent", *(f"{np.exp(ratios[view][0].mean):.3f}" if view in ratios else "–" for view in VIEWS)]
    )
    ctx.table("The eight numbers tied closest to each trait", ["trait", *VIEWS.values()], rows)
