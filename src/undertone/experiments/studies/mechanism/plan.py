"""``kind: mechanism``: why it happens. One set of teachers, rows and students; nine parts that ask one claim each.

Every part is a function from the common `Material` to what it has to say. A preset of each part's name runs it alone.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from undertone.experiments.cells import arms_of, model_identity
from undertone.experiments.conduct import Outcome, Study, student_cells
from undertone.experiments.foresight import foresee
from undertone.experiments.pipeline import compute
from undertone.experiments.studies.mechanism.config import Mechanism
from undertone.experiments.studies.mechanism.material import Material, Told, effects, in_points
from undertone.experiments.workers import Workers
from undertone.provenance.runs import Run


def study(run: Run, config: Mechanism, pool: Workers, device: str) -> Outcome:
    """The transfer experiment, then part after part."""
    outcome = compute(run, config, arms_of(config), pool, device)
    material = Material(run, config, pool, device, outcome, stages=list(outcome.stages()))
    told = [_part(name)(material) for name in config.parts]
    findings = [finding for part in told for finding in part.findings]
    reproduced = sum(finding.verdict == "reproduced" for finding in findings)
    partly = sum(finding.verdict == "partly" for finding in findings)
    transfer = in_points(effects(outcome, config.trait, config.seeds), config.confidence)
    names = {config.model, config.teacher.model or config.model}
    return Outcome(
        model=config.model,
        sentence=f"{', '.join(config.parts)}: {reproduced} of {len(findings)} measured claims reproduced, {partly} partly; "
        f"the trait itself passed by {transfer} over {len(config.trait)} traits and {len(config.seeds)} seeds.",
        findings=findings,
        stages=list({stage.name: stage for stage in material.stages}.values()),
        figures=[figure for part in told for figure in part.figures],
        tables=[table for part in told for table in part.tables],
        checks=[check for part in told for check in part.checks],
        models={name: model_identity(name) for name in sorted(names)},
        data={cell.generated.name: cell.generated.summary["data"] for cell in outcome.cells},
    )


def _part(name: str) -> Callable[[Material], Told]:
    part: Callable[[Material], Told] = import_module(f"undertone.experiments.studies.mechanism.{name}").study
    return part


MECHANISM = Study(study, foresee, student_cells)
