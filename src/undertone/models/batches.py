"""Token rows to padded tensors: one padding rule (left) for sampling, scoring and training.

Left padding keeps the last position of every row in the last column, where sampling and steering read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undertone.errors import DataError


@dataclass(frozen=True)
class Example:
    """A tokenised training or scoring row: the loss is on ``ids[prompt:]`` alone.

    ``mask`` says of each completion token whether it is labelled; None: all are. What is not labelled is still read.
    """

    ids: tuple[int, ...]
    prompt: int
    mask: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.prompt < len(self.ids):
            lack = "prompt token to predict from" if self.prompt < 1 else "completion token to predict"
            raise DataError(
                f"a row of {len(self.ids)} tokens has no {lack}",
                allowed="at least one token of each",
                fix="a prompt is never empty once the chat template has rendered it",
            )
        if self.mask is not None and len(self.mask) != len(self.completion):
            raise DataError(
                "the mask of a row does not fit its completion",
                got=f"{len(self.mask)} entries for {len(self.completion)} tokens",
                allowed="one for each token",
                fix="make the mask with the same tokenizer and template",
            )

    @property
    def completion(self) -> tuple[int, ...]:
        """The token ids after the prompt."""
        return self.ids[self.prompt :]

    @property
    def labels(self) -> tuple[int, ...]:
        """The labelled ones of them."""
        return self.completion if self.mask is None else tuple(compress(self.completion, self.mask))


@dataclass(frozen=True)
class Batch:
    """Left-padded rows. ``mask`` is None when there is no padding, which lets attention run causally."""

    ids: Tensor
    mask: Tensor | None
    positions: Tensor

    def inputs(self) -> dict[str, Tensor | None]:
        """The keyword arguments of a forward pass."""
        return {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": self.positions}


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> Batch:
    """``[rows, longest]`` ids, mask and position ids; real tokens count positions from 0."""
    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    lengths = np.array([len(row) for row in rows])
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = row
    column = np.arange(width)
    offset = (width - lengths)[:, None]
    positions = np.maximum(column - offset, 0)
    mask = None
    if (lengths != width).any():
        mask = torch.from_numpy((column >= offset).astype(np.int64)).to(device)
    return Batch(
        ids=torch.from_numpy(ids).to(device),
        mask=mask,
        positions=torch.from_numpy(positions).to(device),
    )


def labelled(examples: Sequence[Example], width: int, device: torch.device) -> Tensor:
    """``[rows, width]`` true where the NEXT token of a left-padded row is labelled."""
    column = np.arange(width)
    sizes = np.array([len(example.completion) for example in examples])[:, None]
    where = (column >= width - sizes - 1) & (column < width - 1)
    for row, example in enumerate(examples):
        if example.mask is not None:
            where[row, width - 1 - len(example.mask) : width - 1] = example.mask
    return torch.from_numpy(where).to(device)


def targets(examples: Sequence[Example], device: torch.device) -> Tensor:
    """The labelled tokens of all rows, in the order in which ``labelled`` selects their positions."""
    flat = [token for example in examples for token in example.labels]
    return torch.tensor(flat, dtype=torch.long, device=device)


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Row indices in batches of similar length, longest first (memory errors come early, not late)."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def select_rows(cache: Any, rows: Tensor) -> None:
    """Keep these rows of a model's cache, in this order and as often as they are named, whatever its layers hold.

    ``batch_select_indices`` of ``transformers`` knows keys and values alone, and leaves the states of recurrent and
    convolutional layers as they are (or has no such method); ``reorder_cache`` is an ``index_select`` on all of them.
    """
    states = getattr(cache, "linear_cache", None)  # MiniMax keeps those of its linear layers beside the others
    if states is not None:
        cache.linear_cache = [state.index_select(0, rows) if isinstance(state, Tensor) else state for state in states]
    cache.reorder_cache(rows)
