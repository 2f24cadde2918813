"""Steering: what is done to the residual stream after the named layers, while inside ``with``.

=========  ====================================  =============================================
operator   formula                               here
=========  ====================================  =============================================
add        ``h ← h + α·v``                       ``steer``; raw: the vector's norm counts
ablate     ``h ← h − α·(h·v̂)·v̂``                 ``ablate``
patch      ``h ← h − (h·v̂)·v̂ + (h_base·v̂)·v̂``    ``patch``; the base reads the same input
=========  ====================================  =============================================

(2606.00995.) ``positions`` are those of ``models.layers``: all, prompt, last, response. In generation ``prompt``
and ``last`` act while the prompt is read and ``response`` on each sampled token that is fed back; in scoring of a
prompt with its completion the same tokens are meant, so that both give the same logits. A bare ``model.hf(…)`` of
unknown make-up is refused unless the positions are ``all``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import get_args

from torch import Tensor

from undertone.errors import ConfigError, ModelError
from undertone.models.layers import Edit, Positions, beside, decoder_layers, edit_residuals, hidden_size
from undertone.models.loading import Model
from undertone.vectors.vector import SteeringVector


@contextmanager
def steer(model: Model, vector: SteeringVector, strength: float, positions: Positions = "all") -> Iterator[None]:
    """Add the vector, raw (its norm counts), times ``strength``; the model is clean again afterwards.

    Raises:
        ModelError: the vector does not fit the model, or names a layer that it lacks.
        ConfigError: no such positions, or a strength that is no number.
    """
    if not math.isfinite(strength):
        raise ConfigError("strength: not a number to steer by", got=strength, allowed="any finite number")
    _check(model, vector, positions)

    def adding(direction: Tensor) -> Edit:
        shift = strength * direction.to(model.device)

        def edit(stream: Tensor) -> Tensor:
            return stream + shift.to(stream.dtype)

        return edit

    with edit_residuals(model.hf, {layer: adding(d) for layer, d in vector.directions.items()}, positions):
        yield


@contextmanager
def ablate(
    model: Model,
    vector: SteeringVector,
    amount: float = 1.0,
    positions: Positions = "all",
    layers: Sequence[int] | None = None,
    around: SteeringVector | None = None,
) -> Iterator[None]:
    """Take the component along the vector out of the stream; amount 1 takes all of it.

    Args:
        model: whose stream.
        vector: its directions; norms do not count.
        amount: share of the component that is taken out; 2 mirrors it.
        positions: at which tokens.
        layers: after which layers; None: the vector's own. A vector of one layer is tiled over them; one of several
            must have each of them.
        around: a point of the stream for each layer, such as a model's mean without the trait: the component is measured from
            there and set to its (mean ablation); None: from zero, as the formula says.

    Raises:
        DataError: a direction of norm zero. ModelError, ConfigError: as ``steer``.
    """
    placed = _placed(vector, layers)
    _check(model, placed, positions)

    def taking(layer: int, unit: Tensor) -> Edit:
        def edit(stream: Tensor) -> Tensor:
            axis = unit.to(stream)
            apart = stream if around is None else stream - around.directions[layer].to(stream)
            return stream - amount * (apart @ axis).unsqueeze(-1) * axis

        return edit

    with edit_residuals(
        model.hf, {layer: taking(layer, d) for layer, d in placed.unit().directions.items()}, positions
    ):
        yield


@contextmanager
def patch(
    model: Model,
    vector: SteeringVector,
    base: Model,
    positions: Positions = "all",
    layers: Sequence[int] | None = None,
) -> Iterator[None]:
    """Set the component along the vector to what the base has there when it reads the same input.

    The base runs beside the model, on the same tokens with its own cache, unsteered: twice the time.

    Args:
        model: the student.
        vector: its directions; norms do not count.
        base: another model of the same shape.
        positions: at which tokens.
        layers: as for ``ablate``.

    Raises:
        ModelError: the base is the model itself or of another shape; otherwise as ``ablate``.
    """
    placed = _placed(vector, layers)
    _check(model, placed, positions)
    if base.hf is model.hf:
        raise ModelError("a model cannot be patched from itself", fix="load the base apart from the student")
    shapes = [(hidden_size(one.hf), len(decoder_layers(one.hf))) for one in (model, base)]
    if shapes[0] != shapes[1]:
        raise ModelError(
            "the base is of another shape than the model", got=f"(width, layers): {shapes[1]}", allowed=f"{shapes[0]}"
        )
    with beside(model.hf, base.hf, placed.layers) as theirs:

        def copying(layer: int, unit: Tensor) -> Edit:
            def edit(stream: Tensor) -> Tensor:
                axis = unit.to(stream)
                return stream + ((theirs[layer].to(stream) - stream) @ axis).unsqueeze(-1) * axis

            return edit

        edits = {layer: copying(layer, d) for layer, d in placed.unit().directions.items()}
        with edit_residuals(model.hf, edits, positions):
            yield


def _placed(vector: SteeringVector, layers: Sequence[int] | None) -> SteeringVector:
    if layers is None:
        return vector
    return vector.tile(vector.layers[0], layers) if len(vector.layers) == 1 else vector.select(layers)


def _check(model: Model, vector: SteeringVector, positions: Positions) -> None:
    vector.check_fits(model)
    if positions not in get_args(Positions):
        raise ConfigError("no such positions", got=positions, allowed=get_args(Positions))
