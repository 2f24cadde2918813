"""``undertone.run`` and ``undertone.study``: the one call that a script needs."""

from __future__ import annotations

from pathlib import Path

from undertone.errors import ConfigError
from undertone.launch.clusters import Launch
from undertone.studies.frame import load_plan, run_plan
from undertone.studies.results import StudyResults
from undertone.transfer.config import Experiment, Plan, load_experiment
from undertone.transfer.pipeline import run_experiment
from undertone.transfer.results import Results


def run(
    experiment: str | Path | Experiment = "owl-numbers",
    *overrides: str,
    folder: str | Path | None = None,
    jobs: int | None = None,
    device: str = "auto",
    recompute: bool = False,
    launch: Launch = "local",
) -> Results:
    """Run a transfer experiment (or go on with it, extend it, or read it if it is finished).

    Args:
        experiment: a preset's name, a YAML file, or an ``Experiment``.
        overrides: ``"key=value"`` for any field, as on the command line.
        folder: the run folder; None: ``runs/NAME-DIGEST``.
        jobs: processes side by side; None: one a core, or 1 on a GPU.
        device: auto, cpu, cuda …
        recompute: compute finished stages again whose inputs have changed, instead of refusing them.
        launch: where stages are computed: local, ray, slurm, or a ``RayCluster`` or ``SlurmCluster``.

    Raises:
        ConfigError: an unknown key or a wrong value, or the plan is a study.
        DataError, ModelError, RunError: as their messages say; finished stages are kept.
    """
    config = experiment if isinstance(experiment, Experiment) else load_experiment(experiment, overrides)
    return run_experiment(config, folder, jobs=jobs, device=device, recompute=recompute, launch=launch)


def study(
    plan: str | Path | Plan,
    *overrides: str,
    folder: str | Path | None = None,
    jobs: int | None = None,
    device: str = "auto",
    recompute: bool = False,
    launch: Launch = "local",
) -> StudyResults:
    """Run a study (or go on with it, extend it, or read it if it is finished); arguments and errors as of :func:`run`."""
    config = plan if isinstance(plan, Plan) else load_plan(plan, overrides)
    if isinstance(config, Experiment):
        raise ConfigError("this plan is a transfer experiment", got=config.name, fix="call undertone.run for it")
    results = run_plan(config, folder, jobs=jobs, device=device, recompute=recompute, launch=launch)
    assert isinstance(results, StudyResults)
    return results
