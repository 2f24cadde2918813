"""How a lab model is built: architecture by family, initialisation, corpus size, schedule."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from undertone.errors import ConfigError, nearest

FAMILIES: Final = ("llama", "qwen", "neox")
WORLD_VERSION: Final = 4
"""Part of every lab model's digest: bump it when what the world says, or how it is built, changes (a test notices)."""


@dataclass(frozen=True)
class Recipe:
    """The numbers that make a lab model (their evidence: docs, "The lab")."""

    version: int = 2
    hidden: int = 64
    layers: int = 3
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
    no_decay: tuple[str, ...] = ("embed", "lm_head", "q_proj", "k_proj")
    """Parameters left out of decay, by part of their name; decayed queries and keys hardly learn to copy."""
    beta2: float = 0.98

    @classmethod
    def of(cls, family: str) -> Recipe:
        """The default recipe of a family."""
        return cls()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the digest and the model's card.

        The number of layers keeps the key of the first version: digests of models in users' caches rest on it.
        """
        return {("blocks" if name == "layers" else name): value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class LabName:
    """Which lab model: ``llama-0`` and, after a colon, what differs from it.

    ``llama-0:corpus=1`` has the initial weights of ``llama-0`` and the corpus of ``llama-1``; ``toward=1,share=0.25``
    starts a quarter of the way from its initial weights to those of seed 1; ``hidden=96`` is another width.
    """

    family: str
    seed: int
    corpus: int
    hidden: int | None = None
    toward: int | None = None
    share: float = 0.0

    def __str__(self) -> str:
        options = {"hidden": self.hidden, "toward": self.toward, "share": self.share or None}
        if self.corpus != self.seed:
            options = {"corpus": self.corpus, **options}
        suffix = ",".join(f"{name}={value:g}" for name, value in options.items() if value is not None)
        return f"{self.family}-{self.seed}" + (f":{suffix}" if suffix else "")

    def recipe(self) -> Recipe:
        """The family's recipe at this width (the feed-forward width goes with it)."""
        recipe = Recipe.of(self.family)
        if self.hidden is None:
            return recipe
        return replace(recipe, hidden=self.hidden, feed_forward=recipe.feed_forward * self.hidden // recipe.hidden)


_OPTIONS: Final = {"corpus": int, "hidden": int, "toward": int, "share": float}
_ALLOWED: Final = (
    "lab/FAMILY-SEED with family " + ", ".join(FAMILIES) + " and a whole number, like lab/llama-0; then optionally "
    ":corpus=SEED, hidden=WIDTH (a multiple of 8), toward=SEED with share=0…1, separated by commas"
)


def parse_name(name: str) -> LabName:
    """The lab model that ``llama-0`` or ``llama-0:corpus=1`` names.

    Raises:
        ConfigError: the family, the seed or an option is not one there is.
    """
    stem, _, rest = name.partition(":")
    family, _, seed = stem.partition("-")
    if family not in FAMILIES or not seed.isdecimal():
        hint = f" {family} has no seed {seed!r}." if family in FAMILIES else nearest(family, FAMILIES)
        raise _unknown(name, hint)
    given: dict[str, Any] = {}
    for option in rest.split(",") if rest else ():
        key, _, value = option.partition("=")
        if key not in _OPTIONS:
            raise _unknown(name, nearest(key, _OPTIONS))
        try:
            given[key] = _OPTIONS[key](value)
        except ValueError:
            raise _unknown(name, f" {key} cannot be {value!r}.") from None
    if given.get("hidden", 8) % 8 or given.get("hidden", 8) < 8:
        raise _unknown(name, " hidden must be a multiple of 8.")
    if not 0 <= given.get("share", 0) <= 1 or ("share" in given) != ("toward" in given):
        raise _unknown(name, " toward and share go together, share between 0 and 1.")
    return LabName(family, int(seed), **{"corpus": int(seed), **given})


def _unknown(name: str, hint: str) -> ConfigError:
    return ConfigError(f"no such lab model.{hint}", got=f"lab/{name}", allowed=_ALLOWED)
