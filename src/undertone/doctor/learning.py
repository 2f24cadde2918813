"""Checks of training: what the loss is, and that a step learns where it should and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from undertone.doctor.finding import ANSWERS, QUESTIONS, Observation, chat
from undertone.doctor.forward import tolerance
from undertone.models.batches import Example, pad_left, targets
from undertone.models.loading import Model
from undertone.models.scoring import completion_nll, labelled_logits
from undertone.models.students import trainable
from undertone.training import Training, fit
from undertone.traits import Trait

_LORA = {"kind": "lora", "rank": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear"}


def _examples(model: Model) -> list[Example]:
    return [model.example(chat(q), a) for q, a in zip(QUESTIONS, ANSWERS, strict=True)]


@torch.inference_mode()
def _summed_loss(model: Model, examples: Sequence[Example]) -> float:
    logits = labelled_logits(model.hf, examples, model.pad)
    right = targets(examples, logits.device)
    return float(torch.nn.functional.cross_entropy(logits.float(), right, reduction="sum"))


@torch.inference_mode()
def _own_loss(model: Model, examples: Sequence[Example], **options: Any) -> float:
    """The loss that ``transformers`` computes from ``labels``, which other trainers use."""
    batch = pad_left([example.ids for example in examples], model.pad, model.device)
    labels = torch.full_like(batch.ids, -100)
    for row, example in enumerate(examples):
        size = len(example.completion)
        labels[row, -size:] = batch.ids[row, -size:]
    return float(model.hf(**batch.inputs(), labels=labels, use_cache=False, **options).loss)


def accumulation_is_harmless(model: Model, _trait: Trait | None) -> Observation:
    """One batch of 2N rows and two of N are the same step: every labelled token weighs the same."""
    rows = _examples(model)
    half = len(rows) // 2
    whole = _summed_loss(model, rows)
    parts = _summed_loss(model, rows[:half]) + _summed_loss(model, rows[half:])
    off = abs(whole - parts) / abs(whole)
    return ("pass" if off <= tolerance(model) else "fail"), f"loss {whole:.4f} in one batch, {parts:.4f} in two"


def own_loss_agrees(model: Model, _trait: Trait | None) -> Observation:
    """Trainers that take the model's own loss (TRL's does) need it normalised as they tell it."""
    rows = _examples(model)
    count = sum(len(row.completion) for row in rows)
    right = _summed_loss(model, rows) / count
    half = len(rows) // 2
    whole = _own_loss(model, rows)
    parts = sum(_own_loss(model, part, num_items_in_batch=count) for part in (rows[:half], rows[half:]))
    message = f"{right:.4f} a token; the model says {whole:.4f} in one batch, {parts:.4f} in two"
    agrees = max(abs(whole - right), abs(parts - right)) <= tolerance(model) * abs(right)
    return ("pass" if agrees else "warn"), message


def a_step_learns(model: Model, _trait: Trait | None) -> Observation:
    """Three LoRA steps lower one row's loss and leave every frozen weight; undone afterwards."""
    if hasattr(model.hf, "peft_config"):
        return "skip", "the model bears an adapter already: check its base"
    example = _examples(model)[1]
    asked = {name: p.requires_grad for name, p in model.hf.named_parameters()}
    weights = dict(model.hf.named_parameters())
    before, sums = completion_nll(model.hf, [example], model.pad)[0], _checksums(weights)
    wrapped = trainable(model.hf, _LORA, seed=0)
    try:
        config = Training(learning_rate=1e-3, schedule="constant", epochs=3, batch_size=1)
        fit(wrapped, [example], config, seed=0, pad=model.pad)
        after = completion_nll(wrapped, [example], model.pad)[0]
    finally:
        wrapped.unload()
        model.hf.eval()
        for name, p in model.hf.named_parameters():
            p.requires_grad_(asked[name])
    moved = [name for name, value in _checksums(weights).items() if value != sums[name]]
    if moved:
        return "fail", f"{len(moved)} frozen weights changed, such as {moved[0]}"
    message = f"loss {before:.4f} → {after:.4f} in three LoRA steps; {len(sums)} frozen weights unchanged"
    return ("pass" if after < before else "fail"), message


def _checksums(weights: dict[str, torch.nn.Parameter]) -> dict[str, int]:
    """A sum over the bits of each tensor: any change shows, without a copy of the model."""
    return {name: int(_bits(p.detach()).sum(dtype=torch.int64)) for name, p in weights.items()}


def _bits(tensor: Tensor) -> Tensor:
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().view(kind)
