"""What cannot be loaded says what is missing and the command that helps: no traceback, no hint at what is not the cause."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from undertone.errors import ModelError, ModelWarning
from undertone.models.loading import load, outline
from undertone.models.refusals import unloadable

Edited = Callable[..., str]


@pytest.fixture
def edited(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Edited:
    """A copy of a model whose config.json has other values."""

    def make(**changes: Any) -> str:
        folder = Path(shutil.copytree(tiny_folder("llama"), tmp_path / "model"))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
        return str(folder)

    return make


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "quantisation": (
        {"quantization_config": {"quant_method": "aqlm"}},
        r"a package that it needs is missing.*do: pip install .aqlm",
    ),
    "quantisation, no command in the library's words": (
        {"quantization_config": {"quant_method": "torchao", "quant_type": "int8_weight_only"}},
        r"a package that it needs is missing.*do: pip install torchao",
    ),
    "attention": (
        {"attn_implementation": "flash_attention_2"},
        r"a package that it needs is missing.*do: pip install flash-attn, or take the line with attn_implementation out",
    ),
    "a field of another type": (
        {"hidden_size": "thirty"},
        r"refuses its config: Field 'hidden_size' expected int, got str.*do: repair its config.json",
    ),
    "numbers that do not go together": (
        {"num_attention_heads": 5},
        r"refuses its config: The hidden size \(32\) is not a multiple.*do: repair its config.json",
    ),
    "an architecture of tomorrow": (
        {"model_type": "brandnew"},
        r"knows no model type 'brandnew'.*do: if it is new: pip install -U transformers",
    ),
    "no causal model": ({"model_type": "llava"}, r"Llava is no causal language model.*do: use its text model"),
    "code of its own": (
        {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}},
        r"code from its own repository, which undertone never runs",
    ),
    "an activation of its own": ({"hidden_act": "nosuch"}, r"names 'nosuch', which transformers does not know"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_cannot_be_loaded_says_why_and_what_helps(edited: Edited, name: str) -> None:
    """In the preflight, which knows the config alone, as well as when weights are loaded."""
    changes, message = CONFIGS[name]
    folder = edited(**changes)
    for opened in (outline, load):
        with pytest.raises(ModelError, match=f"(?s)cannot load the model .*{message}") as error:
            opened(folder)
        assert "HF_TOKEN" not in str(error.value)
        assert "check the name" not in str(error.value)


@pytest.mark.parametrize(
    ("said", "message", "token"),
    [
        ("You are trying to access a gated repo.\nMake sure to …", "lets only some users have it", True),
        ("We couldn't connect to 'https://huggingface.co' to load the files", "hf download NAME", False),
        ("x/y is not a local folder and is not a valid model identifier listed on", "no such model", True),
        ("disk on fire", "disk on fire", False),
    ],
)
def test_only_who_lacks_a_token_is_told_of_one(said: str, message: str, token: bool) -> None:
    error = str(unloadable("x/y", OSError(said)))
    assert message in error
    assert ("HF_TOKEN" in error) == token


def test_a_template_with_an_error_is_named_with_its_line(edited: Edited) -> None:
    folder = edited()
    (Path(folder) / "chat_template.jinja").write_text("{% for m in messages %}\n{{ m.content }")
    model = outline(folder)
    with pytest.raises(ModelError, match=r"(?s)cannot be read: .*\(line 2\).*do: repair chat_template.jinja") as error:
        model.render([{"role": "user", "content": "x"}])
    assert "system role" not in str(error.value)


def test_a_model_without_an_end_is_refused_and_one_that_has_it_in_its_generation_config_is_not(edited: Edited) -> None:
    folder = Path(edited(eos_token_id=None))
    known = json.loads((folder / "tokenizer_config.json").read_text())
    del known["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(known))
    (folder / "generation_config.json").write_text("{}")
    for opened in (outline, load):
        with pytest.raises(ModelError, match=r"(?s)no end-of-sequence token.*do: tokenizer.eos_token = TOKEN"):
            opened(str(folder))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7]}))
    for opened in (outline, load):
        assert opened(str(folder)).stop == [0, 7]


def test_weights_that_the_config_leaves_unused_are_named(edited: Edited) -> None:
    """A folder of three layers whose config says two: transformers loads it without a word."""
    folder = edited(num_hidden_layers=2)
    with pytest.warns(ModelWarning, match=r"weights in the files of .* are not used .*: model\.layers\.2\."):
        model = load(folder, device="cpu")
    assert len(model.notes) == 1
    assert model.notes[0].partition(" ")[0] == str(sum(".layers.2." in name for name in _stored(folder)))


def test_a_whole_model_is_loaded_without_a_word(edited: Edited) -> None:
    folder = edited()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)
        assert load(folder, device="cpu").notes == ()
    save_file({**_stored(folder), "vision.weight": torch.ones(1)}, Path(folder) / "model.safetensors", {"format": "pt"})
    with pytest.warns(ModelWarning, match=r"1 weights .*: vision\.weight"):
        load(folder, device="cpu")


def _stored(folder: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(Path(folder) / "model.safetensors")
    return found
