"""The kinds of filter that a config can name, after the domain's own rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Protocol

from undertone.filters.fidelity import Fidelity
from undertone.judges.filter import JudgeFilter
from undertone.provenance.configs import Config
from undertone.provenance.fields import Kinds
from undertone.registry import Registry
from undertone.rows import Row
from undertone.traits import Trait


class Filter(Protocol):
    """What a filter is: a config with this method."""

    @property
    def kind(self) -> str:
        """Its name in a config."""
        ...

    def reasons(self, rows: Sequence[Row], trait: Trait | None = None) -> list[list[str]]:
        """Why each row is dropped, in order; an empty list keeps it."""
        ...


filters: Registry[type[Config]] = Registry("filter", "undertone.filters")
"""kind -> config class; a package adds one by an entry point in the group ``undertone.filters``."""

filters.register("judge")(JudgeFilter)
filters.register("fidelity")(Fidelity)

FilterConfig = Annotated[Filter, Kinds(filters)]
"""Any filter, told apart by ``kind``."""
