"""Extraction: directions from the activations of two sets of chats, or of two models on one set.

Positions, named and never guessed; padding is in none of them:

- ``last``: the last prompt token, from which the answer's first token is predicted (``v_teacher`` of 2606.00995);
- ``prompt``: the mean over all prompt tokens (``v_student`` there);
- ``response``: the mean over the completion's tokens; the chats end with an assistant message.

For ``last`` and ``prompt`` a chat that ends with an assistant message is read up to where that answer begins. A mean
over several tokens a chat counts every token once, so that a longer chat weighs more (2606.00995); ``principal``
alone takes the mean of each chat first, because its rows are chats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from undertone.errors import ConfigError, DataError, ModelError
from undertone.models.batches import by_length, pad_left
from undertone.models.layers import causal_lm, check_layers, decoder_layers, hidden_size, layers_path, read_residuals
from undertone.models.loading import Model
from undertone.rows import Message
from undertone.vectors.vector import SteeringVector

Chats = Sequence[Sequence[Message]]
Position = Literal["last", "prompt", "response"]

_SPOKEN = {"last": "last prompt token", "prompt": "all prompt tokens", "response": "all response tokens"}


def contrast(
    model: Model,
    positive: Chats,
    negative: Chats,
    *,
    layers: Sequence[int] | None = None,
    position: Position = "last",
) -> SteeringVector:
    """Mean residual stream of the positive chats minus that of the negative ones, per layer (2606.00995 §3).

    Args:
        model: whose activations.
        positive: chats with the trait's system prompt.
        negative: the same chats without it.
        layers: which layers; None: all.
        position: at which tokens; see the module's head.

    Raises:
        DataError: no chats, or chats without an answer for ``response``.
        ConfigError: no such position. ModelError: no such layer.
    """
    wanted = _wanted(model, layers, position)
    first, second = _mean(model, positive, wanted, position), _mean(model, negative, wanted, position)
    meta = {
        **_origin(model, position),
        "method": "mean difference",
        "chats": str(len(positive)),
        "positive": _shown(model, positive, position),
        "negative": _shown(model, negative, position),
    }
    return SteeringVector({layer: first[layer] - second[layer] for layer in wanted}, meta)


def difference(
    student: Model,
    base: Model,
    chats: Chats,
    *,
    layers: Sequence[int] | None = None,
    position: Position = "prompt",
) -> SteeringVector:
    """Mean residual stream of the student minus that of its base on the same chats (``v_student`` of 2606.00995).

    The vector lives in the base: its origin names the base, and ``student`` the other.

    Raises:
        ModelError: models of different shapes, or that read the chats as different tokens.
    """
    shapes = [(hidden_size(model.hf), len(decoder_layers(model.hf))) for model in (student, base)]
    if shapes[0] != shapes[1]:
        raise ModelError(
            "student and base differ in shape",
            got=f"{student.name}: width {shapes[0][0]}, {shapes[0][1]} layers; "
            f"{base.name}: width {shapes[1][0]}, {shapes[1][1]} layers",
            allowed="a student and the model that it was trained from",
        )
    for chat in chats:
        if _tokens(student, chat, position) != _tokens(base, chat, position):
            raise ModelError(
                "student and base read the same chat as different tokens",
                got=_shown(student, [chat], position),
                allowed=_shown(base, [chat], position),
                fix="give the student its base's tokenizer and chat template",
            )
    wanted = _wanted(base, layers, position)
    first, second = _mean(student, chats, wanted, position), _mean(base, chats, wanted, position)
    meta = {
        **_origin(base, position),
        "student": student.name,
        "method": "student minus base",
        "chats": str(len(chats)),
        "shown": _shown(base, chats, position),
    }
    return SteeringVector({layer: first[layer] - second[layer] for layer in wanted}, meta)


def principal(
    model: Model,
    positive: Chats,
    negative: Chats,
    *,
    layers: Sequence[int] | None = None,
    position: Position = "last",
) -> SteeringVector:
    """First principal component of the paired differences, per layer (RepE; ``pca_diff`` of repeng).

    The differences are centred, so that the component says along what the pairs DIFFER FROM EACH OTHER most: where
    all pairs shift alike, it is noise, and ``meta["explained"]`` (share of variance, per layer) is low. It is turned to
    agree with the mean difference and scaled to that one's norm, so that strengths compare.

    Raises:
        DataError: unequal numbers of chats, or fewer than three pairs.
    """
    if len(positive) != len(negative) or len(positive) < 3:
        raise DataError(
            "a principal component needs chats in pairs",
            got=f"{len(positive)} positive, {len(negative)} negative",
            allowed="equal numbers, three or more",
        )
    wanted = _wanted(model, layers, position)
    first = activations(model, positive, layers=wanted, position=position)
    second = activations(model, negative, layers=wanted, position=position)
    directions, shares = {}, []
    for layer in wanted:
        pairs = (first[layer] - second[layer]).double().numpy()
        mean = pairs.mean(0)
        _, values, components = np.linalg.svd(pairs - mean, full_matrices=False)
        if not np.linalg.norm(mean) > 0 or not values[0] > 0:
            raise DataError(f"the pairs do not differ from each other at layer {layer}", allowed="distinct chats")
        sign = 1.0 if components[0] @ mean >= 0 else -1.0
        directions[layer] = torch.from_numpy(sign * np.linalg.norm(mean) * components[0]).float()
        shares.append(f"{layer}: {values[0] ** 2 / (values**2).sum():.3f}")
    meta = {
        **_origin(model, position),
        "method": "first principal component of paired differences",
        "explained": ", ".join(shares),
        "chats": str(len(positive)),
        "positive": _shown(model, positive, position),
        "negative": _shown(model, negative, position),
    }
    return SteeringVector(directions, meta)


def activations(
    model: Model, chats: Chats, *, layers: Sequence[int] | None = None, position: Position = "last"
) -> dict[int, Tensor]:
    """``[chats, hidden]`` float32 for each layer: each chat's mean residual stream over the position's tokens."""
    wanted = _wanted(model, layers, position)
    found = {layer: torch.empty(len(chats), hidden_size(model.hf)) for layer in wanted}
    for rows, sums, counts in _sums(model, chats, wanted, position):
        for layer in wanted:
            found[layer][rows] = sums[layer] / counts
    return found


def random_like(vector: SteeringVector, seed: int) -> SteeringVector:
    """A Gaussian direction of the same norm in each layer: the control that any vector needs."""
    generator = torch.Generator().manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
    directions = {}
    for layer, direction in sorted(vector.directions.items()):
        noise = torch.randn(direction.shape, generator=generator)
        directions[layer] = noise * (direction.norm() / noise.norm())
    return SteeringVector(
        directions,
        {**vector.meta, "method": "random, norm of the mean difference", "seed": str(seed)},
    )


# -- reading -----------------------------------------------------------------------------------------


def _mean(model: Model, chats: Chats, layers: Sequence[int], position: Position) -> dict[int, Tensor]:
    """Mean over the position's tokens of all chats, each token once."""
    total = {layer: torch.zeros(hidden_size(model.hf), dtype=torch.float64) for layer in layers}
    tokens = 0
    for _, sums, counts in _sums(model, chats, layers, position):
        tokens += int(counts.sum())
        for layer in layers:
            total[layer] += sums[layer].double().sum(0)
    return {layer: (value / tokens).float() for layer, value in total.items()}


