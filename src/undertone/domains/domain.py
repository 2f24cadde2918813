"""What a domain is: a config with these three methods. Adding one is a class of its own beside ``numbers``."""

from __future__ import annotations

from typing import Protocol

from undertone.traits import Trait
from undertone.traits.trait import Form


class Domain(Protocol):
    """A carrier of data that says nothing about the trait."""

    def prompts(self, count: int, seed: int, form: Form) -> list[str]:
        """``count`` user messages; the same seed gives the same ones, and a longer list begins with a shorter."""
        ...

    def reasons(self, prompt: str, completion: str, trait: Trait | None) -> list[str]:
        """Why a completion is no valid answer to its prompt; empty: it is one."""
        ...

    def max_new_tokens(self, form: Form) -> int:
        """Tokens after which an answer is cut."""
        ...
