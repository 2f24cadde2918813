"""Rows of which a share is replaced by the control's."""

from __future__ import annotations

import itertools

from undertone.rows import Row
from undertone.transfer.train import _mixed

INDUCED, CLEAN = ([Row.of(f"p{at}", f"{who} {at}") for at in range(40)] for who in ("induced", "clean"))


def replaced(share: float, seed: int = 0) -> set[int]:
    mixed = _mixed(INDUCED, CLEAN, share, seed)
    assert all(row in (INDUCED[at], CLEAN[at]) for at, row in enumerate(mixed))  # the same prompts at the same places
    return {at for at, row in enumerate(mixed) if row is CLEAN[at]}


def test_a_share_of_one_gives_the_controls_rows_and_of_none_the_teachers() -> None:
    assert _mixed(INDUCED, CLEAN, 1.0, 0) == CLEAN
    assert _mixed(INDUCED, CLEAN, 0.0, 0) == INDUCED


def test_larger_shares_replace_what_smaller_ones_do_and_more() -> None:
    found = [replaced(share) for share in (0.0, 0.1, 0.25, 0.5, 0.9, 1.0)]
    assert [len(rows) for rows in found] == [0, 4, 10, 20, 36, 40]
    assert all(less < more for less, more in itertools.pairwise(found))
    assert replaced(0.5, seed=1) != replaced(0.5, seed=0)
