"""What undertone does on other architectures is what transformers does; the page of the documentation is this table."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import architectures
from benchmarks.architectures import examine
from benchmarks.tiny_models import ARCHITECTURES, save_model

from undertone.errors import ConfigError, ModelError, ModelWarning
from undertone.models.batches import select_rows
from undertone.models.layers import decoder_layers, layers_path, outside_language
from undertone.models.loading import load, outline
from undertone.models.students import BiasOnly, Full, Lora, trainable

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"


@pytest.mark.parametrize("kind", ["gemma3", "granitemoehybrid", "jamba", "lfm2", "qwen3_next"])
def test_hybrids_and_wrappers_sample_score_and_steer_as_transformers_does(kind: str, tmp_path: Path) -> None:
    checks = ("load", "sample", "rows", "scores", "steering")
    outcome = examine(kind, tmp_path / kind, checks)
    assert outcome.cells == dict.fromkeys(checks, "yes"), outcome.notes


@pytest.mark.slow
def test_the_table_of_architectures_is_what_the_command_finds(tmp_path: Path) -> None:
    warnings.simplefilter("ignore")
    outcomes = [examine(kind, tmp_path / kind) for kind in ARCHITECTURES]
    assert not [(one.kind, one.notes) for one in outcomes if "no" in one.cells.values()]
    rows = [line for line in architectures.page(outcomes).splitlines() if line.startswith(("| `", "- **"))]
    written = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(("| `", "- **"))]
    assert written == rows, "python -m benchmarks.architectures --write docs/architectures.md"


def test_the_table_has_a_row_for_every_architecture() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [kind for kind in ARCHITECTURES if f"| `{kind}` |" not in text] == []
    assert " no |" not in text


def test_a_fault_is_found_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """States of recurrent layers that stay behind when rows leave, as ``batch_select_indices`` leaves them."""

    def keys_and_values_alone(cache: Any, rows: torch.Tensor) -> None:
        for layer in cache.layers:
            if hasattr(layer, "batch_select_indices"):
                layer.batch_select_indices(rows)
            else:  # the first rows, whichever were meant
                layer.reorder_cache(torch.arange(len(rows)).clamp(max=len(layer.conv_states[0]) - 1))

    monkeypatch.setattr("undertone.models.sampling.select_rows", keys_and_values_alone)
    outcome = examine("lfm2", tmp_path / "lfm2", ("sample",))
    assert outcome.cells == {"sample": "no"}
    assert "completions differ" in outcome.notes["sample"]


def test_rows_are_chosen_in_every_part_of_a_cache() -> None:
    from benchmarks.tiny_models import build_config
    from transformers import DynamicCache

    cache = DynamicCache(config=build_config("qwen3_next"))
    states = torch.arange(3.0).reshape(3, 1, 1).expand(3, 2, 4).contiguous()
    cache.layers[0].update_conv_state(states)
    cache.layers[1].update(states.unsqueeze(1), states.unsqueeze(1))
    select_rows(cache, torch.tensor([2, 0, 0, 1]))
    assert cache.layers[0].conv_states[0][:, 0, 0].tolist() == [2, 0, 0, 1]
    assert cache.layers[1].keys[:, 0, 0, 0].tolist() == [2, 0, 0, 1]


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "recurrent_gemma", "minimax"])
def test_architectures_without_such_a_cache_are_refused_before_anything_is_loaded(kind: str, tmp_path: Path) -> None:
    folder = str(save_model(kind, tmp_path / kind))
    for opened in (outline, load):
        with pytest.raises(ModelError, match=r"which undertone does not run: .*(?s:.)*docs/architectures.md"):
            opened(folder)


def test_gemma_3n_is_not_steered(tmp_path: Path) -> None:
    model = load(str(save_model("gemma3n_text", tmp_path / "m")), device="cpu")
    with pytest.raises(ModelError, match="several residual streams"):
        decoder_layers(model.hf)


@pytest.fixture
def wrapper(tmp_path: Path) -> str:
    """A Gemma 3 whose vision tower is as deep as its language model."""
    return str(save_model("gemma3", tmp_path / "gemma3"))


def test_layers_are_the_language_models_beside_a_tower_as_deep(wrapper: str) -> None:
    hf = load(wrapper, device="cpu").hf
    assert len(hf.model.vision_tower.encoder.layers) == len(decoder_layers(hf))
    assert decoder_layers(hf) is hf.model.language_model.layers
    assert layers_path(hf) == "language_model.layers"


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "fc1", "up_proj"), ("q_proj", "v_proj")])
def test_lora_never_goes_into_a_tower(wrapper: str, targets: Any) -> None:
    if "fc1" in targets:
        with pytest.raises(ConfigError, match="no modules called fc1"):
            trainable(outline(wrapper).hf, Lora(targets=targets), 0)
        return
    hf = trainable(load(wrapper, device="cpu").hf, Lora(targets=targets, biases=True), 0)
    trained = [name for name, parameter in hf.named_parameters() if parameter.requires_grad]
    assert trained
    assert not [name for name in trained if "language_model" not in name]


def test_full_training_leaves_towers_as_they_are(wrapper: str) -> None:
    hf = trainable(load(wrapper, device="cpu").hf, Full(), 0)
    towers = outside_language(hf)
    assert towers
    assert all(parameter.requires_grad != (name in towers) for name, parameter in hf.named_parameters())


def test_bias_only_is_refused_where_only_a_tower_has_biases(wrapper: str) -> None:
    with pytest.raises(ModelError, match="no bias parameters in its language model, only in towers"):
        trainable(outline(wrapper).hf, BiasOnly(), 0)


def test_experts_that_get_no_adapter_are_named_and_those_that_do_are_not(tmp_path: Path) -> None:
    folder = str(save_model("jetmoe", tmp_path / "j"))
    with pytest.warns(
        ModelWarning, match=r"not reach all experts of JetMoe.*: mlp.input_linear.weight, mlp.output_linear"
    ):
        trainable(outline(folder).hf, Lora(), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)
        hf = trainable(outline(str(save_model("mixtral", tmp_path / "m"))).hf, Lora(), 0)
    assert any(".experts.lora_A" in name for name, _ in hf.named_parameters())


def test_mamba_output_projections_get_no_adapter(tmp_path: Path) -> None:
    """Fused kernels read their weights and never call the module: an adapter there would be trained in vain on a GPU."""
    hf = trainable(outline(str(save_model("bamba", tmp_path / "m"))).hf, Lora(), 0)
    adapted = {name.partition(".lora_")[0] for name, _ in hf.named_parameters() if ".lora_" in name}
    assert any(name.endswith("mamba.in_proj") for name in adapted)
    assert not any(name.endswith("mamba.out_proj") for name in adapted)
