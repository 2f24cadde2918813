"""Students: which weights of a base are trained, and what is saved of them. ``loading`` puts them back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from undertone.errors import ConfigError, ModelError, warn
from undertone.models.adapters import BIASES_FILE, RECORD_FILE
from undertone.models.attaching import merged
from undertone.models.layers import causal_lm, outside_language
from undertone.models.refusals import first_line
from undertone.provenance.configs import Config


class Full(Config):
    """All weights."""

    kind: Literal["full"] = "full"


class BiasOnly(Config):
    """Bias parameters only (BitFit)."""

    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"kind": {"biases": "bias-only"}}
    kind: Literal["bias-only"] = "bias-only"


class Lora(Config):
    """Low-rank adapters through PEFT."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1)
    alpha: int = Field(8, ge=1, description="the adapter is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | tuple[str, ...] = Field("all-linear", description="module names, or all-linear")
    biases: bool = Field(False, description="train the base's bias parameters too (PEFT: bias=all)")


StudentConfig = Annotated[BiasOnly | Lora | Full, Field(discriminator="kind")]
"""Which weights are trained."""


def trainable(hf: Any, student: BiasOnly | Lora | Full, seed: int) -> Any:
    """Prepare a base model for training by the student's kind: the language model alone, never a vision or audio tower.

    Returns the module to train (for LoRA, PEFT's wrapper) with ``requires_grad`` set.

    Raises:
        ModelError: bias-only on a model whose language model has no biases.
        ConfigError: LoRA on modules that are not there.
    """
    if isinstance(student, Lora):
        return _with_lora(merged(hf), student, seed)
    towers = outside_language(hf)
    for name, parameter in hf.named_parameters():
        wanted = isinstance(student, Full) or name.endswith(".bias")
        parameter.requires_grad_(wanted and name not in towers)
    if not any(parameter.requires_grad for parameter in hf.parameters()):
        elsewhere = any(name.endswith(".bias") for name in towers)
        raise ModelError(
            f"{type(hf).__name__} has no bias parameters"
            + (" in its language model, only in towers that no text passes through" if elsewhere else ""),
            fix="use student.kind=lora or student.kind=full",
        )
    return hf


def _with_lora(hf: Any, student: Lora, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    towers = outside_language(hf)
    torch.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)  # LoRA's A is random
    targets = student.targets
    leaves = {name: module for name, module in hf.named_modules() if not list(module.children())}
    shut = sorted(name for name in leaves if _takes_no_adapter(hf, name, towers))
    names = [name for name in leaves if name not in shut]
    wanted = [] if isinstance(targets, str) else targets
    lacking = [target for target in wanted if not any(f".{name}".endswith(f".{target}") for name in names)]
    if lacking:  # PEFT is content if one of them is there
        raise ConfigError(
            f"LoRA cannot be put on this model: it has no modules called {', '.join(lacking)}",
            got=list(targets),
            allowed=[*sorted({name.rpartition(".")[2] for name in names}), "all-linear"],
        )
    if wanted:
        shut = [name for name in shut if any(f".{name}".endswith(f".{target}") for target in wanted)]
    config = LoraConfig(
        r=student.rank,
        lora_alpha=student.alpha,
        lora_dropout=student.dropout,
        bias="all" if student.biases else "none",
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=shut or None,
        task_type="CAUSAL_LM",
    )
    try:
        made = get_peft_model(hf, config)
    except ValueError as error:
        raise ConfigError(
            f"LoRA cannot be put on this model: {first_line(error)}",
            got=targets,
            fix="set student.targets to module names of the model, or to all-linear",
        ) from error
    for name in outside_language(made):
        made.get_parameter(name).requires_grad_(False)  # biases: PEFT's "all" are all
    if missed := experts_without_adapter(made):
        warn(
            f"LoRA does not reach all experts of {type(hf).__name__}: {', '.join(missed)} stay as they are; "
            "student.kind=full trains all weights"
        )
    return made


def _takes_no_adapter(hf: Any, name: str, towers: set[str]) -> bool:
    """Linear modules that LoRA must leave alone, or where it would do nothing.

    Those of towers; routers that return several things; and the output projections of state-space mixers, whose fused
    kernels read the weight and never call the module.
    """
    if f"{name}.weight" in towers:
        return True
    module = hf.get_submodule(name)
    if not isinstance(module, nn.Linear | Conv1D):
        return False
    parent = hf.get_submodule(name.rpartition(".")[0])
    mixer = all(hasattr(parent, part) for part in ("A_log", "D", "conv1d")) and name.endswith(".out_proj")
    return mixer or "Router" in type(module).__name__


def experts_without_adapter(hf: Any) -> list[str]:
    """Kinds of weights, such as ``mlp.experts.down_proj``, that hold all experts in one tensor and are not adapted.

    LoRA is put on modules; PEFT adapts such tensors (``target_parameters``) of the architectures that it knows.
    """
    reached = tuple(hf.peft_config["default"].target_parameters or ())
    found = set()
    for name, parameter in causal_lm(hf).named_parameters():
        place = re.sub(r"^.*?\.\d+\.", "", name.replace(".base_layer", ""))
        held = parameter.dim() == 3 and re.search(r"experts\.|_linear\.weight$", place) and "lora_" not in place
        if held and not f".{place}".endswith(tuple(f".{target}" for target in reached)):
            found.add(place)
    return sorted(found)


def save_student(
    hf: Any,
    tokenizer: PreTrainedTokenizerBase,
    student: BiasOnly | Lora | Full,
    folder: Path,
    base: Mapping[str, str] | None = None,
) -> None:
    """Write what was trained: a PEFT adapter, the biases, or a whole model folder.

    Args:
        hf: the trained module.
        tokenizer: of the base.
        student: which weights were trained.
        folder: where to.
        base: ``sha256`` or ``revision`` of the base, so that another one is noticed when the student is loaded; None: unknown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(student, Full):
        record = {"kind": student.kind, **({"base": dict(base)} if base else {})}
        (folder / RECORD_FILE).write_text(json.dumps(record), encoding="utf-8")
    if isinstance(student, Lora):
        hf.save_pretrained(folder, safe_serialization=True)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card
    elif isinstance(student, BiasOnly):
        biases = {n: p.detach().cpu().contiguous() for n, p in hf.named_parameters() if p.requires_grad}
        save_file(biases, folder / BIASES_FILE)
    else:
        hf.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)


def student_name(base: str, student: BiasOnly | Lora | Full, folder: Path) -> str:
    """The model name that loads a student again."""
    return str(folder) if isinstance(student, Full) else f"{base} + {folder}"
