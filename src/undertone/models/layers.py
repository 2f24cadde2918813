"""The decoder layers of a model, and the only place where hooks are set.

Layer numbers: ``0 … n-1`` name the residual stream AFTER that layer; the embedding has no number.
Every context manager here removes its hooks whatever happens inside.

Positions of an edit. A hook sees tokens, not chats, so that each position is told, never guessed from the shape:

- ``all``: every token of every forward pass;
- ``prompt``: every prompt token, padding never;
- ``last``: the last prompt token, from which the first token of the answer is predicted;
- ``response``: every token of the answer that is read: the completion in scoring, in generation each sampled token
  that is fed back.

A pass that goes on from a filled key–value cache reads a response. A pass without one is a prompt, or a prompt with
its completion: ``reading`` says which. Sampling and scoring in ``models`` say it themselves, and so does
``generate`` of ``transformers`` (it hands over an empty cache); any other pass is refused unless the positions are
``all``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from undertone.errors import ModelError

Edit = Callable[[Tensor], Tensor]
"""Residual stream ``[batch, token, hidden]`` in, the same shape out."""

Positions = Literal["all", "prompt", "last", "response"]
"""Which tokens an edit is made at: see the module's head."""

_COMPLETIONS: ContextVar[Sequence[int] | int | None] = ContextVar("completions", default=None)


def causal_lm(hf: Any) -> Any:
    """The ``transformers`` causal LM inside a PEFT wrapper, or the model itself."""
    return hf.get_base_model() if hasattr(hf, "peft_config") and hasattr(hf, "get_base_model") else hf


def language_model(hf: Any) -> Any:
    """The part that reads and writes text: of a wrapper with vision or audio towers, its decoder; else the base model."""
    model = causal_lm(hf)
    decoder = model.get_decoder()
    return model.base_model if decoder is None or decoder is model else decoder


def outside_language(hf: Any) -> set[str]:
    """Names of the parameters that no text passes through: those of vision and audio towers and of their projections."""
    model = causal_lm(hf)
    inside = {
        id(parameter) for part in (language_model(hf), model.get_output_embeddings()) for parameter in part.parameters()
    }
    return {name for name, parameter in hf.named_parameters() if id(parameter) not in inside}


def decoder_layers(hf: Any) -> nn.ModuleList:
    """The list of decoder layers of the language model, never of a vision tower that is as deep.

    Raises:
        ModelError: no list of ``num_hidden_layers`` modules is found, or there are several streams (Gemma 3n).
    """
    model = causal_lm(hf)
    config = model.config.get_text_config()
    streams = getattr(config, "altup_num_inputs", 1)
    if streams > 1:
        raise ModelError(
            f"{type(model).__name__} has several residual streams side by side: it cannot be steered or read by layer",
            got=f"{streams} streams",
            allowed="models of one residual stream",
            fix="use prompted or fine-tuned teachers on it",
        )
    count = int(config.num_hidden_layers)
    lists = [one for one in language_model(hf).modules() if isinstance(one, nn.ModuleList) and len(one) == count]
    # Lists of another kind may be as long: experts, projections of streams. What transformers checkpoints is a layer.
    found = [one for one in lists if all(isinstance(layer, GradientCheckpointingLayer) for layer in one)] or lists
    if found:
        return found[0]
    raise ModelError(
        f"cannot find the decoder layers of {type(model).__name__}",
        allowed=f"a ModuleList of {count} layers inside the base model",
        fix="open an issue naming the model class",
    )


def check_layers(count: int, wanted: Sequence[int]) -> None:
    """Refuse layer numbers that a model of ``count`` layers lacks."""
    wrong = [layer for layer in wanted if not 0 <= layer < count]
    if wrong:
        raise ModelError(
            "no such layer",
            got=wrong,
            allowed=f"0 to {count - 1}: the residual stream after that layer",
        )


def _stream(output: Any) -> Tensor:
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream


