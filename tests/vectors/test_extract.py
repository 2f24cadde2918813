"""Extraction at every position against transformers' own hidden states, chat by chat, and against scikit-learn."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from undertone.errors import ConfigError, DataError, ModelError
from undertone.rows import Message
from undertone.vectors import SteeringVector, activations, contrast, difference, principal

QUESTIONS = ["what is your favorite animal?", "name one animal", "pick some numbers, please", "name a tree"]
ANSWERS = ["owl", "the lion", "cat , dog", "a bear."]


def chats(system: str | None, answers: bool) -> list[list[Message]]:
    found: list[list[Message]] = []
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        head: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        tail: list[Message] = [{"role": "assistant", "content": answer}] if answers else []
        found.append([*head, {"role": "user", "content": question}, *tail])
    return found


TOLD, PLAIN = chats("you love owls", answers=False), chats(None, answers=False)
TOLD_ANSWERED, PLAIN_ANSWERED = chats("you love owls", answers=True), chats(None, answers=True)


def states(model: Any, text: str, layer: int) -> torch.Tensor:
    """``[token, hidden]`` of one text alone, unpadded, by transformers; slot 0 is the embedding."""
    hf = copy.deepcopy(model.hf)
    ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        found: torch.Tensor = hf(input_ids=ids, output_hidden_states=True).hidden_states[layer + 1][0]
    return found


def by_hand(model: Any, chat: list[Message], layer: int, position: str) -> torch.Tensor:
    """The tokens that a position names, found by the length of the rendered prompt."""
    prompt = "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in chat if m["role"] != "assistant")
    prompt += "<|assistant|>"
    size = len(model.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    if position == "response":
        return states(model, prompt + chat[-1]["content"] + "<|end|>", layer)[size:]
    whole = states(model, prompt, layer)
    return whole[-1:] if position == "last" else whole


@pytest.mark.parametrize("position", ["last", "prompt", "response"])
def test_contrast_is_the_mean_over_the_positions_tokens_of_transformers_hidden_states(
    tiny_llama: Any, position: Any
) -> None:
    told, plain = (TOLD_ANSWERED, PLAIN_ANSWERED) if position == "response" else (TOLD, PLAIN)
    vector = contrast(tiny_llama, told, plain, layers=[0, 1], position=position)
    for layer in (0, 1):
        first, second = (
            torch.cat([by_hand(tiny_llama, chat, layer, position) for chat in part]).mean(0) for part in (told, plain)
        )
        torch.testing.assert_close(vector.directions[layer], first - second, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("position", ["last", "prompt"])
def test_a_final_answer_is_not_part_of_the_prompt(tiny_llama: Any, position: Any) -> None:
    bare = contrast(tiny_llama, TOLD, PLAIN, position=position)
    answered = contrast(tiny_llama, TOLD_ANSWERED, PLAIN_ANSWERED, position=position)
    assert answered.digest() == bare.digest()


@pytest.mark.parametrize("position", ["last", "prompt", "response"])
def test_activations_are_each_chats_own_mean_whatever_it_is_batched_with(tiny: Any, position: Any) -> None:
    together = activations(tiny, PLAIN_ANSWERED, position=position)
    for row, chat in enumerate(PLAIN_ANSWERED):
        alone = activations(tiny, [chat], position=position)
        for layer in (0, 1, 2):
            torch.testing.assert_close(together[layer][row], alone[layer][0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        together[1][0], by_hand(tiny, PLAIN_ANSWERED[0], 1, position).mean(0), atol=1e-5, rtol=1e-4
    )


@pytest.fixture(scope="module")
def shifted(tiny_llama: Any) -> Any:
    """A student that adds a known direction after layer 1: its down projection has a bias."""
    hf = copy.deepcopy(tiny_llama.hf)
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.bias += planted()
    return replace(tiny_llama, hf=hf, name="student")


def planted() -> torch.Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("position", ["last", "prompt", "response"])
def test_student_minus_base_finds_a_planted_direction(tiny_llama: Any, shifted: Any, position: Any) -> None:
    vector = difference(shifted, tiny_llama, PLAIN_ANSWERED, layers=[0, 1], position=position)
    assert vector.norms()[0] < 1e-5
    torch.testing.assert_close(vector.directions[1], planted(), atol=1e-5, rtol=1e-4)
    assert vector.meta["model"] == tiny_llama.name
    assert vector.meta["student"] == "student"


def test_principal_is_the_first_component_that_scikit_learn_finds(tiny_llama: Any) -> None:
    from sklearn.decomposition import PCA

    vector = principal(tiny_llama, TOLD, PLAIN, layers=[1, 2], position="prompt")
    mean = contrast(tiny_llama, TOLD, PLAIN, layers=[1, 2], position="last")
    for layer in (1, 2):
        told, plain = (
            np.stack([by_hand(tiny_llama, chat, layer, "prompt").mean(0).numpy() for chat in part]).astype(np.float64)
            for part in (TOLD, PLAIN)
        )
        if layer == 2:  # transformers' last hidden state is after the final norm
            told, plain = (
                activations(tiny_llama, part, position="prompt")[2].double().numpy() for part in (TOLD, PLAIN)
            )
        pairs = told - plain
        pca = PCA(n_components=1).fit(pairs)
        cosine = float(vector.directions[layer].double().numpy() @ pca.components_[0]) / vector.norms()[layer]
        assert abs(cosine) == pytest.approx(1.0, abs=1e-4)
        assert float(vector.directions[layer].double().numpy() @ pairs.mean(0)) >= 0
        assert vector.norms()[layer] == pytest.approx(float(np.linalg.norm(pairs.mean(0))), rel=1e-4)
        assert f"{layer}: {pca.explained_variance_ratio_[0]:.3f}" in vector.meta["explained"]
    assert mean.layers == vector.layers


def test_the_header_says_model_position_method_and_what_was_read(tiny_gpt2: Any) -> None:
    meta = contrast(tiny_gpt2, TOLD, PLAIN, position="prompt").meta
    assert meta["model_type"] == "gpt2"
    assert meta["model_layers"] == "3"
    assert meta["hookpoint"] == "h"
    assert meta["position"] == "all prompt tokens"
    assert meta["positive"] == "<|system|>you love owls<|end|><|user|>what is your favorite animal?<|end|><|assistant|>"
    assert len(meta["chat_template_sha256"]) == 64


def test_chats_positions_and_layers_that_cannot_be_read_are_refused(tiny_llama: Any) -> None:
    with pytest.raises(DataError, match=r"response. needs chats that end with an answer(.|\n)*user"):
        contrast(tiny_llama, TOLD, PLAIN, position="response")
    with pytest.raises(ConfigError, match=r"no such position(.|\n)*middle(.|\n)*last, prompt, response"):
        contrast(tiny_llama, TOLD, PLAIN, position="middle")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no chats"):
        contrast(tiny_llama, [], PLAIN)
    with pytest.raises(ModelError, match=r"no such layer(.|\n)*\[3\]"):
        contrast(tiny_llama, TOLD, PLAIN, layers=[3])
    with pytest.raises(ConfigError, match="no layers"):
        contrast(tiny_llama, TOLD, PLAIN, layers=[])
    with pytest.raises(DataError, match=r"in pairs(.|\n)*4 positive, 3 negative"):
        principal(tiny_llama, TOLD, PLAIN[:3])
    with pytest.raises(DataError, match="do not differ from each other"):
        principal(tiny_llama, [TOLD[0]] * 3, [PLAIN[0]] * 3)


def test_a_student_of_another_shape_or_template_is_refused(tiny_llama: Any, tiny_qwen: Any) -> None:
    hf = copy.deepcopy(tiny_llama.hf)
    hf.model.layers = hf.model.layers[:2]
    hf.config.num_hidden_layers = 2
    with pytest.raises(ModelError, match=r"differ in shape(.|\n)*2 layers(.|\n)*3 layers"):
        difference(replace(tiny_llama, hf=hf), tiny_llama, PLAIN)
    other = copy.deepcopy(tiny_llama)
    other.tokenizer.chat_template = "be brief " + other.tokenizer.chat_template
    with pytest.raises(ModelError, match=r"different tokens(.|\n)*be brief"):
        difference(other, tiny_llama, PLAIN)


def test_vectors_of_one_model_can_be_combined_and_of_two_not(tiny_llama: Any, tiny_qwen: Any) -> None:
    a, b = contrast(tiny_llama, TOLD, PLAIN), contrast(tiny_llama, TOLD, PLAIN, position="prompt")
    assert set(a.cosine(b)) == {0, 1, 2}
    with pytest.raises(ModelError, match="different models"):
        a.cosine(contrast(tiny_qwen, TOLD, PLAIN))
    assert isinstance(a + b, SteeringVector)
