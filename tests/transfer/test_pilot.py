"""The pilot: what it projects from a few prompts, whom it refuses, and what it advises."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from undertone.errors import DataError, ModelWarning
from undertone.transfer.config import load_experiment
from undertone.transfer.pilot import Yield
from undertone.transfer.pipeline import run_experiment


class FakeStage:
    """What :meth:`Yield.of` reads of a stage."""

    def __init__(self, kept: list[int], first: int, reasons: dict[str, int]) -> None:
        self.kept = kept
        self.summary = {"asked": 32, "kept": len(kept), "first": first, "reasons": reasons}

    def read_json(self, name: str) -> list[int]:
        assert name == "kept.json"
        return self.kept


def found(*arms: list[int], first: int = 0, reasons: dict[str, int] | None = None) -> Yield:
    stages: Any = {f"arm-{at}": FakeStage(kept, first or len(kept), reasons or {}) for at, kept in enumerate(arms)}
    return Yield.of(stages)


def config(*overrides: str) -> Any:
    return load_experiment("owl-numbers", ["data={prompts: 160, held_out: 16, attempts: 1}", *overrides])


def test_the_yield_that_counts_is_the_joint_one() -> None:
    """14 and 28 of 160 passed in each arm, in the first run on a real model, and 14 in both were not 28."""
    one = found(list(range(16)), list(range(8, 24)))
    assert (one.joint, one.kept) == (8, {"arm-0": 16, "arm-1": 16})
    assert one.expected(160) == 40


def test_a_hopeless_yield_is_refused_and_the_advice_follows_the_reasons() -> None:
    one = found([], [], first=0, reasons={"text around the numbers": 36, "no numbers": 10})
    with pytest.raises(DataError) as error:
        one.check(config())
    said = str(error.value)
    assert "0 passed in every arm, so that about 0 of 160 will, and 32 are needed" in said
    assert "arm-0 0/32, arm-1 0/32" in said
    assert "text around the numbers (72), no numbers (20)" in said
    assert "data.constrained=true (answers held to the domain's grammar), a lower data.temperature (0.5), or" in said
    assert "or domain.kind=sentences" in said


@pytest.mark.parametrize(
    "override",
    ["data.constrained=true", "domain={kind: code}", "teacher={kind: endpoint, url: 'http://localhost:1/v1', name: m}"],
)
def test_a_constraint_is_advised_only_where_one_is_possible(override: str) -> None:
    with pytest.raises(DataError, match=r"a lower data\.temperature") as error:
        found([], [], first=0).check(config(override))
    assert "constrained" not in str(error.value)


def test_where_attempts_help_their_number_is_advised() -> None:
    one = found(list(range(2)), list(range(2)), first=6)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        one.check(config())
    (warning,) = [str(one.message) for one in seen if issubclass(one.category, ModelWarning)]
    assert "about 10 of 160 will" in warning
    # 1 - (1 - 6/32)^k, squared, times 160 must reach 32: k = 3 gives 34.5, k = 2 gives 18.5
    assert "data.attempts=3 would do" in warning


def test_enough_rows_are_said_nothing_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found(list(range(20)), list(range(20))).check(config())


SMALL = (
    "data={prompts: 128, held_out: 10, attempts: 1}",
    "training.epochs=1",
    "training.batch_size=8",
    "evaluation.samples=0",
    "seeds=[0]",
)


@pytest.mark.slow
def test_a_run_that_cannot_have_its_rows_ends_before_anything_else(speaker: Path, tmp_path: Path) -> None:
    hopeless = load_experiment(
        "owl-numbers",
        [f"model={speaker}", *SMALL, "domain={kind: numbers, banned: [" + ", ".join(map(str, range(1000))) + "]}"],
    )
    with pytest.raises(DataError, match=r"too few rows would be left(.|\n)*banned number"):
        run_experiment(hopeless, tmp_path / "run", jobs=1)
    assert {path.name for path in (tmp_path / "run/stages").iterdir()} == {"pilot"}


@pytest.mark.slow
def test_a_run_that_can_goes_on_and_the_pilot_changes_nothing(
    speaker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from undertone.transfer import pilot

    own = load_experiment("owl-numbers", [f"model={speaker}", *SMALL])
    with_pilot = run_experiment(own, tmp_path / "with", jobs=1)
    assert {path.name for path in (tmp_path / "with/stages/pilot").iterdir()} == {"control", "treated-owl"}
    monkeypatch.setattr(pilot, "WORTH_IT", 1000)
    without = run_experiment(own, tmp_path / "without", jobs=1)
    assert not (tmp_path / "without/stages/pilot").exists()
    assert with_pilot.effect == without.effect
