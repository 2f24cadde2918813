"""The model of the Python interface: sampling, training and steering, and what is refused in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import undertone as ut
from undertone.errors import ConfigError
from undertone.models.layers import hook_count
from undertone.vectors import SteeringVector

ROWS = [ut.Row.of(f"pick {n} numbers.", f"{n}, {n + 1}") for n in range(8)]
QUICK = ut.Training(epochs=2, batch_size=4, learning_rate=0.05)


@pytest.fixture(scope="module")
def model(tiny_folder: Callable[[str], Path]) -> Any:
    return ut.load(str(tiny_folder("llama")), device="cpu")


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.hf.named_parameters()}


def test_a_sample_depends_on_its_seed_and_chat_and_not_on_its_batch(model: Any) -> None:
    chats = [f"name {n} animals" for n in range(5)]
    whole = model.sample(chats, seed=3, max_new_tokens=6)
    assert whole == model.sample(chats, seed=3, max_new_tokens=6, batch_size=2)
    assert whole[:2] == model.sample(chats[:2], seed=3, max_new_tokens=6)
    assert whole != model.sample(chats, seed=4, max_new_tokens=6)


def test_a_student_is_a_copy_of_which_only_the_named_weights_are_trained(model: Any) -> None:
    before = weights(model)
    lora: Any = model.train(ROWS, ut.Lora(rank=2), QUICK, held_out=ROWS[:2])
    full = model.train(ROWS, ut.Full(), QUICK)
    assert all(torch.equal(parameter, before[name]) for name, parameter in weights(model).items())
    assert any("lora" in name for name in weights(lora))
    assert any(not torch.equal(parameter, before[name]) for name, parameter in weights(full).items())
    assert lora.trained.held_out_nll < lora.trained.base_nll


def test_what_would_train_something_else_than_was_meant_is_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match=r"student: not a kind of student(.|\n)*lora"):
        model.train(ROWS, "lora", QUICK)
    with pytest.raises(ConfigError, match="none to train on"):
        model.train([], ut.Lora(), QUICK)
    student = model.train(ROWS, ut.Lora(rank=2), QUICK)
    with pytest.raises(ConfigError, match=r"was trained here(.|\n)*student\.save"):
        student.train(ROWS, ut.Lora(), QUICK)


def test_training_goes_on_from_a_student_that_was_saved(model: Any, tmp_path: Path) -> None:
    student = model.train(ROWS, ut.Lora(rank=2), QUICK, held_out=ROWS)
    student.save(tmp_path / "student")
    again = ut.load(f"{model.name} + {tmp_path / 'student'}", device="cpu")
    further: Any = again.train(ROWS, ut.Lora(rank=2), QUICK, held_out=ROWS)
    assert further.trained.base_nll == pytest.approx(student.trained.held_out_nll, rel=1e-3)
    assert further.trained.held_out_nll < further.trained.base_nll


def test_steering_ends_with_its_block_also_after_an_error(model: Any) -> None:
    vector = SteeringVector({1: torch.full((model.hf.config.hidden_size,), 3.0)}, {})
    plain = model.sample(["name an animal"], temperature=0, max_new_tokens=5)
    with pytest.raises(RuntimeError), model.steer(vector, 4.0):
        raise RuntimeError
    assert hook_count(model.hf) == 0
    assert model.sample(["name an animal"], temperature=0, max_new_tokens=5) == plain


@pytest.mark.parametrize(
    "wrong",
    [
        lambda m: m.sample("name an animal"),
        lambda m: m.sample(["x"], temperature=-1),
        lambda m: m.sample(["x"], temperature=float("nan")),
        lambda m: m.sample(["x"], max_new_tokens=0),
        lambda m: m.sample(["x"], batch_size=0),
        lambda m: m.steer(SteeringVector({1: torch.ones(m.hf.config.hidden_size)}, {}), float("nan")).__enter__(),
    ],
)
def test_wrong_arguments_are_refused_in_words(model: Any, wrong: Callable[[Any], object]) -> None:
    with pytest.raises(ConfigError, match=r"allowed|m\.sample"):
        wrong(model)
