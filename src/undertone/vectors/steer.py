"""Steering: what is done to the residual stream after the named blocks, while inside ``with``.

=========  ====================================  =============================================
operator   formula                               here
=========  ====================================  =============================================
add        ``h ← h + α·v``                       ``steered``; raw: the vector's norm counts
ablate     ``h ← h − α·(h·v̂)·v̂``                 ``ablated``
replace    ``h ← h − (h·v̂)·v̂ + (h_base·v̂)·v̂``    ``replaced``; the base reads the same input
=========  ====================================  =============================================

(2606.00995.) ``positions`` are those of ``models.blocks``: all, prompt, last, response. In generation ``prompt``
and ``last`` act while the prompt is read and ``response`` on each sampled token that is fed back; in scoring of a
prompt with its completion the same tokens are meant, so that both give the same logits. A bare ``model.hf(…)`` of
unknown make-up is refused unless the positions are ``all``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import get_args

from torch import Tensor

from undertone.errors import ConfigError, ModelError
from undertone.models.blocks import Edit, Positions, beside, decoder_blocks, edit_residuals, hidden_size
from undertone.models.loading import Model
from undertone.vectors.vector import Vector


@contextmanager
def steered(model: Model, vector: Vector, strength: float, positions: Positions = "all") -> Iterator[None]:
    """Add the vector, raw (its norm counts), times ``strength``; the model is clean again afterwards.

    Raises:
        ModelError: the vector does not fit the model, or names a block that it lacks.
        ConfigError: no such positions.
    """
    _check(model, vector, positions)

    def adding(direction: Tensor) -> Edit:
        shift = strength * direction.to(model.device)

        def edit(stream: Tensor) -> Tensor:
            return stream + shift.to(stream.dtype)

        return edit

    with edit_residuals(model.hf, {block: adding(d) for block, d in vector.directions.items()}, positions):
        yield


@contextmanager
def ablated(
    model: Model,
    vector: Vector,
    amount: float = 1.0,
    positions: Positions = "all",
    blocks: Sequence[int] | None = None,
    around: Vector | None = None,
) -> Iterator[None]:
    """Take the component along the vector out of the stream; amount 1 takes all of it.

    Args:
        model: whose stream.
        vector: its directions; norms do not count.
        amount: share of the component that is taken out; 2 mirrors it.
        positions: at which tokens.
        blocks: after which blocks; None: the vector's own. A vector of one block is tiled over them; one of several
            must have each of them.
        around: a point of the stream for each block, such as a plain model's mean: the component is measured from
            there and set to its (mean ablation); None: from zero, as the formula says.

    Raises:
        DataError: a direction of norm zero. ModelError, ConfigError: as ``steered``.
    """
    placed = _placed(vector, blocks)
    _check(model, placed, positions)

    def taking(block: int, unit: Tensor) -> Edit:
        def edit(stream: Tensor) -> Tensor:
            axis = unit.to(stream)
            apart = stream if around is None else stream - around.directions[block].to(stream)
            return stream - amount * (apart @ axis).unsqueeze(-1) * axis

        return edit

    with edit_residuals(
        model.hf, {block: taking(block, d) for block, d in placed.unit().directions.items()}, positions
    ):
        yield


@contextmanager
def replaced(
    model: Model,
    vector: Vector,
    base: Model,
    positions: Positions = "all",
    blocks: Sequence[int] | None = None,
) -> Iterator[None]:
    """Set the component along the vector to what the base has there when it reads the same input.

    The base runs beside the model, on the same tokens with its own cache, unsteered: twice the time.

    Args:
        model: the student.
        vector: its directions; norms do not count.
        base: another model of the same shape.
        positions: at which tokens.
        blocks: as for ``ablated``.

    Raises:
        ModelError: the base is the model itself or of another shape; otherwise as ``ablated``.
    """
    placed = _placed(vector, blocks)
    _check(model, placed, positions)
    if base.hf is model.hf:
        raise ModelError("a model cannot replace from itself", fix="load the base apart from the student")
    shapes = [(hidden_size(one.hf), len(decoder_blocks(one.hf))) for one in (model, base)]
    if shapes[0] != shapes[1]:
        raise ModelError(
            "the base is of another shape than the model", got=f"(width, blocks): {shapes[1]}", allowed=f"{shapes[0]}"
        )
    with beside(model.hf, base.hf, placed.blocks) as theirs:

        def copying(block: int, unit: Tensor) -> Edit:
            def edit(stream: Tensor) -> Tensor:
                axis = unit.to(stream)
                return stream + ((theirs[block].to(stream) - stream) @ axis).unsqueeze(-1) * axis

            return edit

        edits = {block: copying(block, d) for block, d in placed.unit().directions.items()}
        with edit_residuals(model.hf, edits, positions):
            yield


def _placed(vector: Vector, blocks: Sequence[int] | None) -> Vector:
    if blocks is None:
        return vector
    return vector.tile(vector.blocks[0], blocks) if len(vector.blocks) == 1 else vector.select(blocks)


def _check(model: Model, vector: Vector, positions: Positions) -> None:
    vector.check_fits(model)
    if positions not in get_args(Positions):
        raise ConfigError("no such positions", got=positions, allowed=get_args(Positions))
