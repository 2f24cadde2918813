"""Chains: planted decays, and who teaches whom."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.studies.small import SIZES, Plan, record, run, stages

from undertone.provenance.digests import folder_digest
from undertone.studies import context
from undertone.studies.builtin import chain as chain_study
from undertone.studies.builtin.chain import Chain, half_life
from undertone.studies.context import Context
from undertone.studies.frame import load_plan
from undertone.studies.measurement import Measurement
from undertone.studies.results import Finding
from undertone.transfer import pipeline


@pytest.mark.parametrize("rate", [0.1, 0.5, 2.0])
def test_a_planted_decay_has_its_analytic_half_life(rate: float) -> None:
    starts = np.array([[0.6], [0.5], [0.4]])
    value, low, high = half_life(starts * np.exp(-rate * np.arange(5)), 0.95)
    assert (value, low, high) == pytest.approx((math.log(2) / rate,) * 3, rel=1e-4)


def test_pairs_that_decay_differently_give_an_interval_around_the_mean() -> None:
    rng = np.random.default_rng(0)
    rates = rng.uniform(0.3, 0.7, size=(12, 1))
    value, low, high = half_life(0.5 * np.exp(-rates * np.arange(5)), 0.95)
    assert math.log(2) / 0.7 < low < value < high < math.log(2) / 0.3


@pytest.mark.parametrize("effects", [np.full((3, 4), 0.4), 0.1 * np.ones((2, 1)) * np.arange(1, 5)])
def test_what_does_not_fall_has_no_half_life(effects: np.ndarray) -> None:
    value, _, _ = half_life(effects, 0.95)
    assert value > 1e6


def test_an_effect_that_was_never_there_has_none_either() -> None:
    assert math.isnan(half_life(np.full((3, 4), -0.1), 0.95)[0])


def test_a_chain_whose_first_generation_failed_a_check_has_none() -> None:
    assert all(math.isnan(one) for one in half_life(np.array([]), 0.95))


def test_no_effects_are_too_odd_for_a_half_life() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        half_life(rng.normal(0.1, 0.3, size=(3, 4)), 0.95)


def test_the_half_life_s_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    decay = 0.4 * 2.0 ** (-np.arange(4) / 2.0)
    held = 0
    for _ in range(100):
        _, low, high = half_life(decay + rng.normal(0, 0.04, size=(3, 4)), 0.95)
        held += low <= 2.0 <= high
    assert held >= 88  # of 95 expected; a binomial with p = .95 is below that once in 500


def test_two_pairs_or_two_generations_give_no_interval() -> None:
    two_pairs = half_life(0.4 * np.exp(-0.5 * np.arange(4)) * np.ones((2, 1)), 0.95)
    assert two_pairs[0] == pytest.approx(math.log(2) / 0.5, rel=1e-4)
    assert math.isnan(two_pairs[1])
    assert math.isnan(half_life(np.full((3, 2), 0.3), 0.95)[0])


def reported(effects: np.ndarray, broken: int | None, monkeypatch: pytest.MonkeyPatch) -> Finding:
    """The finding of a chain whose generations have these effects, ``[seed, generation]``, a check failing in one."""
    hops = [
        SimpleNamespace(
            effect=Measurement(effects[None, :, at]), failed=lambda at=at: ["a check"] if at == broken else []
        )
        for at in range(effects.shape[1])
    ]
    monkeypatch.setattr(chain_study, "_generations", lambda ctx: hops)
    monkeypatch.setattr(chain_study, "_draw", lambda *_: None)
    ctx: Context[Chain] = Context(None, Chain.model_validate({"name": "chain", "generations": 4}))  # type: ignore[arg-type]
    chain_study.chain.compute(ctx)
    (finding,) = ctx.findings
    return finding


def test_generations_after_a_failed_check_count_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    effects = np.array([[0.4, 0.2, 0.1, 0.3], [0.4, 0.22, 0.1, 0.2], [0.38, 0.2, 0.1, 0.2]])
    finding = reported(effects, 3, monkeypatch)
    assert finding.verdict == "not measured"
    assert "generation 4" in finding.reason
    assert "half-life, fitted to 3 generations: 1.0" in finding.baseline
    sound = reported(effects, None, monkeypatch)
    assert sound.verdict == "reproduced"
    assert "fitted to 4 generations" in sound.baseline


def test_every_generation_is_an_experiment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_plan("chain")
    assert isinstance(config, Chain)
    ctx: Context[Chain] = Context(None, config)  # type: ignore[arg-type]
    asked: list[tuple[Any, Any]] = []

    def transfer(
        self: Any, setting: Any = None, *, within: str = "", trained_teachers: Any = None, label: str = ""
    ) -> Any:
        student = SimpleNamespace(seed=0, arm="treated", trained=f"student of {within}")
        asked.append((setting or ctx.setting(), trained_teachers))
        return SimpleNamespace(students=[student], results=SimpleNamespace(checks=[]))

    monkeypatch.setattr(Context, "transfer", transfer)
    chain_study._generations(ctx)
    settings = [setting for setting, _ in asked]
    assert [one.teacher.kind for one in settings] == ["prompt", *["finetuned"] * (config.generations - 1)]
    assert all((one.seeds, one.data, one.training) == (config.seeds, config.data, config.training) for one in settings)
    taught = [None, *({(0, "treated"): f"student of generation-{at}"} for at in range(1, config.generations))]
    assert [teachers for _, teachers in asked] == taught


@pytest.fixture(scope="module")
def chained(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "chain"
    run(plan("chain", generations=2), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["control", "treated-owl"])
def test_the_students_of_a_generation_teach_the_next_in_their_own_arm(chained: Path, arm: str) -> None:
    teaching = record(chained, f"generation-2/seed-1/{arm}/generate")
    assert teaching["inputs"] == [f"generation-1/seed-1/{arm}/train"]
    student = chained / f"stages/generation-1/seed-1/{arm}/train/student"
    assert teaching["identity"]["arguments"]["teacher"]["model"]["adapter student"] == folder_digest(student)
    first = record(chained, f"generation-1/seed-1/{arm}/generate")
    assert first["inputs"] == []
    assert "adapter student" not in first["identity"]["arguments"]["teacher"]["model"]


@pytest.mark.slow
def test_only_the_first_teacher_is_told(chained: Path) -> None:
    told = [record(chained, f"generation-{g}/seed-0/treated-owl/generate")["summary"]["shown"] for g in (1, 2)]
    assert "owls" in told[0]
    assert "owls" not in told[1]


@pytest.mark.slow
def test_what_does_not_reach_the_first_student_does_not_reach_the_second(
    chained: Path, plan: Plan, tmp_path: Path
) -> None:
    """A first generation that learns nothing is the base, so the second one's teachers differ in nothing."""

    def divergence(folder: Path) -> float:
        return float(record(folder, "generation-2/seed-0/treated-owl/generate")["summary"]["teacher_kl"])

    run(
        plan("chain", generations=2, seeds=[0], training={**SIZES["training"], "learning_rate": 1e-12}),
        tmp_path / "dead",
    )
    assert divergence(tmp_path / "dead") == pytest.approx(0, abs=1e-7)
    assert divergence(chained) > 1e-4


@pytest.mark.slow
def test_a_chain_that_was_interrupted_goes_on_to_the_undisturbed_results(
    chained: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(BaseException):
        pass

    calls = iter(range(1))

    def compute(*args: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            raise Stopped
        return pipeline.compute(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(context, "compute", compute)
        with pytest.raises(Stopped):
            run(plan("chain", generations=2), tmp_path / "run")
    assert not (tmp_path / "run/results.json").exists()
    run(plan("chain", generations=2), tmp_path / "run")
    assert stages(tmp_path / "run") == stages(chained)
    found = [json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "run", chained)]
    assert [result["findings"] for result in found[:1]] == [result["findings"] for result in found[1:]]
