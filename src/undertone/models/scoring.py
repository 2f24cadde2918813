"""Exact scores from logits: probabilities of given answers, loss on given completions, KL between two contexts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from undertone.models.batches import Example, by_length, labelled, pad_left, select_rows, targets
from undertone.models.layers import causal_lm, head_only_at, hook_count, model_device, reading
from undertone.models.sampling import read_on

LOGITS: Final = 2**28
"""Numbers in the logits of one pass, at most: a GiB in float32, of which scoring holds two at once."""
ROWS: Final = 32
"""Rows of logits that are normalised at once: their exponentials are no second copy of the whole."""

LEFT_OUT: Final = 1e-4
"""The tolerance of measurements: what is left out of a prompt's answers, in total, is no more likely than that."""


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
    allowed: Callable[[int], np.ndarray] | None = None,
) -> list[float]:
    """KL(trait-conditioned ‖ control) of each row, in nats per completion token.

    Args:
        hf: the model.
        pairs: the same completion as the trait-conditioned and as the control teacher read it.
        pad: padding id.
        batch_size: rows a forward pass.
        conditioning: what is switched on (steering) while the first of each pair is read.
        control: another model for the second of each pair; None: the same.
        allowed: of a pair, what a constraint allowed at each labelled token, ``[labels, vocabulary]``: the KL is that of the
            masked and renormalised distributions. None: everything was.
    """
    divergence = [0.0] * len(pairs)
    for rows in passes(hf, [first for first, _ in pairs], batch_size):
        first = [pairs[row][0] for row in rows]
        with conditioning():
            conditioned = labelled_logits(hf, first, pad)
        plain = labelled_logits(control or hf, [pairs[row][1] for row in rows], pad)
        if allowed is not None:
            banned = ~torch.from_numpy(np.concatenate([allowed(row) for row in rows])).to(plain.device)
            conditioned, plain = (
                logits.masked_fill(banned, torch.finfo(logits.dtype).min) for logits in (conditioned, plain)
            )
        each = torch.cat(
            [_kl(p, q) for p, q in zip(torch.split(conditioned, ROWS), torch.split(plain, ROWS), strict=True)]
        )
        parts = torch.split(each, [len(example.labels) for example in first])
        for row, part in zip(rows, parts, strict=True):
            divergence[row] = float(part.double().mean())
    return divergence


def _kl(conditioned: Tensor, plain: Tensor) -> Tensor:
    p, q = torch.log_softmax(conditioned.float(), -1), torch.log_softmax(plain.float(), -1)
    return (p.exp() * (p - q)).sum(-1)


def answer_logprobs(
    hf: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    pad: int,
    batch_size: int = 256,
    tolerance: float = 0.0,
) -> np.ndarray:
    """``[prompts, answers]`` log-probability that the completion of a prompt begins with an answer's tokens.

    Arguments as of :func:`answer_scores`, which also says how much was left out.
    """
    return answer_scores(hf, prompts, answers, pad, batch_size, tolerance).logprobs


@dataclass(frozen=True)
class AnswerScores:
    """What :func:`answer_scores` returns.

    Attributes:
        logprobs: ``[prompts, answers]``; minus infinity where an answer was left out.
        left_out: ``[prompts]``: the probabilities of a prompt's answers sum to this much more at most.
    """

    logprobs: np.ndarray
    left_out: np.ndarray


@torch.inference_mode()
def answer_scores(
    hf: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    pad: int,
    batch_size: int = 256,
    tolerance: float = 0.0,
) -> AnswerScores:
    """Score answers along the tree of their beginnings: each beginning is read once, whatever number of answers share it.

    An answer is at most as likely as its beginning, so that the least likely branches can be left out at a known price:
    as many of each prompt as sum to ``tolerance`` at most. What all prompts begin with (a system prompt) is read once.

    Args:
        hf: a causal LM in evaluation mode.
        prompts: token ids.
        answers: token ids of at least one token each; one may begin another.
        pad: padding id.
        batch_size: rows a forward pass.
        tolerance: probability of answers that may be left out, in total for each prompt; 0: every answer is followed.
    """
    tree = _AnswerTree(answers)
    logprobs = np.full((len(prompts), len(answers)), -np.inf)
    left_out = np.zeros(len(prompts))
    for rows in by_length([len(prompt) for prompt in prompts], batch_size):
        reader = _TreeReader(hf, tree, batch_size, np.full(len(rows), tolerance), len(answers))
        reader.read([prompts[row] for row in rows], pad)
        logprobs[rows], left_out[rows] = reader.logprobs, reader.left_out
    return AnswerScores(logprobs, left_out)


