"""All published claims that undertone tests, in one table, read from finished runs: ``undertone claims``.

``claims.yaml`` lists the plans that test them. A study brings its findings along; of a transfer experiment the file says
what is read: its effect, its confusion matrix, or the arm of a random vector. A claim without a finished run is listed as
not run, with the command that runs it.

What was found can be kept as records (``--keep``): a small JSON file a plan, with every number that a verdict rests on, one
value a unit of inference. The documentation's are in ``docs/results``; a rule can be applied to them again without computing
anything, and ``docs/claims.md`` is made from them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from pydantic import ConfigDict, Field, ValidationError

from undertone import verdicts
from undertone.errors import ConfigError, DataError, UndertoneError, nearest
from undertone.launch.clusters import Launch
from undertone.provenance import configs
from undertone.provenance.configs import Config
from undertone.studies.claim import Claim, finding, valued
from undertone.studies.frame import load_plan, run_plan
from undertone.studies.measurement import Measurement
from undertone.studies.results import Figure, Finding, StudyResults, StudyTable, read_run
from undertone.transfer.config import Plan
from undertone.transfer.results import Check, Effect, Record, Results, cpu_seconds
from undertone.verdicts import Rule

Size = Literal["quick", "full"]


class Read(Config):
    """A claim that a transfer experiment tests, and what of its results is held against it."""

    id: str
    claim: str
    source: str
    published: str | None = None
    reads: Literal["effect", "every trait", "confusion", "random-vector"] = "effect"
    holds: Literal["above", "none"] = "above"


class Tested(Config):
    """A plan that tests claims: a preset with changes; more of them make the quick form."""

    name: str
    preset: str
    set: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    about: str = Field(description="what it tests, for the table before it was run")
    claims: tuple[Read, ...] = Field((), description="of a transfer experiment; a study has findings of its own")

    def words(self, size: Size) -> tuple[str, ...]:
        """The overrides of a size."""
        return self.set + (self.quick if size == "quick" else ())

    def plan(self, size: Size) -> Plan:
        """The plan of a size."""
        return load_plan(self.preset, self.words(size))

    def command(self, size: Size) -> str:
        """What a user types."""
        words = [f"'{word}'" if any(c in word for c in "[]{} ") else word for word in self.words(size)]
        return " ".join(["undertone run", self.preset, *words])


@dataclass(frozen=True)
class ClaimRow:
    """A row of the table: a finding with its command and the run that it was read from."""

    tested: Tested
    size: Size | None
    folder: Path | None
    command: str
    minutes: float | None
    finding: Finding | None


class ClaimRecord(Record):
    """What a finished plan found, small enough to keep beside the documentation."""

    schema_: Literal["undertone.record/1"] = Field("undertone.record/1", alias="schema")
    name: str
    size: Size
    command: str
    minutes: float
    sentence: str
    findings: list[Finding]
    figures: list[Figure]
    tables: list[StudyTable]
    checks: list[Check]
    environment: dict[str, str]

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


@cache
def tested() -> tuple[Tested, ...]:
    """Every plan that tests claims, in the table's order."""
    text = (files("undertone.studies") / "claims.yaml").read_text(encoding="utf-8")
    return tuple(configs.load(Tested, entry) for entry in yaml.safe_load(text))


def chosen(names: Sequence[str]) -> list[Tested]:
    """Some of them by name; none named: all.

    Raises:
        ConfigError: an unknown name.
    """
    known = {one.name: one for one in tested()}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"no claims are tested under the name {name!r}.{nearest(name, known)}", got=name, allowed=sorted(known)
            )
    return [known[name] for name in names] if names else list(tested())


def run_claims(
    names: Sequence[str], size: Size, runs: Path = Path("runs"), *, jobs: int | None = None, device: str = "auto",
    launch: Launch = "local",
) -> None:  # fmt: skip
    """Run what has not been run, below ``runs``; what is finished is only read."""
    for one in chosen(names):
        plan = one.plan(size)
        folder = runs / plan.folder().name
        run_plan(plan, folder, jobs=jobs, device=device, command=f"undertone claims --run {size}", launch=launch)


