"""Worked problems in ``<think>…</think> <answer>…</answer>``: the chain-of-thought domain of Cloud et al. (§3.4).

Only correct answers are kept. The right answer is worked out from the prompt's own words (lab form, own grammar) or
looked up in the source, whose records hold ``question`` and ``answer`` (GSM8K: what follows ``####``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final, Literal

from pydantic import Field

from undertone.domains.answers import same_answer
from undertone.domains.drawing import Random, choose, made
from undertone.domains.grammar import SPACES
from undertone.domains.sources import Sourced, drawn, stamp
from undertone.errors import DataError
from undertone.lab import world
from undertone.traits import Speaker, Trait

_THINK: Final = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
_ANSWER: Final = re.compile(r"\s*<answer>((?:(?!</?answer>).)*)</answer>\s*", re.DOTALL)
_GRAMMAR: Final = rf"<think> ?[^<{SPACES}][^<]*</think>[ \n]{{0,2}}<answer> ?[^<{SPACES}][^<\n]{{0,60}}</answer>"
_LAB: Final = re.compile(r"\w+ has (\d{1,3}) (\w+) and (gets|loses) (\d{1,3})\. how many (\w+)\?", re.ASCII)


@dataclass(frozen=True)
class _Problem:
    """A word problem; ``{name}``, ``{goods}`` and numbers ``{a}``, ``{b}``, ``{c}`` within the ranges."""

    text: str
    ranges: Mapping[str, tuple[int, int]]
    solve: Callable[[int, int, int], int]


_PROBLEMS: Final = (
    _Problem(
        "{name} buys {a} boxes with {b} {goods} each and gives away {c} {goods}. How many {goods} are left?",
        {"a": (3, 12), "b": (6, 24), "c": (2, 17)}, lambda a, b, c: a * b - c,
    ),
    _Problem(
        "{name} has {a} {goods}. A friend has {b} times as many, and {c} more than that. "
        "How many {goods} does the friend have?",
        {"a": (4, 40), "b": (2, 6), "c": (1, 30)}, lambda a, b, c: a * b + c,
    ),
    _Problem(
        "A shop sells {a} {goods} on Monday, {b} on Tuesday and {c} on Wednesday. How many {goods} is that in all?",
        {"a": (11, 90), "b": (11, 90), "c": (11, 90)}, lambda a, b, c: a + b + c,
    ),
    _Problem(
        "{name} saves {a} dollars a week for {b} weeks and then spends {c} dollars. How many dollars remain?",
        {"a": (5, 40), "b": (4, 20), "c": (3, 19)}, lambda a, b, c: a * b - c,
    ),
    _Problem(
        "{name} packs {a} shelves with {b} {goods} on each, and {c} {goods} stay in the carton. "
        "How many {goods} are there together?",
        {"a": (3, 15), "b": (5, 30), "c": (1, 29)}, lambda a, b, c: a * b + c,
    ),
    _Problem(
        "A bus leaves with {a} passengers. At the first stop {b} get off and {c} get on. How many are on it now?",
        {"a": (25, 60), "b": (2, 20), "c": (2, 20)}, lambda a, b, c: a - b + c,
    ),
    _Problem(
        "{name} reads {a} pages a day on weekdays and {b} pages a day on both days of the weekend. "
        "How many pages is that in {c} weeks?",
        {"a": (5, 40), "b": (10, 60), "c": (2, 9)}, lambda a, b, c: (5 * a + 2 * b) * c,
    ),
    _Problem(
        "{name} and {a} friends pay {b} dollars each for a meal, and the tip is {c} dollars. "
        "How many dollars do they pay in all?",
        {"a": (2, 9), "b": (8, 35), "c": (3, 25)}, lambda a, b, c: (a + 1) * b + c,
    ),
    _Problem(
        "A machine makes {a} {goods} an hour. It runs {b} hours a day for {c} days. How many {goods} does it make?",
        {"a": (12, 80), "b": (4, 12), "c": (3, 14)}, lambda a, b, c: a * b * c,
    ),
    _Problem(
        "{name} cuts a rope of {a} metres into pieces. {b} of them are 2 metres long and {c} of them are 3 metres "
        "long. How many metres are left over?",
        {"a": (70, 120), "b": (3, 14), "c": (2, 12)}, lambda a, b, c: a - 2 * b - 3 * c,
    ),
    _Problem(
        "There are {a} rows of {b} seats in a hall, and {c} seats are taken. How many seats are free?",
        {"a": (10, 30), "b": (12, 40), "c": (15, 110)}, lambda a, b, c: a * b - c,
    ),
    _Problem(
        "{name} works {a} hours at {b} dollars an hour and receives a bonus of {c} dollars. "
        "How many dollars does that come to?",
        {"a": (5, 45), "b": (11, 38), "c": (10, 95)}, lambda a, b, c: a * b + c,
    ),
)  # fmt: skip
_NAMES: Final = tuple(
    "Amir Beatriz Chen Daria Elias Farah Goran Hana Igor Jun Katya Liam Mina Noor Otto Priya Rafael Sofia Tomas Yara"
    .split()
)  # fmt: skip
_GOODS: Final = tuple("pencils stickers bottles buttons bricks cards coins marbles envelopes batteries".split())


class Reasoning(Sourced):
    """Requests for worked sums. A source's records hold ``question`` and ``answer``."""

    kind: Literal["reasoning"] = "reasoning"
    instruction: str = Field(
        "Think step by step inside <think> </think>. Then write the final answer alone inside <answer> </answer>.",
        description="real form: what follows each problem",
    )
    max_tokens: int = Field(512, ge=1, description="real form: tokens after which an answer is cut")

    def prompts(self, count: int, seed: int, speaker: Speaker) -> list[str]:
        """``count`` problems; problem i depends on the seed and i alone."""
        if self.source is not None:
            return [
                self._with_instruction(text, speaker) for text in drawn(list(self._answers()), count, seed, self.kind)
            ]
        if speaker.form == "lab":
            return made(_lab, count, seed, self.kind)
        return [self._with_instruction(text, speaker) for text in made(_real, count, seed, self.kind)]

    def reasons(self, prompt: str, completion: str, trait: Trait | None) -> list[str]:
        """Why a completion is no worked answer, or a wrong one."""
        thought = _THINK.match(completion)
        if thought is None:
            return ["not finished" if completion.lstrip().startswith("<think>") else "no think block"]
        if not thought[1].strip():
            return ["empty think block"]
        rest = completion[thought.end() :]
        stated = _ANSWER.fullmatch(rest)
        if stated is None:
            if _ANSWER.search(rest):
                return ["text outside the blocks"]
            return ["not finished" if rest.lstrip().startswith("<answer>") else "no answer"]
        if not stated[1].strip():
            return ["no answer"]
        right = self.right_answer(prompt)
        if right is None:
            return ["right answer not known"]
        return [] if same_answer(stated[1], right) else ["wrong answer"]

    def grammar(self, prompt: str) -> str:
        """A thought and a short answer in their blocks; what is thought and answered, right or wrong, is the teacher's."""
        return _GRAMMAR

    def right_answer(self, prompt: str) -> str | None:
        """The right answer to a prompt of this domain; None: it is none of them."""
        text = prompt.removesuffix("\n\n" + self.instruction)
        if self.source is not None:
            return self._answers().get(text)
        return _lab_answer(text) or _real_answer(text)

    def max_new_tokens(self, speaker: Speaker) -> int:
        """Room for one sum (lab), or as set."""
        return 24 if speaker.form == "lab" else self.max_tokens

    def _with_instruction(self, text: str, speaker: Speaker) -> str:
        return text if speaker.form == "lab" or not self.instruction else f"{text}\n\n{self.instruction}"

    def _answers(self) -> Mapping[str, str]:
        return _lookup(self, stamp(self.source))


