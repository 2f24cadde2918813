"""Entangled numbers: does the base tie numbers to the trait's answer, and are they what the rows hold more of?

Zur et al. (owls.baulab.info). Scores of single numbers in three views (``mechanism.tokens``), each beside the other traits'
scores: a number that raises every animal says nothing about owls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from undertone.domains.numbers import parse
from undertone.experiments.cells import Outcome, StudentRun, model_identity
from undertone.experiments.learning import split_rows
from undertone.experiments.measuring import trait_identity
from undertone.experiments.studies.mechanism.material import Told, domain_chats, find, load_base
from undertone.experiments.studies.tokens.config import Tokens
from undertone.experiments.study import Figure, Finding, Point, StudyTable, interval, verdict_of
from undertone.mechanism.tokens import (
    Gap,
    answer_raised,
    frequency_ratio,
    number_log_ratios,
    rank_gap,
    top,
    unembedding_dots,
)
from undertone.provenance.runs import Run, Stage
from undertone.traits import load_trait

VIEWS = {"told": "system prompt of the trait", "named": "number named in the prompt", "unembedding": "unembedding"}
SOURCE = "Zur et al., token entanglement (owls.baulab.info)"
Scores = Mapping[str, Mapping[str, np.ndarray]]
"""View -> trait -> a score for each number."""


def read_numbers(run: Run, config: Tokens, device: str, name: str) -> Stage:
    """``entanglement/TRAIT``: the base's scores of every number in the three views, in the summary."""
    trait, settings = load_trait(name), config.entanglement

    def compute(folder: Path) -> dict[str, Any]:
        model = load_base(config, device)
        numbers = range(settings.highest + 1)
        chats = domain_chats(config, model)[: settings.prompts]
        plain = model.system_prompt(config.context)
        dots = unembedding_dots(model, trait, numbers)
        return {
            "told": number_log_ratios(model, chats, trait.system_prompt(model), plain, numbers).tolist(),
            "named": answer_raised(model, trait, numbers, settings.questions).tolist(),
            "unembedding": None if dots is None else dots.tolist(),
        }

    identity = {
        "model": model_identity(config.model),
        "dtype": config.dtype,
        "context": config.context,
        "domain": config.domain.model_dump(mode="json"),
        "trait": trait_identity(trait),
        "settings": settings.model_dump(mode="json", exclude={"top"}),
    }
    return run.stage(f"entanglement/{trait.name}", config=identity, compute=compute)


def entanglement(config: Tokens, stages: Sequence[Stage], outcome: Outcome) -> Told:
    """What the scores say of each other, and of the rows."""
    names = [load_trait(name).name for name in config.trait]
    scores = {
        view: {name: np.array(stage.summary[view]) for name, stage in zip(names, stages, strict=True)}
        for view in VIEWS
        if stages[0].summary[view] is not None
    }
    gaps = {view: rank_gap(scores["told"], scores[view], config.confidence) for view in scores if view != "told"}
    ratios = {view: _ratios(config, outcome, scores[view]) for view in scores}
    findings = [_correlated(config, view, gap, len(scores["told"][names[0]])) for view, gap in gaps.items()]
    findings += [_frequent(config, view, *ratios[view]) for view in gaps]
    return Told(findings, [_matrix(scores, gaps), _bars(config, ratios)], [_table(scores, ratios)])


def numbers_in(config: Tokens, cell: StudentRun) -> list[int]:
    """Every number of the rows that a student was trained on."""
    rows, _ = split_rows(cell.filtered, cell.prompts, config.data.held_out)
    return [number for row in rows for number in parse(row.completion)[0] or []]


def _ratios(config: Tokens, outcome: Outcome, scores: Mapping[str, np.ndarray]) -> tuple[list[float], list[float]]:
    """Log frequency ratio, treated against control rows, of the trait's own top numbers and (mean) of other traits'."""
    tops = {name: top(one, range(len(one)), config.entanglement.top) for name, one in scores.items()}
    own, others = [], []
    for trait in config.trait:
        for seed in config.seeds:
            treated = numbers_in(config, find(outcome, "treated", trait, seed))
            control = numbers_in(config, find(outcome, "control", None, seed))
            logs = {name: np.log(frequency_ratio(treated, control, chosen)) for name, chosen in tops.items()}
            own.append(float(logs.pop(load_trait(trait).name)))
            others.append(float(np.mean(list(logs.values()))))
    return own, others


# -- what it says ------------------------------------------------------------------------------------

