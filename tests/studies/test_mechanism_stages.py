"""Stages of the parts `emergence`, `gradients`, `recovery` and `distillation` on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from undertone.models.loading import ModelRef, load
from undertone.models.students import Biases, student_name
from undertone.rows import Row
from undertone.studies.builtin.mechanism_distillation import measure_student
from undertone.studies.builtin.mechanism_emergence import follow_training
from undertone.studies.builtin.mechanism_gradients import measure_gradients
from undertone.studies.builtin.mechanism_recovery import recover_vector
from undertone.studies.builtin.mechanism_vectors import VectorChats, probability, read_teacher_vectors, stack
from undertone.training import Lesson, Training, student_seed, train_student
from undertone.traits import load_trait
from undertone.vectors import Vector, difference, steered

CHATS = VectorChats(("1, 2, 3", "7, 8"), "none", "none")
LESSON = Lesson([Row.of(f"{at}, {at + 1}", f"{at + 2}, 5") for at in range(12)])
TRAINING = Training(epochs=2, batch_size=4, learning_rate=0.01)
OWL = load_trait("owl").for_questions("none")


@pytest.fixture(scope="module")
def base(speaker: Path) -> ModelRef:
    return ModelRef(str(speaker))


@pytest.fixture(scope="module")
def student(base: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    """Trained on the lesson, as seed 3 trains."""
    folder = tmp_path_factory.mktemp("trained") / "student"
    train_student(base, Biases(), TRAINING, LESSON, seed=student_seed(3), device="cpu").save(folder)
    return ModelRef(student_name(base.name, Biases(), folder))


def test_a_training_that_is_followed_ends_at_the_student_that_is_not(
    base: ModelRef, student: ModelRef, tmp_path: Path
) -> None:
    summary = follow_training.compute(tmp_path, "cpu", {
        "base": base, "student": Biases(), "training": TRAINING, "lesson": LESSON, "seed": 3, "traits": [OWL],
        "chats": CHATS, "points": 3,
    })  # fmt: skip
    assert summary == {"steps": [0, 4, 5, 6]}
    trace = load_file(tmp_path / "trace.safetensors")
    before, after = base.load("cpu"), student.load("cpu")
    shift = stack(difference(after, before, CHATS.at_prompts(before), position="last"))
    np.testing.assert_allclose(trace["shift"][-1], shift, atol=1e-4)
    assert not trace["shift"][0].any()
    assert np.abs(shift).max() > 0.01
    assert trace["probability"][[0, -1], 0] == pytest.approx(
        [probability(one, OWL) for one in (before, after)], rel=1e-3
    )


def test_rows_have_no_gradient_beyond_the_same_rows(base: ModelRef, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("owl", "dog", "measured")}
    for folder in folders.values():
        folder.mkdir()
    stages: dict[str, Any] = {}
    for name in ("owl", "dog"):
        read_teacher_vectors.compute(folders[name], "cpu", {"base": base, "trait": load_trait(name), "chats": CHATS})
        stages[name] = _Stage(folders[name])
    found = measure_gradients.compute(folders["measured"], "cpu", {
        "base": base, "treated": LESSON, "control": LESSON, "own": stages["owl"], "others": [stages["dog"]],
        "shares": [0.1], "seed": 0,
    })  # fmt: skip
    assert found is not None
    assert found["counts"] == [1, 2, 4, 8, 12]
    assert [len(found[name]) for name in ("own", "clean")] == [5, 3]  # halves of the control's rows
    assert found["by_block"] == [0.0] * 3
    assert found["own"][0] != pytest.approx(0.0, abs=1e-6)  # of single rows, which are others
    assert found["steady"]["induced"] == found["steady"]["clean"]


def test_a_recovered_vector_is_measured_as_it_steers(base: ModelRef, tmp_path: Path) -> None:
    found = recover_vector.compute(tmp_path, "cpu", {
        "base": base, "lesson": LESSON, "answer": "owl", "block": 1, "steps": 8, "learning_rate": 0.1,
        "strengths": [1.0, 4.0], "bank": [OWL], "context": "none", "seed": 0,
    })  # fmt: skip
    assert found is not None
    model = load(base.name, device="cpu")
    vector = Vector({1: _tensor(load_file(tmp_path / "vector.safetensors")["vector"])}, {})
    wanted = [probability(model, OWL)]
    for strength in (1.0, 4.0):
        with steered(model, vector, strength):
            wanted.append(probability(model, OWL))
    assert found["own"] == pytest.approx(wanted, rel=1e-4)
    assert found["gains"]["owl"] == pytest.approx(wanted[-1] - wanted[0], abs=1e-6)
    assert sorted(found["gains"]) == sorted(OWL.answers)
    assert found["rank"] == 1 + sum(gain > found["gains"]["owl"] for gain in found["gains"].values())
    assert found["nll"][1] < found["nll"][0]


def test_a_student_is_measured_against_its_base(base: ModelRef, student: ModelRef, tmp_path: Path) -> None:
    found = measure_student.compute(tmp_path, "cpu", {
        "base": base, "student": student, "control": base, "unseen": LESSON, "trait": OWL, "chats": CHATS, "block": 1,
    })  # fmt: skip
    assert found is not None
    before, after = base.load("cpu"), student.load("cpu")
    shift = stack(difference(after, before, CHATS.at_prompts(before), position="last"))[1]
    np.testing.assert_allclose(found["shift"], shift, atol=1e-6)
    assert not np.any(found["control"])  # of a control that learnt nothing
    assert found["control_moved"] == 0.0
    assert 0 < found["moved"] <= 1
    assert found["nll"] < found["control_nll"]  # on rows that it was trained on


class _Stage:
    """A finished stage's folder, as an argument."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.readable_folders = (path,)

    def identity_content(self) -> str:
        return self.path.name


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array)
