"""Exact scores from logits: probabilities of given answers, loss on given completions, KL between two contexts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undertone.models.batches import Example, by_length, labelled, pad_left, targets
from undertone.models.blocks import head_only_at, model_device


def labelled_logits(hf: Any, examples: Sequence[Example], pad: int) -> Tensor:
    """Logits ``[labels, vocabulary]`` that predict the completion tokens of one batch of rows, row by row."""
    device = model_device(hf)
    batch = pad_left([example.ids for example in examples], pad, device)
    where = labelled(examples, batch.ids.shape[1], device)
    with head_only_at(hf, where):
        logits: Tensor = hf(**batch.inputs(), use_cache=False).logits
    return logits


@torch.inference_mode()
def completion_nll(hf: Any, examples: Sequence[Example], pad: int, batch_size: int = 64) -> list[float]:
    """Mean negative log-likelihood of each row's completion, in nats per token."""
    nll = [0.0] * len(examples)
    for rows in by_length([len(example.ids) for example in examples], batch_size):
        chosen = [examples[row] for row in rows]
        logits = labelled_logits(hf, chosen, pad).float()
        loss = torch.nn.functional.cross_entropy(logits, targets(chosen, logits.device), reduction="none")
        parts = torch.split(loss, [len(example.completion) for example in chosen])
        for row, part in zip(rows, parts, strict=True):
            nll[row] = float(part.double().mean())
    return nll


@torch.inference_mode()
def carrier_kl(
    hf: Any,
    pairs: Sequence[tuple[Example, Example]],
    pad: int,
    batch_size: int = 64,
    induced: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[float]:
    """KL(induced ‖ plain) of each row, in nats per completion token.

    Args:
        hf: the model, both times.
        pairs: the same completion after the induced and after the plain prompt.
        pad: padding id.
        batch_size: rows a forward pass.
        induced: what is switched on (steering) while the first of each pair is read.
    """
    divergence = [0.0] * len(pairs)
    for rows in by_length([len(first.ids) for first, _ in pairs], batch_size):
        first = [pairs[row][0] for row in rows]
        with induced():
            p = torch.log_softmax(labelled_logits(hf, first, pad).float(), -1)
        q = torch.log_softmax(labelled_logits(hf, [pairs[row][1] for row in rows], pad).float(), -1)
        each = (p.exp() * (p - q)).sum(-1)
        parts = torch.split(each, [len(example.completion) for example in first])
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

    Answers of one token are read off one forward pass a prompt; longer ones share their prompt's first token and
    are scored as rows of their own.
    """
    first = np.array([answer[0] for answer in answers])
    result = np.full((len(prompts), len(answers)), np.nan)
    for rows, logprob in _next_token(hf, prompts, pad, batch_size):
        result[rows] = logprob[:, torch.from_numpy(first).to(logprob.device)].double().cpu().numpy()
    longer = [index for index, answer in enumerate(answers) if len(answer) > 1]
    if longer:
        pairs = [(row, index) for row in range(len(prompts)) for index in longer]
        examples = [Example((*prompts[row], *answers[index]), len(prompts[row])) for row, index in pairs]
        for (row, index), nll in zip(pairs, completion_nll(hf, examples, pad, batch_size), strict=True):
            result[row, index] = -nll * len(answers[index])
    return result


def _next_token(
    hf: Any, prompts: Sequence[Sequence[int]], pad: int, batch_size: int
) -> Iterator[tuple[list[int], Tensor]]:
    device = model_device(hf)
    for rows in by_length([len(prompt) for prompt in prompts], batch_size):
        batch = pad_left([prompts[row] for row in rows], pad, device)
        logits = hf(**batch.inputs(), use_cache=False, logits_to_keep=1).logits[:, -1]
        yield rows, torch.log_softmax(logits.float(), -1)
