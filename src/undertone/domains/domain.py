"""What a domain is, and the registry by which a config's ``domain.kind`` finds it.

To add one: a Config class with a ``kind`` and these three methods, registered by
``@domains.register("my-domain")`` or the entry point group ``undertone.domains``.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from undertone.registry import Registry
from undertone.traits import Trait
from undertone.traits.trait import Form


@runtime_checkable
class Domain(Protocol):
    """A carrier of data that says nothing about the trait."""

    kind: str

    def prompts(self, count: int, seed: int, form: Form) -> list[str]:
        """``count`` user messages; the same seed gives the same ones, and a longer list begins with a shorter."""
        ...

    def reasons(self, prompt: str, completion: str, trait: Trait | None) -> list[str]:
        """Why a completion is no valid answer to its prompt; empty: it is one."""
        ...

    def max_new_tokens(self, form: Form) -> int:
        """Tokens after which an answer is cut."""
        ...


domains: Registry[type[Domain]] = Registry("domain", "undertone.domains")
