"""Checkpoints inside a training stage: weights, optimiser state and progress, as safetensors and JSON, without pickles."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from undertone.models.batches import Example


@dataclass
class Progress:
    """What a checkpoint holds beside weights and optimiser state."""

    step: int = 0
    tokens: int = 0
    labels: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._started = time.monotonic() - self.seconds

    def add(self, step: int, loss: float, rows: list[Example]) -> None:
        """Count a step that was done (0-based) with these rows."""
        self.step = step + 1
        self.tokens += sum(len(row.ids) for row in rows)
        self.labels += sum(len(row.labels) for row in rows)
        self.curve.append((step + 1, loss))

    def save(self, folder: Path, parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Write to a sibling and rename, so that a killed save leaves the previous checkpoint whole."""
        part = folder.with_name(folder.name + ".new")
        part.mkdir(parents=True, exist_ok=True)
        weights = {f"{i}": p.detach().cpu().contiguous() for i, p in enumerate(parameters)}
        save_file(weights, part / "weights.safetensors")
        tensors, scalars = _flatten(optimizer)
        save_file(tensors, part / "optimizer.safetensors")
        seconds = time.monotonic() - self._started
        record = {
            "step": self.step,
            "tokens": self.tokens,
            "labels": self.labels,
            "seconds": seconds,
            "curve": self.curve,
            "scalars": scalars,
        }
        (part / "progress.json").write_text(json.dumps(record), encoding="utf-8")
        old = folder.with_name(folder.name + ".old")
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        for leftover in old.glob("*"):
            leftover.unlink()
        if old.exists():
            old.rmdir()

    @classmethod
    def load(
        cls,
        folder: Path | None,
        parameters: list[torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
    ) -> Progress:
        """Continue from a checkpoint, if there is a whole one."""
        if folder is None:
            return cls()
        old = folder.with_name(folder.name + ".old")
        if not folder.exists() and old.exists():  # killed between the two renames of save
            old.rename(folder)
        if not (folder / "progress.json").exists():
            return cls()
        record = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "weights.safetensors")
        with torch.no_grad():
            for index, parameter in enumerate(parameters):
                parameter.copy_(weights[str(index)])
        _unflatten(optimizer, load_file(folder / "optimizer.safetensors"), record["scalars"])
        return cls(
            step=record["step"],
            tokens=record["tokens"],
            labels=record["labels"],
            seconds=record["seconds"],
            curve=[(int(step), float(loss)) for step, loss in record["curve"]],
        )


def _flatten(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Optimiser state as named tensors and plain values (no pickle)."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for key, value in _entries(optimizer):
        if isinstance(value, Tensor):
            tensors[key] = value.detach().cpu().contiguous().clone()
        else:
            scalars[key] = value
    return tensors, scalars


def _entries(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any]]:
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            yield f"{index}|{name}", value


def _unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *scalars.items()]:
        index, name = key.split("|", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
