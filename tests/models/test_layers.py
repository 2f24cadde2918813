"""Layers and hooks, against transformers' own hidden states and against algebra."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from undertone.errors import ModelError
from undertone.models.batches import pad_left
from undertone.models.layers import (
    decoder_layers,
    edit_residuals,
    head_only_at,
    hidden_size,
    hook_count,
    read_residuals,
)
from undertone.models.sampling import sample
from undertone.models.students import trainable

ROWS = [(3, 17, 44, 5, 60, 70), (3, 17, 44), (9, 8, 7, 6)]


def inputs(model: Any) -> dict[str, Any]:
    return pad_left(ROWS, model.pad, model.device).inputs()


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = model.hf(**inputs(model), use_cache=False).logits
    return out


def test_layer_k_is_hidden_state_k_plus_1_of_transformers(tiny: Any) -> None:
    hf = copy.deepcopy(tiny.hf)  # transformers leaves hooks of its own where hidden states are asked for
    with torch.no_grad(), read_residuals(hf, [0, 1, 2]) as stream:
        states = hf(**inputs(tiny), output_hidden_states=True).hidden_states
    assert torch.equal(stream[0], states[1])
    assert torch.equal(stream[1], states[2])
    # The last hidden state has been through the final norm; the last layer has not.
    core = hf.base_model
    norm = next(getattr(core, n) for n in ("norm", "ln_f", "final_layer_norm") if hasattr(core, n))
    assert torch.equal(norm(stream[2]), states[3])
    assert stream[0].shape[-1] == hidden_size(tiny.hf)


def test_an_edit_after_the_last_layer_is_what_norm_and_head_make_of_it(tiny_llama: Any) -> None:
    model = tiny_llama
    direction = torch.randn(hidden_size(model.hf), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), read_residuals(model.hf, [2]) as stream:
        model.hf(**inputs(model))
        by_hand = model.hf.lm_head(model.hf.model.norm(stream[2] + 3 * direction))
    with edit_residuals(model.hf, {2: lambda stream: stream + 3 * direction}):
        steered = logits(model)
    torch.testing.assert_close(steered, by_hand)


def test_an_ablated_direction_is_gone_from_the_stream(tiny: Any) -> None:
    unit = torch.nn.functional.normalize(torch.randn(hidden_size(tiny.hf)), dim=0)

    def ablate(stream: torch.Tensor) -> torch.Tensor:
        return stream - (stream @ unit)[..., None] * unit

    with edit_residuals(tiny.hf, {1: ablate}), read_residuals(tiny.hf, [1]) as stream:
        logits(tiny)
    assert float((stream[1] @ unit).abs().max()) < 1e-5


def test_an_edit_acts_on_cached_tokens_as_on_whole_sequences(tiny: Any) -> None:
    """Steered greedy decoding with a cache, against a steered forward of the whole text each time."""
    direction = torch.randn(hidden_size(tiny.hf), generator=torch.Generator().manual_seed(2))
    prompt = list(ROWS[0])
    with edit_residuals(tiny.hf, {1: lambda stream: stream + 2 * direction}):
        [cached] = sample(tiny.hf, [prompt], [0], max_new_tokens=6, stop=[], pad=1, temperature=0)
        whole: list[int] = []
        for _ in range(6):
            with torch.inference_mode():
                out = tiny.hf(input_ids=torch.tensor([prompt + whole]), use_cache=False)
            whole.append(int(out.logits[0, -1].argmax()))
    plain = sample(tiny.hf, [prompt], [0], max_new_tokens=6, stop=[], pad=1, temperature=0)
    assert cached == whole
    assert [cached] != plain


def test_an_edit_that_changes_nothing_moves_no_bit(tiny: Any) -> None:
    plain = logits(tiny)
    with edit_residuals(tiny.hf, {0: lambda stream: stream, 2: lambda stream: stream + 0.0}):
        assert torch.equal(logits(tiny), plain)


@pytest.mark.parametrize(
    "manager",
    [
        lambda hf: edit_residuals(hf, {0: lambda stream: stream * 2, 1: lambda stream: stream}),
        lambda hf: read_residuals(hf, [0, 1, 2]),
        lambda hf: head_only_at(hf, torch.ones(1, 1, dtype=torch.bool)),
    ],
    ids=["edit_residuals", "read_residuals", "head_only_at"],
)
def test_an_error_inside_leaves_no_hook(tiny_llama: Any, manager: Callable[[Any], Any]) -> None:
    plain = logits(tiny_llama)
    with pytest.raises(ZeroDivisionError), manager(tiny_llama.hf):  # not raised where no hook is set
        assert 1 // (hook_count(tiny_llama.hf) == 0)
    assert hook_count(tiny_llama.hf) == 0
    assert torch.equal(logits(tiny_llama), plain)


def test_an_edit_that_fails_leaves_no_hook(tiny_llama: Any) -> None:
    def fails(stream: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), edit_residuals(tiny_llama.hf, {0: fails}):
        logits(tiny_llama)
    assert hook_count(tiny_llama.hf) == 0


@pytest.mark.parametrize("wrong", [3, -1])
def test_a_layer_that_is_not_there_is_refused_before_any_hook_is_set(tiny_llama: Any, wrong: int) -> None:
    with (
        pytest.raises(ModelError, match=rf"no such layer\n  got: \[{wrong}\]\n  allowed: 0 to 2"),
        edit_residuals(tiny_llama.hf, {0: lambda stream: stream, wrong: lambda stream: stream}),
    ):
        pass
    with (
        pytest.raises(ModelError, match="no such layer"),
        read_residuals(tiny_llama.hf, [0, wrong]),
    ):
        pass
    assert hook_count(tiny_llama.hf) == 0


def test_a_model_without_a_list_of_layers_is_refused(fresh: Any) -> None:
    fresh.hf.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match="cannot find the decoder layers of LlamaForCausalLM"):
        decoder_layers(fresh.hf)


def test_the_layers_of_a_peft_model_are_those_of_its_base(fresh: Any) -> None:
    plain = list(decoder_layers(fresh.hf))
    lora = {"kind": "lora", "rank": 2, "alpha": 4, "dropout": 0.0, "targets": "all-linear"}
    wrapped = trainable(fresh.hf, lora, seed=0)
    assert list(decoder_layers(wrapped)) == plain
    assert hidden_size(wrapped) == 32


def test_the_head_at_chosen_positions_gives_the_logits_there(tiny: Any) -> None:
    where = torch.zeros(3, 6, dtype=torch.bool)
    where[0, 2] = where[1, 5] = where[2, 3] = True
    with head_only_at(tiny.hf, where):
        chosen = logits(tiny)
    torch.testing.assert_close(chosen, logits(tiny)[where])
