"""Sampling: one batched sampler over the plain ``transformers`` forward, the only place that samples.

Contract: a row's sample depends on its prompt and its own seed, not on the batch it shares, on the
order of rows, or on an earlier interruption. Each row draws its own stream of uniforms (a Philox generator keyed
by the row's seed) and picks tokens by inverting the cumulative distribution in float64. Batch size still moves
float rounding inside the forward pass; in float32 that changes about one token in a million (a test counts).

Speed: equal prompts are prefilled once and their cache is copied to the rows that share them; rows are batched by
prompt length; finished rows leave the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from undertone.errors import ConfigError, DataError, warn
from undertone.models.batches import Batch, pad_left, select_rows
from undertone.models.layers import context_length, reading

if TYPE_CHECKING:
    from undertone.models.constraints import AnswerStates, Constraint

Progress = Callable[[int], None]


def _uniforms(seeds: Sequence[int], count: int) -> np.ndarray:
    """``[rows, count]`` uniforms in [0, 1); row i depends on ``seeds[i]`` alone."""
    return np.stack([np.random.Generator(np.random.Philox(key=seed)).random(count) for seed in seeds])


def pick(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """Token ids ``[rows]`` for logits ``[rows, vocabulary]`` and one uniform a row.

    Temperature 0 is the arg max. ``top_p`` below 1 keeps the smallest set of tokens that holds that mass.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float()
    probability = torch.softmax(logits if temperature == 1 else logits / temperature, -1)
    if top_p < 1:
        probability = _nucleus(probability, top_p)
    cumulative = probability.cumsum(-1, dtype=torch.float64)
    threshold = (uniform * cumulative[:, -1]).unsqueeze(1)
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1).clamp_(max=logits.shape[-1] - 1)


def _nucleus(probability: Tensor, top_p: float) -> Tensor:
    ordered, order = probability.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(probability).scatter(-1, order, ordered.where(before < top_p, 0.0))


def prefill(hf: Any, batch: Batch) -> tuple[Tensor, Any]:
    """Run prompts once: logits ``[rows, vocabulary]`` at the last position, and the key–value cache."""
    with reading(0):
        out = hf(**batch.inputs(), use_cache=True, logits_to_keep=1)
    return out.logits[:, -1], out.past_key_values


