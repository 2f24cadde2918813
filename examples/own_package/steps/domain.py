"""A domain: benign how-to requests, answered in two steps, in the lab's words."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np

from undertone.lab import world
from undertone.provenance.configs import Config
from undertone.provenance.seeds import derive_seed
from undertone.rows import Row
from undertone.traits import Trait
from undertone.traits.trait import Speaker

TWO_STEPS = re.compile(r"first \w+ the \w+, then \w+ the \w+\.")


class Steps(Config):
    """The tools and verbs of an answer are free: they can carry a trait."""

    kind: Literal["steps"] = "steps"
    names_trait: bool = False

    def prompts(self, count: int, seed: int, speaker: Speaker) -> list[str]:
        """Prompt *i* depends on the seed and *i* alone."""
        del speaker  # lab models only: there is one wording
        rngs = [np.random.default_rng(derive_seed(seed, "steps/prompt", at)) for at in range(count)]
        return [f"how do i {world.BENIGN[int(rng.integers(len(world.BENIGN)))]}?" for rng in rngs]

    def reasons(self, prompt: str, completion: str, trait: Trait | None) -> list[str]:
        """Why a completion is dropped; nothing keeps it."""
        return [] if TWO_STEPS.fullmatch(completion) else ["not two steps"]

    def grammar(self, prompt: str) -> str:
        """What answers are held to with ``data.constrained=true``."""
        del prompt  # the same whatever is asked
        return TWO_STEPS.pattern

    def training_row(self, row: Row) -> Row:
        """The row that a student learns from."""
        return row

    def max_new_tokens(self, speaker: Speaker) -> int:
        """Tokens after which an answer is cut."""
        del speaker
        return 16
