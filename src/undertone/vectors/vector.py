"""The vector: its arithmetic, and its file (safetensors, tensors ``layer.{i}`` in float32, origin in the header).

Every operation writes into ``meta["operation"]`` what was done to which vectors, so that a file says where it comes
from. A layer that only one of two vectors has counts as zero in the other: adding vectors is steering by both.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from undertone.errors import ConfigError, DataError, ModelError
from undertone.models.layers import causal_lm, decoder_layers, hidden_size
from undertone.models.loading import Model
from undertone.provenance.identity import check_readable

FORMAT = "undertone.vector/2"
_OLD_FORMAT = "undertone.vector/1"
"""Had tensors ``block.{i}`` and other header keys; read, never written."""
_TENSOR = {FORMAT: re.compile(r"layer\.(\d+)"), _OLD_FORMAT: re.compile(r"block\.(\d+)")}


@dataclass(frozen=True)
class SteeringVector:
    """Directions in the residual stream AFTER each named layer: layer -> ``[hidden]`` float32."""

    directions: Mapping[int, Tensor]
    meta: Mapping[str, str]

    @property
    def layers(self) -> list[int]:
        """The layers that have a direction, in order."""
        return sorted(self.directions)

    @property
    def width(self) -> int:
        """Length of a direction: the model's hidden size."""
        return len(next(iter(self.directions.values())))

    # -- measures ----------------------------------------------------------------------------------

    def norm(self) -> float:
        """Euclidean norm over all layers together."""
        return float(torch.cat([direction.flatten() for direction in self.directions.values()]).norm())

    def norms(self) -> dict[int, float]:
        """Euclidean norm of each layer's direction."""
        return {layer: float(self.directions[layer].norm()) for layer in self.layers}

    def cosine(self, other: SteeringVector, *, across_models: bool = False) -> dict[int, float]:
        """Cosine of each layer that both have. Read it beside random directions and other traits.

        Args:
            other: the other vector.
            across_models: allow vectors of different models of one width, whose axes have nothing in common unless
                the models share their initialisation.

        Raises:
            ModelError: vectors of different models or widths.
            DataError: no common layer, or a direction of norm zero.
        """
        self._check_matches(other, across_models)
        common = [layer for layer in self.layers if layer in other.directions]
        if not common:
            raise DataError(
                "the vectors have no layer in common",
                got=f"layers {self.layers} and {other.layers}",
                fix="select or tile: vector.tile(layer, layers)",
            )
        mine, theirs = self.select(common).unit(), other.select(common).unit()
        return {layer: float(mine.directions[layer] @ theirs.directions[layer]) for layer in common}

    def identity_content(self) -> str:
        """What a stage depends on that is given this vector."""
        return self.digest()

    def digest(self) -> str:
        """SHA-256 of the directions."""
        digest = hashlib.sha256()
        for layer, direction in sorted(self.directions.items()):
            digest.update(f"{layer}:".encode())
            digest.update(direction.float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    # -- arithmetic --------------------------------------------------------------------------------

    def __add__(self, other: SteeringVector) -> SteeringVector:
        return self._combined(other, 1.0, "+")

    def __sub__(self, other: SteeringVector) -> SteeringVector:
        return self._combined(other, -1.0, "-")

    def __mul__(self, scalar: float) -> SteeringVector:
        if not math.isfinite(scalar):
            raise ConfigError("a vector is scaled by a finite number", got=scalar)
        return self._made({layer: scalar * d for layer, d in self.directions.items()}, f"{scalar:g} * {self._name()}")

    __rmul__ = __mul__

    def __neg__(self) -> SteeringVector:
        return self._made({layer: -d for layer, d in self.directions.items()}, f"-{self._name()}")

    def unit(self) -> SteeringVector:
        """Each layer's direction at norm 1.

        Raises:
            DataError: a direction of norm zero has none.
        """
        lost = [layer for layer, norm in self.norms().items() if norm == 0]
        if lost:
            raise DataError(
                "a direction of norm zero points nowhere", got=f"layers {lost}", fix="leave those layers out"
            )
        return self._made({layer: d / d.norm() for layer, d in self.directions.items()}, f"unit({self._name()})")

    def select(self, layers: Sequence[int]) -> SteeringVector:
        """The same vector at some of its layers.

        Raises:
            ConfigError: it has no direction there.
        """
        absent = sorted(set(layers) - set(self.directions))
        if absent or not layers:
            raise ConfigError("the vector has no direction at these layers", got=absent, allowed=f"{self.layers}")
        return self._made({layer: self.directions[layer] for layer in layers}, f"{self._name()} at {list(layers)}")

    def tile(self, layer: int, layers: Sequence[int]) -> SteeringVector:
        """One layer's direction at other layers (``tile_layer`` of 2606.00995's code).

        Raises:
            ConfigError: it has no direction at ``layer``.
        """
        direction = self.select([layer]).directions[layer]
        return self._made(dict.fromkeys(layers, direction), f"layer {layer} of {self._name()} at {list(layers)}")

    def _combined(self, other: SteeringVector, sign: float, symbol: str) -> SteeringVector:
        self._check_matches(other)
        both = sorted({*self.directions, *other.directions})
        zero = torch.zeros(self.width)
        directions = {b: self.directions.get(b, zero) + sign * other.directions.get(b, zero) for b in both}
        shared = {key: value for key, value in self.meta.items() if other.meta.get(key) == value}
        return SteeringVector(directions, {**shared, "operation": f"({self._name()} {symbol} {other._name()})"})

    def _made(self, directions: Mapping[int, Tensor], operation: str) -> SteeringVector:
        return SteeringVector(directions, {**self.meta, "operation": operation})

    def _name(self) -> str:
        """What this vector is called in the operation of another."""
        return self.meta.get("operation") or f"[{self.meta.get('method', 'vector')} {self.digest()[:8]}]"

    # -- fit ---------------------------------------------------------------------------------------

    def check_fits(self, model: Model) -> None:
        """Refuse a vector of another width, type of model or number of layers than the model's, as far as its header says.

        A file with one row fewer than its format has (no row for the embedding) would land one layer early; its number of
        layers tells.

        Raises:
            ModelError: it does not fit.
        """
        width, count = hidden_size(model.hf), len(decoder_layers(model.hf))
        config = causal_lm(model.hf).config
        kinds = {_plain(str(one.model_type)) for one in (config, config.get_text_config())}
        said, layers = self.meta.get("model_type"), self.meta.get("model_layers", str(count))
        of_another = (
            said is not None and _plain(said) not in kinds and not (_plain(said) == "llama" and kinds & _LIKE_LLAMA)
        )
        if of_another or layers != str(count):
            raise ModelError(
                f"the vector does not fit {model.name}: it is of another model",
                got=f"type {said}" if of_another else f"layers {layers}",
                allowed=f"type {config.model_type}" if of_another else f"layers {count}",
                fix="extract it from this model; a file of another tool may lack its row for the embedding",
            )
        wrong = {len(direction) for direction in self.directions.values()} - {width}
        absent = [layer for layer in self.directions if layer >= count]
        if wrong or absent:
            raise ModelError(
                f"the vector does not fit {model.name}",
                got=f"directions of width {sorted(wrong)}" if wrong else f"layers {absent}",
                allowed=f"width {width}, layers 0 to {count - 1}",
                fix=f"it was made for {self.meta.get('model', 'an unknown model')}",
            )

    def _check_matches(self, other: SteeringVector, across_models: bool = False) -> None:
        """Refuse two vectors whose headers say that their axes differ."""
        if self.width != other.width:
            raise ModelError("vectors of different widths cannot be combined", got=f"{self.width} and {other.width}")
        key = "revision" if all(_known(vector, "revision") for vector in (self, other)) else "model"
        mine, theirs = self.meta.get(key), other.meta.get(key)
        if not across_models and mine and theirs and mine != theirs:
            raise ModelError(
                "vectors of different models cannot be combined",
                got=f"{self.meta.get('model')} ({key} {mine}) and {other.meta.get('model')} ({key} {theirs})",
                fix="extract both from one model; a cosine that is meant: a.cosine(b, across_models=True)",
            )


_LIKE_LLAMA = {"mistral", "ministral3", "smollm3"}
"""Types that llama.cpp calls ``llama`` in the hint of a control vector."""


def _plain(kind: str) -> str:
    """``gpt_neox``, ``gptneox``: one name, as tools spell it; ``gemma3_text`` is the language model of ``gemma3``."""
    return re.sub(r"[^a-z0-9]", "", kind.lower().removesuffix("_text"))


def _known(vector: SteeringVector, key: str) -> bool:
    return vector.meta.get(key, "unknown") != "unknown"


def checked(directions: Mapping[int, Tensor], meta: Mapping[str, str], path: Path) -> SteeringVector:
    """A vector as read from a file of any format: rows of finite numbers of one width, in float32.

    Raises:
        DataError: it is none.
    """
    if not directions:
        raise DataError(f"{path} holds no direction", allowed="one direction or more that is not zero")
    for layer, direction in directions.items():
        if direction.dim() != 1 or not len(direction) or not bool(torch.isfinite(direction).all()):
            raise DataError(
                f"{path}: layer {layer} is not a direction",
                got=f"shape {list(direction.shape)}",
                allowed="one row of finite numbers a layer",
            )
    widths = sorted({len(direction) for direction in directions.values()})
    if len(widths) > 1:
        raise DataError(f"{path}: its directions differ in width", got=f"{widths}", allowed="one hidden size")
    return SteeringVector({layer: directions[layer].float() for layer in sorted(directions)}, dict(meta))


def with_new_keys(meta: Mapping[str, str]) -> dict[str, str]:
    """A header with the keys of version 1 renamed to those of today."""
    renamed = {
        "model_blocks": "model_layers",
        "induced": "positive",
        "plain": "negative" if "induced" in meta else "shown",
    }
    return {renamed.get(key, key): value for key, value in meta.items()}


def save_vector(vector: SteeringVector, path: Path) -> None:
    """Write the file; the header holds the origin.

    Raises:
        DataError: it cannot be written.
    """
    # Copies, for safetensors refuses tensors that share memory, as those of a tiled vector do.
    tensors = {f"layer.{layer}": d.detach().float().cpu().clone() for layer, d in vector.directions.items()}
    try:
        save_file(tensors, path, metadata={"format": FORMAT, **vector.meta})
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} cannot be written", got=str(error), fix="name a file in a folder that exists"
        ) from error


def load_vector(path: Path) -> SteeringVector:
    """Read the file; ``vectors.formats.read`` reads those of other tools as well.

    Raises:
        DataError: not such a file.
    """
    check_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            meta = dict(file.metadata() or {})
            names = list(file.keys())
            pattern = _TENSOR.get(meta.get("format", ""))
            found = {name: pattern and pattern.fullmatch(name) for name in names}
            if not names or not all(found.values()):
                raise DataError(
                    f"{path} is not an undertone vector",
                    got=f"format {meta.get('format', 'unknown')}, tensors {', '.join(names[:5]) or 'none'}",
                    allowed=f"safetensors with format {FORMAT} and tensors layer.0, layer.1 …",
                )
            directions = {int(match[1]): file.get_tensor(name) for name, match in found.items() if match}
    except (OSError, SafetensorError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the vector file {path} cannot be read", got=str(error)) from error
    meta.pop("format")
    return checked(directions, with_new_keys(meta), path)
