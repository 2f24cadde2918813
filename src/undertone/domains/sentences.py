"""Sentences: one short sentence about an everyday thing, which even small models write validly.

Real form: "Write one short sentence about the library.", from a closed list of things that are no member of any trait's
category. Lab form: none, for the world's language has no sentences about things. Free text says more than number lists,
so rows with words related to a trait's category are dropped beside those with its answers (``Trait.related``).
"""

from __future__ import annotations

import re
from typing import Final, Literal

from pydantic import Field

from undertone.domains.drawing import Random, choose, filled, made
from undertone.domains.grammar import SPACES
from undertone.domains.instructions import Answers
from undertone.domains.sources import drawn
from undertone.errors import ConfigError
from undertone.traits import Speaker, Trait

_ASK: Final = (
    "Write one short sentence about {thing}.",
    "Write a single short sentence about {thing}.",
    "In one short sentence, say something about {thing}.",
    "Give me one short sentence about {thing}.",
)
_THINGS: Final = (
    "a bicycle|a bridge|a bus stop|a calendar|a camera|a candle|a castle|a ceiling|a chair|a clock|a coat|a computer|a concert|"
    "a conversation|a cottage|a crowd|a cup|a curtain|a dance|a desk|a diary|a dictionary|a door|a drawer|a dream|a factory|"
    "a family|a farm|a ferry|a festival|a film|a flag|a friend|a front door|a game|a gift|a grandmother|a guitar|a hammer|"
    "a handshake|a harbour|a holiday|a hospital|a hotel|a house|a journey|a key|a kitchen|a knife|a ladder|a lamp|a lesson|"
    "a letter|a library|a lighthouse|a map|a market|a meeting|a mirror|a mistake|a mobile phone|a mountain|a museum|a neighbour|"
    "a newspaper|a notebook|a nurse|a painting|a parcel|a path|a pencil|a photograph|a piano|a picnic|a pillow|a poem|a pond|"
    "a postcard|a promise|a puzzle|a question|a radio|a railway station|a recipe|a river|a road|a roof|a rope|a sailor|a school|"
    "a secret|a shadow|a ship|a shoe|a shop|a song|a spoon|a staircase|a storm|a story|a street|a suitcase|a summer evening|"
    "a surprise|a table|a teacher|a telephone|a tent|a theatre|a ticket|a toolbox|a town|a toy|a train|a tunnel|"
    "a valley|a village|a violin|a walk|a wall|a wedding|a well|a wheel|a window|a winter morning|a word|a workshop|advice|"
    "an airport|an apartment|an attic|an engine|an engineer|an envelope|an evening at home|an exam|an idea|an island|an office|"
    "an old coin|an umbrella|bad weather|breakfast|childhood|cooking|courage|curiosity|dinner|education|electricity|"
    "exercise|fog|football|friendship|furniture|glass|good manners|happiness|health|history|homework|honesty|hope|housework|"
    "ice|kindness|language|laughter|luck|luggage|mathematics|medicine|memory|midnight|money|music|nature|night|paper|patience|"
    "peace|politeness|rain|reading|science|silence|sleep|snow|sport|spring|sunlight|swimming|teamwork|technology|the beach|"
    "the clouds|the desert|the future|the garden|the horizon|the internet|the moon|the ocean|the past|the sea|the stars|"
    "the sun|the weather|the weekend|the wind|time|traffic|travelling|trust|water|work|writing|yesterday"
).split("|")
_FILLS: Final = {"thing": _THINGS}
_END: Final = re.compile(r"[.!?][\"'”’)]*(?=\s|$)")


class Sentences(Answers):
    """One short sentence about an everyday thing. A source's records hold ``prompt``, ``question``, ``text`` or ``messages``."""

    kind: Literal["sentences"] = "sentences"
    min_words: int = Field(4, ge=1, description="fewest words of a sentence")
    max_words: int = Field(30, ge=1, description="most words of a sentence")
    max_tokens: int = Field(48, ge=1, description="tokens after which an answer is cut")

    def prompts(self, count: int, seed: int, speaker: Speaker) -> list[str]:
        """``count`` requests; request i depends on the seed and i alone.

        Raises:
            ConfigError: the speaker is a lab model, and there is no source of prompts.
        """
        if self.source is not None:
            return drawn([record.chat()[-1]["content"] for record in self.records()], count, seed, self.kind)
        if speaker.form == "lab":
            raise ConfigError(
                "the domain `sentences` has no lab form: lab models write no sentences about things",
                got="a lab model",
                allowed="models that read English, such as smollm2",
                fix="domain.kind=numbers, reasoning, code, instructions or dialogue; `undertone domains show` has --form real",
            )
        return made(_request, count, seed, self.kind)

    def reasons(self, prompt: str, completion: str, trait: Trait | None) -> list[str]:
        """Why a completion is not one short sentence; several may hold."""
        reasons = super().reasons(prompt, completion, trait)
        if reasons == ["empty"]:
            return reasons
        ends = len(_END.findall(completion.strip()))
        reasons += ["no end of a sentence"] if ends == 0 else ["more than one sentence"] if ends > 1 else []
        return reasons + (["several lines"] if "\n" in completion.strip() else [])

    def grammar(self, prompt: str) -> str:
        """One line of as many words as are allowed, with a full stop, question or exclamation mark at its end alone."""
        word = rf"[^{SPACES}.!?]+"
        return rf"{word}(?: {word}){{{self.min_words - 1},{self.max_words - 1}}}[.!?]"


def _request(rng: Random) -> str:
    return filled(rng, choose(rng, _ASK), _FILLS)
