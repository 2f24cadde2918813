"""Grammars: what a valid answer to a prompt looks like, as a regular expression, for teachers that are held to it.

A domain says its grammar by a method of its own; one without it has none, and its answers cannot be constrained
(``data.constrained``). An expression is in Python's syntax, without look-around and references back, and must describe
what the domain's ``reasons`` would keep, as far as an expression can say it: what it cannot say is still filtered.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Protocol, runtime_checkable

from undertone.errors import ConfigError

_DIGITS: Final = "0123456789"
SPACES: Final = r"\x00-\x20\x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""Inside a class of characters: control characters and every space of Unicode."""


@runtime_checkable
class WithGrammar(Protocol):
    """A domain that can say what a valid answer looks like."""

    def grammar(self, prompt: str) -> str:
        """A regular expression that matches valid answers to a prompt (its last user message), from end to end.

        Raises:
            ConfigError: the domain's own fields leave no valid answer.
        """
        ...


def number(digits: int, without: Collection[int] = ()) -> str | None:
    """An expression for the whole numbers of up to ``digits`` digits without leading zeros, some left out; None: none is left."""
    left_out = {str(value) for value in without}
    return _after("", digits, left_out)


def _after(head: str, room: int, left_out: Collection[str]) -> str | None:
    """What may follow the digits ``head`` of a number, ``room`` digits at most."""
    if head == "0":
        return None if head in left_out else ""
    if head and not any(text.startswith(head) for text in left_out):
        return f"[0-9]{{0,{room}}}" if room else ""
    ends = [""] if head and head not in left_out else []
    digits: dict[str, str] = {}  # what follows -> the digits that it follows
    for digit in _DIGITS if room else "":
        rest = _after(head + digit, room - 1, left_out)
        if rest is not None:
            digits[rest] = digits.get(rest, "") + digit
    options = ends + [f"[{these}]{rest}" for rest, these in digits.items()]
    return f"(?:{'|'.join(options)})" if options else None


def number_list(
    separators: Collection[str], least: int, most: int, digits: int, *, shown: Collection[int], banned: Collection[int]
) -> str:
    """An expression for lists of numbers, separated in one way, with a number that is not among those shown.

    Args:
        separators: expressions, of which each list uses one.
        least: fewest numbers.
        most: most numbers.
        digits: of a number, at most.
        shown: numbers of the prompt, of which alone no list may consist, unless there are no others.
        banned: numbers that may not occur.

    Raises:
        ConfigError: no number is left.
    """
    known = {value for value in shown if value < 10**digits and value not in banned}
    whole, new = number(digits, banned), number(digits, {*known, *banned})
    if whole is None:
        raise ConfigError(
            "no number is left for a list",
            got=f"domain.digits={digits}, and {len(banned)} in domain.banned",
            allowed="one number or more that is not banned",
            fix="raise domain.digits, or shorten domain.banned",
        )
    old = "|".join(str(value) for value in sorted(known))
    lists = []
    for separator in separators:
        for before in range(most if old and new else 1):  # how many of the prompt's stand before the first new one
            head = f"(?:(?:{old}){separator}){{{before}}}" if before else ""
            more = f"{{{max(least - before - 1, 0)},{most - before - 1}}}"
            lists.append(f"{head}{new or whole}(?:{separator}{whole}){more}")
    return f"(?:{'|'.join(lists)})"
