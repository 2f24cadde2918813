"""What the converters share: slots with an embedding, zero rows, headers inside other files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undertone.errors import DataError
from undertone.vectors.vector import SteeringVector, checked, with_new_keys

EMBEDDING_DROPPED = "slot 0 (the embedding) of the file was dropped: it has no layer"


def vector_of(directions: Mapping[int, Tensor], meta: Mapping[str, str], path: Path, *notes: str) -> SteeringVector:
    """A checked vector without its zero rows, for which "no direction" and "add nothing" are the same."""
    kept = {layer: d for layer, d in directions.items() if d.dim() != 1 or bool(d.count_nonzero())}
    if dropped := sorted(set(directions) - set(kept)):
        notes = (*notes, f"no direction at layers {dropped}: zeros in the file")
    return checked(kept, {**meta, **({"notes": "; ".join(notes)} if notes else {})}, path)


def from_slots(slots: Any, meta: Mapping[str, str], path: Path) -> SteeringVector:
    """A vector from ``[layers + 1, hidden]``, slot 0 the embedding, slot L the output of layer L - 1."""
    if not isinstance(slots, Tensor) or slots.dim() != 2 or len(slots) < 2 or not slots.is_floating_point():
        got = list(slots.shape) if isinstance(slots, Tensor) else type(slots).__name__
        raise DataError(
            f"{path}: its directions are not one row for the embedding and one a layer",
            got=f"{got}",
            allowed="a float tensor [layers + 1, hidden]",
        )
    slots = slots.float()
    notes = [EMBEDDING_DROPPED] if bool(slots[0].count_nonzero()) else []
    directions = {layer: slots[layer + 1] for layer in range(len(slots) - 1)}
    return vector_of(directions, {**meta, "model_layers": str(len(slots) - 1)}, path, *notes)


def to_slots(vector: SteeringVector, name: str) -> tuple[Tensor, list[str]]:
    """``[layers + 1, hidden]`` with zeros for the embedding and for layers without a direction."""
    count = vector.meta.get("model_layers", "")
    if not count.isdecimal() or int(count) <= vector.layers[-1]:
        raise DataError(
            f"the format {name} has a row for every layer of the model, and the vector does not say how many there are",
            got=f"model_layers {count or 'unknown'}, directions at {vector.layers}",
            fix="name the model: --model NAME",
        )
    slots = torch.zeros(int(count) + 1, vector.width)
    for layer, direction in vector.directions.items():
        slots[layer + 1] = direction
    absent = sorted(set(range(int(count))) - set(vector.layers))
    notes = ["slot 0 (the embedding) is zero; layer i is slot i + 1"]
    return slots, notes + ([f"zeros at layers {absent}, where the vector has no direction"] if absent else [])


def model_type(vector: SteeringVector, name: str) -> str:
    """The model's type (``llama``), which some formats must name."""
    found = vector.meta.get("model_type")
    if not found:
        raise DataError(
            f"the format {name} names the model's type, and the vector does not say it",
            got=f"made for {vector.meta.get('model', 'an unknown model')}",
            fix="name the model: --model NAME",
        )
    return found


def header(value: Any) -> dict[str, str]:
    """The origin that undertone wrote into another tool's file; nothing of the kind: nothing known."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    if not isinstance(value, Mapping):
        return {}
    texts = {str(key): item if isinstance(item, str) else json.dumps(item, default=str) for key, item in value.items()}
    return with_new_keys(texts)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to that takes the file's name when all is written."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