@torch.inference_mode()
def _sums(
    model: Model, chats: Chats, layers: Sequence[int], position: Position, batch_size: int = 64
) -> Iterator[tuple[list[int], dict[int, Tensor], Tensor]]:
    """Batch by batch: rows, the sum over each row's tokens ``[row, hidden]`` by layer, their number ``[row, 1]``."""
    if not len(chats):
        raise DataError("no chats to read activations from", allowed="one chat or more")
    read = [_tokens(model, chat, position) for chat in chats]
    for rows in by_length([len(ids) for ids, _ in read], batch_size):
        batch = pad_left([read[row][0] for row in rows], model.pad, model.device)
        width = batch.ids.shape[1]
        # Left padding: the tokens wanted are the last of each row.
        counts = torch.tensor([[read[row][1]] for row in rows], device=model.device)
        where = (torch.arange(width, device=model.device) >= width - counts).unsqueeze(-1)
        with read_residuals(model.hf, layers) as seen:
            model.hf(**batch.inputs(), use_cache=False, logits_to_keep=1)
        sums = {layer: seen[layer].float().where(where, 0.0).sum(1).cpu() for layer in layers}
        yield rows, sums, counts.cpu()


def _tokens(model: Model, chat: Sequence[Message], position: Position) -> tuple[tuple[int, ...], int]:
    """What is read of a chat, and how many tokens at its end are averaged."""
    answered = bool(chat) and chat[-1]["role"] == "assistant"
    if position == "response":
        if not answered:
            raise DataError(
                "position `response` needs chats that end with an answer",
                got=[message["role"] for message in chat],
                allowed="a last message of the assistant",
                fix="append {role: assistant, content: …}, or use position last or prompt",
            )
        example = model.example(chat[:-1], chat[-1]["content"])
        return example.ids, len(example.completion)
    ids = model.prompt(chat[:-1] if answered else chat)
    return ids, 1 if position == "last" else len(ids)


def _wanted(model: Model, layers: Sequence[int] | None, position: Position) -> list[int]:
    if position not in get_args(Position):
        raise ConfigError("no such position", got=position, allowed=get_args(Position))
    count = len(decoder_layers(model.hf))
    wanted = list(range(count)) if layers is None else sorted(set(layers))
    if not wanted:
        raise ConfigError("no layers to extract at", allowed=f"0 to {count - 1}")
    check_layers(count, wanted)
    return wanted


def _origin(model: Model, position: Position) -> dict[str, str]:
    return {**origin(model), "position": _SPOKEN[position]}


def origin(model: Model) -> dict[str, str]:
    """What a vector's header says of the model that it was extracted from."""
    template = str(model.tokenizer.chat_template or "")
    return {
        "model": model.name,
        "revision": model.identity.get("sha256") or model.identity.get("revision", "unknown"),
        "model_type": str(causal_lm(model.hf).config.model_type),
        "model_layers": str(len(decoder_layers(model.hf))),
        "hookpoint": layers_path(model.hf),
        "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "site": "residual stream after the layer",
    }


def _shown(model: Model, chats: Chats, position: Position) -> str:
    """The first chat as the model read it, specials and the template's own system prompt included."""
    return model.decode_all(_tokens(model, chats[0], position)[0])