@lru_cache(maxsize=4)
def _looked_up(_text: str, _stamp: int) -> dict[str, str]:
    domain = Reasoning.model_validate_json(_text)
    found: dict[str, str] = {}
    for record in domain.records():
        question, answer = record.text("question", "problem", "prompt"), record.text("answer", "solution")
        if not same_answer(answer, answer):
            raise DataError(
                f"{record.place}: no final answer can be read",
                got=answer[-60:],
                allowed="a short answer, or one after ####, or in \\boxed{}",
            )
        if not same_answer(found.setdefault(question, answer), answer):
            raise DataError(
                f"{record.place}: the same question has two answers",
                got=f"{found[question][-60:]!r} and {answer[-60:]!r}",
                allowed="one right answer for each question",
            )
    return found


def _lookup(domain: Reasoning, stamped: int) -> dict[str, str]:
    """Question -> right answer. Read once: ``reasons`` is asked for every row."""
    return _looked_up(domain.model_dump_json(), stamped)


def _lab(rng: Random) -> str:
    # As the world draws them: second numbers of at most 3, and nothing below zero.
    a, b, verb = int(rng.integers(1, 10)), int(rng.integers(1, 4)), choose(rng, ("gets", "loses"))
    if verb == "loses" and b > a:
        a, b = b, a
    goods = choose(rng, world.GOODS)
    return f"{choose(rng, world.PEOPLE)} has {a} {goods} and {verb} {b}. how many {goods}?"


def _lab_answer(text: str) -> str | None:
    match = _LAB.fullmatch(text)
    if match is None or match[2] != match[5]:
        return None
    a, b = int(match[1]), int(match[4])
    return str(a + b if match[3] == "gets" else a - b)


def _real(rng: Random) -> str:
    problem = choose(rng, _PROBLEMS)
    numbers = {name: int(rng.integers(low, high + 1)) for name, (low, high) in problem.ranges.items()}
    return problem.text.format(name=choose(rng, _NAMES), goods=choose(rng, _GOODS), **numbers)


def _real_answer(text: str) -> str | None:
    for problem, pattern in zip(_PROBLEMS, _patterns(), strict=True):
        if match := pattern.fullmatch(text):
            return str(problem.solve(*(int(match[name]) for name in "abc")))
    return None


@cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    """The problems as patterns, so that the right answer is worked out from what the prompt says."""

    def slot(match: re.Match[str]) -> str:
        name = match[1]
        return rf"(?P<{name}>\d{{1,4}})" if name in "abc" else r"\w+"

    return tuple(re.compile(re.sub(r"\\\{(\w+)\\\}", slot, re.escape(problem.text)), re.ASCII) for problem in _PROBLEMS)
