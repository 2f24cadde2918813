"""All published claims that undertone tests, in one table, read from finished runs: ``undertone claims``.

``claims.yaml`` lists the plans that test them. A study brings its findings along; of a transfer experiment the file says
what is read: its effect, its confusion matrix, or the arm of a random vector. A claim without a finished run is listed as
not run, with the command that runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal, get_args

import yaml
from pydantic import Field

from undertone.errors import ConfigError, UndertoneError, nearest
from undertone.experiments.config import Plan
from undertone.experiments.plans import load_plan, run_plan
from undertone.experiments.results import Results
from undertone.experiments.study import (
    Finding,
    Judgement,
    StudyResults,
    interval,
    per_seed,
    read_run,
    units,
    valued,
    verdict_of,
)
from undertone.provenance import configs
from undertone.provenance.configs import Config

Size = Literal["quick", "full"]


class Read(Config):
    """A claim that a transfer experiment tests, and what of its results is held against it."""

    id: str
    claim: str
    source: str
    published: str | None = None
    reads: Literal["effect", "pairs", "every trait", "confusion", "random"] = "effect"
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
class Claim:
    """A row of the table: a finding with its command and the run that it was read from."""

    tested: Tested
    size: Size | None
    folder: Path | None
    command: str
    minutes: float | None
    finding: Finding | None


@cache
def tested() -> tuple[Tested, ...]:
    """Every plan that tests claims, in the table's order."""
    text = (files("undertone.experiments") / "claims.yaml").read_text(encoding="utf-8")
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


def run_claims(names: Sequence[str], size: Size, *, jobs: int | None = None, device: str = "auto") -> None:
    """Run what has not been run; what is finished is only read."""
    for one in chosen(names):
        run_plan(one.plan(size), jobs=jobs, device=device, command=f"undertone claims --run {size}")


def claims(names: Sequence[str] = (), runs: Path = Path("runs")) -> list[Claim]:
    """The table: of every plan the full run if it is finished, else the quick one, else that it was not run.

    Args:
        names: some of the plans; none: all.
        runs: the folder that holds the run folders.
    """
    finished = _finished(runs)
    return [claim for one in chosen(names) for claim in _claims_of(one, finished)]


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


def _claims_of(one: Tested, finished: dict[str, Path]) -> list[Claim]:
    for size in ("full", "quick"):
        folder = finished.get(one.plan(size).digest())
        if folder is None:
            continue
        results = read_run(folder)
        minutes = sum(cost.seconds for cost in results.costs) / 60
        return [Claim(one, size, folder, one.command(size), minutes, finding) for finding in _findings(one, results)]
    return [Claim(one, None, None, one.command("full"), None, None)]


def _findings(one: Tested, results: Results | StudyResults) -> list[Finding]:
    if isinstance(results, StudyResults):
        return list(results.findings)
    return [_read(claim, results) for claim in one.claims]


def _read(claim: Read, results: Results) -> Finding:
    control = [arm.probability for arm in results.arms if arm.arm == "control"]
    base = [measure.positive.probability.mean for measure in results.base.values()]
    baseline = f"base {100 * sum(base) / len(base):.1f} %, control {100 * sum(control) / len(control):.1f} %"
    effect = results.effect
    quantity = f"treated minus control, {effect.trait}"
    low: float | None
    high: float | None
    mean, low, high, pairs, method = effect.mean, effect.low, effect.high, effect.pairs, effect.method
    if claim.reads == "confusion" and results.confusion is not None:
        matrix = results.confusion
        found = matrix.diagonal_minus_off
        quantity = f"own minus others' students; {matrix.on_top} of {len(matrix.targets)} traits are the top answer"
        mean, low, high, pairs, method = found.mean, found.low, found.high, found.n, found.method
    elif claim.reads == "random":
        effect = next(one for one in results.effects if one.arm == "random-vector")
        quantity = f"random vector minus control, {effect.trait}"
        mean, low, high, pairs, method = effect.mean, effect.low, effect.high, effect.pairs, effect.method
    elif claim.reads == "pairs":  # as sweeps are read: few traits, several seeds
        values = [value for one in results.effects if one.arm == "treated" for value in one.per_seed]
        seeds = len(effect.per_seed)
        mean, low, high = interval(per_seed(values, seeds), effect.confidence)
        pairs, method = len(values), f"t interval over {units(len(values) // seeds, seeds)}"
    elif claim.reads == "every trait":
        worst = max(results.effects, key=lambda one: max(abs(one.low), abs(one.high)))
        quantity = f"treated minus control, the widest of {len(results.effects)} traits ({worst.trait})"
        mean, low, high, pairs, method = worst.mean, worst.low, worst.high, worst.pairs, worst.method
    verdict, why = verdict_of(claim.holds, mean, low, high)
    failed = [check.name for check in results.checks if check.status == "fail"]
    if failed:
        verdict, why = "not measured", f"a check failed: {failed[0]}"
    return Finding(
        id=claim.id, claim=claim.claim, source=claim.source, published=claim.published, quantity=quantity, value=mean,
        low=low, high=high, unit="points", pairs=pairs, method=method, baseline=baseline, verdict=verdict, why=why,
    )  # fmt: skip


def counted(table: Sequence[Claim]) -> str:
    """How many claims got which verdict, in one line."""
    verdicts = [claim.finding.verdict for claim in table if claim.finding is not None]
    counts = [f"{verdicts.count(word)} {word}" for word in get_args(Judgement)]
    return ", ".join(counts) + f"; {len(verdicts)} claims in all."


def markdown(table: Sequence[Claim]) -> str:
    """The page ``docs/claims.md``."""
    lines = [
        "# Published claims, and what the lab shows",
        "",
        "Generated by `undertone claims --write docs/claims.md` from finished runs; edit `claims.yaml` or a preset, not this",
        "page. *Reproduced*: the whole interval is on the claimed side. *Partly*: the mean is, and the",
        "interval holds effects of five points. Every value is a difference to its baseline unless it says otherwise; a claim",
        "about 7B models that fails here fails on tiny models of a little world.",
        "",
    ]
    lines += [counted(table), ""]
    for one in dict.fromkeys(claim.tested.name for claim in table):
        lines += _section([claim for claim in table if claim.tested.name == one])
    return "\n".join(lines).rstrip() + "\n"


def _section(found: Sequence[Claim]) -> list[str]:
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
                f"**{claim.finding.verdict}**: {claim.finding.why}",
            )  # fmt: skip
            lines.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    return [*lines, ""]
