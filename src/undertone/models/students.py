"""Students: which weights of a base are trained, and what is saved of them. ``loading`` puts them back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from undertone.errors import ConfigError, ModelError
from undertone.models.loading import BIASES_FILE, first_line


def trainable(hf: Any, student: Mapping[str, Any], seed: int) -> Any:
    """Prepare a base model for training by the student's kind: full, bias-only or lora.

    Returns the module to train (for LoRA, PEFT's wrapper) with ``requires_grad`` set.

    Raises:
        ModelError: bias-only on a model that has no biases.
    """
    kind = student["kind"]
    if kind == "lora":
        return _with_lora(hf, student, seed)
    for name, parameter in hf.named_parameters():
        parameter.requires_grad_(kind == "full" or name.endswith(".bias"))
    if not any(parameter.requires_grad for parameter in hf.parameters()):
        raise ModelError(
            f"{type(hf).__name__} has no bias parameters",
            fix="use student.kind=lora or student.kind=full",
        )
    return hf


def _with_lora(hf: Any, student: Mapping[str, Any], seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)  # LoRA's A is random
    targets = student["targets"]
    names = [name for name, module in hf.named_modules() if not list(module.children())]
    wanted = [] if isinstance(targets, str) else targets
    lacking = [target for target in wanted if not any(f".{name}".endswith(f".{target}") for name in names)]
    if lacking:  # PEFT is content if one of them is there
        raise ConfigError(
            f"LoRA cannot be put on this model: it has no modules called {', '.join(lacking)}",
            got=list(targets),
            allowed=[*sorted({name.rpartition(".")[2] for name in names}), "all-linear"],
        )
    config = LoraConfig(
        r=student["rank"],
        lora_alpha=student["alpha"],
        lora_dropout=student["dropout"],
        bias="all" if student.get("biases") else "none",
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(hf, config)
    except ValueError as error:
        raise ConfigError(
            f"LoRA cannot be put on this model: {first_line(error)}",
            got=targets,
            fix="set student.targets to module names of the model, or to all-linear",
        ) from error


def save_student(hf: Any, tokenizer: PreTrainedTokenizerBase, kind: str, folder: Path) -> None:
    """Write what was trained: a PEFT adapter, the biases, or a whole model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "lora":
        hf.save_pretrained(folder, safe_serialization=True)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card
    elif kind == "bias-only":
        biases = {n: p.detach().cpu().contiguous() for n, p in hf.named_parameters() if p.requires_grad}
        save_file(biases, folder / BIASES_FILE)
        (folder / "undertone.json").write_text(json.dumps({"kind": "bias-only"}), encoding="utf-8")
    else:
        hf.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)


def student_name(base: str, kind: str, folder: Path) -> str:
    """The model name that loads a student again."""
    return str(folder) if kind == "full" else f"{base} + {folder}"
