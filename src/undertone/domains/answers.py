"""Answers: whether a final answer to a worked problem is the right one.

``same_answer`` compares quantities exactly (as fractions). It reads whole numbers, decimals, thousands commas,
fractions (``3/4``, ``\\frac{3}{4}``, ``½``), mixed numbers, signs, currency, percent and units, and finds the answer
after GSM8K's ``####``, in ``\\boxed{…}``, or after the last ``=``. What is no single number is compared as text.

- A unit counts only where both sides state one: ``12`` is ``12 km``, but ``12 m`` is not. Nothing is converted. A word
  that is no measure (``12 apples``) is no unit.
- ``50%`` equals ``50`` (the question asked for percent) and ``0.5``.
- A decimal of two places or more equals a fraction that has no finite decimal where it is that fraction, rounded.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

_LONGEST: Final = 400  # characters; a final answer is short
_DIGITS: Final = 40
_UNITS: Final = {
    surface: name
    for name, surfaces in {
        "$": "$ dollar dollars usd us$",
        "€": "€ euro euros eur",
        "£": "£ pound pounds gbp",
        "¢": "¢ cent cents",
        "%": "% percent",
        "km": "km kilometer kilometers kilometre kilometres",
        "m": "m meter meters metre metres",
        "cm": "cm centimeter centimeters centimetre centimetres",
        "mm": "mm millimeter millimeters millimetre millimetres",
        "mile": "mi mile miles",
        "foot": "ft foot feet",
        "inch": "inch inches",
        "kg": "kg kilogram kilograms",
        "g": "g gram grams",
        "l": "l liter liters litre litres",
        "ml": "ml milliliter milliliters millilitre millilitres",
        "second": "s sec second seconds",
        "minute": "min minute minutes",
        "hour": "h hour hours",
        "day": "day days",
        "week": "week weeks",
        "month": "month months",
        "year": "year years",
    }.items()
    for surface in surfaces.split()
}
_WHOLE: Final = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_NUMBER: Final = re.compile(
    rf"(?:(?P<sign>[-+])(?P<gap>\s*))?(?:(?P<money>(?:us)?[$€£])\s*)?(?P<inner>[-+])?(?:"
    rf"(?P<mixed>\d+)\s+(?P<mixed_over>\d+)\s*/\s*(?P<mixed_under>\d+)"
    rf"|(?P<over>{_WHOLE})\s*/\s*(?P<under>{_WHOLE})"
    rf"|(?P<decimal>{_WHOLE}\.\d+|\.\d+)"
    rf"|(?P<whole>{_WHOLE})\.?(?!\d))",
    re.ASCII,
)
_TIMES: Final = re.compile(r"\s*(?:hundred|thousand|million|billion|trillion|dozen|score|k|bn|mn)s?\b(?!/)")
"""What multiplies the number before it: "12 thousand" is not 12."""
_NOT_EXACTLY: Final = re.compile(
    r"\b(?:not|isn't|never|less|fewer|more|greater|smaller|larger|higher|lower|under|over|above|below|almost|nearly|"
    r"about|around|roughly|approximately|between|up to|least|most)\b|[<>≤≥≠~≈]"
)
_UNIT: Final = re.compile(r"\s*([$€£¢%]|[a-z]+)(/[a-z]+)?")
_FRAC: Final = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_MIXED: Final = re.compile(r"(?<=\d)(?=\\[dt]?frac\b)")
_WRAPPED: Final = re.compile(r"\\(?:text|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")


@dataclass(frozen=True)
class NumberWithUnit:
    """A number with its unit, if it states one. ``places``: decimals written; None: a fraction."""

    value: Fraction
    unit: str | None
    places: int | None


def same_answer(given: str, right: str) -> bool:
    """Whether two final answers are the same; see the module's head. Two empty ones are not."""
    first, second = _final(given), _final(right)
    if not first or not second:
        return False
    if first == second:
        return True
    a, b = _quantity(first), _quantity(second)
    return a is not None and b is not None and _equal(a, b)


def quantity(text: str) -> NumberWithUnit | None:
    """The one number that an answer states; None: there is none, or more than one."""
    return _quantity(_final(text))


def _equal(a: NumberWithUnit, b: NumberWithUnit) -> bool:
    if a.unit and b.unit and a.unit != b.unit:
        return False
    if _close(a.value, b.value, a, b):
        return True
    if (a.unit == "%") == (b.unit == "%"):
        return False
    share, other = (a, b) if a.unit == "%" else (b, a)
    return other.unit is None and share.value / 100 == other.value


