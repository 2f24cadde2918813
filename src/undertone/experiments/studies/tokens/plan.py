"""``kind: tokens``: which tokens of number lists carry the trait. The transfer experiment, and two views of its tokens."""

from __future__ import annotations

from undertone.experiments.cells import arms_of, model_identity
from undertone.experiments.compare import conclude
from undertone.experiments.conduct import Outcome, Study
from undertone.experiments.config import Experiment, Setting
from undertone.experiments.pipeline import compute
from undertone.experiments.preflight import preflight
from undertone.experiments.studies.mechanism.material import effects, find, in_points
from undertone.experiments.studies.tokens.config import Tokens
from undertone.experiments.studies.tokens.divergence import MASKS, divergence, learn_marked, mark
from undertone.experiments.studies.tokens.entanglement import entanglement, read_numbers
from undertone.experiments.study import per_seed
from undertone.experiments.workers import Workers
from undertone.provenance import configs
from undertone.provenance.runs import Run, Stage


def tokens(run: Run, config: Tokens, pool: Workers, device: str) -> Outcome:
    """The students of all tokens, the base's ties between numbers and answers, then students of some tokens."""
    fields = config.model_dump(mode="json", include=set(Setting.model_fields) - {"kind"})
    experiment = configs.load(Experiment, {"kind": "transfer", **fields})
    outcome = compute(run, experiment, arms_of(experiment), pool, device)
    cells = [find(outcome, "treated", trait, seed) for trait in config.trait for seed in config.seeds]
    read: list[Stage] = pool.each([(read_numbers, (run, config, device, name)) for name in config.trait])
    marked: list[Stage] = pool.each([(mark, (run, config, device, cell)) for cell in cells])
    learnt: list[tuple[Stage, Stage]] = pool.each(
        [
            (learn_marked, (run, config, device, cell, marks, mask))
            for mask in MASKS
            for cell, marks in zip(cells, marked, strict=True)
        ]
    )
    asked = [evaluated for _, evaluated in learnt]
    by_mask = {mask: asked[at * len(cells) : (at + 1) * len(cells)] for at, mask in enumerate(MASKS)}
    told = [entanglement(config, read, outcome), divergence(config, outcome, marked, by_mask)]
    findings = [finding for part in told for finding in part.findings]
    kept, gone = (
        next(one for one in findings if one.id == f"divergence-tokens-{word}") for word in ("suffice", "needed")
    )
    transfer = in_points(per_seed(effects(outcome, config.trait, config.seeds), len(config.seeds)), config.confidence)
    return Outcome(
        model=config.model,
        sentence=f"All tokens pass the trait on by {transfer}; against random sets of equal size, divergence tokens alone "
        f"give {100 * (kept.value or 0):+.1f} points, all others {100 * (gone.value or 0):+.1f}.",
        findings=findings,
        stages=[*outcome.stages(), *read, *marked, *(stage for both in learnt for stage in both)],
        figures=[figure for part in told for figure in part.figures],
        tables=[table for part in told for table in part.tables],
        checks=[check for check in conclude(experiment, outcome, replay="").checks if check.status != "pass"],
        models={config.model: model_identity(config.model)},
        data={cell.generated.name: cell.generated.summary["data"] for cell in outcome.cells},
    )


def masked(config: Tokens) -> int:
    """A student for each trait, seed and set of tokens."""
    return len(config.seeds) * len(config.trait) * len(MASKS)


TOKENS = Study(tokens, preflight, masked)
