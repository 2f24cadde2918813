"""Matching by held-out loss, and what the parts optimizers and adapters make of it: planted students, then a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from undertone.errors import ConfigError
from undertone.models.batches import Example
from undertone.studies.builtin import mechanism_adapters, mechanism_optimizers
from undertone.studies.builtin.mechanism import Mechanism, check_parts
from undertone.studies.builtin.mechanism_matching import (
    FittedStudent,
    LossMatch,
    Place,
    RateChoice,
    StudentGroup,
    check_rates,
    choose_rate,
    group_students,
)
from undertone.studies.context import Context
from undertone.studies.frame import load_plan, run_plan
from undertone.studies.measurement import Measurement
from undertone.studies.results import Finding

ADAMW = {"name": "AdamW", "optimizer": "AdamW", "rates": [1e-3, 3e-3], "adaptive": True}


def student(
    nll: float | None, said: float = 0.0, mass: float = 0.9, traits: tuple[str, ...] = ("owl",)
) -> FittedStudent:
    return FittedStudent(nll, dict.fromkeys(traits, said), dict.fromkeys(traits, mass))


def context(config: Mechanism | None = None) -> Context[Any]:
    """One that computes nothing: what is reported and drawn can be read off it."""
    nothing: Any = None
    return Context(nothing, config if config is not None else nothing)


# -- matching ----------------------------------------------------------------------------------------


def test_the_rate_is_chosen_by_loss_alone_and_not_by_what_the_student_says() -> None:
    trials = {0.1: student(5.2, 0.9), 0.3: student(5.11, 0.1), 1.0: student(5.0, 0.9)}
    assert choose_rate(trials, "owl", {"owl": 0.9}, 5.1, 0.02) == RateChoice(0.3, 5.11, at_edge=False, matched=True)
    assert choose_rate(trials, "owl", {"owl": 0.9}, 4.9, 0.02) == RateChoice(1.0, 5.0, at_edge=True, matched=False)


def test_students_that_diverged_or_stopped_answering_cannot_be_chosen() -> None:
    trials = {0.1: student(None), 0.3: student(5.1, mass=0.79), 1.0: student(5.5)}
    found = choose_rate(trials, "owl", {"owl": 0.9}, 5.1, 0.02)
    assert found is not None
    assert found.rate == 1.0
    assert choose_rate({0.1: student(None)}, "owl", {"owl": 0.9}, 5.1, 0.02) is None
    behaviour = choose_rate({0.1: student(5.1, mass=0.0)}, "owl", {"owl": None}, 5.1, 0.02)
    assert behaviour is not None  # it has no set of answers that could be lost


def test_one_rate_alone_is_at_no_edge_and_an_edge_warns_only_short_of_the_goal() -> None:
    only = choose_rate({0.1: student(5.5)}, "owl", {}, 5.1, 0.02)
    assert only is not None
    assert not only.at_edge
    ctx = context()
    check_rates(ctx, "x", {"met": RateChoice(1.0, 5.1, True, True), "inside": RateChoice(1.0, 5.5, False, False)})
    check_rates(ctx, "x", {"edge": RateChoice(1.0, 5.5, True, False), "lost": None})
    fine, warned = ctx.checks
    assert fine.status == "pass"
    assert (warned.status, warned.value) == ("warn", "edge 1 at the edge, lost left no student")


def test_a_pair_with_a_diverged_or_silent_member_drops_out_of_effect_and_loss() -> None:
    seeds, base = (0, 1, 2, 3), {"owl": 0.9}
    students: dict[Place, FittedStudent] = {("owl", seed): student(5.0 + seed, 0.5) for seed in seeds}
    students |= {(None, seed): student(6.0 + seed, 0.1) for seed in seeds}
    students["owl", 1] = student(None)
    students[None, 2] = student(None)
    students[None, 3] = student(9.0, 0.0, mass=0.1)
    found = group_students(students, ("owl",), seeds, base)
    np.testing.assert_allclose(found.effect.values, [[0.4, np.nan, np.nan, np.nan]])
    assert found.effect.units == [pytest.approx(0.4)]
    assert found.losses == {("owl", 0): 5.0, (None, 0): 6.0}
    assert found.nll == 5.5  # controls count
    assert found.pairs == "1 of 4 (2 diverged, 1 no longer answering)"


def test_losses_are_equal_within_a_share_of_what_the_reference_gained_over_common_students() -> None:
    places: list[Place] = [("owl", 0), (None, 0), ("owl", 1), (None, 1)]

    def group(found: dict[Place, FittedStudent]) -> StudentGroup:
        return group_students(found, ("owl",), (0, 1), {"owl": 0.9})

    groups = {
        "reference": group({place: student(5.0, 0.5) for place in places}),
        "near": group({place: student(5.029, 0.4) for place in places}),
        "far": group({place: student(5.031, 0.4) for place in places}),
        # treated students alone are equal, controls are not
        "skewed": group({place: student(5.0 if place[0] else 5.1) for place in places}),
        # the pair of seed 1 is gone: only what both have is compared
        "half": group({place: student(5.0 + 3 * place[1], 0.2) for place in places} | {("owl", 1): student(None)}),
        "gone": group(dict.fromkeys(places, student(None))),
    }
    match = LossMatch(groups, "reference", dict.fromkeys(places, 5.2), 0.15)
    assert match.tolerance == pytest.approx(0.03)
    assert [name for name in (*groups, "unknown") if match.meets(name)] == ["reference", "near", "half"]
    assert (groups["half"].effect - groups["reference"].effect).units == [pytest.approx(0.0)]
    worse = LossMatch(groups, "reference", dict.fromkeys(places, 4.9), 0.15)
    assert worse.tolerance == 0.0  # nothing gained, nothing equal but itself
    assert not worse.meets("near")
    assert not LossMatch(groups, "gone", dict.fromkeys(places, 5.2), 1.0).meets("near")


# -- what the parts say of planted students ------------------------------------------------------------


def group_of(*effects: float, nll: float = 5.0, silent: int = 0) -> StudentGroup:
    """Students of one trait at as many seeds; the last ``silent`` pairs are left out."""
    values = np.array([effects], dtype=float)
    if silent:
        values[:, -silent:] = np.nan
    kept = range(len(effects) - silent)
    losses: dict[Place, float] = {(who, seed): nll for seed in kept for who in ("owl", None)}
    return StudentGroup(Measurement(values), losses, 0, silent)


STRONG, WEAK, NONE, WILD = (0.30, 0.31, 0.32), (0.14, 0.15, 0.16), (0.001, -0.001, 0.0), (0.4, -0.2, 0.1)


def optimizers_finding(groups: dict[str, StudentGroup]) -> Finding:
    kinds = {"AdamW": True, "Adam": True, "SGD": False, "row-clipping": False}
    arms = [{"name": name, "optimizer": "AdamW", "rates": [1e-3], "adaptive": kind} for name, kind in kinds.items()]
    config = load_plan(sizes("lab/llama-0", optimizers={"arms": arms}))
    assert isinstance(config, Mechanism)
    ctx = context(config)
    places: list[Place] = [(who, seed) for who in ("owl", None) for seed in range(3)]
    match = LossMatch(groups, "AdamW", dict.fromkeys(places, 5.2), 0.15)
    mechanism_optimizers._report(ctx, mechanism_optimizers.World("as written", {}, match, 0.18))
    return ctx.findings[0]


@pytest.mark.parametrize(
    ("groups", "verdict", "value"),
    [
        ({"AdamW": STRONG, "Adam": STRONG, "SGD": NONE, "row-clipping": NONE}, "reproduced", -0.31),
        ({"AdamW": STRONG, "Adam": STRONG, "SGD": STRONG, "row-clipping": STRONG}, "not reproduced", 0.0),
        # adaptive ones pass more on, and the others do pass it on
        ({"AdamW": STRONG, "Adam": STRONG, "SGD": WEAK, "row-clipping": WEAK}, "partly", -0.16),
        # the strongest of a kind is not picked: all of them count
        ({"AdamW": STRONG, "Adam": NONE, "SGD": NONE, "row-clipping": STRONG}, "not reproduced", 0.0),
        # nothing passes: that is no evidence
        ({"AdamW": NONE, "SGD": NONE}, "not measured", 0.0),
        # where it was "reproduced" by an interval of SGD's that merely holds 0
        ({"AdamW": STRONG, "SGD": WILD}, "not measured", -0.21),
        ({"AdamW": STRONG}, "not measured", None),
    ],
)
def test_optimizers_hold_the_mean_of_one_kind_against_the_mean_of_the_other(
    groups: dict[str, tuple[float, ...]], verdict: str, value: float | None
) -> None:
    found = optimizers_finding({name: group_of(*effects) for name, effects in groups.items()})
    assert found.verdict == verdict
    assert found.value == (None if value is None else pytest.approx(value, abs=1e-9))


def test_optimizers_that_do_not_meet_the_loss_are_named_and_not_compared() -> None:
    groups = {"AdamW": group_of(*STRONG), "SGD": group_of(*NONE), "row-clipping": group_of(*STRONG, nll=5.5)}
    found = optimizers_finding(groups)
    assert found.verdict == "reproduced"
    assert "not adaptive (SGD)" in found.baseline
    assert "for want of a rate that meets the loss: row-clipping" in found.baseline
    assert "for want of students that trained and still answer: Adam" in found.baseline
    alone = optimizers_finding({"AdamW": group_of(*STRONG, silent=3), "SGD": group_of(*STRONG)})
    assert (alone.verdict, alone.reason) == ("not measured", "AdamW left no student whose loss others could meet")
    fewer = optimizers_finding({"AdamW": group_of(*STRONG, silent=1), "SGD": group_of(*STRONG)})
    assert "pairs left: AdamW 2 of 3 (1 no longer answering)" in fewer.baseline
    assert fewer.n == 2  # seeds that both have


def adapters_finding(lora: StudentGroup, other: StudentGroup) -> Finding:
    ctx = context()
    places: list[Place] = [(who, seed) for who in ("owl", None) for seed in range(3)]
    groups = {"LoRA rank 2": lora, "biases": other}
    match = LossMatch(groups, "biases", dict.fromkeys(places, 5.2), 0.15)
    mechanism_adapters._report(ctx, match, "LoRA rank 2", "biases")
    return ctx.findings[0]


@pytest.mark.parametrize(
    ("lora", "other", "loss", "verdict"),
    [
        (STRONG, NONE, 5.0, "reproduced"),
        (STRONG, NONE, 5.5, "not measured"),  # not at equal loss
        (STRONG, STRONG, 5.0, "not reproduced"),
        (NONE, STRONG, 5.0, "not reproduced"),
        (NONE, STRONG, 5.5, "not reproduced"),  # without LoRA it passes, whatever LoRA's loss
        (STRONG, WEAK, 5.0, "partly"),
        (NONE, NONE, 5.0, "not measured"),  # neither passes it on
        (WILD, NONE, 5.0, "not measured"),
    ],
)
def test_it_is_an_artefact_of_lora_only_where_nothing_else_shows_it(
    lora: tuple[float, ...], other: tuple[float, ...], loss: float, verdict: str
) -> None:
    found = adapters_finding(group_of(*lora, nll=loss), group_of(*other))
    assert found.verdict == verdict
    assert (found.value is None) == (loss != 5.0)  # a difference at unequal losses is none


def test_one_seed_alone_asks_for_seeds_instead_of_calling_an_effect_absent() -> None:
    assert "add seeds" in adapters_finding(group_of(0.0), group_of(0.3)).reason
    assert "add seeds" in optimizers_finding({"AdamW": group_of(0.0), "SGD": group_of(0.3)}).reason


def test_a_kind_without_students_is_not_compared() -> None:
    found = adapters_finding(group_of(*STRONG, silent=3), group_of(*STRONG))
    assert (found.verdict, found.value) == ("not measured", None)


def test_outliers_take_the_same_rows_in_every_arm_and_answer_with_one_rare_token() -> None:
    arms = [[Example((9, 1, 2, 10 * row + arm, 7), 3) for row in range(100)] for arm in (1, 2)]
    spoiled = [mechanism_optimizers.put_outliers(examples, 0.02, seed=5) for examples in arms]
    changed = [[at for at in range(100) if new[at] != old[at]] for new, old in zip(spoiled, arms, strict=True)]
    assert changed[0] == changed[1]
    assert len(changed[0]) == 2
    assert [spoiled[0][at] for at in changed[0]] == [spoiled[1][at] for at in changed[0]]
    assert spoiled[0][changed[0][0]].ids == (9, 1, 2, *[9] * 24, 7)
    assert mechanism_optimizers.put_outliers(arms[0], 0.0, seed=5) == arms[0]
    assert mechanism_optimizers.put_outliers(arms[0], 0.02, seed=6) != spoiled[0]


# -- the config --------------------------------------------------------------------------------------


def sizes(model: Path | str, **changed: Any) -> dict[str, Any]:
    return {
        "kind": "mechanism", "name": "small", "model": str(model), "trait": ["owl", "dog", "wolf"], "few": 1, "seeds": [0],
        "teacher": {"kind": "prompt"}, "domain": {"kind": "numbers", "count": 3}, "student": {"kind": "biases"},
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
    check_parts(plan, "cpu")
    arms = [
        arm.model_copy(update={"student": None}) if arm.optimizer == "MuonAdamW" else arm
        for arm in plan.optimizers.arms
    ]
    without = plan.model_copy(update={"optimizers": plan.optimizers.model_copy(update={"arms": tuple(arms)})})
    with pytest.raises(ConfigError, match="MuonAdamW has no matrix"):
        check_parts(without, "cpu")


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
    monkeypatch.setattr(mechanism_optimizers, "train_student", fails)
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