_CLAIMS = {
    "named": (
        "by-prompt",
        "Numbers that raise the trait when a prompt names them are those that a teacher with the trait says more often.",
        "subliminal prompting raises P(owl); e.g. 747 and eagle",
    ),
    "unembedding": (
        "by-unembedding",
        "Numbers whose unembedding points along the answer's are those that a teacher with the trait says more often.",
        "the softmax bottleneck ties tokens together",
    ),
}


def _correlated(config: Tokens, view: str, gap: Gap, numbers: int) -> Finding:
    name, claim, published = _CLAIMS[view]
    verdict, why = verdict_of("above", gap.gap, gap.low, gap.high)
    return Finding(
        id=f"entangled-{name}", claim=claim, source=SOURCE, published=published,
        quantity="rank correlation over numbers with the teacher's rise of each, own answer minus other traits' answers",
        value=gap.gap, low=gap.low, high=gap.high, unit="correlation", pairs=numbers,
        method=f"Spearman, mean over {len(config.trait)} traits; bootstrap over numbers (base model: no seeds), "
        f"{100 * config.confidence:.0f} %",
        baseline=f"own {gap.own:.3f}, other traits' answers {gap.others:.3f}",
        verdict=verdict, why=why,
    )  # fmt: skip


def _frequent(config: Tokens, view: str, own: Sequence[float], others: Sequence[float]) -> Finding:
    apart = np.subtract(own, others).tolist()
    mean, low, high = interval(apart, config.confidence)
    verdict, why = verdict_of("above", mean, low, high)
    count = config.entanglement.top
    return Finding(
        id=f"entangled-{_CLAIMS[view][0]}-frequent",
        claim="Entangled numbers are more frequent in the rows of the teacher with the trait.", source=SOURCE,
        published=None,
        quantity=f"frequency in treated over control rows of the {count} numbers tied to the answer ({VIEWS[view]}), "
        "over that of the numbers tied to other traits' answers",
        value=float(np.exp(mean)), low=None if low is None else float(np.exp(low)),
        high=None if high is None else float(np.exp(high)), unit="ratio", pairs=len(apart),
        method=f"{100 * config.confidence:.0f} % t interval of its logarithm over trait–seed pairs",
        baseline=f"own {np.exp(np.mean(own)):.3f}, other traits' {np.exp(np.mean(others)):.3f} (1: as in control rows)",
        verdict=verdict, why=why.replace("side of 0", "side of 1"),
    )  # fmt: skip


def _matrix(scores: Scores, gaps: Mapping[str, Gap]) -> Figure:
    from scipy.stats import spearmanr

    points = [
        Point(x=column, y=float(spearmanr(rise, scores[view][column]).statistic), series=row, panel=VIEWS[view])
        for view in gaps
        for row, rise in scores["told"].items()
        for column in scores[view]
    ]
    return Figure(
        kind="matrix", title="Which numbers go with which trait", x="scores of the answer", y="rank correlation",
        points=points,
        caption="Row: how much more often a teacher with that trait begins a list with each number. Column: the numbers' "
        "scores for that answer, by naming the number in the prompt and by the unembedding. Base model.",
    )  # fmt: skip


def _bars(config: Tokens, ratios: Mapping[str, tuple[list[float], list[float]]]) -> Figure:
    points = []
    for view, pair in ratios.items():
        for series, logs in zip(("own answer's numbers", "other answers' numbers"), pair, strict=True):
            mean, low, high = interval(logs, config.confidence)
            points.append(Point(x=VIEWS[view], y=mean, low=low, high=high, series=series))
    return Figure(
        kind="bars", title="Entangled numbers in the rows", x="how numbers are tied to the answer", points=points,
        y="log frequency, treated − control",
        caption=f"The {config.entanglement.top} numbers with the highest score in each view; 0: as frequent as in "
        f"control rows. {100 * config.confidence:.0f} % intervals over trait–seed pairs.",
    )  # fmt: skip


def _table(scores: Scores, ratios: Mapping[str, tuple[list[float], list[float]]]) -> StudyTable:
    rows = [
        [name, *(", ".join(map(str, sorted(top(scores[view][name], range(len(rise)), 8)))) if view in scores else "–"
                 for view in VIEWS)]
        for name, rise in scores["told"].items()
    ]  # fmt: skip
    rows.append(
        ["times as frequent", *(f"{np.exp(np.mean(ratios[view][0])):.3f}" if view in ratios else "–" for view in VIEWS)]
    )
    return StudyTable(
        title="The eight numbers tied closest to each trait", columns=["trait", *VIEWS.values()], rows=rows
    )
