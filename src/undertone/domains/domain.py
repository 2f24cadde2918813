"""What a domain is: a config with these methods. Adding one is a class of its own beside ``numbers``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from undertone.rows import Message, Row
from undertone.traits import Speaker, Trait

Prompt = str | Sequence[Message]
"""What a teacher is asked: a user message, or the turns of a dialogue that ends with one."""


def messages_of(prompt: Prompt) -> list[Message]:
    """A prompt as messages."""
    return [Message(role="user", content=prompt)] if isinstance(prompt, str) else list(prompt)


def last_message(prompt: Prompt) -> str:
    """What is answered: a prompt's last user message."""
    return messages_of(prompt)[-1]["content"]


class Domain(Protocol):
    """A kind of data that says nothing about the trait."""

    @property
    def kind(self) -> str:
        """Its name in a config."""
        ...

    @property
    def names_trait(self) -> bool:
        """Whether prompts and completions name the trait by design, as where the text says its opposite.

        The rule that drops what names an answer of the trait's category is then not applied; the domain's own
        ``reasons`` must see to it that no such word is added.
        """
        ...

    def prompts(self, count: int, seed: int, speaker: Speaker) -> Sequence[Prompt]:
        """``count`` prompts in the speaker's wording, set by the seed alone; a longer list begins with a shorter."""
        ...

    def reasons(self, prompt: str, completion: str, trait: Trait | None) -> list[str]:
        """Why a completion is no valid answer to its prompt (its last user message); empty: it is one."""
        ...

    def training_row(self, row: Row) -> Row:
        """The row that a student learns from, of one that a teacher wrote; mostly the same."""
        ...

    def max_new_tokens(self, speaker: Speaker) -> int:
        """Tokens after which an answer is cut."""
        ...
