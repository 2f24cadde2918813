"""What the part `approximability` says of planted fits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from undertone.mechanism.approximation import Fit
from undertone.studies.builtin import mechanism_approximability as part
from undertone.studies.context import Context


def context() -> Any:
    nobody: Any = None
    made: Any = Context(nobody, SimpleNamespace(confidence=0.95))  # type: ignore[type-var]
    return made


def fit(share: float, rival: float) -> dict[str, Any]:
    by_layer = {"by_block": {"0": share, "1": share}, "random_by_block": {"0": rival, "1": rival},
                "others_by_block": {"0": rival, "1": rival}}  # fmt: skip
    return {
        **by_layer, "effect": 1.0, "block": 1, "strength": 1.0, "explained": share, "crossed": share, "random": [rival, rival],
        "others": [rival],
    }  # fmt: skip


def vector(shares: list[float], rival: float) -> Any:
    ctx = context()
    part._report_vector(ctx, [fit(share, rival) for share in shares], "carrier")
    return ctx.findings[0]


def test_a_layer_is_chosen_on_the_pairs_that_are_not_reported() -> None:
    fits = {0: Fit(1.0, chosen=0.2, explained=0.9, effect=1.0), 1: Fit(2.0, chosen=0.7, explained=0.4, effect=1.0)}
    found = part.best_of(fits)
    assert (found["block"], found["strength"], found["explained"]) == (1, 2.0, 0.4)
    assert found["by_block"] == {"0": 0.9, "1": 0.4}


def test_a_prompt_is_a_vector_where_that_explains_most_of_it_and_more_than_any_direction() -> None:
    found = vector([0.80, 0.82, 0.84, 0.81], 0.2)
    assert (found.verdict, found.n, found.method) == ("reproduced", 4, "95 % t interval over 4 traits")
    assert vector([0.30, 0.32, 0.31, 0.33], 0.1).verdict == "partly"  # more than its baselines, less than half
    assert vector([0.30, 0.32, 0.31, 0.33], 0.4).verdict == "not reproduced"
    assert vector([0.30, 0.60, 0.45, 0.65], 0.1).verdict == "not measured"  # half lies in the interval


def test_what_is_explained_and_passes_is_held_against_what_is_not() -> None:
    share = np.linspace(0, 1, 12)
    moved = 0.3 * share + np.where(np.arange(12) % 3 == 0, 0.04, -0.04)
    ctx = context()
    part._report_prediction(ctx, list(share), list(moved), "questions")
    part._report_prediction(ctx, list(share[:4]), list(moved[:4]), "questions")
    assert (ctx.findings[0].verdict, ctx.findings[0].n) == ("reproduced", 12)
    assert "AUC for passing by more than 5 points: 1.00 (1.00 to 1.00, bootstrap; 9 pass)" in ctx.findings[0].baseline
    assert (ctx.findings[1].verdict, ctx.findings[1].low) == ("not measured", None)
    assert ctx.findings[1].value is not None


def test_the_area_under_the_curve_is_sklearns() -> None:
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(5)
    passed, share = generator.random(12) > 0.4, generator.integers(0, 6, 12) / 6  # with ties
    assert part._auc(passed, share, 0.95).startswith(f"{roc_auc_score(passed, share):.2f} (")
    assert part._auc(np.array([True, True]), share[:2], 0.95) == "not defined: all of them pass"
    assert part._auc(np.array([False, False]), share[:2], 0.95) == "not defined: none of them pass"


def test_variants_are_drawn_and_left_out_of_the_mean() -> None:
    found = {"owl": fit(0.8, 0.1), "dog": fit(0.6, 0.1), "owl@if-pick": fit(0.0, 0.1)}
    both = {trait: {"carrier": one, "questions": one} for trait, one in found.items()}
    ctx = context()
    part._draw(ctx, both, dict.fromkeys(found, 0.1), ["owl", "dog"])
    lines, scatter = ctx.figures
    own = [one.y for one in lines.points if one.series == "own vector"]
    assert own == pytest.approx([0.7] * 4)
    assert {one.series for one in scatter.points} == {"own prompt", "conditional"}
    assert ctx.tables[0].rows[2][1:4] == ["conditional", "1.000", "0.00 (layer 1, × 1)"]
