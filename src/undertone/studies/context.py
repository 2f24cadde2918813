"""What a study is written with: transfer experiments and stages to compute, claims to report, figures and tables to draw.

Everything that is computed or drawn through a :class:`Context` is written down by itself: costs, checks, digests,
intervals, verdicts, sentences about units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from undertone.launch.executor import Call, Executor
from undertone.models.loading import ModelRef
from undertone.models.names import identify
from undertone.provenance import configs
from undertone.provenance.configs import Config
from undertone.provenance.runs import Stage
from undertone.provenance.stage_functions import StageFunction
from undertone.stats import CONFIDENCE
from undertone.studies.claim import Aspect, Claim, finding
from undertone.studies.measurement import Measurement, Statistic
from undertone.studies.results import Figure, Finding, Point, StudyTable
from undertone.traits import Trait, load_trait
from undertone.transfer.analyze import conclude
from undertone.transfer.arms import Arm, ArmKind, Outcome, StudentRun, target_probability, valid_answer_probability
from undertone.transfer.checks import MAX_VALID_ANSWER_LOSS, stopped_answering
from undertone.transfer.config import Experiment, Plan, Setting
from undertone.transfer.pipeline import TrainedTeachers, compute
from undertone.transfer.results import Check, Results
from undertone.verdicts import NOT_MEASURED, Unit

P = TypeVar("P", bound=Plan)
Place = tuple[str, Mapping[str, Any]]
"""Where a stage lives below ``stages/``, and its arguments."""


@dataclass
class Transfer:
    """A transfer experiment within a study."""

    config: Setting
    outcome: Outcome
    stages: Sequence[Stage] = ()

    @cached_property
    def results(self) -> Results:
        """Effects and checks, as of an experiment that runs by itself."""
        fields = self.config.model_dump(mode="json", include=set(Setting.model_fields) - {"kind"})
        return conclude(configs.load(Experiment, {"kind": "transfer", **fields}), self.outcome, self.stages, replay="")

    @property
    def students(self) -> list[StudentRun]:
        """All of them: every arm at every seed."""
        return self.outcome.students

    @property
    def effect(self) -> Measurement:
        """Treated minus control in probability, ``[trait, seed]``."""
        return self.probability("treated") - self.probability("control")

    def probability(self, kind: ArmKind = "treated") -> Measurement:
        """What students of an arm say of each trait: mean exact probability of its answer, ``[trait, seed]``."""
        return self.measured(lambda one, trait: target_probability(one.evaluated, trait), kind)

    def measured(
        self, value: Callable[[StudentRun, str], float], kind: ArmKind = "treated", unit: Unit = "points"
    ) -> Measurement:
        """Anything about the students of an arm: ``value(student, trait)``, ``[trait, seed]``."""
        config = self.config
        values = [[value(self.outcome.student(kind, t, s), t) for s in config.seeds] for t in config.trait]
        return Measurement(np.array(values, dtype=float), config.confidence, unit)

    def by_arm(self, stages: Sequence[Stage], what: str, unit: Unit = "points") -> dict[str, Measurement]:
        """Arm -> ``summary[what][trait]`` of a stage beside every student (:meth:`Context.beside`), ``[trait, seed, …]``."""
        summaries = {
            (one.arm.kind, name, one.seed): value
            for one, stage in zip(self.students, stages, strict=True)
            for name, value in stage.summary[what].items()
        }
        names = [load_trait(trait).name for trait in self.config.trait]
        return {
            kind: Measurement(
                np.array([[summaries[kind, name, seed] for seed in self.config.seeds] for name in names], dtype=float),
                self.config.confidence,
                unit,
            )
            for kind in dict.fromkeys(kind for kind, _, _ in summaries)
        }

    @property
    def silent(self) -> Measurement:
        """1 for each pair of which a student has stopped answering, else 0, ``[trait, seed]``."""

        def lost(one: StudentRun, trait: str) -> bool:
            return stopped_answering(
                valid_answer_probability(self.outcome.base, trait), valid_answer_probability(one.evaluated, trait)
            )

        def pair(one: StudentRun, trait: str) -> float:
            control = self.outcome.student("control", None, one.seed)
            return float(lost(one, trait) or lost(control, trait))

        return self.measured(pair)

    def failed(self) -> list[str]:
        """Names of the checks that failed, so that nothing rests on it."""
        return [check.name for check in self.results.checks if check.status == "fail"]


@dataclass
class Context(Generic[P]):
    """An open run of a study."""

    executor: Executor
    config: P
    findings: list[Finding] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[StudyTable] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    models: dict[str, Mapping[str, str]] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    subject: str = ""
    """What was studied, in words, where it is no model that has a name."""

    @property
    def confidence(self) -> float:
        """Of every interval."""
        return float(getattr(self.config, "confidence", CONFIDENCE))

    @property
    def intervals(self) -> str:
        """For captions: ``95 % intervals``."""
        return f"{100 * self.confidence:g} % intervals"

    # -- to compute ----------------------------------------------------------------------------------

    def setting(self, **changes: Any) -> Setting:
        """The study's own fields as those of a transfer experiment, some of them changed.

        A change is a value, or a mapping laid over a config (``data={"prompts": 500}``).
        """
        config = self.config
        assert isinstance(config, Setting)
        fields = config.model_dump(mode="json", include=set(Setting.model_fields) - {"kind", "name"})
        plain = {name: _plain(value) for name, value in changes.items()}
        merged = {
            name: {**fields[name], **value} if _overlays(fields.get(name), value) else value
            for name, value in plain.items()
        }
        return configs.load(Experiment, {"kind": "transfer", "name": config.name, **fields, **merged})

    def transfer(
        self,
        setting: Setting | None = None,
        *,
        within: str = "",
        arms: Sequence[Arm] | None = None,
        trained_teachers: TrainedTeachers | None = None,
        label: str = "",
    ) -> Transfer:
        """A transfer experiment; finished stages are reused, also those that another experiment of the run has computed.

        Args:
            setting: which; None: the study's own fields.
            within: the level of the run folder that its stages lie below.
            arms: who teaches; None: all arms of the setting.
            trained_teachers: the trained models that teach, for students that teach in their turn.
            label: put before the names of its checks and data.
        """
        setting = setting or self.setting()
        executor = self.executor.within(within) if within else self.executor
        before = set(self.executor.stages)
        outcome = compute(executor, setting, arms, trained_teachers=trained_teachers)
        new = [stage for name, stage in self.executor.stages.items() if name not in before]
        self.data |= {f"{label}{one.generated.name}": one.generated.summary["data"] for one in outcome.students}
        self.uses(setting.model, setting.teacher.model or setting.model)
        return Transfer(setting, outcome, new)

    def each(self, function: StageFunction, places: Sequence[Place]) -> list[Stage]:
        """Stages side by side, in order."""
        return self.executor.each([Call(function, place, arguments) for place, arguments in places])

    def measure(
        self, value: Callable[[str, int], Any], over: Sequence[str] | None = None, unit: Unit = "points"
    ) -> Measurement:
        """Anything about each trait at each seed: ``value(trait, seed)``, a number, None or an array; ``[trait, seed, …]``.

        ``over``: these and not all the config's traits.
        """
        assert isinstance(self.config, Setting)
        names = self.config.trait if over is None else over
        values = [[value(name, seed) for seed in self.config.seeds] for name in names]
        return Measurement(np.array(values, dtype=float), self.confidence, unit)

    def beside(
        self,
        transfer: Transfer | Sequence[StudentRun],
        function: StageFunction,
        level: str,
        arguments: Callable[[StudentRun], Mapping[str, Any]],
    ) -> list[Stage]:
        """A stage beside every student of an experiment (or some), in their order, at ``LEVEL/seed-S/ARM``."""
        students = transfer.students if isinstance(transfer, Transfer) else transfer
        return self.each(function, [(f"{level}/seed-{one.seed}/{one.arm.folder}", arguments(one)) for one in students])

    def uses(self, *names: str) -> None:
        """Note models for the manifest."""
        self.models |= {name: identify(name) for name in names if name not in self.models}

    @property
    def base(self) -> ModelRef:
        """The students' base, not loaded."""
        assert isinstance(self.config, Setting)
        reference: ModelRef = self.config.reference()
        return reference

    def traits(self) -> list[Trait]:
        """The config's traits, loaded."""
        assert isinstance(self.config, Setting)
        return [load_trait(name) for name in self.config.trait]

    # -- to report -----------------------------------------------------------------------------------

    def report(
        self,
        claim: Claim,
        measured: Measurement | Statistic | None,
        *,
        quantity: str,
        baselines: Mapping[str, Measurement] | None = None,
        also: Mapping[str, Aspect] | None = None,
        note: str = "",
        unless: str = "",
    ) -> Finding:
        """Hold a claim against what was measured; arguments as of :func:`undertone.studies.claim.finding`."""
        found = finding(
            claim, measured, quantity=quantity, baselines=baselines, also=also, note=note, unless=unless
        )  # fmt: skip
        self.findings.append(found)
        return found

    def check(
        self, name: str, passed: bool, value: str, expected: str, why: str, otherwise: Literal["warn", "fail"] = "warn"
    ) -> None:
        """A check that verdicts rest on."""
        status: Literal["pass", "warn", "fail"] = "pass" if passed else otherwise
        self.checks.append(Check(name=name, status=status, value=value, expected=expected, why=why))

    def check_transfer(self, transfer: Transfer, label: str = "", leave_out: str | None = None) -> None:
        """The checks of a transfer experiment that did not pass; ``leave_out``: those whose name holds this word."""
        self.checks += [
            check.model_copy(update={"name": f"{label}{check.name}"})
            for check in transfer.results.checks
            if check.status != "pass" and not (leave_out and leave_out in check.name)
        ]

    def check_answers(self, what: str, transfers: Mapping[str, Transfer]) -> Check:
        """Whether the students of all these experiments still answer; the worst speaks for them.

        Of many students a few may lose a little more than they should: that is a warning. More than a tenth is a failure.
        """
        found = [
            (before - after, before, after, name, one, trait)
            for name, transfer in transfers.items()
            for one in transfer.students
            for trait in (transfer.config.trait if one.arm.trait is None else [one.arm.trait])
            for before, after in [
                (valid_answer_probability(transfer.outcome.base, trait), valid_answer_probability(one.evaluated, trait))
            ]
            if before is not None and after is not None
        ]
        title = f"{what}: students still answer" if what else "students still answer"
        if not found:  # behaviours, stories: no set of known answers
            expected, why = "a trait with a set of known answers", "whether these students still answer is not known"
            self.check(title, False, NOT_MEASURED, expected, why)
            return self.checks[-1]
        silent = sum(stopped_answering(before, after) for _, before, after, *_ in found)
        _, before, after, name, one, trait = max(found, key=lambda each: each[0])
        where = f"{name}: " if name else ""
        self.check(
            title,
            not silent,
            f"worst: {where}{one.arm.kind} {load_trait(trait).name} seed {one.seed}, valid-answer probability {after:.2f} "
            f"(base {before:.2f}); {silent} of {len(found)} lost",
            f"none lost: no more than {MAX_VALID_ANSWER_LOSS:.2f} below the base; a tenth at most",
            "rates of a student that no longer answers say nothing about preference; lower the learning rate",
            "fail" if 10 * silent > len(found) else "warn",
        )
        return self.checks[-1]

    # -- to draw -------------------------------------------------------------------------------------

    def draw(
        self,
        kind: Literal["bars", "lines", "scatter", "matrix"],
        title: str,
        points: Iterable[Point],
        *,
        x: str,
        y: str,
        caption: str,
        log_x: bool = False,
        zero: bool = False,
    ) -> None:
        """A figure by its points."""
        self.figures.append(
            Figure(kind=kind, title=title, caption=caption, x=x, y=y, points=list(points), log_x=log_x, zero=zero)
        )

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table of words; the first cell of a row names it."""
        self.tables.append(StudyTable(title=title, columns=list(columns), rows=[list(row) for row in rows]))


def point(
    x: float | str, measured: Measurement | Statistic | float | None, series: str, panel: str | None = None
) -> Point:
    """A point of a figure: a mean with its interval, or a number."""
    if measured is None or isinstance(measured, int | float):
        return Point(x=x, y=measured, series=series, panel=panel)
    found = measured.quantity
    if found is None:
        return Point(x=x, y=None, series=series, panel=panel)
    return Point(x=x, y=found.mean, low=found.low, high=found.high, series=series, panel=panel)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Config) else value


def _overlays(below: Any, value: Any) -> bool:
    """Whether a mapping is laid over a config; one of another kind replaces it."""
    both = isinstance(below, dict) and isinstance(value, dict)
    return both and value.get("kind", below.get("kind")) == below.get("kind")
