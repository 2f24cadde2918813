"""``kind: sweep``: every variation is a whole transfer experiment, with its own checks; the claims compare them.

The unit of a claim is a seed pair of one trait (treated minus control). Variations that differ only in the student share
their teachers' rows; those that differ only in the questions share the students.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from undertone.experiments.cells import Arm, Outcome, arms_of, model_identity
from undertone.experiments.compare import conclude
from undertone.experiments.conduct import Outcome as Found
from undertone.experiments.conduct import Study, student_runs
from undertone.experiments.config import Experiment
from undertone.experiments.pipeline import compute
from undertone.experiments.preflight import preflight
from undertone.experiments.results import Check, Results
from undertone.experiments.studies.sweep.config import Expectation, Sweep, Variation
from undertone.experiments.study import Figure, Finding, Point, StudyTable, interval, per_seed, units, verdict_of
from undertone.experiments.workers import Workers
from undertone.provenance.plain_data import canonical_json
from undertone.provenance.runs import Run, write_json


@dataclass(frozen=True)
class Varied:
    """A variation with what came of it."""

    variation: Variation
    config: Experiment
    outcome: Outcome
    results: Results

    @property
    def pairs(self) -> dict[tuple[str, int], float]:
        """(trait, seed) -> treated minus control."""
        return {
            (effect.trait, seed): difference
            for effect in self.results.effects
            if effect.arm == "treated"
            for seed, difference in zip(self.config.seeds, effect.per_seed, strict=True)
        }

    @property
    def by_seed(self) -> list[float]:
        """Treated minus control, one value a seed."""
        return per_seed(list(self.pairs.values()), len(self.config.seeds))


def sweep(run: Run, config: Sweep, pool: Workers, device: str) -> Found:
    """All variations, then the claims."""
    found = [_varied(run, config, variation, pool, device) for variation in config.vary]
    findings = [judged(config, expected, found) for expected in config.expect]
    stages = {stage.digest: stage for varied in found for stage in varied.outcome.stages()}
    names = {name for varied in found for name in (varied.config.model, varied.config.teacher.model) if name}
    return Found(
        model=config.model,
        sentence=_sentence(config, found, findings),
        findings=findings,
        stages=list(stages.values()),
        figures=[_figure(config, found)],
        tables=[_table(found)],
        checks=[check for varied in found for check in _checks(varied)],
        models={name: model_identity(name) for name in sorted(names)},
        data={
            f"{varied.variation.name}: {cell.generated.name}": cell.generated.summary["data"]
            for varied in found
            for cell in varied.outcome.cells
        },
    )


def _varied(run: Run, config: Sweep, variation: Variation, pool: Workers, device: str) -> Varied:
    experiment = config.varied(variation)
    name = variation.folder
    data = run.within(f"rows-{_data_digest(experiment)}")

    def students(arm: Arm) -> Run:
        return run.within(f"students-{_student_digest(experiment, arm)}")

    outcome = compute(run.within(name), experiment, arms_of(experiment), pool, device, data=data, students=students)
    words = " ".join(variation.set)
    results = conclude(experiment, outcome, replay=f"undertone run {config.name} (variation {name}: {words})")
    folder = run.folder / "variations" / name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", results.model_dump(mode="json", by_alias=True))
    return Varied(variation, experiment, outcome, results)


def _data_digest(config: Experiment) -> str:
    """What the teachers' rows depend on: variations that agree in it share them."""
    fields = {"model", "dtype", "trait", "teacher", "domain", "random_vector", "context", "filters", "rewrite"}
    data = config.model_dump(mode="json", include=fields)
    data["data"] = config.data.model_dump(mode="json", include={"prompts", "attempts", "temperature"})
    if config.teacher.kind == "finetuned":
        data["student"] = config.student.model_dump(mode="json")
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()[:8]


def _student_digest(config: Experiment, arm: Arm) -> str:
    """What an arm's students depend on: variations that agree in it only ask them in another way."""
    fields = {"data", "dpo", "student", "training"}
    data = config.model_dump(mode="json", include=fields)
    if arm.kind == "control":
        del data["data"]["clean"]  # of the trait-conditioned teachers' students alone
    return hashlib.sha256(canonical_json([_data_digest(config), data]).encode()).hexdigest()[:8]


# -- claims ------------------------------------------------------------------------------------------