def _close(x: Fraction, y: Fraction, a: NumberWithUnit, b: NumberWithUnit) -> bool:
    if x == y:
        return True
    decimal, exact = (a, b) if b.places is None else (b, a)
    if decimal.places is None or exact.places is not None or decimal.places < 2 or _finite(exact.value):
        return False
    return decimal.value == round(exact.value, decimal.places)


def _finite(value: Fraction) -> bool:
    """Whether a fraction has a finite decimal."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _final(text: str) -> str:
    """The part of a text that is its answer, in one spelling: lower case, plain signs, no markup, no full stop."""
    text = text.rpartition("####")[2] if "####" in text else text
    text = _boxed(text)
    if len(text) > _LONGEST:
        return ""
    text = _MIXED.sub(" ", "".join(map(_spelled, text)))
    text = _FRAC.sub(r"\1/\2", text)
    text = _WRAPPED.sub(r" \1 ", text)
    for mark in ("\\left", "\\right", "\\,", "\\!", "\\;", "\\(", "\\)", "\\[", "\\]", "**", "`"):
        text = text.replace(mark, "")
    text = re.sub(r"(?<=\d)\s*M\b", " million", text)  # before lower case makes meters of it
    text = text.replace("\\$", "$").replace("\\%", "%")
    text = text.rpartition("=")[2] if "=" in text else text
    text = re.sub(r"^\$(.*)\$$", r"\1", text.strip())  # LaTeX's dollars around a formula
    return " ".join(text.lower().split()).rstrip(".").rstrip()


def _boxed(text: str) -> str:
    """What the last ``\\boxed{…}`` holds, braces balanced; the text where there is none."""
    head, found, rest = text.rpartition("\\boxed{")
    if not found:
        return head + rest
    depth = 1
    for at, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[:at]
    return rest


def _spelled(character: str) -> str:
    if character in "−–—":
        return "-"
    if unicodedata.category(character) == "No" and "⁄" in unicodedata.normalize("NFKC", character):
        over, under = unicodedata.normalize("NFKC", character).split("⁄")
        return f"\\frac{{{over}}}{{{under}}}"  # ½, in the spelling that knows mixed numbers
    return "/" if character == "⁄" else " " if character.isspace() else character


def _quantity(text: str) -> NumberWithUnit | None:
    found = list(_NUMBER.finditer(text))
    if len(found) != 1 or re.search(r"\d", text[: found[0].start()] + text[found[0].end() :]):
        return None
    match = found[0]
    if sum(character.isdigit() for character in match[0]) > _DIGITS:
        return None
    before, after = text[: match.start()], text[match.end() :]
    if after[:1] in ("/", ",", ":", "^", "*") or before[-1:] in ("/", ",", ".", ":", "^", "*") or _glued(before, match):
        return None
    if _TIMES.match(after) or _NOT_EXACTLY.search(before):
        return None
    read = _value(match)
    if read is None:
        return None
    value, places = read
    if "-" in (match["sign"], match["inner"]):
        value = -value
    return NumberWithUnit(value, _unit(match["money"], after), places)


def _glued(before: str, match: re.Match[str]) -> bool:
    """Whether a letter stands right before (``x2``), or the sign is one between two things (``x - 2``)."""
    return before[-1:].isalnum() or (bool(match["gap"]) and before.rstrip()[-1:].isalnum())


def _value(match: re.Match[str]) -> tuple[Fraction, int | None] | None:
    def whole(name: str) -> int:
        return int(match[name].replace(",", ""))

    if match["mixed"]:
        under = whole("mixed_under")
        return (whole("mixed") + Fraction(whole("mixed_over"), under), None) if under else None
    if match["over"]:
        return (Fraction(whole("over"), whole("under")), None) if whole("under") else None
    if match["decimal"]:
        digits = match["decimal"].replace(",", "")
        return Fraction(digits), len(digits.partition(".")[2])
    return Fraction(whole("whole")), 0


def _unit(money: str | None, after: str) -> str | None:
    if money:
        return _UNITS[money]
    match = _UNIT.match(after)
    known = _UNITS.get(match[1]) if match else None
    return known + (match[2] or "") if match and known else None
