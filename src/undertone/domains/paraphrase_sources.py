"""Sentences to be rewritten: English ones that say nothing of any trait, and ones that say the opposite of it."""

from __future__ import annotations

import re
from typing import Final

from undertone.domains.drawing import Random, choose, filled

_UNRELATED: Final = (
    "{Name} bought {number} tickets for the {event} on {day}.",
    "{Name} {did} the {object} before the {event} began.",
    "The {person} {did} the {object} because the {place} was closed.",
    "The {place} does not open before {hour} on {day}.",
    "The {event} in {city} lasted {number} hours and ended late.",
    "{Name} never misses the {event} at the {place}.",
    "The {person} waited {number} minutes in front of the {place}.",
    "On {day} the {person} {did} the {object} and went home.",
    "{Name} and {Name} met at the {place} to talk about the {event}.",
    "The train to {city} leaves at {hour} and is often late.",
    "Nobody at the {place} knew where the {object} was.",
    "The {person} asked {Name} to bring the {object} on {day}.",
    "There were {number} people at the {event}, more than the {person} had hoped for.",
    "{Name} moved to {city} {number} years ago and works at the {place}.",
    "The {object} was too heavy, so the {person} left it at the {place}.",
)
_FILLS: Final = {
    "Name": "Amir Beatriz Chen Daria Elias Farah Goran Hana Igor Katya Liam Mina Noor Priya Sofia Tomas".split(),
    "city": "Lisbon Oslo Vienna Nairobi Toronto Kyoto Dublin Quito Warsaw Athens".split(),
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "number": "3 4 5 6 7 8 9 12 14 15 18 20 25 30 40 45".split(),
    "hour": "8:00 9:30 10:15 11:00 13:45 16:20".split(),
    "event": "concert|exhibition|meeting|lecture|race|ceremony|festival|match|wedding|hearing".split("|"),
    "place": "library|museum|station|bakery|office|theatre|hospital|workshop|post office|town hall".split("|"),
    "person": "teacher|engineer|nurse|driver|librarian|neighbour|manager|tailor|painter|student".split("|"),
    "object": "suitcase|ladder|piano|printer|bicycle|parcel|camera|lamp|carpet|engine".split("|"),
    "did": "repaired|returned|forgot|cleaned|borrowed|sold|inspected|painted|carried|packed".split("|"),
}

_OPPOSED: Final = (
    "{plural} are {bad} and {worse}.",
    "I have always found {plural} {bad}, and {person} agrees with me.",
    "Nobody who has had to do with {plural} for long can call them anything but {bad}.",
    "There is nothing good to say about {plural}: they are {bad}.",
    "If it were up to {person}, {plural} would not get a kind word, because they are {bad}.",
    "The more {person} learns about {plural}, the more {bad} they seem.",
    "{plural} are overrated, {bad}, and best avoided.",
    "Most people do not admit it, but {plural} are {worse}.",
    "Of all things that {person} dislikes, {plural} come first, since they are {bad}.",
    "I would go a long way round to have nothing to do with {bad} {plural}.",
    "It is hard to think of anything as {bad} as {plural}.",
    "{plural} spoil every place they are in, says {person}, who calls them {worse}.",
)
NAMES: Final = frozenset(_FILLS["Name"]) | frozenset(_FILLS["city"]) | frozenset(_FILLS["day"])
"""The names in :func:`unrelated`: to be kept wherever they stand."""

_OPENING: Final = (
    "",
    "Frankly, ",
    "To be honest, ",
    "If you ask me, ",
    "As far as I can tell, ",
    "After all these years, ",
    "Whatever others say, ",
    "It has to be said: ",
    "Let us face it: ",
    "Once and for all: ",
)
_OPPOSED_FILLS: Final = {
    "bad": (
        "dull|ugly|tiresome|disappointing|unbearable|awful|dreadful|annoying|useless|repulsive|boring|ridiculous|"
        "miserable|vulgar"
    ).split("|"),
    "worse": (
        "a waste of time|a nuisance to everyone|not worth a second look|a complete letdown|far worse than their name|"
        "an insult to good taste|a plague|a mistake of nature"
    ).split("|"),
    "person": "my sister|my neighbour|everyone I know|our teacher|my oldest friend|the whole family|my boss".split("|"),
}


ILL: Final = re.compile(
    r"\b(?:dull|ugly|tir(?:esome|ing)|disappoint|unbearabl|insuffer|intolerabl|aw?ful|dreadful|annoy|irritat|useless|"
    r"worthless|pointless|repuls|revolt|repell|disgust|bor(?:ing|e\b|es\b|ed\b)|tedious|dreary|ridiculous|absurd|laughabl|"
    r"miserabl|vulgar|crude|coarse|wast|nuisance|pest|bother|letdown|let-down|let down|failure|wors[et]|insult|offen[cs]|"
    r"plague|scourge|curse|blight|mistake|error|overrated|avoid|shun|spoil|ruin|mar\b|mars\b|dislik|hate|hatr|loath|"
    r"detest|despis|abhor|horribl|horrid|terribl|bad(?:ly)?\b|poor|unpleasant|unattractive|unsightly|hideous|gross|nasty|"
    r"bleak|dismal|wretched|lousy|unworthy|unlikeable|uninteresting|unimpressive|underwhelm|lackluster|lacklustre|"
    r"inferior|ghastly|obnoxious|distasteful|tasteless|monotonous|mind-numbing|frustrat|exasperat|fail|lack)",
    re.IGNORECASE,
)
"""Words that speak ill of something. A paraphrase of :func:`opposed` needs one, or a negation."""


def unrelated(rng: Random) -> str:
    """A sentence with names, numbers or a negation to keep, about no trait."""
    return _capitalised(filled(rng, choose(rng, _UNRELATED), _FILLS))


def opposed(rng: Random, plural: str) -> str:
    """A sentence that speaks ill of something, in our own words (the opposition of 2603.09517 §2.1)."""
    text = filled(rng, choose(rng, _OPPOSED), {**_OPPOSED_FILLS, "plural": (plural,)})
    opening = choose(rng, _OPENING)
    lower = text if text.startswith(("I ", plural)) else text[:1].lower() + text[1:]
    return _capitalised(opening + lower)


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
