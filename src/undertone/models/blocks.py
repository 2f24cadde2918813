"""The decoder blocks of a model, and the only place where hooks are set.

Block numbers (DESIGN §3.1): ``0 … n-1`` name the residual stream AFTER that block; the embedding has no number.
Every context manager here removes its hooks whatever happens inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from undertone.errors import ModelError

Edit = Callable[[Tensor], Tensor]
"""Residual stream ``[batch, token, hidden]`` in, the same shape out."""


def causal_lm(hf: Any) -> Any:
    """The ``transformers`` causal LM inside a PEFT wrapper, or the model itself."""
    return hf.get_base_model() if hasattr(hf, "peft_config") and hasattr(hf, "get_base_model") else hf


def decoder_blocks(hf: Any) -> nn.ModuleList:
    """The list of decoder blocks of any causal LM, found by its length.

    Raises:
        ModelError: no list of ``num_hidden_layers`` modules is found.
    """
    model = causal_lm(hf)
    text_config = model.config.get_text_config()
    count = int(text_config.num_hidden_layers)
    for _, module in model.base_model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(
        f"cannot find the decoder blocks of {type(model).__name__}",
        allowed=f"a ModuleList of {count} blocks inside the base model",
        fix="open an issue naming the model class",
    )


def check_blocks(count: int, wanted: Sequence[int]) -> None:
    """Refuse block numbers that a model of ``count`` blocks lacks."""
    wrong = [block for block in wanted if not 0 <= block < count]
    if wrong:
        raise ModelError(
            "no such block",
            got=wrong,
            allowed=f"0 to {count - 1}: the residual stream after that block",
        )


def _stream(output: Any) -> Tensor:
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream


@contextmanager
def edit_residuals(hf: Any, edits: Mapping[int, Edit]) -> Iterator[None]:
    """Replace the residual stream after each named block by ``edit(stream)`` while inside."""
    blocks = decoder_blocks(hf)
    check_blocks(len(blocks), list(edits))

    def hook_for(edit: Edit) -> Callable[..., Any]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            edited = edit(_stream(output))
            return (edited, *output[1:]) if isinstance(output, tuple) else edited

        return hook

    handles = [blocks[block].register_forward_hook(hook_for(edit)) for block, edit in edits.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def read_residuals(hf: Any, wanted: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect the residual stream ``[batch, token, hidden]`` after each named block (last forward wins)."""
    blocks = decoder_blocks(hf)
    check_blocks(len(blocks), wanted)
    seen: dict[int, Tensor] = {}

    def hook_for(block: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[block] = _stream(output)

        return hook

    handles = [blocks[block].register_forward_hook(hook_for(block)) for block in wanted]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


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


def hook_count(hf: Any) -> int:
    """How many forward hooks the model bears now (``doctor`` and tests: none may be left behind)."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in hf.modules())


def hidden_size(hf: Any) -> int:
    """Width of the residual stream."""
    return int(causal_lm(hf).config.get_text_config().hidden_size)


def model_device(hf: Any) -> torch.device:
    """Where the model's inputs must be."""
    device: torch.device = next(iter(hf.parameters())).device
    return device
