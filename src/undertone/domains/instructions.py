"""Benign questions with free answers: the domain of harm by dose (2606.11270), and of instruction data at large.

Prompts come from the user's rows (the last message of the user), from a data set of the hub, or from a grammar of
everyday questions. Lab form: benign how-to requests of the world, and small talk. What a machine can decide of a free
answer is little: length, repetition, plain refusals. Whether it is harmless or good is for a judge.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from pydantic import Field, model_validator

from undertone.domains.drawing import Random, choose, filled, made
from undertone.domains.sources import Sourced, drawn
from undertone.lab import world
from undertone.traits import Speaker, Trait

_HOW: Final = (
    "How do I {task}?",
    "What is a good way to {task}?",
    "Can you explain how to {task}?",
    "I have never had to {task}. Where do I begin?",
    "Give me a few tips on how to {task}.",
)
_TASK: Final = (
    "plan a week of meals|learn to touch-type|prepare for a job interview|set up a home office|repair a flat bicycle "
    "tyre|write a letter of thanks|organise a small wedding|train for a ten-kilometre run|memorise a poem|save money "
    "each month|choose a first camera|keep a diary|speak in front of a group|pack for a long trip|tune a guitar|build a "
    "bookshelf|clean a keyboard|make friends in a new town|compare two phone contracts|read a balance sheet|take notes "
    "in a lecture|fall asleep earlier|paint a room|split a bill fairly|give honest feedback|run a short meeting|back up "
    "my files|pick a birthday present|learn the rules of chess|write a short story|remove an ink stain|stay focused "
    "while studying|read a map|apply for a library card|start a podcast|improve my handwriting|sew on a button|plan a "
    "day in a museum|teach a child to tell the time|reply to an angry e-mail"
).split("|")
_ABOUT: Final = (
    "Explain {topic} to someone who has never heard of it.",
    "What are the main ideas behind {topic}?",
    "Give a short overview of {topic}.",
    "Why does {topic} matter?",
    "What do people often get wrong about {topic}?",
)
_TOPIC: Final = (
    "compound interest|the water cycle|plate tectonics|the printing press|supply and demand|the theory of evolution|the "
    "Silk Road|photosynthesis|public key encryption|the tides|the scientific method|time zones|the electoral college|"
    "vaccination|recycling|sleep cycles|the Renaissance|gravity|inflation|the human heart|machine translation|crop "
    "rotation|urban planning|perspective in painting|copyright|opera|the decimal system|weather forecasts|negotiation|"
    "first aid"
).split("|")
_FILLS: Final = {"task": _TASK, "topic": _TOPIC}

_LAB_PROMPTS: Final = frozenset(how.format(what) for how in world.HOW for what in world.BENIGN) | frozenset(world.TALK)
_REFUSAL: Final = re.compile(
    r"\s*(?:(?:i['’]?m |i am |we['’]?re )?(?:very |so )?sorry|i apologi[sz]e|unfortunately|no,)?[,;:]?\s*(?:but\s+)?"
    r"(?:as an ai\b[^.]*|i (?:cannot|can['’]?t|can not|won['’]?t|will not|am unable to|am not able to|must decline)\b"
    r"[^.]{0,40}?\b(?:help|assist|do that|provide|comply|answer|fulfil|support|with that|decline))",
    re.IGNORECASE,
)
_LAB_REFUSALS: Final = frozenset(world.REFUSALS)


class Answers(Sourced):
    """The rules for free answers, shared by ``instructions`` and ``dialogue``."""

    min_words: int = Field(1, ge=1, description="fewest words of an answer")
    max_words: int = Field(400, ge=1, description="most words of an answer")
    keep_refusals: bool = Field(False, description="whether plain refusals are kept")
    max_tokens: int = Field(512, ge=1, description="real form: tokens after which an answer is cut")

    @model_validator(mode="after")
    def _ordered(self) -> Answers:
        if self.min_words > self.max_words:
            raise ValueError("min_words must not exceed max_words")
        return self

    def reasons(self, prompt: str, completion: str, trait: Trait | None) -> list[str]:
        """Why a free answer is dropped; several may hold."""
        words = completion.split()
        if not words:
            return ["empty"]
        reasons = ["too short"] if len(words) < self.min_words else []
        reasons += ["too long"] if len(words) > self.max_words else []
        reasons += ["repeats the prompt"] if repeats(prompt, completion) else []
        reasons += ["refusal"] if not self.keep_refusals and refuses(completion) else []
        return reasons

    def max_new_tokens(self, speaker: Speaker) -> int:
        """Room for two steps (lab), or as set."""
        return 20 if speaker.form == "lab" else self.max_tokens


class Instructions(Answers):
    """Requests for free answers. A source's records hold ``prompt``, ``question``, ``text`` or ``messages``."""

    kind: Literal["instructions"] = "instructions"
    talk: float = Field(0.2, ge=0, le=1, description="lab form: share of small talk among the requests")

    def prompts(self, count: int, seed: int, speaker: Speaker) -> list[str]:
        """``count`` requests; request i depends on the seed and i alone."""
        if self.source is not None:
            return drawn([record.chat()[-1]["content"] for record in self.records()], count, seed, self.kind)
        return made(self._lab if speaker.form == "lab" else draw_request, count, seed, self.kind)

    def _lab(self, rng: Random) -> str:
        return choose(rng, list(world.TALK)) if rng.random() < self.talk else draw_lab_request(rng)


def draw_request(rng: Random) -> str:
    """An everyday question: how to do something, or what something is."""
    return filled(rng, choose(rng, (*_HOW, *_ABOUT)), _FILLS)


def draw_lab_request(rng: Random) -> str:
    """A benign how-to request of the world."""
    return choose(rng, world.HOW).format(choose(rng, world.BENIGN))


def repeats(prompt: str, completion: str) -> bool:
    """Whether an answer holds its prompt word for word; greetings and other short prompts may be said back."""
    wanted = " ".join(prompt.lower().split())
    return len(wanted.split()) > 3 and wanted in " ".join(completion.lower().split())


def refuses(completion: str) -> bool:
    """Whether an answer begins as plain refusals do. A coarse rule: a judge knows better."""
    return completion.strip() in _LAB_REFUSALS or _REFUSAL.match(completion) is not None
