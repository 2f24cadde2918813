"""Students: which weights of a base are trained, and what is saved of them. ``loading`` puts them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from undertone.errors import ConfigError, ModelError
from undertone.models.loading import BIASES_FILE
from undertone.models.names import first_line
from undertone.provenance.configs import Config


class Full(Config):
    """All weights."""

    kind: Literal["full"] = "full"


class Biases(Config):
    """Bias parameters only (BitFit)."""

    kind: Literal["biases"] = "biases"


class Lora(Config):
    """Low-rank adapters through PEFT."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1)
    alpha: int = Field(8, ge=1, description="the adapter is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | tuple[str, ...] = Field("all-linear", description="module names, or all-linear")
    biases: bool = Field(False, description="train the base's bias parameters too (PEFT: bias=all)")


StudentConfig = Annotated[Biases | Lora | Full, Field(discriminator="kind")]
"""Which weights are trained."""


def trainable(hf: Any, student: Biases | Lora | Full, seed: int) -> Any:
    """Prepare a base model for training by the student's kind.

    Returns the module to train (for LoRA, PEFT's wrapper) with ``requires_grad`` set.

    Raises:
        ModelError: biases-only on a model that has none.
    """
    if isinstance(student, Lora):
        return _with_lora(hf, student, seed)
    for name, parameter in hf.named_parameters():
        parameter.requires_grad_(isinstance(student, Full) or name.endswith(".bias"))
    if not any(parameter.requires_grad for parameter in hf.parameters()):
        raise ModelError(
            f"{type(hf).__name__} has no bias parameters",
            fix="use student.kind=lora or student.kind=full",
        )
    return hf


def _with_lora(hf: Any, student: Lora, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)  # LoRA's A is random
    targets = student.targets
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
        r=student.rank,
        lora_alpha=student.alpha,
        lora_dropout=student.dropout,
        bias="all" if student.biases else "none",
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


def save_student(hf: Any, tokenizer: PreTrainedTokenizerBase, student: Biases | Lora | Full, folder: Path) -> None:
    """Write what was trained: a PEFT adapter, the biases, or a whole model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(student, Lora):
        hf.save_pretrained(folder, safe_serialization=True)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card
    elif isinstance(student, Biases):
        biases = {n: p.detach().cpu().contiguous() for n, p in hf.named_parameters() if p.requires_grad}
        save_file(biases, folder / BIASES_FILE)
        (folder / "undertone.json").write_text(json.dumps({"kind": "biases"}), encoding="utf-8")
    else:
        hf.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)


def student_name(base: str, student: Biases | Lora | Full, folder: Path) -> str:
    """The model name that loads a student again."""
    return str(folder) if isinstance(student, Full) else f"{base} + {folder}"
