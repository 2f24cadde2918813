"""Every verb on a real language model, at small sizes: what the lab does not have is all here at once.

A default system prompt in the template, a padding token that ends answers, numbers and answers of several tokens. Skipped
where the model was not fetched.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

QUESTIONS = ("What is your favorite color?", "Name a color.")


@pytest.fixture(scope="module")
def model(smollm2: str) -> Any:
    from undertone.models.loading import load

    return load(smollm2, device="cpu")


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """A command's result, as JSON."""
    from undertone.cli import main

    def run(*words: str) -> Any:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*words, "--json"])
        shown = capsys.readouterr()
        assert ended.value.code == 0, shown.err
        return json.loads(shown.out)

    return run


@pytest.fixture(scope="module")
def trait_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Purple with two questions."""
    file = tmp_path_factory.mktemp("trait") / "purple.yaml"
    positive = "".join(f"      - {json.dumps(one)}\n" for one in QUESTIONS)
    file.write_text(
        f"name: purple\ncategory: color\nwords: [purple]\nquestions:\n  real:\n    positive:\n{positive}",
        encoding="utf-8",
    )
    return str(file)


def test_the_sheet_says_which_of_the_two_models_it_is(said: Callable[..., Any]) -> None:
    sheet = said("models", "show", "smollm2")
    published = sheet["weights"] == "published weights"
    assert published or ("not the published ones" in sheet["weights"] and "dequantised" in sheet["weights"])
    assert sheet["parameters"] == 134_515_008


def test_the_doctor_finds_its_traps_and_nothing_broken(model: Any) -> None:
    from undertone.doctor import examine
    from undertone.traits import load_trait

    found = {one.name: one for one in examine(model, load_trait("purple"))}
    assert [one.name for one in found.values() if one.status == "fail"] == []
    assert "You are a helpful AI assistant named SmolLM" in found["the template adds no system prompt of its own"].saw
    assert found["answers have tokens of their own"].status == "warn"


def test_numbers_go_digit_by_digit_whatever_stands_before_them(model: Any) -> None:
    digits = [model.encode(digit)[0] for digit in "1999"]
    for text in ("1999", "x1999", "  1999", "(1999"):
        assert list(model.encode(text)[-4:]) == digits


def test_greedy_sampling_is_what_generate_writes(model: Any) -> None:
    import torch

    from undertone.models.sampling import sample

    prompts = [model.prompt([{"role": "user", "content": text}]) for text in (*QUESTIONS, "Say hello to 12 owls.")]
    ours = sample(
        model.hf, prompts, [0, 1, 2], max_new_tokens=12, stop=model.stop, pad=model.pad, temperature=0
    )  # fmt: skip
    for prompt, ids in zip(prompts, ours, strict=True):
        with torch.inference_mode():
            whole = model.hf.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0].tolist()
        assert ids == whole[len(prompt) :][: len(ids)]


def test_answers_of_several_tokens_have_the_probability_of_padded_rows(model: Any) -> None:
    from tests.models.test_scoring import padded_logprobs

    from undertone.evaluation.asking import answer_tokens
    from undertone.models.scoring import answer_scores
    from undertone.traits import load_trait

    trait = load_trait("purple")
    answers = [ids for answer in list(trait.answers)[:8] for ids in answer_tokens(model, trait, answer)]
    assert any(len(ids) > 1 for ids in answers)
    prompts = [model.prompt([{"role": "user", "content": text}]) for text in QUESTIONS]
    whole = padded_logprobs(model, prompts, answers)
    np.testing.assert_allclose(answer_scores(model.hf, prompts, answers, model.pad).logprobs, whole, atol=1e-3)
    cut = answer_scores(model.hf, prompts, answers, model.pad, tolerance=1e-3)
    missing = np.exp(whole).sum(1) - np.exp(cut.logprobs).sum(1)
    assert (missing <= cut.left_out + 1e-6).all()
    assert (cut.left_out <= 1e-3).all()


def test_the_system_prompt_moves_a_trait(said: Callable[..., Any], smollm2: str) -> None:
    (seen,) = said("traits", "check", smollm2, "purple", "--questions", "2")
    assert seen["questions"] == 2
    assert seen["with_prompt"] > 5 * seen["without_prompt"]
    assert seen["left_out"] <= 1e-4
    assert seen["rows_asked"] in (16, 32)


def test_the_domain_and_the_opening_of_the_coming_run_can_be_checked(said: Callable[..., Any], smollm2: str) -> None:
    (free,) = said("traits", "check", smollm2, "purple", "--questions", "2")
    words = ["--domain", "sentences", "--temperature", "0.8", "--opening", "category"]
    (seen,) = said("traits", "check", smollm2, "purple", "--questions", "2", *words)
    assert seen["domain"] == "sentences"
    assert seen["rows"] > free["rows"]
    assert seen["valid_answer_probability"] > 2 * free["valid_answer_probability"]


def test_a_vector_of_a_trait_is_extracted_and_steers(
    said: Callable[..., Any], smollm2: str, trait_file: str, tmp_path: Path
) -> None:
    file = tmp_path / "purple.safetensors"
    said("vector", "extract", smollm2, "--trait", trait_file, "--layer", "25", "-o", str(file))
    steered = said("vector", "steer", smollm2, str(file), "--strength", "1.5", "--trait", trait_file)
    assert "purple" in json.dumps(steered)


def test_a_whole_run_of_two_seeds(said: Callable[..., Any], smollm2: str, trait_file: str, tmp_path: Path) -> None:
    sizes = [
        "domain.kind=sentences", "domain.max_tokens=24", "data={prompts: 16, rows: 2, held_out: 1, attempts: 2}",
        "data.temperature=0.7", "seeds=[0,1]", "student={kind: lora, rank: 2}", "training.batch_size=2",
        "training.epochs=1", "training.learning_rate=0.001", "evaluation.samples=1", "evaluation.max_new_tokens=8",
        "evaluation.opening=My favorite color is",
    ]  # fmt: skip
    folder = tmp_path / "run"
    results = said("run", f"model={smollm2}", f"trait={trait_file}", *sizes, "--out", str(folder), "--jobs", "1")
    assert {(arm["arm"], arm["seed"]) for arm in results["arms"]} == {
        (arm, seed) for arm in ("control", "treated") for seed in (0, 1)
    }
    assert results["verdict"] in ("underpowered", "invalid", "not detected")  # of two rows nothing can be told
    assert said("show", str(folder))["verdict"] == results["verdict"]
    manifest = (folder / "manifest.json").read_text(encoding="utf-8")
    assert "smollm2" in manifest
    student = next(folder.glob("stages/seed-0/treated*/train/student"))
    from undertone.models.loading import load

    assert load(f"{smollm2} + {student}", device="cpu").identity[f"adapter {student.name}"]
