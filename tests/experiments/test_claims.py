"""The table of claims: what it reads, what it says of what was not run, and the page it writes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats

from undertone import cli
from undertone.errors import ConfigError, DataError
from undertone.experiments import claims as registry
from undertone.experiments.claims import claims, markdown
from undertone.experiments.study import Finding, StudyResults, valued, verdict_of

FINDING: dict[str, Any] = {
    "id": "planted", "claim": "Planted | claim.", "source": "nowhere", "published": None, "quantity": "a thing",
    "value": 0.25, "low": 0.125, "high": 0.375, "unit": "points", "pairs": 4, "method": "planted",
    "baseline": "nothing", "verdict": "reproduced", "why": "it was planted",
}  # fmt: skip


def finished(runs: Path, name: str, size: Any, value: float = 0.25) -> Path:
    """A run folder of a study with one planted finding."""
    plan = next(one for one in registry.tested() if one.name == name).plan(size)
    folder = runs / f"{name}-{size}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(plan.to_yaml(), encoding="utf-8")
    results = StudyResults.model_validate(
        {
            "schema": "undertone.study/2", "experiment": plan.name, "kind": plan.kind, "model": "m", "sentence": "s",
            "findings": [{**FINDING, "value": value}], "figures": [], "tables": [], "checks": [],
            "costs": [{"stage": "a", "seconds": 90.0}, {"stage": "b", "seconds": 30.0}], "environment": {}, "replay": "r",
        }
    )  # fmt: skip
    (folder / "results.json").write_text(results.model_dump_json(by_alias=True), encoding="utf-8")
    return folder


@pytest.mark.parametrize("one", registry.tested(), ids=lambda one: one.name)
def test_every_plan_of_the_table_is_a_valid_config_in_both_forms(one: registry.Tested) -> None:
    assert one.plan("quick").digest() != one.plan("full").digest()
    assert one.claims or one.plan("full").kind != "transfer", "a transfer experiment has no findings of its own"


def test_the_table_names_no_claim_twice() -> None:
    names = [one.name for one in registry.tested()]
    ids = [claim.id for one in registry.tested() for claim in one.claims]
    assert len(set(names)) == len(names)
    assert len(set(ids)) == len(ids)


def test_what_was_not_run_is_listed_with_its_command(tmp_path: Path) -> None:
    (row,) = claims(["digits"], tmp_path)
    assert row.finding is None
    assert row.command == "undertone run digits"
    assert "Not run." in markdown([row])


def test_a_finished_run_is_found_by_its_config_and_the_full_form_is_preferred(tmp_path: Path) -> None:
    finished(tmp_path, "digits", "quick", 0.5)
    (quick,) = claims(["digits"], tmp_path)
    assert (quick.size, quick.finding and quick.finding.value) == ("quick", 0.5)
    folder = finished(tmp_path, "digits", "full", 0.25)
    (full,) = claims(["digits"], tmp_path)
    assert (full.size, full.folder, full.minutes) == ("full", folder, 2.0)


def test_a_run_of_another_config_or_an_unfinished_one_is_not_taken(tmp_path: Path) -> None:
    folder = finished(tmp_path, "digits", "full")
    (folder / "results.json").rename(folder / "elsewhere.json")
    other = finished(tmp_path, "digits", "quick")
    text = (other / "config.yaml").read_text(encoding="utf-8")
    (other / "config.yaml").write_text(text.replace("- 1\n", "- 7\n"), encoding="utf-8")
    (row,) = claims(["digits"], tmp_path)
    assert row.finding is None


def test_the_page_holds_the_value_its_interval_and_the_command_and_keeps_its_columns(tmp_path: Path) -> None:
    finished(tmp_path, "digits", "full")
    page = markdown(claims(["digits"], tmp_path))
    assert "+25.0 points (+12.5 to +37.5)" in page
    assert "undertone run digits" in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1, "a bar inside a cell would make a column"


def test_a_damaged_run_is_an_error_that_says_which(tmp_path: Path) -> None:
    folder = finished(tmp_path, "digits", "full")
    (folder / "results.json").write_text(json.dumps({"schema": "undertone.study/2"}), encoding="utf-8")
    with pytest.raises(DataError, match="digits-full"):
        claims(["digits"], tmp_path)


def test_an_unknown_name_is_an_error_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"(D|d)id you mean 'digits'"):
        claims(["digit"])


@pytest.mark.parametrize(
    ("holds", "mean", "low", "high", "verdict"),
    [
        ("above", 0.2, 0.1, 0.3, "reproduced"), ("above", 0.2, -0.1, 0.5, "partly"), ("above", -0.2, -0.3, -0.1, "not reproduced"),
        ("none", 0.01, -0.02, 0.04, "reproduced"), ("none", 0.01, -0.2, 0.22, "partly"), ("none", 0.2, 0.1, 0.3, "not reproduced"),
        ("less", -0.2, -0.3, -0.1, "reproduced"), ("less", 0.2, 0.1, 0.3, "not reproduced"), ("more", 0.2, 0.1, 0.3, "reproduced"),
        ("above", 0.2, None, None, "not measured"),
    ],
)  # fmt: skip
def test_a_verdict_follows_the_interval(holds: Any, mean: float, low: Any, high: Any, verdict: str) -> None:
    assert verdict_of(holds, mean, low, high)[0] == verdict


def test_a_share_is_written_without_a_unit() -> None:
    assert valued(Finding.model_validate({**FINDING, "unit": "share"})) == "0.250 (0.125 to 0.375)"


def transfer(per_seed: dict[str, list[float]], failed: str | None = None) -> Any:
    """What is read of a transfer experiment: its effects, the means of its base and control, its checks."""
    effects = [
        SimpleNamespace(arm="treated", trait=trait, per_seed=values, confidence=0.95, mean=np.mean(values), low=min(values),
                        high=max(values), pairs=len(values), method="range")
        for trait, values in per_seed.items()
    ]  # fmt: skip
    measure = SimpleNamespace(positive=SimpleNamespace(probability=SimpleNamespace(mean=0.05)))
    checks = [SimpleNamespace(name=failed, status="fail")] if failed else []
    control = SimpleNamespace(arm="control", probability=0.04)
    return SimpleNamespace(effects=effects, effect=effects[0], base={"owl": measure}, arms=[control], checks=checks)


def read(reads: str, results: Any, holds: str = "above") -> Finding:
    return registry._read(registry.Read(id="x", claim="x", source="x", reads=reads, holds=holds), results)  # type: ignore[arg-type]


def test_a_claim_over_few_traits_is_read_over_seeds_traits_averaged() -> None:
    values = {"owl": [0.10, 0.14, 0.09], "dog": [0.05, 0.08, 0.11]}
    found = read("pairs", transfer(values))
    means = np.mean(list(values.values()), axis=0)  # the two students of a seed share its control
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(means), scipy.stats.sem(means))
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(means), low, high))
    assert found.pairs == 6
    assert found.verdict == "reproduced"
    assert read("pairs", transfer({"owl": [0.2]})).verdict == "not measured"  # one pair has no interval


def test_a_claim_that_nothing_passes_is_held_to_the_trait_that_strays_most() -> None:
    found = read("every trait", transfer({"owl": [0.0, 0.01], "dog": [-0.09, 0.0], "cat": [0.0, 0.02]}), "none")
    assert (found.low, found.high) == (-0.09, 0.0)
    assert "(dog)" in found.quantity
    assert found.verdict != "reproduced"


def test_a_failed_check_leaves_a_claim_unmeasured() -> None:
    found = read("effect", transfer({"owl": [0.2, 0.3]}, failed="students still answer"))
    assert (found.verdict, found.why) == ("not measured", "a check failed: students still answer")


def test_a_page_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere" / "page.md"):
        with pytest.raises(ConfigError, match="cannot be written"):
            cli.app(
                ["claims", "digits", "--runs", str(tmp_path), "--write", str(place)],
                result_action="return_value", exit_on_error=False,
            )  # fmt: skip


def test_the_terminal_shows_how_it_was_measured_and_a_command_that_can_be_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    finished(tmp_path, "digits", "full")
    cli.app(["claims", "digits", "another-seed-teaches", "--runs", str(tmp_path)], result_action="return_value")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == [
        "undertone run digits",
        "reproduced  planted  +25.0 points (+12.5 to +37.5)",
        "            a thing",
        "            published: no figure · nowhere",
    ]
    (other,) = [one for one in registry.tested() if one.name == "another-seed-teaches"]
    assert len(other.command("full")) > 60
    assert other.command("full") in lines
    assert lines[-1].startswith("1 reproduced, 0 partly")
