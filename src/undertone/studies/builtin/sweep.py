"""``kind: sweep``: every variation is a whole transfer experiment, with its own checks; the claims compare them.

Stages of equal identity are computed once: variations that differ only in the student share their teachers' rows, those
that differ only in the questions share the students. Each leaves a ``results.json`` of its own below ``variations/``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from undertone.errors import ConfigError
from undertone.provenance import configs
from undertone.provenance.configs import Config
from undertone.provenance.runs import write_json
from undertone.studies.claim import Claim
from undertone.studies.context import Context, Transfer, point
from undertone.studies.frame import study
from undertone.studies.measurement import Measurement
from undertone.transfer.config import Experiment, Setting
from undertone.transfer.pipeline import preflight
from undertone.transfer.results import Results
from undertone.verdicts import REPRODUCED, Rule


class Variation(Config):
    """The setting with some fields changed."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9 .%+-]*$", description="names its bar and its folder")
    group: str = Field("", description="variations of a group share a colour, or a line")
    x: float | None = Field(None, description="its place on the x axis; None for all: bars")
    set: tuple[str, ...] = Field((), description="key=value for any field of the setting")

    @property
    def folder(self) -> str:
        """Part of its stages' names."""
        return re.sub(r"[^a-z0-9]+", "-", self.name).strip("-")


class Expectation(Config):
    """What was claimed of the variations, in a form that can fail."""

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    claim: str
    source: str
    published: str | None = None
    of: tuple[str, ...] = Field(min_length=1, description="the variations it speaks of")
    than: tuple[str, ...] = Field((), description="those they are compared with, one for one, where holds=less or more")
    holds: Literal["above", "none", "less", "more"] = Field(
        description="above: the effect is above 0; none: within five points of 0; less, more: than the others'"
    )

    @model_validator(mode="after")
    def _paired(self) -> Expectation:
        if (self.holds in ("less", "more")) != bool(self.than) or (self.than and len(self.than) != len(self.of)):
            raise ValueError("than names as many variations as of, for holds=less or more, and none otherwise")
        return self

    @property
    def as_claim(self) -> Claim:
        """With its rule."""
        rules = {"above": Rule("above"), "more": Rule("above"), "less": Rule("below"), "none": Rule("none")}
        return Claim(self.id, self.claim, self.source, self.published, rules[self.holds])


class Sweep(Setting):
    """The transfer experiment once for every variation."""

    kind: Literal["sweep"] = "sweep"
    about: str = Field("", description="what is varied, for the title of the figure")
    vary: tuple[Variation, ...] = Field(min_length=2)
    expect: tuple[Expectation, ...] = ()

    @model_validator(mode="after")
    def _known(self) -> Sweep:
        names = [variation.name for variation in self.vary]
        if len({variation.folder for variation in self.vary}) < len(names):
            raise ValueError("variations must differ in the letters and digits of their names")
        if len({variation.x is None for variation in self.vary}) > 1:
            raise ValueError("either all variations have an x, or none has")
        for expected in self.expect:
            unknown = [name for name in (*expected.of, *expected.than) if name not in names]
            if unknown:
                raise ValueError(f"expect {expected.id}: there is no variation called {unknown[0]!r}")
        for variation in self.vary:
            self.setting_of(variation)
        return self

    def setting_of(self, variation: Variation) -> Experiment:
        """The experiment of a variation."""
        fields = self.model_dump(mode="json", include=set(Setting.model_fields) - {"kind"})
        try:
            return configs.load(Experiment, {"kind": "transfer", **fields}, variation.set)
        except ConfigError as error:
            what = f"variation {variation.name!r}: {error.what}"
            raise ConfigError(what, got=error.got, allowed=error.allowed, fix=error.fix) from error


@dataclass(frozen=True)
class VariationRun:
    """A variation with what came of it."""

    variation: Variation
    transfer: Transfer

    @property
    def results(self) -> Results:
        """As of an experiment by itself."""
        return self.transfer.results


def _preflight(config: Sweep, device: str) -> None:
    """What would stop any variation."""
    for variation in config.vary:
        preflight(config.setting_of(variation), device)


