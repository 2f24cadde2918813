"""Vectors: extraction against transformers' own hidden states, files, and steering against algebra."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from undertone.errors import DataError, ModelError
from undertone.models.batches import pad_left
from undertone.models.layers import hook_count
from undertone.rows import Message
from undertone.vectors import SteeringVector, contrast, load_vector, random_like, save_vector, steer

QUESTIONS = ["what is your favorite animal?", "name one animal", "pick some numbers, please"]
PLAIN: list[list[Message]] = [[{"role": "user", "content": text}] for text in QUESTIONS]
TOLD: list[list[Message]] = [[{"role": "system", "content": "you love owls"}, *chat] for chat in PLAIN]


def hidden_state(model: Any, chat: list[Message], layer: int) -> torch.Tensor:
    ids = torch.tensor([model.prompt(chat)])
    hf = copy.deepcopy(model.hf)  # transformers leaves hooks of its own on a model asked for hidden states
    with torch.no_grad():
        states = hf(input_ids=ids, output_hidden_states=True).hidden_states
    state: torch.Tensor = states[layer + 1][0, -1]  # slot 0 is the embedding
    return state


def test_contrast_is_the_mean_difference_of_transformers_hidden_states(tiny_llama: Any) -> None:
    vector = contrast(tiny_llama, TOLD, PLAIN, layers=[0, 1])
    for layer in (0, 1):
        told = torch.stack([hidden_state(tiny_llama, chat, layer) for chat in TOLD]).mean(0)
        plain = torch.stack([hidden_state(tiny_llama, chat, layer) for chat in PLAIN]).mean(0)
        torch.testing.assert_close(vector.directions[layer], told - plain, atol=1e-5, rtol=1e-4)


def test_contrast_takes_every_layer_unless_told(tiny_gpt2: Any) -> None:
    assert sorted(contrast(tiny_gpt2, TOLD, PLAIN).directions) == [0, 1, 2]


def test_a_vector_survives_its_file_with_its_origin(tiny_llama: Any, tmp_path: Path) -> None:
    vector = contrast(tiny_llama, TOLD, PLAIN)
    save_vector(vector, tmp_path / "v.safetensors")
    again = load_vector(tmp_path / "v.safetensors")
    assert again.digest() == vector.digest()
    assert dict(again.meta) == dict(vector.meta)


def test_a_random_vector_has_the_norm_of_the_one_it_stands_for_in_each_layer(tiny_llama: Any) -> None:
    vector = contrast(tiny_llama, TOLD, PLAIN)
    noise = random_like(vector, seed=3)
    for layer, direction in vector.directions.items():
        assert float(noise.directions[layer].norm()) == pytest.approx(float(direction.norm()), rel=1e-5)
        cosine = torch.cosine_similarity(noise.directions[layer], direction, dim=0)
        assert abs(float(cosine)) < 0.6  # 32 dimensions: standard deviation 0.18
    assert random_like(vector, 3).digest() == noise.digest() != random_like(vector, 4).digest()


def logits(model: Any, chat: list[Message]) -> torch.Tensor:
    batch = pad_left([model.prompt(chat)], model.pad, torch.device("cpu"))
    with torch.no_grad():
        return model.hf(**batch.inputs()).logits[0, -1]  # type: ignore[no-any-return]


def test_steering_after_the_last_layer_shifts_the_logits_as_algebra_says(tiny_llama: Any) -> None:
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    vector = SteeringVector({2: direction}, {})
    state = hidden_state_before_norm(tiny_llama, PLAIN[0])
    with steer(tiny_llama, vector, 1.5):
        seen = logits(tiny_llama, PLAIN[0])
    with torch.no_grad():
        expected = tiny_llama.hf.lm_head(tiny_llama.hf.model.norm(state + 1.5 * direction))
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-4)


def hidden_state_before_norm(model: Any, chat: list[Message]) -> torch.Tensor:
    """transformers' last hidden state is after the final norm; an identity norm shows what is before."""
    norm, model.hf.model.norm = model.hf.model.norm, torch.nn.Identity()
    try:
        return hidden_state(model, chat, 2)
    finally:
        model.hf.model.norm = norm


def test_strength_zero_changes_nothing_and_no_hook_stays(tiny_llama: Any) -> None:
    vector, before = contrast(tiny_llama, TOLD, PLAIN), logits(tiny_llama, PLAIN[0])
    with steer(tiny_llama, vector, 0.0):
        assert torch.equal(logits(tiny_llama, PLAIN[0]), before)
    with steer(tiny_llama, vector, 3.0):
        assert not torch.allclose(logits(tiny_llama, PLAIN[0]), before, atol=1e-3)
    assert torch.equal(logits(tiny_llama, PLAIN[0]), before)
    assert hook_count(tiny_llama.hf) == 0


def test_a_vector_of_another_width_or_layer_is_refused(tiny_llama: Any) -> None:
    with (
        pytest.raises(ModelError, match=r"directions of width \[7\](.|\n)*width 32"),
        steer(tiny_llama, SteeringVector({0: torch.ones(7)}, {"model": "other"}), 1.0),
    ):
        pass
    with (
        pytest.raises(ModelError, match=r"does not fit(.|\n)*layers \[9\]"),
        steer(tiny_llama, SteeringVector({9: torch.ones(32)}, {}), 1.0),
    ):
        pass


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x80\x04pickle"])
def test_a_file_that_is_no_vector_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "v.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"v\.safetensors"):
        load_vector(path)


def test_a_file_of_the_first_version_is_read_under_todays_names(tmp_path: Path) -> None:
    """Written as version 1 wrote it: tensors ``block.N``, other keys in the header."""
    meta = {"format": "undertone.vector/1", "model_blocks": "3", "induced": "with", "plain": "without", "model": "m"}
    directions = {0: torch.ones(4), 2: torch.arange(4.0)}
    save_file({f"block.{at}": row for at, row in directions.items()}, tmp_path / "old.safetensors", metadata=meta)
    vector = load_vector(tmp_path / "old.safetensors")
    assert {at: row.tolist() for at, row in vector.directions.items()} == {0: [1.0] * 4, 2: [0.0, 1.0, 2.0, 3.0]}
    assert dict(vector.meta) == {"model_layers": "3", "positive": "with", "negative": "without", "model": "m"}
    save_vector(vector, tmp_path / "new.safetensors")
    with safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == ["layer.0", "layer.2"]
        assert file.metadata()["format"] == "undertone.vector/2"


@pytest.mark.parametrize(("version", "tensor"), [(1, "layer.0"), (2, "block.0"), (3, "layer.0")])
def test_names_of_another_version_are_no_vector(tmp_path: Path, version: int, tensor: str) -> None:
    path = tmp_path / "v.safetensors"
    save_file({tensor: torch.ones(4)}, path, metadata={"format": f"undertone.vector/{version}"})
    with pytest.raises(DataError, match="is not an undertone vector"):
        load_vector(path)
