"""Extraction: the mean difference of activations between two sets of chats (2606.00995 §3; papers.md §1.7)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from undertone.models.batches import by_length, pad_left
from undertone.models.blocks import decoder_blocks, read_residuals
from undertone.models.loading import Model
from undertone.rows import Message
from undertone.vectors.vector import Vector

Chats = Sequence[Sequence[Message]]


def contrast(model: Model, induced: Chats, plain: Chats, *, blocks: Sequence[int] | None = None) -> Vector:
    """Mean residual stream at the last prompt token: induced minus plain, per block.

    Args:
        model: whose activations.
        induced: chats with the inducement (a system prompt).
        plain: the same chats without it.
        blocks: which blocks; None: all.
    """
    wanted = list(range(len(decoder_blocks(model.hf)))) if blocks is None else list(blocks)
    first, second = _means(model, induced, wanted), _means(model, plain, wanted)
    meta = {
        "model": model.name,
        "revision": model.identity.get("sha256") or model.identity["revision"],
        "site": "residual stream after the block",
        "position": "last prompt token",
        "method": "mean difference",
        "chats": str(len(induced)),
    }
    return Vector({block: first[block] - second[block] for block in wanted}, meta)


def random_like(vector: Vector, seed: int) -> Vector:
    """A Gaussian direction of the same norm in each block: the control that any vector needs."""
    generator = torch.Generator().manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
    directions = {}
    for block, direction in sorted(vector.directions.items()):
        noise = torch.randn(direction.shape, generator=generator)
        directions[block] = noise * (direction.norm() / noise.norm())
    return Vector(
        directions,
        {**vector.meta, "method": "random, norm of the mean difference", "seed": str(seed)},
    )


@torch.inference_mode()
def _means(model: Model, chats: Chats, blocks: list[int], batch_size: int = 64) -> dict[int, Tensor]:
    prompts = [model.prompt(chat) for chat in chats]
    total = {block: torch.zeros(0) for block in blocks}
    for rows in by_length([len(prompt) for prompt in prompts], batch_size):
        batch = pad_left([prompts[row] for row in rows], model.pad, model.device)
        with read_residuals(model.hf, blocks) as seen:
            model.hf(**batch.inputs(), use_cache=False, logits_to_keep=1)
        for block in blocks:
            part = seen[block][:, -1].float().sum(0).cpu()
            total[block] = part if not len(total[block]) else total[block] + part
    return {block: value / len(prompts) for block, value in total.items()}
