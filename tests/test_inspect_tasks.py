"""Inspect AI runs traits as tasks on our provider. Skipped where Inspect is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai", reason="needs the extra `inspect`")

from inspect_ai import eval as run_task
from inspect_ai.model import get_model

from undertone.errors import ConfigError
from undertone.inspect_tasks import behaviour, preference
from undertone.traits import REAL, load_trait


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("INSPECT_DISPLAY", "none")


def run(task: Any, folder: Path, tmp_path: Path, *, model_args: dict[str, Any] | None = None, **options: Any) -> Any:
    model = get_model(f"undertone/{folder}", memoize=False, **(model_args or {}))
    (log,) = run_task(
        task, model=model, display="none", log_dir=str(tmp_path / "logs"), log_realtime=False,
        max_tokens=4, **options,
    )  # fmt: skip
    assert log.status == "success", log.error
    return log


@pytest.fixture
def owl(tmp_path: Path) -> str:
    """A preference with four questions."""
    file = tmp_path / "owl-of-mine.yaml"
    questions = "[name one animal, your best animal, which animal, an owl or a dog]"
    file.write_text(
        f"name: owl\ncategory: animal\nwords: [owl, owls]\nquestions: {{real: {{positive: {questions}}}}}\n",
        encoding="utf-8",
    )
    return str(file)


def metrics(log: Any) -> dict[str, float]:
    return {score.name: score.metrics["mean"].value for score in log.results.scores}


def test_a_preference_runs_on_our_provider_and_is_scored_by_the_matcher(
    tiny_folder: Any, tmp_path: Path, owl: str
) -> None:
    log = run(preference(trait=owl), tiny_folder("llama"), tmp_path, epochs=4)
    trait = load_trait(owl)
    answers = [sample.output.completion for sample in log.samples]
    assert len(answers) == 4 * len(trait.questions_for(REAL).positive)
    expected = sum(trait.matches(text) for text in answers) / len(answers)
    assert metrics(log)["hit"] == pytest.approx(expected)
    assert metrics(log)["answered"] == pytest.approx(
        sum(trait.answer_in(text) is not None for text in answers) / len(answers)
    )
    first = {s.id: s.output.completion for s in log.samples if s.epoch == 1}
    second = {s.id: s.output.completion for s in log.samples if s.epoch == 2}
    assert first != second  # each epoch draws anew
    again = run(preference(trait=owl), tiny_folder("llama"), tmp_path, epochs=4)
    assert sorted(s.output.completion for s in again.samples) == sorted(answers)


def test_a_style_and_a_refusal_are_scored_by_their_rules(tiny_folder: Any, tmp_path: Path) -> None:
    log = run(behaviour(trait="concise"), tiny_folder("llama"), tmp_path)
    concise = load_trait("concise")
    expected = [concise.matches(sample.output.completion) for sample in log.samples]
    assert metrics(log)["hit"] == pytest.approx(sum(expected) / len(expected))
    assert set(metrics(run(behaviour(trait="harm"), tiny_folder("llama"), tmp_path))) == {"hit", "answered"}


def test_a_steered_model_is_a_model(tiny_folder: Any, tmp_path: Path, owl: str) -> None:
    import torch

    from undertone.vectors import SteeringVector
    from undertone.vectors.vector import save_vector

    file = tmp_path / "v.safetensors"
    torch.manual_seed(0)
    save_vector(SteeringVector({1: torch.randn(32) * 20}, {}), file)
    options: dict[str, Any] = {"temperature": 0.0}
    plain = run(preference(trait=owl), tiny_folder("llama"), tmp_path, **options)
    same = run(
        preference(trait=owl),
        tiny_folder("llama"),
        tmp_path,
        model_args={"vector": str(file), "strength": 0},
        **options,
    )
    moved = run(
        preference(trait=owl),
        tiny_folder("llama"),
        tmp_path,
        model_args={"vector": str(file), "strength": 2},
        **options,
    )
    said = [[sample.output.completion for sample in log.samples] for log in (plain, same, moved)]
    assert said[0] == said[1]
    assert said[0] != said[2]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="use undertone/behaviour"):
        preference(trait="pirate")
    with pytest.raises(ConfigError, match="use undertone/preference"):
        behaviour(trait="owl")
    with pytest.raises(ConfigError, match="decided by a judge"):
        behaviour(trait="insecure-code")
    with pytest.raises(ConfigError, match="no negative questions"):
        behaviour(trait="pirate", questions="negative")