class _AnswerTree:
    """The tree of answers' beginnings; node 0 is the empty one.

    Attributes:
        tokens: of each node, its last token.
        children: of each node, those that go on from it.
        ends: of each node, the answers that are it.
        most: of each node, how many answers can at most be the beginning of one and the same completion from it on.
    """

    def __init__(self, answers: Sequence[Sequence[int]]) -> None:
        self.tokens: list[int] = [-1]
        self.ends: list[list[int]] = [[]]
        found: list[dict[int, int]] = [{}]
        for index, answer in enumerate(answers):
            node = 0
            for token in answer:
                if token not in found[node]:
                    found[node][token] = len(found)
                    found.append({})
                    self.tokens.append(token)
                    self.ends.append([])
                node = found[node][token]
            self.ends[node].append(index)
        self.children = [np.array(list(inner.values()), dtype=np.int64) for inner in found]
        self.most = np.array([len(ends) for ends in self.ends])
        for node in reversed(range(len(found))):  # children have higher numbers than their parents
            if len(self.children[node]):
                self.most[node] += self.most[self.children[node]].max()
        self.inner = np.array([len(children) > 0 for children in self.children])


@dataclass(frozen=True)
class _Read:
    """Rows that were read up to a beginning of answers: whose they are, how likely that beginning is, how to go on."""

    prompt: np.ndarray
    node: np.ndarray
    logprob: np.ndarray
    logits: Tensor
    cache: Any
    mask: Tensor | None
    position: Tensor


class _TreeReader:
    """Walks the tree for one batch of prompts."""

    def __init__(self, hf: Any, tree: _AnswerTree, batch_size: int, budget: np.ndarray, answers: int) -> None:
        self.hf, self.tree, self.batch_size, self.budget = hf, tree, batch_size, budget
        self.logprobs = np.full((len(budget), answers), -np.inf)
        self.left_out = np.zeros(len(budget))

    def read(self, prompts: Sequence[Sequence[int]], pad: int) -> None:
        """Score the answers to these prompts."""
        logits, cache, mask, position = _read_prompts(self.hf, prompts, pad, goes_on=bool(self.tree.inner[1:].any()))
        rows = np.arange(len(prompts))
        self._follow(_Read(rows, np.zeros_like(rows), np.zeros(len(rows)), logits, cache, mask, position))

    def _follow(self, read: _Read) -> None:
        """Score what ends one token after these rows, and go on where answers go on."""
        fans = [self.tree.children[node] for node in read.node]
        row, child = np.repeat(np.arange(len(fans)), [len(fan) for fan in fans]), np.concatenate(fans)
        tokens = np.array(self.tree.tokens)[child]
        logprob = read.logprob[row] + _token_logprobs(read.logits, row, tokens)
        prompt = read.prompt[row]
        for node in np.unique(child):
            if self.tree.ends[node]:
                here = child == node
                self.logprobs[np.ix_(prompt[here], self.tree.ends[node])] = logprob[here, None]
        on = np.flatnonzero(self.tree.inner[child])
        on = on[self._worth_it(prompt[on], child[on], logprob[on])]
        for start in range(0, len(on), self.batch_size):
            part = on[start : start + self.batch_size]
            last = start + self.batch_size >= len(on)
            self._follow(self._step(read, row[part], prompt[part], child[part], logprob[part], last))

    def _worth_it(self, prompt: np.ndarray, node: np.ndarray, logprob: np.ndarray) -> np.ndarray:
        """Which branches are followed: the least likely ones are left out, as many as a prompt's budget pays for."""
        if not self.budget.any():
            return np.ones(len(node), dtype=bool)
        price = np.exp(logprob) * self.tree.most[node]
        follow = np.ones(len(node), dtype=bool)
        for one in np.unique(prompt):
            own = np.flatnonzero(prompt == one)
            order = own[np.argsort(price[own], kind="stable")]
            dropped = order[np.cumsum(price[order]) <= self.budget[one]]
            follow[dropped] = False
            self.left_out[one] += price[dropped].sum()
            self.budget[one] -= price[dropped].sum()
        return follow

    def _step(
        self, read: _Read, row: np.ndarray, prompt: np.ndarray, node: np.ndarray, logprob: np.ndarray, last: bool
    ) -> _Read:
        """Read one token more in each of these rows."""
        device = read.position.device
        chosen = torch.from_numpy(row).to(device)
        cache = _rows_of(read.cache, chosen, keep=not last)
        mask = None if read.mask is None else read.mask[chosen]
        mask = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        position = read.position[chosen] + 1
        tokens = torch.tensor([self.tree.tokens[one] for one in node], device=device)
        logits = read_on(self.hf, tokens, mask, position, cache)
        return _Read(prompt, node, logprob, logits, cache, mask, position)


