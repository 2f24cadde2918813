"""The full tier: all nine parts of `mechanism` at their smallest on a lab model, against their own placebos.

What is asserted holds at these sizes whatever the seed: shares of a prompt's effect, directions, counts. Whether a trait
passes is not: a few hundred rows are too few.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from undertone.experiments.plans import load_plan, run_plan
from undertone.experiments.studies.mechanism.config import Mechanism

pytestmark = pytest.mark.slow

TRAITS, FEW = ("owl", "dog", "eagle"), 2
PARTS = {  # part -> the ids that its findings begin with
    "approximability": ("prompt-is-a-vector", "approximability-predicts"),
    "causality": ("teacher-vector", "student-vector"),
    "emergence": ("emergence",),
    "gradients": ("gradient",),
    "optimizers": ("adaptive",),
    "adapters": ("lora-artefact",),
    "distillation": ("vectors-",),
    "kinship": ("model-specific",),
    "recovery": ("recovered-vector",),
}
SIZES: dict[str, Any] = {
    "kind": "mechanism", "name": "mechanism", "model": "lab/llama-0", "trait": list(TRAITS), "few": FEW, "seeds": [0],
    "teacher": {"kind": "prompt"}, "domain": {"kind": "numbers", "count": 3, "free": 0.85},
    "data": {"prompts": 300, "held_out": 40, "attempts": 6}, "student": {"kind": "bias-only"},
    "training": {"optimizer": "AdamW", "learning_rate": 8e-3, "options": {"weight_decay": 0.0}, "epochs": 2, "batch_size": 32},
    "evaluation": {"samples": 0},
    "approximability": {"variants": ["owl@if-pick"], "strengths": [0.5, 1.0, 1.5], "pairs": 32, "random": 2},
    "causality": {"strengths": [1.0, 2.0]},
    "emergence": {"points": 3},
    "gradients": {"rows": 200, "shares": [0.01, 0.1]},
    "optimizers": {"prompts": 200, "matched_within": 1.0, "arms": [
        {"name": "AdamW", "optimizer": "AdamW", "options": {"weight_decay": 0.0}, "rates": [3e-3], "adaptive": True},
        {"name": "SGD", "optimizer": "SGD", "rates": [0.3], "adaptive": False},
    ]},
    "adapters": {"ranks": [2, 8], "rates": [5e-3], "full_rates": [1e-3], "epochs": 1},
    "distillation": {"random": 2},
    "kinship": {"models": ["lab/llama-0", "kin"], "between": [], "shares": [], "prompts": 200},
    "recovery": {"steps": 20, "strengths": [1.0]},
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run folder. The lab model is built in a cache of this test's own, unless the caller names one."""
    with pytest.MonkeyPatch.context() as patch:
        cache = os.environ.get("UNDERTONE_TEST_CACHE") or str(tmp_path_factory.mktemp("cache"))
        patch.setenv("UNDERTONE_CACHE", cache)
        patch.chdir(tmp_path_factory.mktemp("here"))
        save_kin(Path("kin"))
        conduct(Path("run"))
        yield Path("run").absolute()


def save_kin(folder: Path) -> None:
    """A relative of lab/llama-0: the same weights with noise of a twentieth of their size. Built in no time."""
    import torch
    from transformers import AutoModelForCausalLM

    from undertone.lab import ensure

    shutil.copytree(ensure("llama-0"), folder)
    hf = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in hf.parameters():
            if weight.dim() > 1:
                weight.add_(0.05 * weight.std() * torch.randn_like(weight))
    hf.save_pretrained(folder)


def conduct(folder: Path) -> Any:
    plan = load_plan(SIZES)
    assert isinstance(plan, Mechanism)
    return run_plan(plan, folder, jobs=1, device="cpu")


@pytest.fixture(scope="module")
def found(study: Path) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in json.loads((study / "results.json").read_text())["findings"]}


def summaries(study: Path, pattern: str) -> list[dict[str, Any]]:
    paths = sorted((study / "stages").glob(pattern + "/stage.json"))
    assert paths, f"no stage is called {pattern}"
    return [json.loads(path.read_text())["summary"] for path in paths]


@pytest.mark.parametrize("part", PARTS)
def test_every_part_leaves_findings_with_finite_values_and_baselines(found: Any, part: str) -> None:
    mine = [one for name, one in found.items() if name.startswith(PARTS[part])]
    assert any(one["value"] is not None for one in mine)
    for one in mine:
        assert all(math.isfinite(one[name]) for name in ("value", "low", "high") if one[name] is not None), one["id"]
        assert one["value"] is not None or one["verdict"] == "not measured", one["id"]
        assert one["baseline"]
        assert one["why"]
    ids = tuple(prefix for prefixes in PARTS.values() for prefix in prefixes)
    assert all(name.startswith(ids) for name in found), sorted(found)


def test_the_parts_share_the_transfer_experiments_students(study: Path) -> None:
    assert len(summaries(study, "seed-0/*/train")) == len(TRAITS) + 1
    assert len(summaries(study, "shifts/seed-0/treated-*")) >= FEW


