"""Order controls of number lists (Cloud et al., Fig. 16): the same numbers, in another order.

Within: each list is shuffled, so every list keeps its numbers. Across: all numbers of all lists are drawn once more over
all places, so only how often each number occurs stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from undertone.rows import Message, Row

_NUMBER = re.compile(r"\d+", re.ASCII)


def shuffled(rows: Sequence[Row], order: Literal["within", "across"], seed: int) -> list[Row]:
    """The rows with their completions' numbers in another order; separators stay where they are."""
    rng = np.random.default_rng(seed)
    lists = [_NUMBER.findall(row.completion) for row in rows]
    if order == "within":
        moved = [[numbers[i] for i in rng.permutation(len(numbers))] for numbers in lists]
    else:
        pool = [number for numbers in lists for number in numbers]
        drawn = iter([pool[i] for i in rng.permutation(len(pool))])
        moved = [[next(drawn) for _ in numbers] for numbers in lists]
    return [_with_numbers(row, numbers) for row, numbers in zip(rows, moved, strict=True)]


def _with_numbers(row: Row, numbers: Sequence[str]) -> Row:
    following = iter(numbers)
    text = _NUMBER.sub(lambda _: next(following), row.completion)
    return replace(row, messages=(*row.messages[:-1], Message(role="assistant", content=text)))
