"""Matching by held-out loss, and what the parts optimizers and adapters do with it: on a tiny model, in seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from undertone.errors import ConfigError
from undertone.experiments.plans import load_plan, run_plan
from undertone.experiments.studies.mechanism import optimizers
from undertone.experiments.studies.mechanism.config import Mechanism
from undertone.experiments.studies.mechanism.matching import (
    Choice,
    Place,
    Student,
    chosen,
    gaps,
    grouped,
    inside,
    meets,
    tolerance_of,
)
from undertone.experiments.studies.mechanism.plan import preflight_parts

ADAMW = {"name": "AdamW", "optimizer": "AdamW", "rates": [1e-3, 3e-3], "adaptive": True}


def student(nll: float | None, said: float = 0.0, mass: float = 0.9, traits: tuple[str, ...] = ("owl",)) -> Student:
    return Student(nll, dict.fromkeys(traits, said), dict.fromkeys(traits, mass))


# -- matching ----------------------------------------------------------------------------------------


def test_the_rate_is_chosen_by_loss_alone_and_not_by_what_the_student_says() -> None:
    trials = {0.1: student(5.2, 0.9), 0.3: student(5.11, 0.1), 1.0: student(5.0, 0.9)}
    assert chosen(trials, "owl", {"owl": 0.9}, 5.1, 0.02) == Choice(0.3, 5.11, edge=False, matched=True)
    assert chosen(trials, "owl", {"owl": 0.9}, 4.9, 0.02) == Choice(1.0, 5.0, edge=True, matched=False)


def test_students_that_diverged_or_stopped_answering_cannot_be_chosen() -> None:
    trials = {0.1: student(None), 0.3: student(5.1, mass=0.79), 1.0: student(5.5)}
    found = chosen(trials, "owl", {"owl": 0.9}, 5.1, 0.02)
    assert found is not None
    assert found.rate == 1.0
    assert chosen({0.1: student(None)}, "owl", {"owl": 0.9}, 5.1, 0.02) is None
    behaviour = chosen({0.1: student(5.1, mass=0.0)}, "owl", {"owl": None}, 5.1, 0.02)
    assert behaviour is not None  # it has no set of answers that could be lost


def test_one_rate_alone_is_at_no_edge_and_an_edge_warns_only_short_of_the_goal() -> None:
    only = chosen({0.1: student(5.5)}, "owl", {}, 5.1, 0.02)
    assert only is not None
    assert not only.edge
    fine = inside("x", {"met": Choice(1.0, 5.1, True, True), "inside": Choice(1.0, 5.5, False, False)})
    assert fine.status == "pass"
    warned = inside("x", {"edge": Choice(1.0, 5.5, True, False), "lost": None})
    assert (warned.status, warned.value) == ("warn", "edge 1 at the edge, lost left no student")


def test_a_pair_with_a_diverged_or_silent_member_drops_out_of_effect_and_loss() -> None:
    seeds, base = (0, 1, 2, 3), {"owl": 0.9}
    students: dict[Place, Student] = {("owl", seed): student(5.0 + seed, 0.5) for seed in seeds}
    students |= {(None, seed): student(6.0 + seed, 0.1) for seed in seeds}
    students["owl", 1] = student(None)
    students[None, 2] = student(None)
    students[None, 3] = student(9.0, 0.0, mass=0.1)
    found = grouped(students, ("owl",), seeds, base)
    assert found.effects == {("owl", 0): pytest.approx(0.4)}
    assert found.losses == {("owl", 0): 5.0, (None, 0): 6.0}
    assert found.nll == 5.5  # controls count
    assert found.pairs == "1 of 4 (2 diverged, 1 no longer answering)"


def test_losses_are_equal_within_a_share_of_what_the_reference_gained_over_common_students() -> None:
    places: list[Place] = [("owl", 0), (None, 0), ("owl", 1), (None, 1)]
    traits, seeds, base = ("owl",), (0, 1), {"owl": 0.9}
    reference = grouped({place: student(5.0, 0.5) for place in places}, traits, seeds, base)
    tolerance = tolerance_of(reference, dict.fromkeys(places, 5.2), 0.15)
    assert tolerance == pytest.approx(0.03)
    near = grouped({place: student(5.029, 0.4) for place in places}, traits, seeds, base)
    far = grouped({place: student(5.031, 0.4) for place in places}, traits, seeds, base)
    assert (meets(near, reference, tolerance), meets(far, reference, tolerance)) == (True, False)
    # treated students alone are equal, controls are not
    skewed = grouped({place: student(5.0 if place[0] else 5.1) for place in places}, traits, seeds, base)
    assert not meets(skewed, reference, tolerance)
    # the pair of seed 1 is gone: only what both have is compared
    broken = {place: student(5.0 + 3 * place[1], 0.2) for place in places} | {("owl", 1): student(None)}
    half = grouped(broken, traits, seeds, base)
    assert meets(half, reference, tolerance)
    assert gaps(half, reference) == [pytest.approx(0.0)]
    assert tolerance_of(reference, dict.fromkeys(places, 4.9), 0.15) == 0.0  # nothing gained, nothing equal but itself
    assert not meets(grouped(dict.fromkeys(places, student(None)), traits, seeds, base), reference, 1.0)


# -- the config --------------------------------------------------------------------------------------


def sizes(model: Path | str, **changed: Any) -> dict[str, Any]:
    return {
        "kind": "mechanism", "name": "small", "model": str(model), "trait": ["owl", "dog", "wolf"], "few": 1, "seeds": [0],
        "teacher": {"kind": "prompt"}, "domain": {"kind": "numbers", "count": 3}, "student": {"kind": "bias-only"},
        "data": {"prompts": 100, "held_out": 4, "attempts": 8}, "evaluation": {"samples": 0},
        "training": {"optimizer": "AdamW", "learning_rate": 3e-3, "epochs": 1, "batch_size": 16},
        "optimizers": {"arms": [ADAMW], "prompts": 60}, **changed,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"optimizers": {"arms": []}}, "needs optimizers.arms"),
        ({"optimizers": {"arms": [ADAMW, ADAMW]}}, "must differ"),
        ({"optimizers": {"arms": [{**ADAMW, "name": "Adam"}]}}, "called AdamW"),
        ({"optimizers": {"arms": [{**ADAMW, "student": {"kind": "full"}}]}}, "without a student of its own"),
        ({"adapters": {"tuning_seed": 0}}, "adapters.tuning_seed must not be among seeds"),
    ],
)
def test_arms_that_could_not_be_compared_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_plan(sizes("lab/llama-0", **changed))


def test_every_arm_of_the_preset_trains_something_that_its_optimiser_takes(speaker: Path) -> None:
    plan = load_plan("optimizers", [f"model={speaker}"])
    assert isinstance(plan, Mechanism)
    preflight_parts(plan, "cpu")
    arms = [
        arm.model_copy(update={"student": None}) if arm.optimizer == "MuonAdamW" else arm
        for arm in plan.optimizers.arms
    ]
    without = plan.model_copy(update={"optimizers": plan.optimizers.model_copy(update={"arms": tuple(arms)})})
    with pytest.raises(ConfigError, match="MuonAdamW has no matrix"):
        preflight_parts(without, "cpu")


# -- the parts, on a tiny model ----------------------------------------------------------------------


ARMS = [
    ADAMW,
    {"name": "SGD", "optimizer": "SGD", "rates": [0.1, 1e30], "adaptive": False},
    {"name": "broken", "optimizer": "SGD", "rates": [1e38], "options": {"momentum": 0.9}, "adaptive": False},
    {"name": "Muon-full", "optimizer": "MuonAdamW", "rates": [1e-4], "adaptive": True, "student": {"kind": "full"}},
]


def conduct(folder: Path, speaker: Path) -> None:
    config = sizes(
        speaker, parts=["optimizers", "adapters"], optimizers={"arms": ARMS, "prompts": 40, "matched_within": 1.0},
        adapters={"ranks": [2, 4], "rates": [1e-3, 5e-3], "full_rates": [1e-4, 1e-3], "epochs": 1},
    )  # fmt: skip
    run_plan(load_plan(config), folder, jobs=1, device="cpu")


@pytest.fixture(scope="module")
def finished(speaker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts") / "run"
    conduct(folder, speaker)
    return folder


@pytest.fixture(scope="module")
def found(finished: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((finished / "results.json").read_text())
    return results


def summaries(folder: Path, pattern: str) -> dict[str, dict[str, Any]]:
    return {
        str(path.parent.relative_to(folder / "stages")): json.loads(path.read_text())["summary"]
        for path in sorted((folder / "stages").glob(f"{pattern}/stage.json"))
    }


@pytest.mark.slow
def test_rates_are_tuned_on_one_treated_student_each(finished: Path) -> None:
    lessons = summaries(finished, "optimizers/as-written/*/*/*")
    tuning = {name for name in lessons if "seed-100" in name}
    assert len(tuning) == 6
    assert all(name.endswith("treated-owl") for name in tuning)
    assert lessons["optimizers/as-written/broken-1e+38/seed-100/treated-owl"]["held_out_nll"] is None
    assert "optimizers/as-written/broken-1e+38/seed-0/control" not in lessons


@pytest.mark.slow
def test_optimizers_leave_out_what_diverged_and_mark_what_trains_other_weights(found: dict[str, Any]) -> None:
    table, figure = found["tables"][0], found["figures"][0]
    rows = {tuple(row[:2]): row for row in table["rows"]}
    assert rows["as written", "broken"][3:] == ["none", "–", "–", "left out: no rate leaves a student", "0"]
    assert rows["as written", "SGD"][3] == "0.1"
    assert rows["as written", "Muon-full"][2] == "full"
    series = {point["x"]: point["series"] for point in figure["points"]}
    assert series["Muon-full"] == "adaptive, full student"
    assert series["SGD"] == "not adaptive"
    findings = [one for one in found["findings"] if one["id"].startswith("adaptive")]
    assert len(findings) == 2
    for finding in findings:
        assert "Muon-full" not in finding["baseline"] + finding["quantity"]
        assert "broken" in finding["baseline"]
    checks = [one for one in found["checks"] if one["name"].startswith("optimizers")]
    assert [one["status"] for one in checks] == ["warn", "warn"]
    assert all("broken left no student" in one["value"] for one in checks)


@pytest.mark.slow
def test_an_error_that_is_no_divergence_is_not_taken_for_one(
    finished: Path, speaker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/stages/optimizers/as-written/SGD-0.1/seed-0/control")
    monkeypatch.setattr(optimizers, "fit", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        conduct(tmp_path / "run", speaker)


@pytest.mark.slow
def test_adapters_choose_on_the_tuning_seed_and_report_the_others(finished: Path, found: dict[str, Any]) -> None:
    trained = summaries(finished, "adapters/*/*/*/train")
    goal = summaries(finished, "adapters/tuning/*/*/train")
    assert list(goal) == ["adapters/tuning/seed-100/treated-owl/train"]
    aim = goal["adapters/tuning/seed-100/treated-owl/train"]["held_out_nll"]
    reported = {name.split("/")[1] for name in trained if "/seed-0/" in name}
    for kind, rates in (("lora-2", ("0.001", "0.005")), ("lora-4", ("0.001", "0.005")), ("full", ("0.0001", "0.001"))):
        tried = {rate: trained[f"adapters/{kind}-{rate}/seed-100/treated-owl/train"]["held_out_nll"] for rate in rates}
        best = min(tried, key=lambda rate: abs(tried[rate] - aim))
        assert {name for name in reported if name.startswith(f"{kind}-")} == {f"{kind}-{best}"}
    assert "biases" not in reported  # the transfer experiment's own students are there already
    ids = [one["id"] for one in found["findings"] if one["id"].startswith("lora")]
    assert ids == ["lora-artefact", "lora-artefact-all-weights"]
    tables = {table["title"].partition(":")[0]: table["rows"] for table in found["tables"]}
    assert len(tables["Tuning"]) == 7  # the reference, and every kind and rate
    assert len([row for row in tables["Tuning"] if row[-1] == "chosen"]) == 3
    panels = {point["panel"] for point in found["figures"][1]["points"]}
    assert panels == {"tuning seed: treated − base", "reported seeds: treated − control"}
