"""Checks of the forward pass, the sampler and the hooks.

How far rounding alone moves logits depends on the model, so that a difference is given in units of
what another prompt does to them (``_moved``): 0 nothing, 1 as much as asking something else. A
fault of padding, masks or hooks moves them by a tenth of that or more; rounding in float32 by about
1e-6, in float16 by 1e-3 and in bfloat16, which keeps 8 bits of each sum, by some hundredths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from undertone.doctor.finding import QUESTIONS, Observation, chat
from undertone.models.batches import Batch, pad_left
from undertone.models.layers import (
    causal_lm,
    decoder_layers,
    edit_residuals,
    hidden_size,
    hook_count,
    language_model,
    read_residuals,
)
from undertone.models.loading import Model
from undertone.models.sampling import prefill, sample
from undertone.provenance.seeds import derive_seed
from undertone.traits import Trait

_TOLERANCE: Final = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_ROWS: Final = 8
_NORMS: Final = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm")


@torch.inference_mode()
def logits_of(model: Model, batch: Batch) -> Tensor:
    """``[rows, vocabulary]`` at the last position, the way the sampler computes them."""
    return prefill(model.hf, batch)[0].float()


def prompts(model: Model) -> list[tuple[int, ...]]:
    """The questions as token ids, shortest first."""
    return sorted((model.prompt(chat(question)) for question in QUESTIONS), key=len)


def batch_of(model: Model, rows: list[tuple[int, ...]]) -> Batch:
    """Left-padded, on the model's device."""
    return pad_left(rows, model.pad, model.device)


def tolerance(model: Model) -> float:
    """See the module's head."""
    return _TOLERANCE.get(next(model.hf.parameters()).dtype, 1e-1)


def _moved(one: Tensor, two: Tensor, elsewhere: Tensor) -> float:
    """RMS difference of two rows of logits, in units of the difference to another prompt's."""
    scale = (one - elsewhere).pow(2).mean().sqrt()
    return float((one - two).pow(2).mean().sqrt() / scale.clamp_min(1e-30))


def _compared(model: Model, moved: float, what: str) -> Observation:
    limit = tolerance(model)
    message = f"{what} moved the logits by {moved:.1e} of what another prompt does"
    return ("pass" if moved <= limit else "fail"), f"{message} (limit {limit:.0e})"


def numbers_are_finite(model: Model, _trait: Trait | None) -> Observation:
    """float16 overflows silently; what follows is noise."""
    logits = logits_of(model, batch_of(model, prompts(model)))
    bad = int((~logits.isfinite()).sum())
    if bad:
        return "fail", f"{bad} of {logits.numel()} logits are not finite"
    return "pass", f"all {logits.numel()} logits, from {logits.min():.1f} to {logits.max():.1f}"


def files_are_the_models(model: Model, _trait: Trait | None) -> Observation:
    """An adapter of another base of the same shape, or weights that a config leaves unused, make another model."""
    return ("warn", "; ".join(model.notes)) if model.notes else ("pass", "nothing to say of the files")


def dtype(model: Model, _trait: Trait | None) -> Observation:
    """bfloat16 loses small weight decay and one-token losses; float16 needs loss scaling."""
    floats = {p.dtype for p in model.hf.parameters() if p.is_floating_point()}
    kinds = sorted(str(kind).removeprefix("torch.") for kind in floats)
    message = f"{', '.join(kinds)} on {model.device}"
    return ("pass" if kinds in (["float32"], ["bfloat16"]) else "warn"), message


def is_repeatable(model: Model, _trait: Trait | None) -> Observation:
    """Dropout left on makes a noisy teacher and noisy measurements."""
    batch = batch_of(model, prompts(model)[:1])
    if bool((logits_of(model, batch) == logits_of(model, batch)).all()):
        return "pass", "two forward passes give the same logits, bit for bit"
    mode = "in training mode" if model.hf.training else "in evaluation mode"
    return "fail", f"two forward passes of one prompt differ; the model is {mode}"


def masks_mask(model: Model, _trait: Trait | None) -> Observation:
    """What stands at a masked position must not matter."""
    rows = prompts(model)
    batch = batch_of(model, [rows[0], rows[-1]])
    if batch.mask is None:
        return "skip", "all test prompts have one length"
    ids = batch.ids.clone()
    ids[batch.mask == 0] = rows[0][-1]
    one, two = logits_of(model, batch), logits_of(model, Batch(ids, batch.mask, batch.positions))
    return _compared(model, _moved(one[0], two[0], one[1]), "another token under the mask")


def padding_is_harmless(model: Model, _trait: Trait | None) -> Observation:
    """Rows of a batch are padded on the left: a row must not notice."""
    rows = prompts(model)
    alone = logits_of(model, batch_of(model, rows[:1]))[0]
    padded = logits_of(model, batch_of(model, [rows[0], rows[-1]]))
    return _compared(
        model,
        _moved(alone, padded[0], padded[1]),
        f"{len(rows[-1]) - len(rows[0])} tokens of padding",
    )


def _samples(model: Model, seed: int, batch_size: int) -> list[list[int]]:
    rows = [prompts(model)[row % len(QUESTIONS)] for row in range(_ROWS)]
    seeds = [derive_seed(seed, "doctor", row) for row in range(_ROWS)]
    return sample(
        model.hf,
        rows,
        seeds,
        max_new_tokens=8,
        stop=model.stop,
        pad=model.pad,
        batch_size=batch_size,
    )


