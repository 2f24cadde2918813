"""Vectors as JSON: IBM's and AISteer360's ``.svec``, and the steering vectors of vllm-lens. L is the layer's number."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undertone.errors import DataError
from undertone.vectors.formats.rules import header, model_type, replacing, vector_of
from undertone.vectors.vector import SteeringVector

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "float64": torch.float64, "int16": torch.bfloat16}
"""The storage dtype of vllm-lens -> what it holds (numpy has no bfloat16)."""


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file.

    Raises:
        DataError: damaged, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON", got=str(error), fix="copy the file again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} is no vector", got=f"JSON {type(value).__name__}", allowed="a JSON object")
    return value


def kind(path: Path) -> str:
    """Which format a ``.json`` is of."""
    keys = read_json(path)
    for key, name in (("activations", "vllm-lens"), ("vectors", "easysteer"), ("directions", "svec")):
        if key in keys:
            return name
    raise DataError(
        f"{path}: which vector format is this?",
        got=f"keys {list(keys)[:8]}",
        allowed="activations (vllm-lens), vectors (easysteer) or directions (svec)",
    )


# -- .svec ---------------------------------------------------------------------------------------------


def read_svec(path: Path) -> SteeringVector:
    """Read ``{model_type, directions: {"L": [hidden] or [1, hidden]}}``.

    Raises:
        DataError: damaged, ``model_type`` missing, or directions per head or per position.
    """
    data = read_json(path)
    hint, rows = data.get("model_type"), data.get("directions")
    if not isinstance(hint, str) or not hint or not isinstance(rows, Mapping):
        raise DataError(f"{path} is no .svec", got=f"keys {list(data)[:8]}", allowed="model_type and directions")
    if data.get("num_heads") is not None or data.get("head_dim") is not None:
        raise DataError(
            f"{path} holds directions of attention heads", allowed="directions of the residual stream, one a layer"
        )
    directions = {}
    for name, row in rows.items():
        try:
            direction = torch.tensor(row, dtype=torch.float32)
            layer = int(name)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise DataError(f"{path}: layer {name!r} is no row of numbers", got=str(error)) from error
        if layer < 0 or (direction.dim() == 2 and len(direction) != 1):
            raise DataError(
                f"{path}: layer {name!r} has directions for positions",
                got=f"shape {list(direction.shape)}",
                allowed="a layer from 0, one direction each",
            )
        directions[layer] = direction.flatten() if direction.dim() == 2 else direction
    return vector_of(directions, {**header(data.get("undertone")), "model_type": hint}, path)


def write_svec(vector: SteeringVector, path: Path) -> list[str]:
    """Write ``.svec``; undertone's header goes along under a key of its own, which other readers skip."""
    data = {
        "model_type": model_type(vector, "svec"),
        "directions": {str(layer): vector.directions[layer].tolist() for layer in vector.layers},
        "explained_variances": {},
        "undertone": dict(vector.meta),
    }
    with replacing(path) as part:
        part.write_text(json.dumps(data), encoding="utf-8")
    return []


# -- vllm-lens -----------------------------------------------------------------------------------------


def read_vllm_lens(path: Path) -> SteeringVector:
    """Read ``{activations, layer_indices, scale, norm_match, position_indices}``; ``scale`` is multiplied in.

    Raises:
        DataError: damaged, ``layer_indices`` missing, per position, or ``norm_match``, which is no addition.
    """
    data = read_json(path)
    layers, scale = data.get("layer_indices"), data.get("scale", 1.0)
    if not isinstance(layers, list) or not all(isinstance(layer, int) and layer >= 0 for layer in layers):
        raise DataError(f"{path} does not say its layers", got=layers, allowed="layer_indices: numbers from 0")
    if not isinstance(scale, int | float):
        raise DataError(f"{path}: its scale is no number", got=scale)
    if data.get("norm_match"):
        raise DataError(
            f"{path} has norm_match, which rescales the stream and is no addition of a vector",
            fix="set norm_match to false in the file if the bare addition is meant",
        )
    rows = _tensor(data.get("activations"), path)
    if rows.dim() != 2 or len(rows) != len(layers) or data.get("position_indices") is not None:
        raise DataError(
            f"{path} is no vector for every position",
            got=f"activations {list(rows.shape)}, {len(layers)} layers, positions {data.get('position_indices')}",
            allowed="[layers, hidden] and no position_indices",
        )
    directions = {layer: float(scale) * row for layer, row in zip(layers, rows, strict=True)}
    return vector_of(directions, header(data.get("undertone")), path)


def write_vllm_lens(vector: SteeringVector, path: Path) -> list[str]:
    """Write float32, uncompressed, which every version of vllm-lens reads; norm_match off."""
    rows = torch.stack([vector.directions[layer] for layer in vector.layers]).numpy().astype("<f4")
    data = {
        "activations": {
            "data": base64.b64encode(rows.tobytes()).decode("ascii"),
            "dtype": "float32",
            "shape": list(rows.shape),
        },
        "layer_indices": vector.layers,
        "scale": 1.0,
        "norm_match": False,
        "position_indices": None,
        "undertone": dict(vector.meta),
    }
    with replacing(path) as part:
        part.write_text(json.dumps(data), encoding="utf-8")
    return []


def _tensor(value: Any, path: Path) -> Tensor:
    try:
        raw = base64.b64decode(value["data"], validate=True)
        shape = [int(size) for size in value["shape"]]
        storage = np.dtype(value["dtype"]).newbyteorder("<")
        target = _DTYPES[str(value["dtype"])]
        if value.get("compression") == "zstd":
            import pyarrow

            raw = pyarrow.decompress(raw, math.prod(shape) * storage.itemsize, codec="zstd", asbytes=True)
        rows = torch.from_numpy(np.frombuffer(raw, dtype=storage).reshape(shape).copy())
    except (TypeError, KeyError, ValueError, binascii.Error, OSError, AttributeError) as error:
        raise DataError(
            f"{path}: its activations cannot be read",
            got=f"{type(error).__name__}: {error}",
            allowed="base64 of float32, float16 or bfloat16 (as int16), bare or zstd, with dtype and shape",
        ) from error
    return (rows.view(target) if target == torch.bfloat16 else rows).float()
