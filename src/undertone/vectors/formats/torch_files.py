"""Vectors in ``torch.save`` files: those of agu18dec's steering-vector-distillation ("SVD"), persona_vectors, lm-eval.

Read with ``weights_only=True`` alone: a file that needs pickle can run any code when it is opened.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undertone.errors import DataError
from undertone.vectors.formats.rules import from_slots, header, replacing, to_slots, vector_of
from undertone.vectors.vector import SteeringVector

_HOOKPOINT = re.compile(r"(?:.*\.)?(?P<list>\w+)\.(?P<layer>\d+)")


def load(path: Path) -> Any:
    """What a ``.pt`` holds.

    Raises:
        DataError: damaged, or of objects that only pickle can make.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needs = re.search(r"GLOBAL ([\w.]+)|class ([\w.]+)", str(error))
        raise DataError(
            f"{path} needs pickle (or is damaged); a pickle can run any code when it is opened",
            got=next(filter(None, needs.groups()), "an unknown object") if needs else "not a file of plain tensors",
            allowed="tensors, dicts, lists, numbers and strings",
            fix="where the file is trusted: x = torch.load(F, weights_only=False), then torch.save its plain tensors",
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as a torch file", got=str(error).partition("\n")[0], fix="copy the file again"
        ) from error


def kind(path: Path) -> str:
    """Which format a ``.pt`` is of."""
    value = load(path)
    if isinstance(value, Tensor):
        return "persona"
    if isinstance(value, Mapping) and "raw" in value:
        return "svd"
    if isinstance(value, Mapping) and value and all(_is_hook(item) for item in value.values()):
        return "lm-eval"
    keys = list(value)[:8] if isinstance(value, Mapping) else type(value).__name__
    raise DataError(
        f"{path}: which vector format is this?",
        got=f"{keys}",
        allowed="a tensor (persona), a dict with raw (svd) or one of hookpoints with steering_vector (lm-eval)",
    )


def _is_hook(value: Any) -> bool:
    return isinstance(value, Mapping) and "steering_vector" in value


# -- SVD: {raw, unit, norm, meta} ----------------------------------------------------------------------


def read_svd(path: Path) -> SteeringVector:
    """Read ``raw [layers + 1, hidden]``: ``raw[L]`` is added at layer L - 1, and slot 0 is the embedding."""
    value = load(path)
    if not isinstance(value, Mapping) or "raw" not in value:
        raise DataError(f"{path} is no svd file", got=_kind_of(value), allowed="a dict {raw, unit, norm, meta}")
    return from_slots(value["raw"], header(value.get("meta")), path)


def write_svd(vector: SteeringVector, path: Path) -> list[str]:
    """Write ``{raw, unit, norm, meta}``."""
    raw, notes = to_slots(vector, "svd")
    norm = raw.norm(dim=-1)
    unit = raw / norm.unsqueeze(-1).clamp(min=1e-12)
    _save({"raw": raw, "unit": unit, "norm": norm, "meta": dict(vector.meta)}, path)
    return notes


# -- persona_vectors: a bare tensor ----------------------------------------------------------------------


def read_persona(path: Path) -> SteeringVector:
    """Read a bare ``[layers + 1, hidden]``: ``tensor[L]`` is added at layer L - 1. The model stays unknown."""
    value = load(path)
    if not isinstance(value, Tensor):
        raise DataError(f"{path} is no persona_vectors file", got=_kind_of(value), allowed="a bare tensor")
    return from_slots(value, {"model": "unknown"}, path)


def write_persona(vector: SteeringVector, path: Path) -> list[str]:
    """Write the bare tensor."""
    slots, notes = to_slots(vector, "persona")
    _save(slots, path)
    return [*notes, "the format has no header: model, position and method are lost"]


# -- lm-eval `steered`: {hookpoint: {...}} ---------------------------------------------------------------


def read_lm_eval(path: Path) -> SteeringVector:
    """Read ``{"layers.L": {steering_vector, steering_coefficient, action, bias}}``; the coefficient is multiplied in.

    Raises:
        DataError: an action other than ``add``, a head's vector, or a hookpoint that is no layer.
    """
    value = load(path)
    if not isinstance(value, Mapping) or not value or not all(_is_hook(item) for item in value.values()):
        raise DataError(
            f"{path} is no lm-eval steering file", got=_kind_of(value), allowed="{hookpoint: {steering_vector, …}}"
        )
    directions: dict[int, Tensor] = {}
    lists = set()
    for name, hook in value.items():
        found = _HOOKPOINT.fullmatch(str(name))
        if not found or hook.get("action") != "add" or hook.get("head_index") is not None:
            raise DataError(
                f"{path}: hookpoint {name!r} is no addition after a layer",
                got=f"action {hook.get('action', 'missing')}, head {hook.get('head_index')}",
                allowed="LIST.NUMBER with action add",
            )
        row, scale = hook["steering_vector"], hook.get("steering_coefficient")
        if not isinstance(row, Tensor) or not isinstance(scale, int | float):
            raise DataError(f"{path}: {name!r} lacks a tensor or its steering_coefficient", got=scale)
        directions[int(found["layer"])] = float(scale) * row.float().squeeze()
        lists.add(found["list"])
    if len(lists) != 1 or len(directions) != len(value):
        raise DataError(f"{path} hooks more than one list of layers", got=sorted(map(str, value)))
    return vector_of(directions, {"model": "unknown", "hookpoint": lists.pop()}, path)


def write_lm_eval(vector: SteeringVector, path: Path) -> list[str]:
    """Write one hookpoint a layer, named as the model's own modules are (``layers.3``, ``h.3``)."""
    place = vector.meta.get("hookpoint", "layers")
    hooks = {
        f"{place}.{layer}": {
            "steering_vector": vector.directions[layer].clone(),
            "steering_coefficient": 1.0,
            "action": "add",
            "bias": None,
        }
        for layer in vector.layers
    }
    _save(hooks, path)
    notes = [] if "hookpoint" in vector.meta else ["hookpoints are named layers.L, a guess: --model NAME looks it up"]
    if len(hooks) > 1:
        notes.append(
            "lm-eval adds the LAST hookpoint's vector at all of them (read at 0478792): write one layer a file"
        )
    return notes


def _save(value: Any, path: Path) -> None:
    with replacing(path) as part:
        torch.save(value, part)


def _kind_of(value: Any) -> str:
    return f"a dict of {list(value)[:5]}" if isinstance(value, Mapping) else f"a {type(value).__name__}"