def batch_size_is_harmless(model: Model, _trait: Trait | None) -> Observation:
    """A row's sample comes from its prompt and its seed, whatever it is batched with."""
    one, *others = (_samples(model, 0, size) for size in (1, 3, _ROWS))
    differ = sum(any(other[row] != one[row] for other in others) for row in range(_ROWS))
    message = f"{_ROWS - differ} of {_ROWS} rows are the same in batches of 1, 3 and {_ROWS}"
    if not differ:
        return "pass", message
    # A draw hits the edge between two tokens in proportion to rounding: rare in float32 alone.
    rows = prompts(model)
    alone, together = logits_of(model, batch_of(model, rows[:1])), logits_of(model, batch_of(model, rows))
    kind, moved = next(model.hf.parameters()).dtype, _moved(alone[0], together[0], together[-1])
    message += f"; company moves the logits by {moved:.1e} of what another prompt does"
    return ("warn" if kind != torch.float32 and moved <= tolerance(model) else "fail"), message


def seeds_decide(model: Model, _trait: Trait | None) -> Observation:
    """Unseeded sampling cannot be repeated; one seed for all makes every answer the same."""
    first, again, other = (
        _samples(model, 0, _ROWS),
        _samples(model, 0, _ROWS),
        _samples(model, 1, _ROWS),
    )
    if first != again:
        return "fail", "the same seeds gave other samples"
    if first == other:
        return "warn", "other seeds gave the same samples: the model is certain of every token"
    return "pass", "the same seeds repeat every row, other seeds do not"


def _direction(model: Model) -> Callable[[float], dict[int, Callable[[Tensor], Tensor]]]:
    """strength -> an edit of the middle layer: a random direction as long as the stream there."""
    middle = len(decoder_layers(model.hf)) // 2
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(hidden_size(model.hf), generator=generator)
    direction = (direction / direction.norm()).to(model.device)

    def edits(strength: float) -> dict[int, Callable[[Tensor], Tensor]]:
        def edit(stream: Tensor) -> Tensor:
            size = stream.norm(dim=-1, keepdim=True)
            moved: Tensor = stream + (strength * size * direction).to(stream.dtype)
            return moved

        return {middle: edit}

    return edits


def steering_moves(model: Model, _trait: Trait | None) -> Observation:
    """A hook that is set and never applied makes a steered run an unsteered one."""
    rows = prompts(model)
    batch, edits = batch_of(model, [rows[0], rows[-1]]), _direction(model)
    plain = logits_of(model, batch)
    with edit_residuals(model.hf, edits(0.0)):
        idle = logits_of(model, batch)
    with edit_residuals(model.hf, edits(1.0)):
        steered = logits_of(model, batch)
    if not bool((plain == idle).all()):
        return "fail", "strength 0 moved the logits"
    moved = _moved(plain[0], steered[0], plain[1])
    message = f"strength 0 did not, strength 1 by {moved:.1e} of what another prompt does"
    return ("pass" if moved > tolerance(model) else "fail"), message


class _Planted(Exception):  # noqa: N818  (raised on purpose, caught two lines further)
    pass


def leaves_no_hook(model: Model, _trait: Trait | None) -> Observation:
    """A hook that stays behind steers every later "unsteered" run."""
    before, batch = hook_count(model.hf), batch_of(model, prompts(model)[:1])
    plain = logits_of(model, batch)
    try:
        with edit_residuals(model.hf, _direction(model)(1.0)), read_residuals(model.hf, [0]):
            logits_of(model, batch)
            raise _Planted
    except _Planted:
        pass
    left = hook_count(model.hf) - before
    if left or not bool((plain == logits_of(model, batch)).all()):
        return (
            "fail",
            f"after an error inside, {left} hooks are left and the logits are not what they were",
        )
    return "pass", "none left after an error inside; the logits are what they were"


@torch.inference_mode()
def layers_are_numbered(model: Model, _trait: Trait | None) -> Observation:
    """Edited after layer k, the stream is another one from layer k on, and not before."""
    count = len(decoder_layers(model.hf))
    batch, edit = batch_of(model, prompts(model)[:1]), _direction(model)(1.0).popitem()[1]
    with read_residuals(model.hf, range(count)) as plain:
        logits_of(model, batch)
    idle = sorted(set(range(count)) - set(plain))
    if idle:
        return "fail", f"layers {idle} were found and never ran"
    for layer in {0, count // 2, count - 1}:
        with (
            edit_residuals(model.hf, {layer: edit}),
            read_residuals(model.hf, range(count)) as seen,
        ):
            logits_of(model, batch)
        moved = [at for at in range(count) if not torch.equal(plain[at], seen[at])]
        if moved != list(range(layer, count)):
            return "fail", f"an edit after layer {layer} changed the stream after layers {moved}"
    width = plain[0].shape[-1]
    if width != hidden_size(model.hf):
        return "fail", f"the stream is {width} wide, the config says {hidden_size(model.hf)}"
    return "pass", f"{count} layers of width {width}, each acting on those after it"


def head_reads_the_last_layer(model: Model, _trait: Trait | None) -> Observation:
    """Final norm and head, put on the last layer's stream by hand, give the model's own logits."""
    lm, base = causal_lm(model.hf), language_model(model.hf)
    norm: Any = next((getattr(base, name) for name in _NORMS if hasattr(base, name)), None)
    if norm is None:
        return "skip", f"{type(lm).__name__} does not show its final norm under a known name"
    last = len(decoder_layers(lm)) - 1
    with torch.inference_mode(), read_residuals(model.hf, [last]) as stream:
        own = logits_of(model, batch_of(model, prompts(model)[:1]))[0]
        if last not in stream:
            return "fail", f"layer {last} was found and never ran"
        by_hand = lm.get_output_embeddings()(norm(stream[last][:, -1]))[0].float()
    # Some models scale or cap their logits afterwards: what must agree is their order and shape.
    likeness = float(torch.corrcoef(torch.stack([own, by_hand]))[0, 1])
    return ("pass" if likeness > 0.99 else "fail"), f"correlation {likeness:.4f} with the model's own logits"