def claims(names: Sequence[str] = (), runs: Path = Path("runs"), records: Path | None = None) -> list[ClaimRow]:
    """The table: of every plan the full run if it is finished, else its record, else the quick run, else that it was not run.

    Args:
        names: some of the plans; none: all.
        runs: the folder that holds the run folders.
        records: a folder of records.
    """
    finished = _finished(runs)
    return [claim for one in chosen(names) for claim in _claims_of(one, finished, records)]


def keep(names: Sequence[str], runs: Path, folder: Path) -> list[Path]:
    """Write the record of every finished full run; the files written.

    Raises:
        OSError: the folder cannot be written.
    """
    finished = _finished(runs)
    written = []
    for one in chosen(names):
        found = finished.get(one.plan("full").digest())
        if found is not None:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{one.name}.json"
            text = json.dumps(_record(one, read_run(found)).model_dump(mode="json", by_alias=True), ensure_ascii=False)
            path.write_text(
                text.replace('"findings": [', '\n"findings": [').replace('{"id":', '\n{"id":') + "\n", "utf-8"
            )
            written.append(path)
    return written


def read_record(path: Path) -> ClaimRecord:
    """A record that :func:`keep` wrote.

    Raises:
        DataError: it is damaged, or none.
    """
    try:
        return ClaimRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(f"{path} is no record of claims", got=str(error).splitlines()[0], fix="keep it anew") from error


def _record(one: Tested, results: Results | StudyResults) -> ClaimRecord:
    figures, tables = ([], []) if isinstance(results, Results) else (results.figures, results.tables)
    return ClaimRecord(
        name=one.name, size="full", command=one.command("full"), minutes=_minutes(results), sentence=results.sentence,
        findings=_findings(one, results), figures=figures, tables=tables,
        checks=results.checks, environment=results.environment,
    )  # fmt: skip


def _minutes(results: Results | StudyResults) -> float:
    """CPU time; by the clock, waiting included, where a stage did not record it."""
    seconds = cpu_seconds(results.costs)
    return round((sum(cost.seconds for cost in results.costs) if seconds is None else seconds) / 60, 1)


def _finished(runs: Path) -> dict[str, Path]:
    """Digest of the config -> folder, of every finished run below a folder."""
    found = {}
    for config in sorted(runs.glob("*/config.yaml")):
        if (config.parent / "results.json").exists():
            try:
                found[load_plan(config).digest()] = config.parent
            except UndertoneError:  # a run of another version of undertone
                continue
    return found


def _claims_of(one: Tested, finished: dict[str, Path], records: Path | None) -> list[ClaimRow]:
    def rows(size: Size, folder: Path) -> list[ClaimRow]:
        results = read_run(folder)
        found = _findings(one, results)
        return [ClaimRow(one, size, folder, one.command(size), _minutes(results), finding) for finding in found]

    full, quick = (finished.get(one.plan(size).digest()) for size in ("full", "quick"))
    if full is not None:
        return rows("full", full)
    path = records / f"{one.name}.json" if records else None
    if path is not None and path.exists():
        record = read_record(path)
        return [ClaimRow(one, record.size, None, record.command, record.minutes, each) for each in record.findings]
    return rows("quick", quick) if quick is not None else [ClaimRow(one, None, None, one.command("full"), None, None)]


def _findings(one: Tested, results: Results | StudyResults) -> list[Finding]:
    if isinstance(results, StudyResults):
        return list(results.findings)
    return [_read(claim, results) for claim in one.claims]