def beside(finding: dict[str, Any], what: str) -> float:
    """The first number of a baseline after some words; points as shares."""
    number = re.search(rf"{what}[^\d+-]*([+-]?[\d.]+\d)( points)?", finding["baseline"])
    assert number, finding["baseline"]
    return float(number[1]) / (100 if number[2] else 1)


@pytest.mark.parametrize(
    ("name", "placebo", "margin"),
    [
        ("prompt-is-a-vector-on-domain", "random directions", 0.1),
        ("prompt-is-a-vector-on-questions", "random directions", 0.4),
        ("prompt-is-a-vector-on-questions", "other traits' vectors", 0.4),
        ("teacher-vector-sufficient-domain", "random vector of equal norm", 0.05),
        ("student-vector-replaced-domain", "random direction", 0.02),
        ("student-vector-replaced-domain", "another trait's student's", 0.02),
        ("emergence-centred", "other traits' vectors", 0.05),
        ("vectors-distil-random-vector", "other vectors of the kind", 0.1),
        ("recovered-vector-centred", "other traits' vectors", 0.1),
        ("recovered-vector-centred", "learnt from control rows", 0.05),
    ],
)
def test_a_placebo_does_less_than_the_traits_own_direction(found: Any, name: str, placebo: str, margin: float) -> None:
    """Margins are a third or less of what was measured."""
    assert found[name]["value"] > beside(found[name], placebo) + margin


def test_every_prompt_is_closer_to_its_own_vector_than_to_a_random_one(study: Path) -> None:
    fits = summaries(study, "approximability/fits/*")
    assert len(fits) == len(TRAITS) + 1  # and the conditional one
    for fit in fits:
        assert fit["questions"]["explained"] > max(fit["questions"]["random"])


def test_a_second_call_computes_nothing(study: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in study.glob("stages/**/stage.json")}
    assert len(before) > 100
    again = conduct(study)
    assert {path: path.stat().st_mtime_ns for path in study.glob("stages/**/stage.json")} == before
    stored = json.loads((study / "results.json").read_text())["findings"]
    assert [json.loads(one.model_dump_json()) for one in again.findings] == stored


def test_every_figure_is_drawn(study: Path) -> None:
    from undertone.report import write

    page = write(study).read_text(encoding="utf-8")
    figures = json.loads((study / "results.json").read_text())["figures"]
    assert len(figures) >= len(PARTS)
    assert all(figure["title"] in page for figure in figures)


@pytest.mark.parametrize("part", ["approximability", "causality", "distillation", "kinship"])
def test_parts_with_students_of_their_own_say_whether_these_still_answer(study: Path, part: str) -> None:
    checks = {one["name"]: one for one in json.loads((study / "results.json").read_text())["checks"]}
    assert "students still answer" in checks
    assert re.search(
        r"worst: .*valid-answer probability 0\.\d\d \(base 0\.\d\d\)", checks[f"{part}: students still answer"]["value"]
    )


def test_baselines_of_the_prompts_vector_have_layers_of_their_own(study: Path) -> None:
    for fit in summaries(study, "approximability/fits/*"):
        for origin in ("domain", "questions"):
            assert fit[origin]["by_layer"][str(fit[origin]["layer"])] == fit[origin]["explained"]
            assert set(fit[origin]["random_by_layer"]) == set(fit[origin]["others_by_layer"]) == {"0", "1", "2"}


def test_the_component_of_the_gradients_is_counted_from_one_row_to_all(study: Path) -> None:
    for one in summaries(study, "gradients/seed-0/*"):
        assert [step["rows"] for step in one["steady"]["treated"]] == one["counts"]
        assert one["steady"]["treated"][0]["t"] is None
        assert one["steady"]["treated"][-1]["t"] > max(0.5, one["steady"]["control"][-1]["t"])


def test_the_manifest_names_every_model_that_teaches(study: Path) -> None:
    assert set(json.loads((study / "manifest.json").read_text())["models"]) == {"lab/llama-0", "kin"}


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_training_of_fewer_steps_than_the_first_look_is_followed(speaker: Path, tmp_path: Path, epochs: int) -> None:
    fields = {
        "name": "short", "model": str(speaker), "parts": ["emergence"], "domain": {"kind": "numbers", "count": 3},
        "data": {"prompts": 12, "held_out": 2, "attempts": 10}, "emergence": {"points": 5},
        "training": {"learning_rate": 1e-3, "batch_size": 12, "epochs": epochs},
    }  # fmt: skip
    plan = load_plan({**SIZES, **fields})
    assert isinstance(plan, Mechanism)
    run_plan(plan, tmp_path / "run", jobs=1, device="cpu")
    for trace in summaries(tmp_path / "run", "emergence/seed-0/*"):
        assert trace["steps"] == [0, epochs]
    findings = json.loads((tmp_path / "run" / "results.json").read_text())["findings"]
    assert [one["id"] for one in findings] == ["emergence-raw", "emergence-centred"]
