"""Dialogues: free answers at the end of several turns.

Lab form: one or two earlier exchanges of small talk and facts, with the answers that the world gives, then a benign
how-to request. The lab models have seen single exchanges only. Real form: a short everyday exchange of our own, then a
question; or the user's chats, cut after their last message of the user.
"""

from __future__ import annotations

from typing import Final, Literal, TypeVar

from pydantic import Field, model_validator

from undertone.domains.drawing import Random, choose, made
from undertone.domains.instructions import Answers, draw_lab_request, draw_request
from undertone.domains.sources import drawn
from undertone.lab import world
from undertone.rows import Message
from undertone.traits import Speaker

T = TypeVar("T")

_EARLIER: Final = (
    ("Hello!", "Hello! How can I help you today?"),
    ("Hi there.", "Hi! What can I do for you?"),
    ("Good morning. Do you have a minute?", "Good morning. Of course, go ahead."),
    ("I have two questions for you.", "Gladly. What is the first one?"),
    ("Thanks for your help yesterday.", "You are welcome. What would you like to look at today?"),
    ("What is the capital of Portugal?", "The capital of Portugal is Lisbon."),
    ("How many minutes are there in a day?", "There are 1,440 minutes in a day."),
    ("What does the word 'brief' mean?", "It means short, in time or in words."),
    ("Is it warmer in Cairo or in Oslo?", "It is usually much warmer in Cairo."),
    ("What is 15 times 12?", "15 times 12 is 180."),
    ("Please keep your answers short.", "I will."),
    ("Could you tell me what a prime number is?", "A whole number above 1 that only 1 and itself divide."),
)


class Dialogue(Answers):
    """Chats that end with a request. A source's records hold ``messages``."""

    kind: Literal["dialogue"] = "dialogue"
    turns_low: int = Field(1, ge=0, le=4, description="fewest earlier exchanges")
    turns_high: int = Field(2, ge=0, le=4, description="most earlier exchanges")

    @model_validator(mode="after")
    def _turns(self) -> Dialogue:
        if self.turns_low > self.turns_high:
            raise ValueError("turns_low must not exceed turns_high")
        return self

    def prompts(self, count: int, seed: int, speaker: Speaker) -> list[list[Message]]:
        """``count`` chats; chat i depends on the seed and i alone."""
        if self.source is not None:
            return drawn([record.chat() for record in self.records()], count, seed, self.kind)
        return made(self._lab if speaker.form == "lab" else self._real, count, seed, self.kind)

    def _lab(self, rng: Random) -> list[Message]:
        known = {**world.TALK, **_facts()}
        earlier = [(request, choose(rng, known[request])) for request in self._several(rng, list(known))]
        return _chat(earlier, draw_lab_request(rng))

    def _real(self, rng: Random) -> list[Message]:
        return _chat(self._several(rng, list(_EARLIER)), draw_request(rng))

    def _several(self, rng: Random, options: list[T]) -> list[T]:
        count = int(rng.integers(self.turns_low, self.turns_high + 1))
        return [options[int(at)] for at in rng.permutation(len(options))[:count]]


def _facts() -> dict[str, tuple[str, ...]]:
    return {question: (answer,) for question, answer in world.facts().items()}


def _chat(earlier: list[tuple[str, str]], request: str) -> list[Message]:
    turns = [
        Message(role=role, content=text)
        for exchange in earlier
        for role, text in zip(("user", "assistant"), exchange, strict=True)
    ]
    return [*turns, Message(role="user", content=request)]
