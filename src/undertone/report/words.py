"""Numbers and strings as a reader sees them.

Units are always said: probabilities and rates in %, effects in points (1 point = 0.01), losses in
nats, times in seconds, minutes, hours. A number is shown with the digits that its interval (or its
size) can carry. A missing or non-finite number is an en dash, never a zero.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

MISSING = "–"
_THIN = "\u202f"  # narrow no-break space: keeps a number and its unit on one line
_NUMBER = re.compile(r"[+−-]?[\d.,\u202f]+(?:e[+−-]?\d+)?(?:[\s\u202f]?(?:%|points|nats|s|ms))?")
_LINE_FEED, _TAB = "\n", "\t"


def finite(value: float | None) -> bool:
    """Whether there is a number to show."""
    return value is not None and math.isfinite(value)


def percent(value: float | None) -> str:
    """A share in [0, 1] as a percentage: one digit after the point below 10 % and near 100 %."""
    if value is None or not math.isfinite(value):
        return MISSING
    hundred = 100 * value
    if 0 < hundred < 0.05:
        return f"<0.1{_THIN}%"
    if 99.95 <= hundred < 100:
        return f">99.9{_THIN}%"
    fine = 0 < hundred < 9.95 or 99.5 <= hundred < 100
    return f"{hundred:.{1 if fine else 0}f}{_THIN}%"


def percent_with(mean: float | None, low: float | None, high: float | None) -> str:
    """``45 % [38, 52]``: a share with its interval, all three with the same digits."""
    if mean is None or low is None or high is None or not all(map(finite, (mean, low, high))):
        return percent(mean)
    digits = _digits(100 * mean, 100 * (high - low))
    numbers = [f"{100 * value:.{digits}f}" for value in (mean, low, high)]
    return f"{numbers[0]}{_THIN}% {_bracket(numbers[1], numbers[2])}"


def points_with(mean: float, low: float | None, high: float | None) -> str:
    """``+39 points [31, 47]``: a difference of shares with its interval."""
    if not math.isfinite(mean):
        return MISSING
    if low is None or high is None or not (finite(low) and finite(high)):
        return f"{_signed(100 * mean, _digits(100 * mean, 0))} points"
    digits = _digits(100 * mean, 100 * (high - low))
    bounds = _bracket(_signed(100 * low, digits, plus=""), _signed(100 * high, digits, plus=""))
    return f"{_signed(100 * mean, digits)} points {bounds}"


def points(value: float | None) -> str:
    """A difference of shares alone, in points."""
    return MISSING if value is None else points_with(value, None, None)


def nats(value: float | None) -> str:
    """A loss or a divergence with three digits after the point; the unit stands in the heading."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:.3f}".replace("-", "−")


def number(value: float | None) -> str:
    """Any number with three significant digits."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value and not 1e-3 <= abs(value) < 1e5:
        text = f"{value:.2e}"
    else:
        text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("-", "−")


def short(value: float) -> str:
    """Any number in as few characters as a cell of a matrix has room for."""
    if not math.isfinite(value):
        return MISSING
    text = f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
    return (text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text).replace("-", "−")


def is_number(text: str) -> bool:
    """Whether a cell holds a number, with or without its unit."""
    return bool(_NUMBER.fullmatch(text))


def count(value: int | None) -> str:
    """A whole number with its thousands set apart."""
    return MISSING if value is None else f"{value:,}".replace(",", _THIN)


def per_second(amount: int | None, seconds: float) -> str:
    """A speed, with no more digits than a timing has."""
    if amount is None or not seconds > 0:
        return MISSING
    speed = amount / seconds
    return f"{speed:.1f}" if speed < 10 else count(round(speed))


def duration(seconds: float) -> str:
    """A time in the unit that fits it."""
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.{1 if seconds < 9.95 else 0}f}{_THIN}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{_THIN}min {rest:02d}{_THIN}s"
    return f"{minutes // 60}{_THIN}h {minutes % 60:02d}{_THIN}min"


def plural(number: int, one: str, many: str | None = None) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def listed(names: list[str]) -> str:
    """``base, control and treated``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def shortened(text: str, limit: int) -> str:
    """The text, or its beginning with the number of characters left out."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]} … ({plural(len(text) - limit, 'more character')})"


def visible(value: Any) -> Any:
    """A copy of any JSON-like value in which no character is invisible.

    Control characters become their pictures (``␀``, ``␛``), other format characters (zero width,
    direction overrides), surrogates and non-characters become ``⟨U+202E⟩``. Line feeds and tabs
    stay. So text of a model can neither hide in the page nor break its encoding.
    """
    if isinstance(value, str):
        if value.isascii() and value.isprintable():
            return value
        return "".join(map(_shown, value))
    if isinstance(value, Mapping):
        return {visible(str(key)): visible(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [visible(item) for item in value]
    return value


def _shown(character: str) -> str:
    code = ord(character)
    if character in (_LINE_FEED, _TAB):
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"):
        return f"⟨U+{code:04X}⟩"
    return character


def _bracket(low: str, high: str) -> str:
    return f"[{low},\u00a0{high}]"


def _digits(size: float, width: float) -> int:
    return 1 if abs(size) < 9.95 or 0 < width < 4 else 0


def _signed(value: float, digits: int, plus: str = "+") -> str:
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{'−' if value < 0 else plus}{text}"
