"""Exact scores from logits: probabilities of given answers, loss on given completions, KL between two contexts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from undertone.models.batches import Batch, Example, by_length, labelled, pad_left, select_rows, targets
from undertone.models.layers import causal_lm, head_only_at, model_device, reading
from undertone.models.sampling import go_on

LOGITS: Final = 2**28
"""Numbers in the logits of one pass, at most: a GiB in float32, of which scoring holds a few at once."""


def passes(hf: Any, examples: Sequence[Example], batch_size: int) -> list[list[int]]:
    """Row indices of each forward pass: rows of similar length, ``batch_size`` at most, fewer where logits would not fit."""
    most = LOGITS // int(causal_lm(hf).config.get_text_config().vocab_size)
    found: list[list[int]] = []
    labels = 0
    for (row,) in by_length([len(example.ids) for example in examples], 1):
        size = len(examples[row].completion)
        if not found or len(found[-1]) == batch_size or labels + size > most:
            found.append([])
            labels = 0
        found[-1].append(row)
        labels += size
    return found


def labelled_logits(hf: Any, examples: Sequence[Example], pad: int) -> Tensor:
    """Logits ``[labels, vocabulary]`` that predict the labelled tokens of one batch of rows, row by row."""
    device = model_device(hf)
    batch = pad_left([example.ids for example in examples], pad, device)
    where = labelled(examples, batch.ids.shape[1], device)
    with head_only_at(hf, where), reading([len(example.completion) for example in examples]):
        logits: Tensor = hf(**batch.inputs(), use_cache=False).logits
    return logits


@torch.inference_mode()
def completion_nll(hf: Any, examples: Sequence[Example], pad: int, batch_size: int = 64) -> list[float]:
    """Mean negative log-likelihood of each row's labelled tokens, in nats per token."""
    nll = [0.0] * len(examples)
    for rows in passes(hf, examples, batch_size):
        chosen = [examples[row] for row in rows]
        logits = labelled_logits(hf, chosen, pad).float()
        loss = torch.nn.functional.cross_entropy(logits, targets(chosen, logits.device), reduction="none")
        parts = torch.split(loss, [len(example.labels) for example in chosen])
        for row, part in zip(rows, parts, strict=True):
            nll[row] = float(part.double().mean())
    return nll


@torch.inference_mode()
def teacher_kl(
    hf: Any,
    pairs: Sequence[tuple[Example, Example]],
    pad: int,
    batch_size: int = 64,
    conditioning: Callable[[], AbstractContextManager[None]] = nullcontext,
    control: Any = None,
) -> list[float]:
    """KL(trait-conditioned ‖ control) of each row, in nats per completion token.

    Args:
        hf: the model.
        pairs: the same completion as the trait-conditioned and as the control teacher read it.
        pad: padding id.
        batch_size: rows a forward pass.
        conditioning: what is switched on (steering) while the first of each pair is read.
        control: another model for the second of each pair; None: the same.
    """
    divergence = [0.0] * len(pairs)
    for rows in passes(hf, [first for first, _ in pairs], batch_size):
        first = [pairs[row][0] for row in rows]
        with conditioning():
            p = torch.log_softmax(labelled_logits(hf, first, pad).float(), -1)
        q = torch.log_softmax(labelled_logits(control or hf, [pairs[row][1] for row in rows], pad).float(), -1)
        each = (p.exp() * (p - q)).sum(-1)
        parts = torch.split(each, [len(example.labels) for example in first])
        for row, part in zip(rows, parts, strict=True):
            divergence[row] = float(part.double().mean())
    return divergence


@torch.inference_mode()
def answer_logprobs(
    hf: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    pad: int,
    batch_size: int = 256,
) -> np.ndarray:
    """``[prompts, answers]`` log-probability that the completion of a prompt begins with an answer's tokens.

    A prompt is read once. Answers of one token are read off its last position; longer ones go on from its
    key–value cache, so that fifty questions cost fifty prompts and not fifty times the answers.

    Args:
        hf: a causal LM in evaluation mode.
        prompts: token ids.
        answers: token ids of at least one token each.
        pad: padding id.
        batch_size: rows a forward pass.
    """
    first = torch.tensor([answer[0] for answer in answers], device=model_device(hf))
    longer = [index for index, answer in enumerate(answers) if len(answer) > 1]
    result = np.empty((len(prompts), len(answers)))
    together = max(1, batch_size // len(longer)) if longer else batch_size
    for rows in by_length([len(prompt) for prompt in prompts], together):
        batch = pad_left([prompts[row] for row in rows], pad, model_device(hf))
        with reading(0):
            out = hf(**batch.inputs(), use_cache=bool(longer), logits_to_keep=1)
        begun = torch.log_softmax(out.logits[:, -1].float(), -1)[:, first].double().cpu().numpy()
        for at in range(0, len(longer), batch_size):
            chosen = longer[at : at + batch_size]
            cache = copy.deepcopy(out.past_key_values) if len(longer) > batch_size else out.past_key_values
            begun[:, chosen] += _rest(hf, batch, cache, [answers[index] for index in chosen], pad)
        result[rows] = begun
    return result


def _rest(hf: Any, prompts: Batch, cache: Any, answers: Sequence[Sequence[int]], pad: int) -> np.ndarray:
    """``[prompts, answers]`` log-probability of the answers' tokens after their first, given the prompts' cache."""
    device, count, rows = prompts.ids.device, len(answers), len(prompts.ids)
    width = max(len(answer) for answer in answers) - 1
    ids = torch.full((count, width), pad, device=device)
    following = torch.full((count, width), -1, device=device)
    for index, answer in enumerate(answers):  # right padding: what comes later changes nothing before it
        ids[index, : len(answer) - 1] = torch.tensor(answer[:-1], device=device)
        following[index, : len(answer) - 1] = torch.tensor(answer[1:], device=device)
    share = torch.arange(rows, device=device).repeat_interleave(count)
    select_rows(cache, share)
    ones = torch.ones(rows, prompts.ids.shape[1], dtype=torch.long, device=device)
    mask = (ones if prompts.mask is None else prompts.mask)[share]
    logits = go_on(
        hf,
        ids.repeat(rows, 1),
        torch.cat([mask, mask.new_ones(len(mask), width)], 1),
        prompts.positions[share, -1:] + 1 + torch.arange(width, device=device),
        cache,
    )
    wanted = following.repeat(rows, 1)
    logprob = torch.log_softmax(logits.float(), -1).gather(-1, wanted.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    total: np.ndarray = logprob.double().masked_fill(wanted < 0, 0.0).sum(-1).reshape(rows, count).cpu().numpy()
    return total