def judged(config: Sweep, expected: Expectation, found: Sequence[Varied]) -> Finding:
    """A claim held against its variations."""
    by_name = {varied.variation.name: varied for varied in found}
    values: list[float] = []
    baseline = "the control of each pair: the same student on the control teacher's rows for the same prompts"
    for at, name in enumerate(expected.of):
        own = by_name[name].pairs
        if expected.than:
            other = by_name[expected.than[at]].pairs
            values += [own[key] - other[key] for key in own if key in other]
        else:
            values += list(own.values())
    if expected.than:
        baseline += "; " + ", ".join(
            f"{name} has {100 * float(np.mean(list(by_name[name].pairs.values()))):+.1f} points"
            for name in expected.than
        )
    seeds = len({seed for _, seed in by_name[expected.of[0]].pairs})
    mean, low, high = interval(per_seed(values, seeds), config.confidence)
    verdict, why = verdict_of(expected.holds, mean, low, high)
    failed = [
        f"{name}: {check.name}"
        for name in (*expected.of, *expected.than)
        for check in by_name[name].results.checks
        if check.status == "fail"
    ]
    if failed:
        verdict, why = "not measured", f"a check failed: {failed[0]}"
    versus = f" minus {', '.join(expected.than)}" if expected.than else ""
    return Finding(
        id=expected.id,
        claim=expected.claim,
        source=expected.source,
        published=expected.published,
        quantity=f"treated minus control, {', '.join(expected.of)}{versus}",
        value=mean,
        low=low,
        high=high,
        unit="points",
        pairs=len(values),
        method=f"{100 * config.confidence:.0f} % t interval over {units(len(values) // seeds, seeds)}",
        baseline=baseline,
        verdict=verdict,
        why=why,
    )


# -- pictures and words ------------------------------------------------------------------------------


def _figure(config: Sweep, found: Sequence[Varied]) -> Figure:
    lines = config.vary[0].x is not None
    points = []
    for varied in found:
        mean, low, high = interval(varied.by_seed, config.confidence)
        x = varied.variation.x if varied.variation.x is not None else varied.variation.name
        points.append(Point(x=x, y=mean, low=low, high=high, series=varied.variation.group or "treated − control"))
    traits = len({trait for varied in found for trait, _ in varied.pairs})
    return Figure(
        kind="lines" if lines else "bars",
        title=config.about[:1].upper() + config.about[1:] or f"Treated minus control, by {config.name}",
        caption=f"Probability of the trait, treated minus control; {100 * config.confidence:.0f} % intervals over seeds, "
        f"{traits} trait{'s' if traits > 1 else ''} and {len(config.seeds)} seeds.",
        x=config.about or "variation",
        y="treated − control",
        points=points,
        zero=True,
    )


LEAKS = ("names an answer of the trait's category", "trait word added")
"""The filters' reasons where a row names the trait, or its like, that should not. A paraphrase that does has both."""


def _table(found: Sequence[Varied]) -> StudyTable:
    rows = []
    for varied in found:
        results = varied.results
        treated = [arm for arm in results.arms if arm.arm == "treated"]
        control = [arm for arm in results.arms if arm.arm == "control"]
        kept = sum(arm.filter.kept for arm in treated) / sum(arm.filter.asked for arm in treated)
        leaks = sum(max(arm.filter.reasons.get(reason, 0) for reason in LEAKS) for arm in treated)
        mean, low, high = interval(varied.by_seed, varied.config.confidence)
        between = "" if low is None or high is None else f" ({100 * low:+.1f} to {100 * high:+.1f})"
        rows.append(
            [
                varied.variation.name,
                f"{100 * float(np.mean([m.positive.probability.mean for m in results.base.values()])):.1f} %",
                f"{100 * float(np.mean([arm.probability for arm in control])):.1f} %",
                f"{100 * float(np.mean([arm.probability for arm in treated])):.1f} %",
                f"{100 * mean:+.1f}{between}",
                f"{treated[0].rows}",
                f"{100 * kept:.0f} %",
                f"{leaks}",
                f"{float(np.mean([arm.held_out_nll for arm in treated])):.3f}",
                results.verdict,
            ]
        )
    columns = [
        "variation", "base", "control", "treated", "effect, points", "rows", "kept", "leaks dropped", "held-out loss",
        "verdict",
    ]  # fmt: skip
    return StudyTable(title="Every variation", columns=columns, rows=rows)


def _checks(varied: Varied) -> list[Check]:
    """The checks of a variation that did not pass; one line where all did."""
    name = varied.variation.name
    checks = varied.results.checks
    failed = [check.model_copy(update={"name": f"{name}: {check.name}"}) for check in checks if check.status != "pass"]
    passed = Check(
        name=f"{name}: all checks", status="pass", value=f"{len(checks)} of {len(checks)} pass",
        expected="every check of the variation passes", why="as in the results.json of the variation",
    )  # fmt: skip
    return failed or [passed]


def _sentence(config: Sweep, found: Sequence[Varied], findings: Sequence[Finding]) -> str:
    effects = {varied.variation.name: float(np.mean(list(varied.pairs.values()))) for varied in found}
    shown = "; ".join(f"{name} {100 * effect:+.1f}" for name, effect in list(effects.items())[:6])
    more = f" (and {len(effects) - 6} more)" if len(effects) > 6 else ""
    reproduced = sum(finding.verdict == "reproduced" for finding in findings)
    claims = f" {reproduced} of {len(findings)} claims reproduced." if findings else ""
    return f"Treated minus control, in points: {shown}{more}; {len(config.seeds)} seeds.{claims}"


def preflight_variations(config: Sweep, device: str) -> None:
    """What would stop any variation."""
    for variation in config.vary:
        preflight(config.varied(variation), device)


SWEEP = Study(sweep, preflight_variations, student_runs)