@study("sweep", Sweep, preflight=_preflight)
def sweep(ctx: Context[Sweep]) -> str:
    """All variations, then the claims."""
    config = ctx.config
    runs = {variation.name: _run(ctx, variation) for variation in config.vary}
    for expected in config.expect:
        _report(ctx, expected, runs)
    _draw(ctx, list(runs.values()))
    effects = {name: one.transfer.effect.mean for name, one in runs.items()}
    shown = "; ".join(f"{name} {100 * effect:+.1f}" for name, effect in list(effects.items())[:6])
    more = f" (and {len(effects) - 6} more)" if len(effects) > 6 else ""
    reproduced = sum(finding.verdict == REPRODUCED for finding in ctx.findings)
    claims = f" {reproduced} of {len(ctx.findings)} claims reproduced." if ctx.findings else ""
    return f"Treated minus control, in points: {shown}{more}; {len(config.seeds)} seeds.{claims}"


def _run(ctx: Context[Sweep], variation: Variation) -> VariationRun:
    setting = ctx.config.setting_of(variation)
    transfer = ctx.transfer(setting, within=variation.folder, label=f"{variation.name}: ")
    folder = ctx.executor.run.folder / "variations" / variation.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", transfer.results.model_dump(mode="json", by_alias=True))
    checks = transfer.results.checks
    if all(check.status == "pass" for check in checks):
        ctx.check(
            f"{variation.name}: all checks", True, f"{len(checks)} of {len(checks)} pass",
            "every check of the variation passes", "as in the results.json of the variation",
        )  # fmt: skip
    ctx.check_transfer(transfer, f"{variation.name}: ")
    return VariationRun(variation, transfer)


def _report(ctx: Context[Sweep], expected: Expectation, runs: dict[str, VariationRun]) -> None:
    """A claim held against its variations; those of other traits are further traits of the same seeds."""
    of = [runs[name].transfer.effect for name in expected.of]
    than = [runs[name].transfer.effect for name in expected.than]
    if than:
        of = [own - other for own, other in zip(of, than, strict=True)]
    measured = Measurement(np.concatenate([one.values for one in of]), ctx.confidence)
    failed = [f"{name}: {check}" for name in (*expected.of, *expected.than) for check in runs[name].transfer.failed()]
    versus = f" minus {', '.join(expected.than)}" if than else ""
    ctx.report(
        expected.as_claim,
        measured,
        quantity=f"treated minus control, {', '.join(expected.of)}{versus}",
        note="the control of each pair: the same student on the control teacher's rows for the same prompts"
        + "".join(f"; {name} {one}" for name, one in zip(expected.than, than, strict=True)),
        unless=f"a check failed: {failed[0]}" if failed else "",
    )


LEAKS = ("names an answer of the trait's category", "trait word added")
"""The filters' reasons where a row names the trait, or its like, that should not. A paraphrase that does has both."""


def _draw(ctx: Context[Sweep], runs: Sequence[VariationRun]) -> None:
    config = ctx.config
    points = [
        point(
            one.variation.name if one.variation.x is None else one.variation.x,
            one.transfer.effect,
            one.variation.group or "treated − control",
        )
        for one in runs
    ]
    ctx.draw(
        "lines" if config.vary[0].x is not None else "bars",
        config.about[:1].upper() + config.about[1:] or f"Treated minus control, by {config.name}",
        points, x=config.about or "variation", y="treated − control", zero=True,
        caption=f"Probability of the trait, treated minus control; {runs[0].transfer.effect.method}.",
    )  # fmt: skip
    columns = ["variation", "base", "control", "treated", "effect, points", "rows", "kept", "leaks dropped",
               "held-out loss", "verdict"]  # fmt: skip
    ctx.table("Every variation", columns, [_row(one) for one in runs])


def _row(one: VariationRun) -> list[str]:
    results, effect = one.results, one.transfer.effect.quantity
    arms = {kind: [arm for arm in results.arms if arm.arm == kind] for kind in ("control", "treated")}
    treated = arms["treated"]
    kept = sum(arm.filter.kept for arm in treated) / sum(arm.filter.asked for arm in treated)
    leaks = sum(max(arm.filter.reasons.get(reason, 0) for reason in LEAKS) for arm in treated)
    between = ""
    if effect is not None and effect.low is not None and effect.high is not None:
        between = f" ({100 * effect.low:+.1f} to {100 * effect.high:+.1f})"
    return [
        one.variation.name,
        f"{100 * np.mean([m.positive.probability.mean for m in results.base.values()]):.1f} %",
        *(f"{100 * np.mean([arm.probability for arm in arms[kind]]):.1f} %" for kind in ("control", "treated")),
        f"{100 * one.transfer.effect.mean:+.1f}{between}",
        f"{treated[0].rows}",
        f"{100 * kept:.0f} %",
        f"{leaks}",
        f"{np.mean([arm.held_out_nll for arm in treated]):.3f}",
        results.verdict,
    ]