SHARED: Final = 8
"""Tokens that all prompts of a batch begin with, from which on they are read once."""


def _read_prompts(
    hf: Any, prompts: Sequence[Sequence[int]], pad: int, goes_on: bool
) -> tuple[Tensor, Any, Tensor | None, Tensor]:
    """Logits after each prompt, the cache, the mask and the last positions to go on with."""
    device = model_device(hf)
    same = _common_beginning(prompts)
    # An edit must see a prompt as one: what is read from a cache counts as response.
    if len(same) >= SHARED and len(prompts) > 1 and _keeps_keys_alone(hf) and not hook_count(hf):
        out = hf(input_ids=torch.tensor([same], device=device), use_cache=True, logits_to_keep=1)
        if _holds_keys_alone(out.past_key_values):
            return _read_the_rest(hf, prompts, len(same), pad, out.past_key_values, goes_on)
    batch = pad_left(prompts, pad, device)
    with reading(0):
        out = hf(**batch.inputs(), use_cache=goes_on, logits_to_keep=1)
    return out.logits[:, -1], out.past_key_values if goes_on else None, batch.mask, batch.positions[:, -1]


def _read_the_rest(
    hf: Any, prompts: Sequence[Sequence[int]], shared: int, pad: int, cache: Any, goes_on: bool
) -> tuple[Tensor, Any, Tensor | None, Tensor]:
    """Each prompt from where it parts from the others."""
    batch = pad_left([prompt[shared:] for prompt in prompts], pad, model_device(hf))
    rows = len(prompts)
    cache.batch_select_indices(torch.zeros(rows, dtype=torch.long, device=batch.ids.device))
    mask = None if batch.mask is None else torch.cat([batch.mask.new_ones(rows, shared), batch.mask], 1)
    positions = batch.positions + shared
    out = hf(
        input_ids=batch.ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
        logits_to_keep=1,
    )  # fmt: skip
    return out.logits[:, -1], cache if goes_on else None, mask, positions[:, -1]


def _common_beginning(prompts: Sequence[Sequence[int]]) -> list[int]:
    """What all prompts begin with; of each at least one token is left."""
    least, most = min(map(tuple, prompts)), max(map(tuple, prompts))
    room = min(len(prompt) for prompt in prompts) - 1
    differ = (at for at, (one, two) in enumerate(zip(least, most, strict=False)) if one != two)
    return list(least[: min(next(differ, room), room)])


def _keeps_keys_alone(hf: Any) -> bool:
    return _holds_keys_alone(DynamicCache(config=causal_lm(hf).config.get_text_config()))


def _holds_keys_alone(cache: Any) -> bool:
    """Whether every layer attends to all tokens before: no window, no recurrent state, which padding could enter."""
    return all(type(layer) is DynamicLayer for layer in getattr(cache, "layers", [None]))


def _rows_of(cache: Any, rows: Tensor, keep: bool) -> Any:
    """The cache of these rows; ``keep``: the whole one is needed again."""
    if keep and _holds_keys_alone(cache):  # selecting makes new tensors and leaves the old ones
        cache = copy.copy(cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
    elif keep:
        cache = copy.deepcopy(cache)
    select_rows(cache, rows)
    return cache


def _token_logprobs(logits: Tensor, row: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Log-probability of ``tokens[i]`` in row ``row[i]`` of ``[rows, vocabulary]`` logits."""
    logits = logits.float()
    chosen = torch.from_numpy(row).to(logits.device), torch.from_numpy(tokens).to(logits.device)
    total = torch.cat([torch.logsumexp(part, -1) for part in torch.split(logits, ROWS)])
    found: np.ndarray = (logits[chosen].double() - total.double()[chosen[0]]).cpu().numpy()
    return found
