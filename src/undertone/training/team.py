"""The processes that train one student together: each takes its share of every batch's rows, and gradients are summed.

Not ``DistributedDataParallel``: that averages over processes, so that a token would weigh more in a process whose rows are
short, and it follows only its own ``forward``, while the loop runs the head at labelled positions. Here the loss of every
process is divided by the labelled tokens of all, and the sum of their gradients is that of one process with all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from undertone.errors import ConfigError, RunError
from undertone.launch import group

T = TypeVar("T")
BUCKET: Final = 2**26  # elements that are sent at once: 256 MB in float32


@dataclass(frozen=True)
class Team:
    """``size`` processes, of which this is number ``rank``."""

    size: int = 1
    rank: int = 0

    @classmethod
    def of(cls, accelerator: Any, device: torch.device) -> Team:
        """All processes that were started together, or this one alone.

        Raises:
            ConfigError: they shard the weights, or speak by GPU about weights on a CPU.
            RunError: accelerate has joined fewer than were started.
        """
        if group.is_alone():
            return cls()
        if accelerator.num_processes != group.size():
            group.refuse(accelerator.num_processes)
        kind = str(accelerator.distributed_type.value)
        if not kind.startswith("MULTI_"):
            raise ConfigError(
                "a student's weights are held whole by every process",
                got=f"distributed_type {kind}",
                allowed="MULTI_GPU, MULTI_CPU",
                fix="start with torchrun, or with accelerate launch --multi_gpu --num_processes N",
            )
        if device.type == "cpu" and torch.distributed.get_backend() == "nccl":
            raise ConfigError(
                "processes that speak through GPUs cannot train on CPUs",
                got="--device cpu",
                fix="hide the GPUs: CUDA_VISIBLE_DEVICES=''",
            )
        return cls(accelerator.num_processes, accelerator.process_index)

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, rows: Sequence[T]) -> list[T]:
        """Of a batch, the rows of this process: every ``size``-th, so that lengths are alike in a sorted batch."""
        return list(rows[self.rank :: self.size])

    def begin(self, parameters: Sequence[Tensor]) -> None:
        """Give all the weights of the first process."""
        if self.size > 1:
            with torch.no_grad():
                for parameter in parameters:
                    torch.distributed.broadcast(parameter.data, src=0)

    def path(self, path: Path | None) -> Path | None:
        """The path that the first process was given."""
        if self.size == 1:
            return path
        told = [path]
        torch.distributed.broadcast_object_list(told, src=0)
        return told[0]

    def check_step(self, step: int, path: Path | None, device: torch.device) -> None:
        """Refuse to go on from different checkpoints.

        Raises:
            RunError: a process does not see the one that the first has read.
        """
        if self.size > 1:
            steps = torch.tensor([step, -step], device=device)
            torch.distributed.all_reduce(steps, op=torch.distributed.ReduceOp.MAX)
            if int(steps[0]) != -int(steps[1]):
                raise RunError(
                    "the processes that train together go on from different steps",
                    got=f"{-int(steps[1])} to {int(steps[0])}, from {path}",
                    fix="name a run folder on a file system that all machines share (--out)",
                )

    def add_up(self, parameters: Sequence[torch.nn.Parameter], loss: float) -> float:
        """Leave in every process the sum of all processes' gradients; returns the sum of their losses.

        A parameter that got a gradient nowhere keeps none, so that an optimiser leaves it alone as with one process.
        """
        if self.size == 1:
            return loss
        known = [float(parameter.grad is not None) for parameter in parameters]
        sums = torch.tensor([loss, *known], dtype=torch.float64, device=parameters[0].device)
        torch.distributed.all_reduce(sums)
        total, *counts = sums.tolist()
        used = [parameter for parameter, count in zip(parameters, counts, strict=True) if count]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in used if parameter.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            torch.distributed.all_reduce(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        return float(total)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one type that are sent together."""
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        bucket: list[Tensor] = []
        for gradient in (one for one in gradients if one.dtype == dtype):
            if bucket and sum(one.numel() for one in bucket) + gradient.numel() > BUCKET:
                yield bucket
                bucket = []
            bucket.append(gradient)
        if bucket:
            yield bucket
