"""GGUF control vectors (repeng, llama.cpp, EasySteer), and EasySteer's specs that refer to them.

``general.architecture`` is ``controlvector``; tensor ``direction.L`` is added to the output of layer L. repeng and
EasySteer use L = 0 as well; llama.cpp refuses a file that has it. ``controlvector.model_hint`` is a model TYPE.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undertone.errors import DataError
from undertone.vectors.formats.json_files import read_json
from undertone.vectors.formats.rules import header, model_type, replacing, vector_of
from undertone.vectors.vector import SteeringVector, checked

_ARCHITECTURE = "controlvector"
_DIRECTION = re.compile(r"direction\.(\d+)")
_EVERYWHERE: tuple[object, ...] = (
    {"prompt": "all", "generation": "all"},
    {"phases": ["prompt", "generation"]},  # of older versions
)


def read_gguf(path: Path) -> SteeringVector:
    """Read a control vector.

    Raises:
        DataError: damaged, a GGUF of something else, or without ``model_hint``.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    # What the reader meets in a damaged file: it checks nothing itself.
    except (OSError, ValueError, IndexError, KeyError, AttributeError, TypeError, OverflowError, MemoryError) as error:
        raise DataError(f"{path} cannot be read as GGUF", got=str(error), fix="copy the file again") from error
    if fields.get("general.architecture") != _ARCHITECTURE:
        raise DataError(
            f"{path} is no control vector",
            got=f"architecture {fields.get('general.architecture', 'unknown')}",
            allowed=f"a GGUF of architecture {_ARCHITECTURE}",
        )
    hint = fields.get("controlvector.model_hint")
    if not isinstance(hint, str) or not hint:
        raise DataError(f"{path} does not say which type of model it is for", allowed="controlvector.model_hint")
    directions = {}
    for name, data in tensors.items():
        found = _DIRECTION.fullmatch(name)
        if not found or data.dtype.kind != "f":
            raise DataError(f"{path}: unknown tensor {name!r} of {data.dtype}", allowed="direction.L in floats")
        directions[int(found[1])] = torch.from_numpy(data.astype(np.float32))
    return vector_of(directions, {**header(fields.get("undertone.meta")), "model_type": hint}, path)


def write_gguf(vector: SteeringVector, path: Path) -> list[str]:
    """Write a control vector; undertone's header goes along, which other readers skip."""
    from gguf import GGUFWriter

    hint = model_type(vector, "gguf")
    with replacing(path) as part:
        writer = GGUFWriter(part, _ARCHITECTURE)
        writer.add_string("controlvector.model_hint", hint)
        writer.add_uint32("controlvector.layer_count", len(vector.layers))
        writer.add_string("undertone.meta", json.dumps(dict(vector.meta)))
        for layer in vector.layers:
            writer.add_tensor(f"direction.{layer}", vector.directions[layer].numpy().astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    if 0 in vector.directions:
        return ["it has direction.0, which repeng and EasySteer read and llama.cpp refuses: leave layer 0 out for that"]
    return []


def read_easysteer(path: Path) -> SteeringVector:
    """Read a SteeringSpec (JSON) whose vectors are GGUF files, as the one vector that it adds.

    Raises:
        DataError: not such a spec, or one that does more than adding one vector at the same tokens.
    """
    spec = read_json(path)
    parts = spec.get("vectors")
    if not isinstance(parts, list) or not parts or not all(isinstance(part, Mapping) for part in parts):
        raise DataError(f"{path} is no SteeringSpec", allowed='{"vectors": [{"source": "FILE.gguf", …}]}')
    if any(part.get("apply") != parts[0].get("apply") for part in parts):
        raise DataError(f"{path} applies its vectors at different tokens, which no one vector does")
    conflict = spec.get("conflict", "priority")
    total: dict[int, Tensor] = {}
    meta: dict[str, str] = {}
    for part in parts:
        vector = _easysteer_part(part, path)
        meta = {**dict(vector.meta), **meta}
        for layer, direction in vector.directions.items():
            if layer not in total:
                total[layer] = direction
            elif conflict == "sequential":
                total[layer] = total[layer] + direction
            elif conflict != "priority":  # where the first vector wins
                raise DataError(f"{path}: two vectors at layer {layer}", got=f"conflict {conflict}")
    apply = parts[0].get("apply")
    if apply not in _EVERYWHERE:
        note = f"the spec applies it at {json.dumps(apply)}: choose positions when steering"
        meta["notes"] = "; ".join(filter(None, [meta.get("notes"), note]))
    return checked(total, meta, path)


def _easysteer_part(part: Mapping[str, Any], path: Path) -> SteeringVector:
    source = part.get("source")
    if part.get("algorithm", "direct") != "direct" or not isinstance(source, str):
        raise DataError(
            f"{path}: only vectors that are added and lie in a file can be read",
            got=f"algorithm {part.get('algorithm', 'direct')}, source {source}",
            allowed="algorithm direct, source FILE.gguf",
        )
    file = path.parent / source
    if not file.is_file():
        raise DataError(f"{path} refers to a file that is not there", got=str(file))
    vector = read_gguf(file)
    layers, scale = part.get("layers"), part.get("scale", 1.0)
    if not isinstance(scale, int | float) or not (layers is None or isinstance(layers, list)):
        raise DataError(f"{path}: scale is a number and layers a list", got=f"{scale}, {layers}")
    kept = [layer for layer in vector.layers if layers is None or layer in layers]
    if not kept:
        raise DataError(f"{path}: {source} has no direction at these layers", got=layers, allowed=f"{vector.layers}")
    vector = vector.select(kept) if kept != vector.layers else vector
    vector = vector.unit() if part.get("normalize") else vector
    return vector if scale == 1 else vector * float(scale)


def write_easysteer(vector: SteeringVector, path: Path) -> list[str]:
    """Write the spec, and the GGUF that it refers to beside it."""
    file = path.with_suffix(".gguf")
    write_gguf(vector, file)
    part = {
        "source": file.name,
        "algorithm": "direct",
        "scale": 1.0,
        "layers": vector.layers,
        "normalize": False,
        "apply": _EVERYWHERE[0],
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"vectors": [part]}, indent=2) + "\n", encoding="utf-8")
    return [f"the directions are in {file.name}; EasySteer looks for that path from where its server runs"]
