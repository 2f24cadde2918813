"""Every kind of plan by name: which class reads its config, and which function runs it.

A kind is loaded when a config names it, so that a study costs nothing to those who do not run it. A config without a
``kind`` is a transfer experiment. To add a kind: a module in ``studies/``, a line in ``KINDS``, a preset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from undertone.errors import ConfigError, nearest
from undertone.experiments.config import Plan, presets
from undertone.experiments.results import Results
from undertone.experiments.study import StudyResults
from undertone.provenance import configs


@dataclass(frozen=True)
class Kind:
    """Where a kind of plan lives: ``module:name`` of its config class and of what runs it."""

    config: str
    run: str


_STUDIES = "undertone.experiments.studies"
KINDS = {
    "transfer": Kind("undertone.experiments.config:Experiment", "undertone.experiments.pipeline:run_experiment"),
    "mechanism": Kind(f"{_STUDIES}.mechanism.config:Mechanism", f"{_STUDIES}.mechanism.plan:MECHANISM"),
    "sweep": Kind(f"{_STUDIES}.sweep.config:Sweep", f"{_STUDIES}.sweep.plan:SWEEP"),
    "chain": Kind(f"{_STUDIES}.chain.plan:Chain", f"{_STUDIES}.chain.plan:CHAIN"),
    "in-context": Kind(f"{_STUDIES}.incontext.plan:InContext", f"{_STUDIES}.incontext.plan:IN_CONTEXT"),
    "harm-dose": Kind(f"{_STUDIES}.harm.config:HarmDose", f"{_STUDIES}.harm.plan:HARM_DOSE"),
    "tokens": Kind(f"{_STUDIES}.tokens.config:Tokens", f"{_STUDIES}.tokens.plan:TOKENS"),
    "digits": Kind(f"{_STUDIES}.digits.config:DigitsStudy", f"{_STUDIES}.digits.stages:DIGITS"),
}


def load_plan(source: str | Path | Mapping[str, Any] = "owl-numbers", overrides: Sequence[str] = ()) -> Plan:
    """A plan of any kind from a preset's name, a YAML file or a mapping, with ``key=value`` overrides.

    Raises:
        ConfigError: anything is wrong with it; an unknown kind names the nearest.
    """
    known = presets()
    own = configs.kind_of(source, (), known) or "transfer"
    kind = configs.kind_of(source, overrides, known) or own
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(
            f"kind: there is no such kind of plan.{nearest(str(kind), KINDS)}", got=kind, allowed=sorted(KINDS)
        )
    if kind != own:
        source = {}  # another kind begins with its own defaults, here as anywhere in a config
    plan: Plan = configs.load(_loaded(KINDS[kind].config), source, overrides, known)
    return plan


def run_plan(
    config: Plan,
    folder: str | Path | None = None,
    *,
    jobs: int | None = None,
    device: str = "auto",
    command: str = "undertone run",
) -> Results | StudyResults:
    """Run, resume or simply read a plan of any kind.

    Args:
        config: what.
        folder: the run folder; None: ``runs/NAME-DIGEST``.
        jobs: processes side by side; None: as many as there are cores, or 1 on a GPU.
        device: auto, cpu, cuda …
        command: what the user typed, for messages and the manifest.
    """
    runner = _loaded(KINDS[config.kind].run)
    results: Results | StudyResults = runner(config, folder, jobs=jobs, device=device, command=command)
    return results


def _loaded(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
