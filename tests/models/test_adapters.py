"""Adapters of other tools: exact, as PEFT itself has them, or refused; never half of one, never one on another base unsaid."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import save_tiny

from undertone.errors import ModelError, ModelWarning
from undertone.models.loading import load
from undertone.models.names import identify
from undertone.models.students import BiasOnly, Lora, save_student, trainable

IDS = torch.tensor([[11, 12, 13, 14, 15, 16]])
LINEAR: dict[str, Any] = {"target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
KINDS: dict[str, Any] = {
    "lora": peft.LoraConfig(r=2, init_lora_weights=False, **LINEAR),
    "dora": peft.LoraConfig(r=2, use_dora=True, init_lora_weights=False, **LINEAR),
    "rslora": peft.LoraConfig(r=2, use_rslora=True, init_lora_weights=False, **LINEAR),
    "lora, all biases": peft.LoraConfig(r=2, bias="all", init_lora_weights=False, **LINEAR),
    "lora, whole modules": peft.LoraConfig(r=2, modules_to_save=["lm_head"], init_lora_weights=False, **LINEAR),
    "ia3": peft.IA3Config(feedforward_modules=["down_proj"], init_ia3_weights=False, **LINEAR),
    "oft": peft.OFTConfig(oft_block_size=4, init_weights=False, **LINEAR),
    "vera": peft.VeraConfig(r=4, init_weights=False, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM"),
    "loha": peft.LoHaConfig(r=2, init_weights=False, **LINEAR),
    "lokr": peft.LoKrConfig(r=2, init_weights=False, **LINEAR),
    "ln": peft.LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM"),
}


def logits(hf: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = hf(input_ids=IDS).logits
    return found


def adapted(folder: Path, kind: str, out: Path) -> torch.Tensor:
    """PEFT's own adapter of a kind, every weight of it moved, saved to ``out``; what the model says with it."""
    torch.manual_seed(0)
    hf = peft.get_peft_model(load(str(folder), device="cpu").hf, KINDS[kind]).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    hf.save_pretrained(out)
    return logits(hf)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_any_kind_gives_what_peft_gives(
    tiny_folder: Callable[[str], Path], kind: str, tmp_path: Path
) -> None:
    base = tiny_folder("llama")
    wanted = adapted(base, kind, tmp_path)
    assert not torch.allclose(wanted, logits(load(str(base), device="cpu").hf), atol=1e-3)
    assert torch.equal(logits(load(f"{base} + {tmp_path}", device="cpu").hf), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_which_a_part_is_missing_is_refused(
    tiny_folder: Callable[[str], Path], kind: str, tmp_path: Path
) -> None:
    adapted(tiny_folder("llama"), kind, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    whole = load_file(file)
    rare = {".".join(name.split(".")[-2:]): name for name in whole if ".bias" in name or "lm_head" in name}
    for name in [next(iter(whole)), *rare.values()]:
        save_file({key: value for key, value in whole.items() if key != name}, file)
        with pytest.raises(ModelError, match=r"that it should have (is|are) not in the file"):
            load(f"{tiny_folder('llama')} + {tmp_path}", device="cpu")
    save_file({**whole, "base_model.model.tower.weight": torch.ones(2)}, file)
    with pytest.raises(ModelError, match="1 of its tensors have no place in the model"):
        load(f"{tiny_folder('llama')} + {tmp_path}", device="cpu")


@pytest.mark.parametrize(
    "config",
    [
        peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
        peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
        peft.PromptEncoderConfig(num_virtual_tokens=2, encoder_hidden_size=8, task_type="CAUSAL_LM"),
    ],
    ids=["prefix", "prompt", "p-tuning"],
)
def test_kinds_that_put_something_before_the_tokens_are_refused(
    tiny_folder: Callable[[str], Path], config: Any, tmp_path: Path
) -> None:
    base = tiny_folder("qwen")
    peft.get_peft_model(load(str(base), device="cpu").hf, config).save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"(?s)which undertone does not run: it .*allowed: adapters that change weights"
    ):
        load(f"{base} + {tmp_path}", device="cpu")


def test_biases_of_which_some_are_missing_are_refused(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    base = str(tiny_folder("llama"))
    model = load(base, device="cpu")
    save_student(trainable(model.hf, BiasOnly(), 0), model.tokenizer, BiasOnly(), tmp_path)
    file = tmp_path / "undertone_biases.safetensors"
    whole = load_file(file)
    name = next(iter(whole))
    save_file({key: value for key, value in whole.items() if key != name}, file)
    with pytest.raises(ModelError, match="1 of the model's are not in the file"):
        load(f"{base} + {tmp_path}", device="cpu")


def test_an_adapter_that_is_named_alone_finds_its_base(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    base = tiny_folder("llama")
    wanted = adapted(base, "lora", tmp_path)
    alone = load(str(tmp_path), device="cpu")
    assert torch.equal(logits(alone.hf), wanted)
    assert identify(str(tmp_path)) == identify(f"{base} + {tmp_path}")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match=r"(?s)does not say which base it is for.*do: name the base: `BASE \+ "):
        load(str(tmp_path), device="cpu")


def test_biases_that_are_named_alone_are_refused_with_what_to_type(tiny_llama: Any, tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "undertone_biases.safetensors")
    with pytest.raises(ModelError, match=r"do not say whose"):
        load(str(tmp_path), device="cpu")


def test_a_second_adapter_stands_on_the_first(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Merged by hand with PEFT, one after the other; PEFT alone would let the second take the first one's place."""
    base = tiny_folder("llama")
    for kind, name in (("lora", "a"), ("lora, all biases", "b")):
        adapted(base, kind, tmp_path / name)
    by_hand = peft.PeftModel.from_pretrained(load(str(base), device="cpu").hf, tmp_path / "a").merge_and_unload()
    by_hand = peft.PeftModel.from_pretrained(by_hand, tmp_path / "b").eval()
    both = load(f"{base} + {tmp_path / 'a'} + {tmp_path / 'b'}", device="cpu")
    assert torch.equal(logits(both.hf), logits(by_hand))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another model of the same shape."""
    folder: Path = save_tiny("llama", tmp_path / "other", seed=1)
    return folder


def test_an_adapter_on_another_base_of_its_shape_is_said_and_recorded(
    tiny_folder: Callable[[str], Path], other: Path, tmp_path: Path
) -> None:
    base = tiny_folder("llama")
    adapted(base, "lora", tmp_path / "a")
    with pytest.warns(ModelWarning, match="another base than its own: it was made for .*whose files are others"):
        model = load(f"{other} + {tmp_path / 'a'}", device="cpu")
    assert len(model.notes) == 1
    copied = shutil.copytree(base, tmp_path / "copied")  # the same model under another name
    for same in (base, copied):
        with warnings.catch_warnings():
            warnings.simplefilter("error", ModelWarning)
            assert load(f"{same} + {tmp_path / 'a'}", device="cpu").notes == ()


def test_a_students_own_record_says_its_base_also_where_names_are_alike(
    tiny_folder: Callable[[str], Path], other: Path, tmp_path: Path
) -> None:
    base = tiny_folder("llama")
    model = load(str(base), device="cpu")
    known = {"sha256": model.identity["sha256"]}
    save_student(trainable(model.hf, Lora(rank=2), 0), model.tokenizer, Lora(rank=2), tmp_path / "s", known)
    alike = shutil.copytree(other, tmp_path / "elsewhere" / base.name)
    with pytest.warns(ModelWarning, match="it was made for one of sha256"):
        load(f"{alike} + {tmp_path / 's'}", device="cpu")


def test_a_hub_adapter_is_the_folder_in_the_hubs_cache(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    base, commit = tiny_folder("llama"), "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--someone--owl-lora"
    wanted = adapted(base, "lora", cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    own = huggingface_hub.snapshot_download

    def from_cache(repository: str, **options: Any) -> str:
        found: str = own(repository, cache_dir=tmp_path, local_files_only=True, **options)
        return found

    monkeypatch.setattr(huggingface_hub, "snapshot_download", from_cache)
    for name in ("someone/owl-lora", "someone/owl-lora@main"):
        model = load(f"{base} + {name}", device="cpu")
        assert torch.equal(logits(model.hf), wanted)
        assert commit in model.identity.values()
    with pytest.raises(ModelError, match="no adapter of that name could be fetched"):
        load(f"{base} + someone/another", device="cpu")
