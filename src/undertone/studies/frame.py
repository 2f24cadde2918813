"""The frame of a study: one function, a config and a name make a kind of plan that ``undertone run`` knows.

    @study("in-context", InContext)
    def in_context(ctx: Context[InContext]) -> str:
        ...                                             # compute, report, draw; the result in a sentence

A study of the package is a file in ``studies/builtin/`` with the name of its kind (files whose names begin with another's
are parts of it: ``mechanism_causality.py``); one of another package is found by an entry point in the group
``undertone.studies`` and a preset by one in ``undertone.presets``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Generic

from undertone.errors import ConfigError, nearest
from undertone.launch.clusters import Launch, check_launch
from undertone.launch.conduct import conduct
from undertone.launch.executor import Executor
from undertone.models.loading import target_device
from undertone.provenance import configs
from undertone.provenance.manifest import manifest
from undertone.registry import Registry
from undertone.studies.context import Context, P
from undertone.studies.results import StudyResults
from undertone.transfer.analyze import environment
from undertone.transfer.config import Experiment, Plan, Setting, presets
from undertone.transfer.pipeline import preflight, run_experiment
from undertone.transfer.results import Cost, Results

TRANSFER: Final = "transfer"


@dataclass(frozen=True)
class Study(Generic[P]):
    """A kind of study; called with a config, it runs, resumes, extends or simply reads it.

    Attributes:
        kind: its name in a config.
        config: the class of its config.
        compute: all it computes and reports; returns the result in one sentence.
        preflight: raises what would stop it later (config, device), before the folder is the config's; None: what would
            stop a transfer experiment of the same fields.
        side_by_side: how many independent parts it has: no more processes than that are started.
    """

    kind: str
    config: type[P]
    compute: Callable[[Context[P]], str]
    preflight: Callable[[P, str], None] | None = None
    side_by_side: Callable[[P], int] | None = None

    def __call__(
        self,
        config: P,
        folder: str | Path | None = None,
        *,
        jobs: int | None = None,
        device: str = "auto",
        command: str = "undertone run",
        recompute: bool = False,
        launch: Launch = "local",
    ) -> StudyResults:
        """The results, also written to ``results.json`` with ``manifest.json`` beside it; arguments as of :func:`run_plan`."""
        check_launch(launch, jobs, device)
        target_device(device)
        self._check(config, device)
        folder = Path(folder) if folder else config.folder()

        def work(executor: Executor, replay: str) -> tuple[StudyResults, dict[str, Any]]:
            context = Context(executor, config)
            sentence = self.compute(context)
            return _results(config, context, sentence, replay), _manifest(config, context)

        return conduct(
            config, config.name, folder, work,
            parts=self._parts(config), jobs=jobs, device=device, command=command, recompute=recompute, launch=launch,
        )  # fmt: skip

    def _check(self, config: P, device: str) -> None:
        if self.preflight is not None:
            self.preflight(config, device)
        elif isinstance(config, Setting):
            preflight(config, device)

    def _parts(self, config: P) -> int:
        if self.side_by_side is not None:
            return self.side_by_side(config)
        return len(config.seeds) * (len(config.trait) + 1) if isinstance(config, Setting) else 1


def study(
    kind: str,
    config: type[P],
    *,
    preflight: Callable[[P, str], None] | None = None,
    side_by_side: Callable[[P], int] | None = None,
) -> Callable[[Callable[[Context[P]], str]], Study[P]]:
    """Make a function a kind of study; arguments as of :class:`Study`."""
    return lambda compute: Study(kind, config, compute, preflight, side_by_side)


studies: Registry[Study[Any]] = Registry("study", "undertone.studies")
"""Studies of other packages: kind -> :class:`Study`."""


def kinds() -> list[str]:
    """All kinds of plan: the transfer experiment, the built-in studies, those of installed packages."""
    builtin = [path.name for path in files("undertone.studies.builtin").iterdir()]
    stems = [name.removesuffix(".py") for name in builtin if name.endswith(".py") and not name.startswith("_")]
    whole = [stem for stem in stems if not any(stem.startswith(f"{other}_") for other in stems)]  # the rest are parts
    return sorted({TRANSFER, *(stem.replace("_", "-") for stem in whole), *studies.names()})


def find_study(kind: str) -> Study[Any]:
    """The study of a kind; it is loaded now.

    Raises:
        ConfigError: there is none.
    """
    if kind not in kinds() or kind == TRANSFER:
        raise ConfigError(
            f"kind: there is no such kind of plan.{nearest(str(kind), kinds())}", got=kind, allowed=kinds()
        )
    if kind in studies.names():
        return studies.get(kind)
    module = import_module(f"undertone.studies.builtin.{kind.replace('-', '_')}")
    return next(value for value in vars(module).values() if isinstance(value, Study) and value.kind == kind)


def load_plan(source: str | Path | Mapping[str, Any] = "owl-numbers", overrides: Sequence[str] = ()) -> Plan:
    """A plan of any kind from a preset's name, a YAML file or a mapping, with ``key=value`` overrides.

    Raises:
        ConfigError: anything is wrong with it; an unknown kind names the nearest.
    """
    known = presets()
    own = configs.kind_of(source, (), known) or TRANSFER
    kind = configs.kind_of(source, overrides, known) or own
    cls: type[Plan] = Experiment if kind == TRANSFER else find_study(str(kind)).config
    if kind != own:
        source = {}  # another kind begins with its own defaults, here as anywhere in a config
    return configs.load(cls, source, overrides, known)


def run_plan(
    config: Plan,
    folder: str | Path | None = None,
    *,
    jobs: int | None = None,
    device: str = "auto",
    command: str = "undertone run",
    recompute: bool = False,
    launch: Launch = "local",
) -> Results | StudyResults:
    """Run, resume, extend or simply read a plan of any kind.

    Args:
        config: what.
        folder: the run folder; None: ``runs/NAME-DIGEST``.
        jobs: processes side by side; None: as many as there are cores, or 1 on a GPU.
        device: auto, cpu, cuda …
        command: what the user typed, for messages and the manifest.
        recompute: compute finished stages again that no longer fit, instead of refusing them.
        launch: where stages are computed: local, ray, slurm, or a cluster.
    """
    runner: Any = run_experiment if isinstance(config, Experiment) else find_study(config.kind)
    results: Results | StudyResults = runner(
        config, folder, jobs=jobs, device=device, command=command, recompute=recompute, launch=launch
    )
    return results


def _results(config: Plan, context: Context[Any], sentence: str, replay: str) -> StudyResults:
    stages = context.executor.stages.values()
    model = context.subject or getattr(config, "model", None) or ", ".join(context.models) or config.name
    return StudyResults(
        experiment=config.name,
        kind=config.kind,
        model=str(model),
        sentence=sentence,
        findings=context.findings,
        figures=context.figures,
        tables=context.tables,
        checks=context.checks,
        costs=[Cost(stage=stage.name, seconds=stage.seconds, cpu_seconds=stage.cpu_seconds) for stage in stages],
        environment=environment(),
        replay=replay,
    )


def _manifest(config: Plan, context: Context[Any]) -> dict[str, Any]:
    digests = {stage.name: stage.output_digest for stage in context.executor.stages.values()}
    return manifest(config, models=context.models, data=context.data, extra={"stages": digests})
