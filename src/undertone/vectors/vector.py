"""The vector and its file: safetensors, tensors ``block.{i}`` in float32, origin in the header."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from undertone.errors import DataError, ModelError
from undertone.models.blocks import decoder_blocks, hidden_size
from undertone.models.loading import Model

FORMAT = "undertone.vector/1"
_TENSOR = re.compile(r"block\.\d+")


@dataclass(frozen=True)
class Vector:
    """Directions in the residual stream AFTER each named block (DESIGN §3.1): block -> ``[hidden]`` float32."""

    directions: Mapping[int, Tensor]
    meta: Mapping[str, str]

    def norm(self) -> float:
        """Euclidean norm over all blocks together."""
        return float(torch.cat([direction.flatten() for direction in self.directions.values()]).norm())

    def digest(self) -> str:
        """SHA-256 of the directions."""
        digest = hashlib.sha256()
        for block, direction in sorted(self.directions.items()):
            digest.update(f"{block}:".encode())
            digest.update(direction.float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def check_fits(self, model: Model) -> None:
        """Refuse a vector of another width, or of blocks that the model lacks.

        Raises:
            ModelError: it does not fit.
        """
        width, count = hidden_size(model.hf), len(decoder_blocks(model.hf))
        wrong = {len(direction) for direction in self.directions.values()} - {width}
        absent = [block for block in self.directions if block >= count]
        if wrong or absent:
            raise ModelError(
                f"the vector does not fit {model.name}",
                got=f"directions of width {sorted(wrong)}" if wrong else f"blocks {absent}",
                allowed=f"width {width}, blocks 0 to {count - 1}",
                fix=f"it was made for {self.meta.get('model', 'an unknown model')}",
            )


def save_vector(vector: Vector, path: Path) -> None:
    """Write the file; the header holds the origin."""
    tensors = {f"block.{block}": direction.float() for block, direction in vector.directions.items()}
    save_file(tensors, path, metadata={"format": FORMAT, **vector.meta})


def load_vector(path: Path) -> Vector:
    """Read the file.

    Raises:
        DataError: not such a file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = dict(file.metadata() or {})
            names = list(file.keys())
            if meta.get("format") != FORMAT or not names or not all(_TENSOR.fullmatch(name) for name in names):
                raise DataError(
                    f"{path} is not an undertone vector",
                    got=f"format {meta.get('format', 'unknown')}, tensors {', '.join(names[:5]) or 'none'}",
                    allowed=f"safetensors with format {FORMAT} and tensors block.0, block.1 …",
                )
            directions = {int(name.removeprefix("block.")): file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the vector file {path} cannot be read", got=str(error)) from error
    wrong = [block for block, d in directions.items() if d.dim() != 1 or not bool(torch.isfinite(d).all())]
    if wrong:
        raise DataError(f"{path}: block {wrong[0]} is not a direction", allowed="one row of finite numbers a block")
    meta.pop("format")
    return Vector(directions, meta)
