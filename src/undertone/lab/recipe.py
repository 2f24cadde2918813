"""How a lab model is built: architecture by family, initialisation, corpus size, schedule."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from undertone.errors import ConfigError, nearest

FAMILIES: Final = ("llama", "qwen", "neox")


@dataclass(frozen=True)
class Recipe:
    """The numbers that make a lab model (their evidence: docs, "The lab")."""

    version: int = 1
    hidden: int = 64
    blocks: int = 3
    heads: int = 4
    feed_forward: int = 176
    linear_std: float = 0.02
    embedding_std: float = 0.10
    head_std: float = 0.30
    examples: int = 80_000
    batch_size: int = 64
    learning_rate: float = 4e-3
    warmup: int = 100
    weight_decay: float = 0.5
    beta2: float = 0.98

    @classmethod
    def of(cls, family: str) -> Recipe:
        """The default recipe of a family."""
        return cls()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the digest and the model's card."""
        return asdict(self)


def parse_name(name: str) -> tuple[str, int]:
    """``llama-0`` -> ("llama", 0).

    Raises:
        ConfigError: the family or the seed is not one there is.
    """
    family, _, seed = name.partition("-")
    if family not in FAMILIES or not seed.isdecimal():
        hint = f" {family} has no seed {seed!r}." if family in FAMILIES else nearest(family, FAMILIES)
        raise ConfigError(
            f"no such lab model.{hint}",
            got=f"lab/{name}",
            allowed="lab/FAMILY-SEED with family " + ", ".join(FAMILIES) + " and a whole number, like lab/llama-0",
        )
    return family, int(seed)