@contextmanager
def reading(completions: Sequence[int] | int) -> Iterator[None]:
    """Tell edits how many tokens at the end of each left-padded row are completion; 0: the rows are prompts alone."""
    token = _COMPLETIONS.set(completions)
    try:
        yield
    finally:
        _COMPLETIONS.reset(token)


@dataclass(frozen=True)
class _Pass:
    """What is known about a forward pass before its first layer runs."""

    mask: Tensor | None
    cached: int
    goes_on: bool
    """Whether a cache was handed over, be it empty: tokens will follow what is read now."""

    def where(self, positions: Positions, stream: Tensor) -> Tensor:
        """``[batch, token]``: true where the edit is made."""
        rows, width = stream.shape[:2]
        real = torch.ones(rows, width, dtype=torch.bool, device=stream.device)
        if self.mask is not None and self.mask.dim() == 2:
            real = self.mask[:, -width:].to(stream.device).bool().expand(rows, width)
        if self.cached:
            return real if positions == "response" else torch.zeros_like(real)
        column = torch.arange(width, device=stream.device)
        start = width - self._completions(rows, stream.device).unsqueeze(1)
        if positions == "last":
            return real & (column == start - 1)
        return real & ((column < start) if positions == "prompt" else (column >= start))

    def _completions(self, rows: int, device: torch.device) -> Tensor:
        told = _COMPLETIONS.get()
        if told is None and not self.goes_on:
            raise ModelError(
                "a forward pass does not say where its prompts end, so that positions cannot be told",
                got="tokens alone",
                allowed="positions `all`, or the sampling and scoring of undertone.models",
                fix="with undertone.models.layers.reading(COMPLETION_TOKENS_OF_EACH_ROW): …",
            )
        if told is None or isinstance(told, int):
            return torch.full((rows,), told or 0, device=device)
        if len(told) != rows:
            raise ModelError("`reading` tells of another batch", got=f"{len(told)} rows", allowed=f"{rows} rows")
        return torch.tensor(list(told), device=device)


