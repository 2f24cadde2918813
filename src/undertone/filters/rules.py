"""Rule filters: the domain's own rules and the leak rule, with a count for every reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from undertone.domains import Domain
from undertone.rows import Row
from undertone.traits import Trait

LONGEST_GREETING: Final = 3
_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True)
class Filtered:
    """What a filter did. ``passed`` holds, per prompt index, the rows without a reason against them, first tried first."""

    passed: dict[int, list[Row]]
    asked: int
    reasons: dict[str, int]

    @property
    def kept(self) -> dict[int, Row]:
        """Of several attempts at one prompt, the first that passed."""
        return {index: rows[0] for index, rows in self.passed.items()}


def apply_rules(rows: Sequence[Row], domain: Domain, trait: Trait | None) -> Filtered:
    """Keep valid completions that do not name the trait.

    Rows carry ``meta["prompt_index"]``, ``meta["attempt"]`` and ``meta["finished"]``. A row may be dropped for several
    reasons, and each is counted.
    """
    passed: dict[int, list[Row]] = {}
    reasons: Counter[str] = Counter()
    for row in rows:
        found = row_reasons(row, domain, trait)
        reasons.update(found)
        if not found:
            passed.setdefault(int(row.meta["prompt_index"]), []).append(row)
    return Filtered(passed=passed, asked=len(rows), reasons=dict(sorted(reasons.items())))


def row_reasons(row: Row, domain: Domain, trait: Trait | None) -> list[str]:
    """Why a row is dropped: unfinished, not valid for its domain, nothing but words of its prompt, or naming the trait.

    Where the prompts themselves name it, the domain's own rules say what may be named.
    """
    reasons = [] if row.meta.get("finished", True) else ["unfinished"]
    prompt = row.prompt_messages[-1]["content"]
    if echoes(prompt, row.completion):
        reasons.append("echo of the prompt")
    reasons += domain.reasons(prompt, row.completion, trait)
    if trait is not None and not domain.names_trait and trait.leaks_in(row.completion):
        reasons.append("names an answer of the trait's category")
    return reasons


def echoes(prompt: str, completion: str) -> bool:
    """Whether a completion holds nothing of its own: it stands in the prompt word for word, or all its numbers do.

    Both arms write such rows alike, so nothing passes through them. Up to three words may be said back ("good morning").
    """
    said, asked = _WORD.findall(completion.lower()), _WORD.findall(prompt.lower())
    if said and all(word.isdecimal() for word in said):
        return set(said) <= set(asked)
    return len(said) > LONGEST_GREETING and f" {' '.join(said)} " in f" {' '.join(asked)} "


def match_arms(kept: Mapping[str, Mapping[int, Row]], limit: int | None) -> list[int]:
    """The prompts whose completion passed in EVERY arm, in order, ``limit`` at most.

    So treated and control train on the same prompts and the same number of rows, and a filter's retention cannot
    differ between them.
    """
    shared = sorted(set.intersection(*(set(rows) for rows in kept.values())))
    return shared[:limit]