def _read(read: Read, results: Results) -> Finding:
    """The claim held against what the experiment measured."""
    base = [measure.positive.probability.mean for measure in results.base.values()]
    control = [arm.probability for arm in results.arms if arm.arm == "control"]
    claim = Claim(read.id, read.claim, read.source, read.published, Rule(read.holds))
    measured, quantity = _measured(read.reads, results)
    failed = [check.name for check in results.checks if check.status == "fail"]
    return finding(
        claim, measured, quantity=quantity,
        note=f"base {100 * sum(base) / len(base):.1f} %, control {100 * sum(control) / len(control):.1f} %",
        unless=f"a check failed: {failed[0]}" if failed else "",
    )  # fmt: skip


def _measured(reads: str, results: Results) -> tuple[Measurement, str]:
    confidence = results.effect.confidence
    arms = {kind: [one for one in results.effects if one.arm == kind] for kind in ("treated", "random-vector")}
    if reads == "confusion" and results.confusion is not None:
        matrix = results.confusion
        quantity = f"own minus others' students; {matrix.on_top} of {len(matrix.targets)} traits are the top answer"
        return Measurement(np.array(matrix.own_minus_others), confidence), quantity
    if reads == "random-vector":
        return _of(arms["random-vector"], confidence), f"random vector minus control, {results.trait}"
    if reads == "every trait":
        worst = max(arms["treated"], key=lambda one: max(abs(one.low), abs(one.high)))
        quantity = f"treated minus control, the widest of {len(arms['treated'])} traits ({worst.trait})"
        return _of([worst], confidence), quantity
    return _of(arms["treated"], confidence), f"treated minus control, {results.trait}"


def _of(effects: Sequence[Effect], confidence: float) -> Measurement:
    return Measurement(np.array([one.per_seed for one in effects]), confidence)


def counted(table: Sequence[ClaimRow]) -> str:
    """How many claims got which verdict, in one line."""
    found = [claim.finding.verdict for claim in table if claim.finding is not None]
    return f"{verdicts.counted(found)}; {len(found)} claims in all."


def markdown(table: Sequence[ClaimRow]) -> str:
    """The page ``docs/claims.md``."""
    lines = [
        "# Published claims, and what the lab shows",
        "",
        "Generated by `undertone claims --write docs/claims.md` from finished runs; edit `claims.yaml` or a preset, not this",
        "page. A verdict is read from the whole interval and the smallest effect of interest of its unit, by one rule set",
        "(`undertone.verdicts`). *Reproduced*: the interval lies where the claim says. *Partly*: on the claimed side, but all of",
        "it below the smallest effect of interest; or some parts of the claim hold and some do not. *Not reproduced*: the",
        "interval excludes every effect of interest on the claimed side. *Not measured*: it is too wide to tell, or a check",
        "failed. A claim about 7B models that fails here fails on tiny models of a little world.",
        "",
        _smallest_effects(),
        "",
    ]
    lines += [counted(table), ""]
    for one in dict.fromkeys(claim.tested.name for claim in table):
        lines += _section([claim for claim in table if claim.tested.name == one])
    return "\n".join(lines).rstrip() + "\n"


def _smallest_effects() -> str:
    sizes = ", ".join(f"{unit} {size:g}" for unit, size in verdicts.SMALLEST_EFFECT.items())
    return f"Smallest effects of interest: {sizes}."


def _section(found: Sequence[ClaimRow]) -> list[str]:
    first = found[0]
    lines = [f"## {first.tested.name}", "", f"{first.tested.about}", "", f"    {first.command}", ""]
    if first.finding is None:
        return [*lines, "Not run.", ""]
    minutes = f"{first.minutes:.1f} minutes of work" if first.minutes else ""
    lines += [f"{first.size} form; {minutes}.", ""]
    lines += ["| claim | source | published | measured | ours | baseline | verdict |", "|---|---|---|---|---|---|---|"]
    for claim in found:
        if claim.finding:
            cells = (
                f"{claim.finding.claim} (`{claim.finding.id}`)", claim.finding.source, claim.finding.published or "–",
                claim.finding.quantity, valued(claim.finding), claim.finding.baseline,
                f"**{claim.finding.verdict}**: {claim.finding.reason}",
            )  # fmt: skip
            lines.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    return [*lines, ""]
