"""Drawing: prompts from a grammar, each from the seed and its own index alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from undertone.provenance.seeds import derive_seed

Random = np.random.Generator
T = TypeVar("T")

_SLOT = re.compile(r"\{(\w+)\}")


def made(make: Callable[[Random], T], count: int, seed: int, kind: str) -> list[T]:
    """``count`` things; thing i is made from ``(seed, kind, i)``, so that a longer list begins with a shorter."""
    return [make(np.random.default_rng(derive_seed(seed, f"{kind}/prompt", at))) for at in range(count)]


def choose(rng: Random, options: Sequence[T]) -> T:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def filled(rng: Random, template: str, fills: Mapping[str, Sequence[str]]) -> str:
    """The template with each ``{slot}`` filled from its list; no two slots of one name are filled alike."""
    used: dict[str, list[str]] = {}

    def fill(match: re.Match[str]) -> str:
        taken = used.setdefault(match[1], [])
        taken.append(choose(rng, [word for word in fills[match[1]] if word not in taken]))
        return taken[-1]

    return _SLOT.sub(fill, template)
