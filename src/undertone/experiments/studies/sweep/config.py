"""The config of a sweep: a setting, its variations, and the claims that they test."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from undertone.errors import ConfigError
from undertone.experiments.config import Experiment, Setting
from undertone.provenance import configs
from undertone.provenance.configs import Config


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
            self.varied(variation)
        return self

    def varied(self, variation: Variation) -> Experiment:
        """The experiment of a variation."""
        fields = self.model_dump(mode="json", include=set(Setting.model_fields) - {"kind"})
        try:
            return configs.load(Experiment, {"kind": "transfer", **fields}, variation.set)
        except ConfigError as error:
            what = f"variation {variation.name!r}: {error.what}"
            raise ConfigError(what, got=error.got, allowed=error.allowed, fix=error.fix) from error
