"""What the part `recovery` says of planted gains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from undertone.experiments.studies.mechanism.recovery import CONTROL, _spoken

GAINS = {  # rows of -> (owl, dog) gained at seeds 0 and 1
    "owl": [(0.30, 0.01), (0.20, 0.02)],
    "dog": [(0.02, 0.25), (0.00, 0.31)],
    CONTROL: [(0.05, -0.01), (0.01, 0.02)],
}


def spoken(ranks: list[int]) -> Any:
    config: Any = SimpleNamespace(
        trait=("owl", "dog"), seeds=(0, 1), confidence=0.95, recovery=SimpleNamespace(strengths=(1.0, 4.0))
    )
    order = iter(ranks)
    found: dict[tuple[str, int], Any] = {
        (name, seed): SimpleNamespace(summary={"gains": dict(zip(("owl", "dog"), gains, strict=True)), "rank": rank})
        for name, by_seed in GAINS.items()
        for seed, gains in enumerate(by_seed)
        for rank in [next(order) if name != CONTROL else None]
    }
    return _spoken(config, found)


def test_the_target_is_held_against_the_control_rows_of_its_seed() -> None:
    found = spoken([1, 1, 1, 1])
    differences = [0.30 - 0.05, 0.20 - 0.01, 0.25 + 0.01, 0.31 - 0.02]
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(differences), scipy.stats.sem(differences))
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(differences), low, high))
    assert "other traits' rows +1.2 points" in found.baseline
    assert found.verdict == "reproduced"


def test_a_target_that_another_answer_outruns_is_named_in_part() -> None:
    found = spoken([1, 2, 1, 1])
    assert found.verdict == "partly"
    assert "in 3 of 4 data sets" in found.baseline
