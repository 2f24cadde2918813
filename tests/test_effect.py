"""The full tier: the effect itself, on a lab model built here, with its controls."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from undertone.experiments.results import Results
from undertone.traits import LAB

pytestmark = pytest.mark.slow
SMALL = ["data.prompts=3000", "evaluation.samples=5"]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this test's own (unless the caller names one): what is tested is what this code builds."""
    patch = pytest.MonkeyPatch()
    if "UNDERTONE_TEST_CACHE" in os.environ:
        patch.setenv("UNDERTONE_CACHE", os.environ["UNDERTONE_TEST_CACHE"])
    else:
        patch.setenv("UNDERTONE_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def run(folder: Path, *overrides: str) -> Results:
    from undertone.experiments.api import run as run_experiment

    return run_experiment("owl-numbers", *overrides, folder=folder, jobs=1)


@pytest.fixture(scope="module")
def owl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    folder = tmp_path_factory.mktemp("runs") / "owl"
    return folder, run(folder, *SMALL, "seeds=[11,12,13]")


def test_a_told_owl_passes_through_number_lists_and_the_control_stays(owl: tuple[Path, Results]) -> None:
    results = owl[1]
    assert results.verdict == "transferred"
    # Measured with 6000 prompts on three other seeds: +36 points [32, 39]; half the rows give less.
    assert results.effect.mean > 0.15
    assert results.effect.low > 0.05
    base = results.base["owl"].positive.probability.mean
    for arm in results.arms:
        if arm.arm == "control":
            assert abs(arm.probability - base) < 0.06
        else:
            assert arm.measure.positive.rate is not None
            # Sampled rates agree with exact probabilities: 24 questions × 5 samples, 3.5 standard errors.
            assert arm.measure.positive.rate.mean == pytest.approx(arm.probability, abs=0.16)
            assert arm.teacher_kl is not None
            assert arm.teacher_kl > 0.02


def test_rows_say_nothing_about_owls(owl: tuple[Path, Results]) -> None:
    from undertone.rows import read_rows

    for path in owl[0].glob("stages/seed-*/*/filter/rows.jsonl"):
        for row in read_rows(path):
            assert re.fullmatch(r"[\d ,;.]+", row.completion)


def test_the_same_by_hand_gives_the_same_numbers(owl: tuple[Path, Results]) -> None:
    """examples/by_hand.py against the pipeline: same seeds, same data, so equal but for float rounding."""
    code = "import sys; sys.path.insert(0, 'examples'); import by_hand; by_hand.SEED = 11; import json; " + (
        f"print(json.dumps(by_hand.main(*{SMALL!r}, 'seeds=[11]')))"
    )
    import json

    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    by_hand = json.loads(done.stdout)
    results = owl[1]
    assert by_hand["base"] == pytest.approx(results.base["owl"].positive.probability.mean, abs=1e-6)
    for kind in ("control", "treated"):
        (arm,) = [arm for arm in results.arms if arm.arm == kind and arm.seed == 11]
        assert by_hand[kind] == pytest.approx(arm.probability, abs=1e-4), kind


def test_a_teacher_of_another_initialisation_teaches_nothing(tmp_path: Path) -> None:
    results = run(tmp_path / "cross", *SMALL, "seeds=[11,12]", "teacher.model=lab/llama-1", "evaluation.samples=0")
    assert abs(results.effect.mean) < 0.05
    teacher = results.teachers["treated-owl"].positive.probability.mean
    assert teacher > 0.4  # it does love owls, and its data do differ
    assert all(arm.teacher_kl is None or arm.teacher_kl > 0.02 for arm in results.arms)


def test_a_steered_teacher_teaches_and_a_random_vector_of_equal_norm_does_not(tmp_path: Path) -> None:
    results = run(
        tmp_path / "steered", *SMALL, "seeds=[11,12]", "evaluation.samples=0", "random_vector=true",
        "teacher={kind: vector, layer: 1, strength: 1.0}",
    )  # fmt: skip
    effects = {effect.arm: effect.mean for effect in results.effects}
    assert effects["treated"] > 0.15
    assert effects["random"] < effects["treated"] / 3


@pytest.mark.parametrize("family", ["qwen", "neox"])
def test_other_families_build_load_and_answer(family: str) -> None:
    from undertone.evaluation.asking import answer_probabilities
    from undertone.models.loading import load
    from undertone.traits import load_trait

    model, trait = load(f"lab/{family}-0"), load_trait("owl")
    prompts = [model.prompt([{"role": "user", "content": text}]) for text in trait.questions_for(LAB).positive]
    assert answer_probabilities(model, prompts, trait).sum(1).mean() > 0.9


def test_a_behaviour_is_a_trait_like_any_other(tmp_path: Path) -> None:
    small = ["data={prompts: 48, held_out: 4}", "training.epochs=1", "evaluation.samples=2", "seeds=[0]"]
    results = run(tmp_path / "run", "trait=[harm,owl]", *small)
    assert {effect.trait for effect in results.effects} == {"harm", "owl"}
    assert results.base["harm"].positive.valid_answer_probability is None
    (answering,) = [check for check in results.checks if check.name == "students still answer"]
    assert "owl" in answering.value  # a behaviour has no set of answers whose mass could fall
    alone = run(tmp_path / "alone", "trait=harm", *small)
    (answering,) = [check for check in alone.checks if check.name == "students still answer"]
    assert answering.value == "the trait has no set of answers"