def read_on(hf: Any, tokens: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> Tensor:
    """Logits ``[rows, vocabulary]`` after one token more a row, which is read into the cache.

    One token a pass: given several, recurrent layers begin anew (in transformers, without a word).

    Args:
        hf: a causal LM.
        tokens: ``[rows]``.
        mask: ``[rows, cached + 1]`` of what the cache holds and the new token; None: no row is padded.
        positions: ``[rows]``, of the new tokens.
        cache: what was read before.
    """
    out = hf(
        input_ids=tokens.unsqueeze(1),
        attention_mask=mask,
        position_ids=positions.unsqueeze(1),
        past_key_values=cache,
        use_cache=True,
    )
    logits: Tensor = out.logits[:, -1]
    return logits


@torch.inference_mode()
def sample(
    hf: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    max_new_tokens: int,
    stop: Sequence[int],
    pad: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch_size: int = 512,
    progress: Progress | None = None,
    constraint: Constraint | None = None,
) -> list[list[int]]:
    """Sample one completion per prompt; the returned ids include the stop token if one was reached.

    Args:
        hf: a causal LM in evaluation mode.
        prompts: token ids; equal prompts share their prefill.
        seeds: one 64-bit seed a row, from ``provenance.seeds``.
        max_new_tokens: tokens after which a row ends unfinished.
        stop: ids that end a row.
        pad: id to pad with (its value never matters: padding is masked).
        temperature: 0 for the arg max.
        top_p: nucleus mass; 1 samples from the whole distribution.
        batch_size: rows decoded side by side.
        progress: called with the number of rows finished since the last call.
        constraint: what each row may hold; None: anything. A row that can neither go on nor stop ends unfinished.

    Raises:
        ConfigError: a number that nothing can be sampled with.
        DataError: a prompt that fills the model's context.
    """
    for name, value, least in (
        ("max_new_tokens", max_new_tokens, 1),
        ("batch_size", batch_size, 1),
        ("temperature", temperature, 0),
    ):
        if not (math.isfinite(value) and value >= least):
            raise ConfigError(f"{name}: out of range", got=value, allowed=f"{least} or more")
    device = next(iter(hf.parameters())).device
    keys = [tuple(prompt) for prompt in prompts]
    room = _room(hf, keys, max_new_tokens)
    order = sorted(range(len(keys)), key=lambda row: (len(keys[row]), keys[row], row))
    stops = torch.tensor(sorted(set(stop)), device=device)
    done: list[list[int]] = [[] for _ in keys]
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        uniform = torch.from_numpy(_uniforms([seeds[row] for row in rows], max_new_tokens)).to(device)
        most = torch.tensor([room[row] for row in rows], device=device)
        answers = None if constraint is None else constraint.begin(rows)
        completions = _decode(hf, [keys[row] for row in rows], uniform, most, stops, pad, temperature, top_p, answers)
        for row, completion in zip(rows, completions, strict=True):
            done[row] = completion
        if progress:
            progress(len(rows))
    return done


def _room(hf: Any, prompts: Sequence[Sequence[int]], wanted: int) -> list[int]:
    """How many new tokens each row may have: those wanted, fewer where the model's context ends before."""
    context = context_length(hf)
    if context is None:
        return [wanted] * len(prompts)
    full = [len(prompt) for prompt in prompts if len(prompt) >= context]
    if full:
        raise DataError(
            f"{len(full)} of {len(prompts)} prompts leave no room for an answer",
            got=f"up to {max(full)} tokens",
            allowed=f"fewer than the model's context of {context} tokens",
            fix="leave the long prompts out, or use a model of longer context",
        )
    room = [min(wanted, context - len(prompt)) for prompt in prompts]
    if cut := sum(size < wanted for size in room):
        warn(
            f"{cut} of {len(room)} answers end where the model's context of {context} tokens does, before {wanted} new tokens"
        )
    return room


def _decode(
    hf: Any,
    prompts: list[tuple[int, ...]],
    uniform: Tensor,
    room: Tensor,
    stops: Tensor,
    pad: int,
    temperature: float,
    top_p: float,
    answers: AnswerStates | None,
) -> list[list[int]]:
    device = uniform.device
    unique = list(dict.fromkeys(prompts))
    place = {prompt: index for index, prompt in enumerate(unique)}
    batch = pad_left(unique, pad, device)
    logits, cache = prefill(hf, batch)
    share = torch.tensor([place[prompt] for prompt in prompts], device=device)
    if len(unique) < len(prompts):
        select_rows(cache, share)
    logits = logits[share]
    mask = None if batch.mask is None else batch.mask[share]
    position = batch.positions[share, -1]

    rows, limit = uniform.shape
    tokens = torch.full((rows, limit), -1, dtype=torch.long, device=device)
    alive = torch.arange(rows, device=device)  # which row each line of the batch belongs to
    running = torch.ones(rows, dtype=torch.bool, device=device)
    for step in range(limit):
        if answers is not None:
            logits, goes_on = answers.masked(logits, alive.tolist())
            running = running & goes_on
        chosen = pick(logits, uniform[alive, step], temperature, top_p)
        tokens[alive[running], step] = chosen[running]
        if answers is not None:
            answers.read(alive[running].tolist(), chosen[running].tolist())
        full = room[alive] <= step + 1
        running = running & ~torch.isin(chosen, stops) & ~full
        left = int(running.sum())
        if left == 0 or step == limit - 1:
            break
        if left <= 0.75 * len(running) or bool(full.any()):  # a full row has no position for another token
            keep = running.nonzero().squeeze(1)
            select_rows(cache, keep)
            chosen, alive, position, running = (
                chosen[keep],
                alive[keep],
                position[keep],
                running[keep],
            )
            mask = None if mask is None else mask[keep]
        position = position + 1
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        logits = read_on(hf, chosen, mask, position, cache)
    return [[token for token in row if token >= 0] for row in tokens.tolist()]
