"""How a study is conducted: its run folder, its processes, and the files it leaves, the same for every kind.

What a kind of study adds is one function from (run, config, pool, device) to an ``Outcome``; all it computes goes
through stages of the run (``Run.stage``), so a study that was killed goes on like an experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from undertone.experiments.compare import environment
from undertone.experiments.config import Plan
from undertone.experiments.results import Check, Cost
from undertone.experiments.study import Figure, Finding, StudyResults, StudyTable
from undertone.experiments.workers import Workers, check_jobs, default_jobs, workers
from undertone.models.loading import target_device
from undertone.provenance.manifest import manifest
from undertone.provenance.runs import Run, Stage, write_json


@dataclass(frozen=True)
class Outcome:
    """What a study found, before it is written down.

    ``models`` and ``data`` go to the manifest: name -> what is known of it, and name -> digest.
    """

    model: str
    sentence: str
    findings: Sequence[Finding]
    stages: Sequence[Stage]
    figures: Sequence[Figure] = ()
    tables: Sequence[StudyTable] = ()
    checks: Sequence[Check] = ()
    models: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)


P = TypeVar("P", bound=Plan)


def conduct(
    config: P,
    study: Callable[[Run, P, Workers, str], Outcome],
    folder: str | Path | None,
    *,
    cells: int,
    jobs: int | None,
    device: str,
    command: str,
) -> StudyResults:
    """Run, resume or simply read a study.

    Args:
        config: what.
        study: computes it, in stages.
        folder: the run folder; None: ``runs/NAME-DIGEST``.
        cells: how many independent parts it has: no more processes than that are started.
        jobs: processes side by side; None: as many as there are cores, or 1 on a GPU.
        device: auto, cpu, cuda …
        command: what the user typed, for messages and the manifest.

    Returns:
        The results, also written to ``results.json`` with ``manifest.json`` beside it.
    """
    check_jobs(jobs)
    target_device(device)
    folder = Path(folder) if folder else config.folder()
    with Run.open(folder, config, command=command) as run:
        with workers(jobs or default_jobs(device, cells)) as pool:
            outcome = study(run, config, pool, device)
        results = StudyResults(
            experiment=config.name,
            kind=config.kind,
            model=outcome.model,
            sentence=outcome.sentence,
            findings=list(outcome.findings),
            figures=list(outcome.figures),
            tables=list(outcome.tables),
            checks=list(outcome.checks),
            costs=[Cost(stage=stage.name, seconds=stage.seconds) for stage in outcome.stages],
            environment=environment(),
            replay=f"undertone run {folder / 'config.yaml'}",
        )
        write_json(folder / "results.json", results.model_dump(mode="json", by_alias=True))
        write_json(folder / "manifest.json", _manifest(config, outcome))
    return results


def _manifest(config: Plan, outcome: Outcome) -> dict[str, Any]:
    stages = {stage.name: stage.output_digest for stage in outcome.stages}
    return manifest(config, models=outcome.models, data=outcome.data, extra={"stages": stages})