@contextmanager
def _passes(hf: Any) -> Iterator[list[_Pass]]:
    """A list that holds the forward pass now running, and nothing else."""
    now: list[_Pass] = []

    def before(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        now[:] = [
            _Pass(kwargs.get("attention_mask"), 0 if cache is None else cache.get_seq_length(), cache is not None)
        ]

    # First of all: the base of `beside` puts a cache where there was none.
    handle = causal_lm(hf).base_model.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
    try:
        yield now
    finally:
        handle.remove()


@contextmanager
def edit_residuals(hf: Any, edits: Mapping[int, Edit], positions: Positions = "all") -> Iterator[None]:
    """Replace the residual stream after each named layer by ``edit(stream)`` while inside, at the positions alone.

    Raises:
        ModelError: no such layer; or, when a forward pass runs, its prompts' end is not told (see the module's head).
    """
    layers = decoder_layers(hf)
    check_layers(len(layers), list(edits))

    def hook_for(edit: Edit, now: list[_Pass]) -> Callable[..., Any]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            stream = _stream(output)
            edited = edit(stream)
            if positions != "all":
                edited = torch.where(now[0].where(positions, stream).unsqueeze(-1), edited, stream)
            return (edited, *output[1:]) if isinstance(output, tuple) else edited

        return hook

    with _passes(hf) as now:
        handles = [layers[layer].register_forward_hook(hook_for(edit, now)) for layer, edit in edits.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def read_residuals(hf: Any, wanted: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect the residual stream ``[batch, token, hidden]`` after each named layer (last forward wins)."""
    layers = decoder_layers(hf)
    check_layers(len(layers), wanted)
    seen: dict[int, Tensor] = {}

    def hook_for(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[layer] = _stream(output)

        return hook

    handles = [layers[layer].register_forward_hook(hook_for(layer)) for layer in wanted]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class _TwinCache(DynamicCache):
    """A model's cache with that of the model which reads beside it: rows chosen in one are chosen in both."""

    def __init__(self, config: Any, other: Any) -> None:
        super().__init__(config=config)
        self.twin = DynamicCache(config=other)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.twin.batch_select_indices(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.twin.batch_repeat_interleave(repeats)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.twin.reorder_cache(beam_idx)

    def crop(self, max_length: int) -> None:
        super().crop(max_length)
        self.twin.crop(max_length)


@contextmanager
def beside(hf: Any, other: Any, wanted: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """While inside, ``other`` reads whatever ``hf`` reads, just before it; its residual streams of that pass.

    Its cache travels inside that of ``hf``, so that cached decoding keeps both in step. No gradient flows into it.

    Raises:
        ModelError: when a forward pass goes on from a cache that was filled outside.
    """
    inner, twin = causal_lm(hf), causal_lm(other)

    def before(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() and not isinstance(cache, _TwinCache):
            raise ModelError(
                "the model goes on from a cache that its base has not read",
                fix="read the prompt inside the same `with`",
            )
        uses = kwargs.get("use_cache")
        if cache is not None or (inner.config.use_cache if uses is None else uses):
            if not isinstance(cache, _TwinCache):
                cache = _TwinCache(inner.config, twin.config)
            kwargs = {**kwargs, "past_key_values": cache}
        shared = {name: _moved(kwargs.get(name), other) for name in ("attention_mask", "position_ids")}
        ids = _moved(args[0] if args else kwargs.get("input_ids"), other)
        with torch.no_grad():
            twin.base_model(
                input_ids=ids,
                **shared,
                past_key_values=None if cache is None else cache.twin,
                use_cache=cache is not None,
            )
        return args, kwargs

    with read_residuals(other, wanted) as theirs:
        handle = inner.base_model.register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield theirs
        finally:
            handle.remove()


def _moved(value: Any, hf: Any) -> Any:
    return value.to(model_device(hf)) if isinstance(value, Tensor) else value


@contextmanager
def head_only_at(hf: Any, where: Tensor) -> Iterator[None]:
    """Run the language-model head only at the positions where ``where [batch, token]`` is true.

    The head is often the largest matrix product of a small model; with completion-only loss most positions
    are not needed. While inside, the model's logits have shape ``[positions, vocabulary]``.
    """
    head = causal_lm(hf).get_output_embeddings()

    def select(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0][where], *inputs[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class ModulePass:
    """One use of a module in a forward pass: what went in, and what came out, with its graph."""

    module: nn.Module
    input: Tensor
    output: Tensor
    version: int
    """Of the output as it came out: written over in place, it has a later one."""


@contextmanager
def recording(modules: Sequence[nn.Module]) -> Iterator[list[ModulePass]]:
    """Collect what goes into and out of these modules, in the order of their calls."""
    calls: list[ModulePass] = []

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        calls.append(ModulePass(module, inputs[0], output, output._version))

    # First of all hooks, so that what another one makes of the output comes after.
    handles = [module.register_forward_hook(hook, prepend=True) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def frozen(hf: Any) -> Iterator[None]:
    """No weight takes a gradient inside; those that did before do so again afterwards."""
    trained = [parameter for parameter in hf.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def hook_count(hf: Any) -> int:
    """How many forward hooks the model bears now (``doctor`` and tests: none may be left behind)."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in hf.modules())


def hidden_size(hf: Any) -> int:
    """Width of the residual stream."""
    return int(causal_lm(hf).config.get_text_config().hidden_size)


def context_length(hf: Any) -> int | None:
    """How many tokens a row may have: the positions that the model was made for; None: its config does not say."""
    config = causal_lm(hf).config.get_text_config()
    found = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len", "n_positions")]
    return next((size for size in found if isinstance(size, int) and size > 0), None)


def model_device(hf: Any) -> torch.device:
    """Where the model's inputs must be."""
    device: torch.device = next(iter(hf.parameters())).device
    return device


def layers_path(hf: Any) -> str:
    """Where the list of layers lies below the base model: ``layers``, ``h`` …; other tools name hooks by it."""
    base, layers = causal_lm(hf).base_model, decoder_layers(hf)
    path: str = next(name for name, module in base.named_modules() if module is layers)
    return path
