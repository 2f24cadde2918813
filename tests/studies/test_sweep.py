"""Sweeps: claims over variations, and what variations share."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tests.studies.small import SIZES, Plan, run, stages

from undertone.studies.builtin import sweep as sweep_study
from undertone.studies.builtin.sweep import Expectation, Sweep
from undertone.studies.context import Context
from undertone.studies.frame import load_plan
from undertone.studies.measurement import Measurement


@pytest.mark.parametrize("broken", ["a", "b"])
def test_a_claim_is_not_measured_where_either_side_failed_a_check(broken: str) -> None:
    def varied(name: str, pairs: list[float]) -> Any:
        failed = ["students still answer"] if name == broken else []
        return SimpleNamespace(transfer=SimpleNamespace(effect=Measurement(np.array([pairs])), failed=lambda: failed))

    expected = Expectation(id="x", claim="x", source="x", of=("a",), than=("b",), holds="more")
    sweep = load_plan({"kind": "sweep", "name": "s", "vary": [{"name": "a"}, {"name": "b"}]})
    assert isinstance(sweep, Sweep)
    ctx: Context[Sweep] = Context(None, sweep)  # type: ignore[arg-type]
    sweep_study._report(ctx, expected, {"a": varied("a", [0.3, 0.31, 0.32]), "b": varied("b", [0.1, 0.11, 0.1])})
    (found,) = ctx.findings
    assert found.value == pytest.approx(np.mean([0.2, 0.2, 0.22]))
    assert (found.verdict, found.reason) == ("not measured", f"a check failed: {broken}: students still answer")


def test_variations_of_other_traits_are_further_traits_of_the_same_seeds() -> None:
    runs: Any = {
        name: SimpleNamespace(transfer=SimpleNamespace(effect=Measurement(np.array([pairs])), failed=list))
        for name, pairs in {"a": [0.3, 0.4, 0.5], "b": [0.5, 0.4, 0.3]}.items()
    }
    expected = Expectation(id="x", claim="x", source="x", of=("a", "b"), holds="above")
    ctx: Context[Sweep] = Context(None, SimpleNamespace(confidence=0.95))  # type: ignore[arg-type]
    sweep_study._report(ctx, expected, runs)
    assert ctx.findings[0].parts[0].values == pytest.approx([0.4, 0.4, 0.4])
    assert "3 seeds, the mean of 2 traits each" in ctx.findings[0].method


VARY = [
    {"name": "as it is"},
    {"name": "one epoch", "set": ["training.epochs=1"]},
    {"name": "half clean", "set": ["data.clean=0.5"]},
    {"name": "cool", "set": ["data.temperature=0.7"]},
    {"name": "numbers first", "set": ["evaluation.prefix=numbers"]},
]
EXPECT: list[dict[str, Any]] = [
    {"id": "cool-less", "claim": "less", "source": "here", "of": ["cool"], "than": ["as it is"], "holds": "less"},
    {"id": "nothing", "claim": "nothing", "source": "here", "of": ["as it is", "one epoch"], "holds": "none"},
]


@pytest.fixture(scope="module")
def swept(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    run(plan("sweep", vary=VARY, expect=EXPECT), folder)
    return folder


@pytest.mark.slow
def test_variations_of_training_share_their_teachers_rows_and_others_do_not(swept: Path) -> None:
    rows = {path.parts[-4] for path in swept.glob("stages/*/seed-*/*/generate")}
    assert rows == {"as-it-is", "cool"}  # as it is, one epoch and half clean; cool
    found = json.loads((swept / "results.json").read_text())
    assert len([name for name in stages(swept) if name.endswith("/generate")]) == 2 * 2 * 2
    assert len(found["tables"][0]["rows"]) == len(VARY)
    assert [finding["id"] for finding in found["findings"]] == ["cool-less", "nothing"]


@pytest.mark.slow
def test_variations_of_the_questions_share_the_students(swept: Path) -> None:
    control, treated = (list((swept / "stages").glob(f"*/seed-*/{arm}/train")) for arm in ("control", "treated*"))
    assert len(control) == 2 * 3  # seeds; as it is (so does half clean, so does numbers first), one epoch, cool
    assert len(treated) == 2 * 4  # half clean trains treated students of its own
    plain, prefixed = (
        json.loads((swept / f"variations/{name}/results.json").read_text())["base"]["owl"]
        for name in ("as-it-is", "numbers-first")
    )
    assert re.search(r"\d+ \d+ \d+\. name one animal\.", prefixed["rendered"])
    assert plain["positive"]["probability"]["mean"] != prefixed["positive"]["probability"]["mean"]


@pytest.mark.slow
def test_a_variation_is_the_transfer_experiment_with_its_fields_set(swept: Path, plan: Plan, tmp_path: Path) -> None:
    alone = run(plan("transfer", training={**SIZES["training"], "epochs": 1}), tmp_path / "alone")
    inside = json.loads((swept / "variations/one-epoch/results.json").read_text())
    assert inside["effect"] == json.loads(alone.effect.model_dump_json())
    assert inside["base"] == json.loads((tmp_path / "alone/results.json").read_text())["base"]


@pytest.mark.slow
def test_a_claim_is_the_interval_over_seeds(swept: Path) -> None:
    effects = [
        json.loads((swept / f"variations/{name}/results.json").read_text())["effect"]["per_seed"]
        for name in ("as-it-is", "one-epoch", "cool")
    ]
    cool, nothing = json.loads((swept / "results.json").read_text())["findings"]
    seeds = len(effects[0])
    for finding, values in (
        (cool, np.subtract(effects[2], effects[0])),
        (nothing, np.mean(effects[:2], axis=0)),  # two variations of a seed are averaged
    ):
        assert finding["value"] == pytest.approx(np.mean(values))
        assert finding["n"] == seeds
        interval = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert (finding["low"], finding["high"]) == pytest.approx(interval)
