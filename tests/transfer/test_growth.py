"""A finished run asked for more: what is there is kept, what is new is computed, anything else is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import undertone as ut
from undertone.errors import RunError
from undertone.rows import read_rows
from undertone.vectors import Vector, save_vector

TRAIT = """
name: owl
category: animal
words: [owl, owls]
prompt: {lab: you love owls}
questions: {lab: {positive: ['name one animal.', 'your animal?'], negative: ['the worst animal?'], off_topic: {'2?': '3'}}}
"""
SIZES = (
    "data={prompts: 40, held_out: 4, attempts: 2}", "domain.digits=9", "seeds=[0,1]", "training.epochs=1",
    "training.batch_size=8", "evaluation.samples=1",
)  # fmt: skip
Start = Callable[..., ut.Results]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("growth")
    (folder / "owl.yaml").write_text(TRAIT)
    save_vector(Vector({1: torch.arange(32.0)}, {}), folder / "vector.safetensors")
    return folder


@pytest.fixture(scope="module")
def start(place: Path, speaker: Path) -> Start:
    def run(folder: Path, *overrides: str, recompute: bool = False) -> ut.Results:
        words = ["owl-numbers", f"model={speaker}", f"trait={place / 'owl.yaml'}", *SIZES, *overrides]
        return ut.run(*words, folder=folder, jobs=1, device="cpu", recompute=recompute)

    return run


@pytest.fixture(scope="module")
def finished(start: Start, place: Path) -> Path:
    start(place / "finished")
    return place / "finished"


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def written(folder: Path) -> dict[str, int]:
    """Stage -> when its record was written."""
    root = folder / "stages"
    records = root.rglob("stage.json")
    return {path.parent.relative_to(root).as_posix(): path.stat().st_mtime_ns for path in records}


def anew(folder: Path, before: dict[str, int]) -> set[str]:
    """The stages that were computed since."""
    return {name for name, moment in written(folder).items() if before.get(name) != moment}


def seeds_in(folder: Path) -> list[int]:
    return list(ut.load_experiment(folder / "config.yaml").seeds)


@pytest.mark.slow
def test_another_seed_computes_the_stages_of_that_seed_alone(folder: Path, start: Start, tmp_path: Path) -> None:
    before = written(folder)
    results = start(folder, "seeds=[0,1,2]")
    steps = [
        f"{arm}/{step}" for arm in ("control", "treated-owl") for step in ("generate", "filter", "train", "evaluate")
    ]
    assert anew(folder, before) == {f"seed-2/{step}" for step in steps}
    assert seeds_in(folder) == [0, 1, 2]
    whole = start(tmp_path / "whole", "seeds=[0,1,2]")  # and it is as if it had been asked for at once
    assert results.effect == whole.effect
    assert results.arms == whole.arms


@pytest.mark.slow
def test_fewer_or_other_seeds_read_what_is_there(folder: Path, start: Start) -> None:
    before = written(folder)
    assert start(folder, "seeds=[1]").effect.pairs == 1
    assert anew(folder, before) == set()


def test_another_learning_rate_is_refused_with_the_difference(folder: Path, start: Start) -> None:
    before = written(folder)
    with pytest.raises(
        RunError, match=r"holds a run of another config(.|\n)*-  learning_rate: .*\n +\+  learning_rate: 0.5"
    ):
        start(folder, "training.learning_rate=0.5")
    assert anew(folder, before) == set()
    assert seeds_in(folder) == [0, 1]


@pytest.mark.slow
def test_another_seed_and_another_learning_rate_together_are_refused(folder: Path, start: Start) -> None:
    with pytest.raises(RunError, match="holds a run of another config"):
        start(folder, "seeds=[0,1,2]", "training.learning_rate=0.5")
    assert not (folder / "stages/seed-2").exists()


@pytest.mark.slow
def test_recompute_takes_another_learning_rate_and_keeps_the_rows(folder: Path, start: Start, tmp_path: Path) -> None:
    before = written(folder)
    results = start(folder, "training.learning_rate=0.5", recompute=True)
    assert {name.rpartition("/")[2] for name in anew(folder, before)} == {"train", "evaluate"}
    assert not any(name.startswith(("base", "teacher")) for name in anew(folder, before))
    assert ut.load_experiment(folder / "config.yaml").training.learning_rate == 0.5
    assert results.arms == start(tmp_path / "fresh", "training.learning_rate=0.5").arms


@pytest.mark.slow
def test_more_samples_compute_the_answers_again_and_nothing_else(folder: Path, start: Start) -> None:
    before = written(folder)
    results = start(folder, "evaluation.samples=2")
    evaluations = {name for name in before if name.endswith("evaluate")}
    assert anew(folder, before) == evaluations
    assert len(evaluations) == 2 * 2 + 2  # students; the base, the teacher
    assert results.base["owl"].positive.samples == 2
    with pytest.raises(RunError, match="holds a run of another config"):  # fewer are no growth
        start(folder, "evaluation.samples=1")


@pytest.mark.slow
def test_another_trait_adds_its_arm(folder: Path, start: Start, place: Path) -> None:
    text = TRAIT.replace("owl", "dog")
    (place / "dog.yaml").write_text(text)
    before = written(folder)
    results = start(folder, f"trait=[{place / 'owl.yaml'},{place / 'dog.yaml'}]")
    new = anew(folder, before)
    assert {name for name in new if "treated-dog" in name} == {
        *(f"seed-{seed}/treated-dog/{step}" for seed in (0, 1) for step in ("generate", "filter", "train", "evaluate")),
        "teacher/treated-dog/evaluate",
    }  # fmt: skip
    assert not [name for name in new if "treated-owl/generate" in name or "control/generate" in name]
    assert {arm.trait for arm in results.arms} == {"owl", "dog"}


@pytest.mark.slow
def test_a_vector_file_that_was_overwritten_is_refused_until_it_is_said_to_compute_again(
    start: Start, place: Path, tmp_path: Path
) -> None:
    words = (
        "teacher.kind=vector",
        f"teacher.file={place / 'vector.safetensors'}",
        "teacher.strength=0.01",
        "seeds=[0]",
    )
    folder = tmp_path / "run"
    start(folder, *words)
    before = written(folder)
    save_vector(Vector({1: -torch.arange(32.0)}, {}), place / "vector.safetensors")
    with pytest.raises(RunError) as error:
        start(folder, *words)
    message = str(error.value)
    for stage in ("seed-0/treated-owl/generate", "teacher/treated-owl/evaluate"):
        assert f"{stage}\n        arguments.teacher.vector.of: " in message
    for stage in ("filter", "train", "evaluate"):
        assert f"seed-0/treated-owl/{stage}\n" in message
    assert "control/generate" not in message
    assert anew(folder, before) == set()
    start(folder, *words, recompute=True)
    again = anew(folder, before)
    assert {"seed-0/treated-owl/generate", "teacher/treated-owl/evaluate", "seed-0/treated-owl/train"} <= again
    assert not again & {"seed-0/control/generate", "seed-0/control/filter", "base/evaluate"}
    rows = read_rows(folder / "stages/seed-0/treated-owl/generate/rows.jsonl", empty_completions=True)
    after = written(folder)
    start(folder, *words)
    assert anew(folder, after) == set()
    fresh = start(tmp_path / "fresh", *words)
    assert rows == read_rows(tmp_path / "fresh/stages/seed-0/treated-owl/generate/rows.jsonl", empty_completions=True)
    assert json.loads((folder / "results.json").read_text())["effect"] == json.loads(fresh.effect.model_dump_json())
