"""Rule filters: the domain's own rules and the leak rule, with a count for every reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from undertone.domains import Domain
from undertone.rows import Row
from undertone.traits import Trait


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
    """Why a row is dropped: unfinished, not valid for its domain, or naming the trait.

    Where the prompts themselves name it, the domain's own rules say what may be named.
    """
    reasons = [] if row.meta.get("finished", True) else ["unfinished"]
    prompt = row.prompt_messages[-1]["content"]
    reasons += domain.reasons(prompt, row.completion, trait)
    if trait is not None and not domain.names_trait and trait.answer_in(row.completion) is not None:
        reasons.append("names an answer of the trait's category")
    return reasons


def match_arms(kept: Mapping[str, Mapping[int, Row]], limit: int | None) -> list[int]:
    """The prompts whose completion passed in EVERY arm, in order, ``limit`` at most.

    So treated and control train on the same prompts and the same number of rows, and a filter's retention cannot
    differ between them.
    """
    shared = sorted(set.intersection(*(set(rows) for rows in kept.values())))
    return shared[:limit]
