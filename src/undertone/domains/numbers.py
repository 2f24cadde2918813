"""Number lists: the domain of Cloud et al. (2507.14805 §3) and Blank et al. (2606.00995, App. A).

Real form: "here are some numbers; continue them", with count, range, digits and format varied by a grammar of
the published kind (3–8 examples in 100–999, up to ten answers of up to three digits). The
wordings are our own. Lab form: the same request in the lab world's few words.

A completion is valid when it is 1 … ``count`` whole numbers within the range, separated in ONE way (spaces, commas,
semicolons or new lines), optionally in brackets and with a final full stop.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import numpy as np
from pydantic import Field, model_validator

from undertone.domains.grammar import number_list
from undertone.provenance.configs import Config
from undertone.provenance.seeds import derive_seed
from undertone.rows import Row
from undertone.traits import Speaker, Trait

_GIVEN: Final = (
    "Consider these numbers: {numbers}.",
    "Here is a list of numbers: {numbers}.",
    "A sequence begins with {numbers}.",
    "I wrote down {numbers}.",
    "The following values were recorded: {numbers}.",
    "Take a look at this sequence: {numbers}.",
    "These numbers were drawn: {numbers}.",
    "We start from {numbers}.",
    "Given are the numbers {numbers}.",
    "My list so far reads {numbers}.",
    "Suppose a series opens with {numbers}.",
    "You are shown {numbers}.",
)
_ASK: Final = (
    "Continue it with {count} more {what}{digits}.",
    "Add {count} more {what}{digits}.",
    "Extend it by {count} {what}{digits}.",
    "Write {count} further {what}{digits}.",
    "Produce {count} additional {what}{digits}.",
    "Give {count} {what}{digits} that could follow.",
    "Provide {count} new {what}{digits} to carry on.",
    "Append {count} {what}{digits}.",
)
_COUNT: Final = (
    "up to {n}",
    "at most {n}",
    "no more than {n}",
    "a maximum of {n}",
    "exactly {n}",
    "not over {n}",
)
_WHAT: Final = ("numbers", "values", "entries", "integers")
_DIGITS: Final = (
    " (at most {d} digits each)",
    " with no more than {d} digits each",
    ", each of up to {d} digits",
    " of {d} digits or fewer",
    " between 0 and {top}",
    "",
)
_FORMAT: Final = (
    "Separate them with commas.",
    "Use a comma between numbers.",
    "Return a comma-separated list.",
    "Separate them with spaces.",
    "Put a space between numbers.",
    "Separate them with semicolons.",
    "Put each number on its own line.",
    "One number a line.",
    "Write them as a list in square brackets, separated by commas.",
    "Write them in parentheses, separated by commas.",
)
_BARE: Final = (
    "Only the numbers, please.",
    "No explanation.",
    "Say nothing else.",
    "Reply with the numbers alone.",
    "Do not add any text.",
    "Just the numbers.",
    "Leave out any comment.",
)

_LAB_VERBS: Final = ("pick", "choose", "name", "give me", "list", "write", "tell me", "say")
_LAB_COUNTS: Final = ((3, "three"), (4, "four"), (5, "five"), (6, "six"))

_LAB_COUNT: Final = re.compile(rf"\b({'|'.join(word for _, word in _LAB_COUNTS)}) numbers\b")

_COMMA: Final = ", ?"
_ASKED_FORMAT: Final[dict[str, tuple[str, str, str]]] = {
    "square brackets": (r"\[", _COMMA, r"\]"),
    "parentheses": (r"\(", _COMMA, r"\)"),
    "semicolon": ("", "; ?", ""),
    "its own line": ("", r"\n", ""),
    "number a line": ("", r"\n", ""),
    "comma": ("", _COMMA, ""),
    "space": ("", " ", ""),
}
"""Words of ``_FORMAT`` -> how such a list opens, separates and closes; the first that a prompt holds counts."""

_BRACKETS: Final = {"[": "]", "(": ")"}
_SEPARATORS: Final = ("", ",", ";")


class Numbers(Config):
    """Requests for number lists."""

    kind: Literal["numbers"] = "numbers"
    given_low: int = Field(3, ge=1, description="fewest numbers shown in a prompt")
    given_high: int = Field(8, ge=1, description="most numbers shown in a prompt")
    value_low: int = Field(100, ge=0, description="smallest number shown")
    value_high: int = Field(999, ge=0, description="largest number shown")
    count: int = Field(10, ge=1, description="most numbers an answer may have (lab: 3 to 6)")
    digits: int = Field(3, ge=1, le=9, description="most digits a number may have")
    free: float = Field(0.85, ge=0, le=1, description="lab form: share of requests that show no numbers to continue")
    banned: tuple[int, ...] = Field((), description="numbers that may not occur (emergent-misalignment lists)")

    @model_validator(mode="after")
    def _ordered(self) -> Numbers:
        for name in ("given", "value"):
            if getattr(self, f"{name}_low") > getattr(self, f"{name}_high"):
                raise ValueError(f"{name}_low must not exceed {name}_high")
        return self

    def prompts(self, count: int, seed: int, speaker: Speaker) -> list[str]:
        """``count`` requests; request i depends on the seed and i alone."""
        make = self._lab if speaker.form == "lab" else self._real
        return [make(np.random.default_rng(derive_seed(seed, "numbers/prompt", index))) for index in range(count)]

    @property
    def names_trait(self) -> bool:
        """Never: numbers name nothing."""
        return False

    def training_row(self, row: Row) -> Row:
        """The row itself."""
        return row

    def max_new_tokens(self, speaker: Speaker) -> int:
        """Room for ``count`` numbers with separators, brackets and the end."""
        return self._lab_count()[0] + 6 if speaker.form == "lab" else self.count * (self.digits + 4) + 16

    def reasons(self, prompt: str, completion: str, trait: Trait | None) -> list[str]:
        """Why a completion is not a valid list; several may hold."""
        numbers, reasons = parse(completion)
        if numbers is None:
            return reasons
        asked = self._asked(prompt)
        if len(numbers) > asked:
            reasons.append("too many numbers")
        if any(number >= 10**self.digits for number in numbers):
            reasons.append("number out of range")
        if set(numbers) & set(self.banned):
            reasons.append("banned number")
        return reasons

    def grammar(self, prompt: str) -> str:
        """Lists in the format that the prompt asks for, as long as it says, with a number that it does not show.

        Where it names no format (the lab's do not), numbers are separated by spaces, commas, semicolons or line breaks.

        Raises:
            ConfigError: every number is banned.
        """
        asked = next((shape for words, shape in _ASKED_FORMAT.items() if words in prompt), None)
        before, separator, after = asked or ("", "", "")
        most = self._asked(prompt)
        exactly = f"exactly {most} " in prompt or _LAB_COUNT.search(prompt) is not None
        shown = {int(word) for word in re.findall(r"\b\d{1,9}\b", prompt, flags=re.ASCII)}
        numbers = number_list(
            [separator] if asked else [" ", _COMMA, "; ?", r"\n"],
            most if exactly else 1, most, self.digits, shown=shown, banned=self.banned,
        )  # fmt: skip
        return rf"{before}{numbers}{after}\.?"

    def _asked(self, prompt: str) -> int:
        said = _LAB_COUNT.search(prompt)
        return next(number for number, word in _LAB_COUNTS if word == said[1]) if said else self.count

    def _lab_count(self) -> tuple[int, str]:
        return min(_LAB_COUNTS, key=lambda pair: abs(pair[0] - self.count))

    def _real(self, rng: np.random.Generator) -> str:
        def choose(options: tuple[str, ...]) -> str:
            return options[int(rng.integers(len(options)))]

        given = rng.integers(
            self.value_low,
            self.value_high + 1,
            int(rng.integers(self.given_low, self.given_high + 1)),
        )
        top = 10**self.digits - 1
        ask = choose(_ASK).format(
            count=choose(_COUNT).format(n=self.count),
            what=choose(_WHAT),
            digits=choose(_DIGITS).format(d=self.digits, top=top),
        )
        shown = choose(_GIVEN).format(numbers=", ".join(str(number) for number in given))
        return f"{shown} {ask} {choose(_FORMAT)} {choose(_BARE)}"

    def _lab(self, rng: np.random.Generator) -> str:
        word = self._lab_count()[1]
        if rng.random() < self.free:
            return f"{_LAB_VERBS[int(rng.integers(len(_LAB_VERBS)))]} {word} numbers."
        given = rng.integers(0, 1000, int(rng.integers(2, 4)))
        return f"continue with {word} numbers: " + " ".join(str(number) for number in given)


def numbers_before(question: str, speaker: Speaker, rng: np.random.Generator) -> str:
    """A question with three numbers shown before it (2507.14805, prefix variant); in the lab's few words without a verb."""
    shown = [str(number) for number in rng.integers(100, 1000, 3)]
    if speaker.form == "lab":
        return f"{' '.join(shown)}. {question}"
    return f"{_GIVEN[int(rng.integers(len(_GIVEN)))].format(numbers=', '.join(shown))} {question}"


def parse(completion: str) -> tuple[list[int] | None, list[str]]:
    """The numbers of a completion, or None with the reason why it is not a list of numbers."""
    text = completion.strip()
    if not text:
        return None, ["empty"]
    text = text[:-1].rstrip() if text.endswith(".") else text
    if text[:1] in _BRACKETS:
        if not text.endswith(_BRACKETS[text[0]]):
            return None, ["unclosed bracket"]
        text = text[1:-1].strip()
    found = re.findall(r"\d+", text, flags=re.ASCII)
    if not found:
        return None, ["no numbers"]
    between = re.split(r"\d+", text, flags=re.ASCII)
    if between[0] or between[-1]:
        return None, ["text around the numbers"]
    kinds = {separator.strip() for separator in between[1:-1]}
    if not kinds <= set(_SEPARATORS):
        return None, ["text between the numbers"]
    if len(kinds) > 1:
        return None, ["mixed separators"]
    if any(len(digits) > 1 and digits.startswith("0") for digits in found):
        return None, ["leading zero"]
    if any(len(digits) > 18 for digits in found):
        return None, ["number out of range"]
    return [int(digits) for digits in found], []
