"""Steering: ``h ← h + strength · v`` at every position after the named blocks, while inside ``with``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from undertone.models.blocks import Edit, edit_residuals
from undertone.models.loading import Model
from undertone.vectors.vector import Vector


@contextmanager
def steered(model: Model, vector: Vector, strength: float) -> Iterator[None]:
    """Add the vector, raw (its norm counts), times ``strength``; the model is clean again afterwards.

    Raises:
        ModelError: the vector does not fit the model, or names a block that it lacks.
    """
    vector.check_fits(model)

    def adding(direction: Tensor) -> Edit:
        shift = strength * direction.to(model.device)

        def edit(stream: Tensor) -> Tensor:
            return stream + shift.to(stream.dtype)

        return edit

    with edit_residuals(model.hf, {block: adding(d) for block, d in vector.directions.items()}):
        yield
