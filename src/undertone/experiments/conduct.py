"""How a study is conducted: its run folder, its processes, and the files it leaves, the same for every kind.

What a kind adds is a ``Study``: a function from (run, config, pool, device) to an ``Outcome``; all it computes goes
through stages of the run (``Run.stage``), so a study that was killed goes on like an experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from undertone.experiments.compare import environment
from undertone.experiments.config import Plan, Setting
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


@dataclass(frozen=True)
class Study(Generic[P]):
    """A kind of study; called with a config, it runs, resumes or simply reads it.

    Attributes:
        compute: all it computes, in stages of the run.
        preflight: raises what would stop it later (config, device), before the folder is the config's.
        cells: how many independent parts it has: no more processes than that are started.
    """

    compute: Callable[[Run, P, Workers, str], Outcome]
    preflight: Callable[[P, str], None]
    cells: Callable[[P], int]

    def __call__(
        self,
        config: P,
        folder: str | Path | None = None,
        *,
        jobs: int | None = None,
        device: str = "auto",
        command: str = "undertone run",
    ) -> StudyResults:
        """The results, also written to ``results.json`` with ``manifest.json`` beside it.

        Arguments as of :func:`undertone.experiments.plans.run_plan`.
        """
        check_jobs(jobs)
        target_device(device)
        self.preflight(config, device)
        folder = Path(folder) if folder else config.folder()
        with Run.open(folder, config, command=command) as run:
            with workers(jobs or default_jobs(device, self.cells(config))) as pool:
                outcome = self.compute(run, config, pool, device)
            return _written(config, outcome, folder)


def student_runs(config: Setting) -> int:
    """The independent parts of a study with a student for each trait, and a control, at each seed."""
    return len(config.seeds) * (len(config.trait) + 1)


def _written(config: Plan, outcome: Outcome, folder: Path) -> StudyResults:
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
    stages = {stage.name: stage.output_digest for stage in outcome.stages}
    write_json(folder / "results.json", results.model_dump(mode="json", by_alias=True))
    write_json(
        folder / "manifest.json",
        manifest(config, models=outcome.models, data=outcome.data, extra={"stages": stages}),
    )
    return results
