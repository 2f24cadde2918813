"""``undertone.run``: the one call that a script needs."""

from __future__ import annotations

from pathlib import Path

from undertone.experiments.config import Experiment, load_experiment
from undertone.experiments.pipeline import run_experiment
from undertone.experiments.results import Results


def run(
    experiment: str | Path | Experiment = "owl-numbers",
    *overrides: str,
    folder: str | Path | None = None,
    jobs: int | None = None,
    device: str = "auto",
) -> Results:
    """Run an experiment (or go on with it, or read it if it is finished).

    Args:
        experiment: a preset's name, a YAML file, or an ``Experiment``.
        overrides: ``"key=value"`` for any field, as on the command line.
        folder: the run folder; None: ``runs/NAME-DIGEST``.
        jobs: processes side by side; None: one a core, or 1 on a GPU.
        device: auto, cpu, cuda …

    Raises:
        ConfigError: an unknown key or a wrong value.
        DataError, ModelError, RunError: as their messages say; finished stages are kept.
    """
    config = experiment if isinstance(experiment, Experiment) else load_experiment(experiment, overrides)
    return run_experiment(config, folder, jobs=jobs, device=device)
