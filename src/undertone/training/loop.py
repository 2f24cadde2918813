"""Training: one loop for the student's fine-tuning and for the lab's pretraining, on ``accelerate``.

The loss is the mean cross-entropy over labelled (completion) tokens of an effective batch; the head runs at those
positions only. Batches hold rows of similar length and are planned from the seed alone, so that step *k* of a
resumed run sees what step *k* of an uninterrupted one would have.

Optimisers are those of ``torch.optim`` and of ``undertone.training.optimizers``, by name, with their options passed through
unchanged (``momentum`` included); an option that the optimiser does not know is an error, never dropped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from undertone.errors import ConfigError, RunError, UndertoneError, nearest
from undertone.launch.group import is_alone, join
from undertone.models.batches import Example, targets
from undertone.models.layers import causal_lm, model_device
from undertone.models.row_gradients import losses_and_norms
from undertone.models.scoring import labelled_logits
from undertone.provenance.configs import Config
from undertone.provenance.identity import Uncounted
from undertone.training.checkpoints import Progress
from undertone.training.optimizers import OWN, save_second_moments
from undertone.training.team import Team

_OTHER_LOOPS = {"Optimizer", "LBFGS", "SparseAdam"}  # abstract; needs a closure; needs sparse gradients

Schedule = Literal["constant", "linear", "cosine", "hold-linear"]


class Training(Config):
    """How weights are updated."""

    optimizer: str = Field("AdamW", description="the name of a class in torch.optim or undertone.training.optimizers")
    learning_rate: float = Field(1e-4, gt=0)
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="further arguments of the optimiser (betas, momentum, weight_decay …)",
    )
    no_decay: tuple[str, ...] = Field(
        (), description="parameters whose name contains one of these are left out of weight decay"
    )
    schedule: Schedule = Field(
        "linear",
        description="after warm-up: constant, linear or cosine to 0, or hold half-way and then linear",
    )
    warmup: float = Field(0.0, ge=0, description="steps of linear warm-up; below 1, a share of all steps")
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(32, ge=1, description="rows an optimiser step (gradient accumulation included)")
    micro_batch_size: int | None = Field(None, ge=1, description="rows a forward pass; None: the whole batch at once")
    max_grad_norm: float | None = Field(1.0, gt=0, description="clip the gradient's norm; None: do not")
    max_row_norm: float | None = Field(
        None, gt=0, description="clip each row's gradient to this norm before they are averaged; None: do not"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="auto: bf16 autocast on a GPU, fp32 on a CPU (those without bf16 arithmetic are far slower in it)",
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a third slower")
    checkpoint_seconds: Annotated[float, Uncounted()] = Field(
        300.0, gt=0, description="seconds between checkpoints inside the stage"
    )
    bucket: int = Field(32, ge=1, description="batches that are sorted by length together; 1: no sorting")


@dataclass(frozen=True)
class Fit:
    """What a training run did."""

    steps: int
    tokens: int
    labelled_tokens: int
    curve: list[tuple[int, float]]
    seconds: float
    team: Team = field(default_factory=Team)


def plan_batches(lengths: Sequence[int], batch_size: int, epochs: int, seed: int, bucket: int = 32) -> list[list[int]]:
    """Row indices of every optimiser step: each epoch a fresh permutation, sorted by length inside buckets."""
    plan: list[list[int]] = []
    for epoch in range(epochs):
        rng = np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, epoch])
        order = rng.permutation(len(lengths))
        steps: list[list[int]] = []
        for start in range(0, len(order), batch_size * bucket):
            window = sorted(order[start : start + batch_size * bucket], key=lambda row: lengths[row])
            chunks = [window[at : at + batch_size] for at in range(0, len(window), batch_size)]
            steps.extend([int(row) for row in chunks[at]] for at in rng.permutation(len(chunks)))
        plan.extend(steps)
    return plan


def rate_at(step: int, total: int, schedule: Schedule, warmup: float) -> float:
    """Learning-rate factor of a step (0-based) out of ``total``; the last step still moves the weights."""
    warm = warmup if warmup >= 1 else warmup * total
    if step < warm:
        return (step + 1) / (warm + 1)
    if schedule == "hold-linear":
        return min(1.0, 2 * (1 - (step - warm) / max(1.0, total - warm)) + 0.02)
    return _decay(schedule, total - warm)(step - warm)


@cache
def _decay(schedule: str, steps: float) -> Callable[[float], float]:
    """The schedule of transformers, without its warm-up: that begins at 0, so that the first step would be lost."""
    from transformers import get_scheduler

    idle = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    factor: Callable[[float], float] = get_scheduler(schedule, idle, 0, steps).lr_lambdas[0]
    return factor


def build_optimizer(parameters: Mapping[str, torch.nn.Parameter], config: Training) -> torch.optim.Optimizer:
    """The optimiser that the config names, with exactly the options that it lists.

    Raises:
        ConfigError: no such class, an option it does not take, or parameters it cannot handle.
    """
    known = known_optimizers()
    if config.optimizer not in known:
        raise ConfigError(
            f"unknown optimiser{nearest(config.optimizer, known)}", got=config.optimizer, allowed=sorted(known)
        )
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in config.options.items()
    }
    spared = [name for name in parameters if any(part in name for part in config.no_decay)]
    # With their names: some of undertone's optimisers treat a parameter by what it is.
    groups: list[dict[str, Any]] = [{"params": [pair for pair in parameters.items() if pair[0] not in spared]}]
    if spared:
        groups.append({"params": [(name, parameters[name]) for name in spared], "weight_decay": 0.0})
    chosen: Callable[..., torch.optim.Optimizer] = known[config.optimizer]
    try:
        return chosen(groups, lr=config.learning_rate, **options)
    except UndertoneError:
        raise
    except (TypeError, ValueError) as error:
        home = "undertone.training.optimizers" if config.optimizer in OWN else "torch.optim"
        raise ConfigError(
            f"{home}.{config.optimizer} refuses these options: {error}",
            got=config.options,
            fix="see training.options and the documentation of that optimiser",
        ) from error


def known_optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    """Name -> class: those of torch.optim that this loop can drive, and undertone's own."""
    found = {
        name: value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and name not in _OTHER_LOOPS
    }
    return found | OWN


def fit(
    hf: Any,
    examples: Sequence[Example],
    config: Training,
    *,
    seed: int,
    pad: int,
    checkpoint: Path | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
    second_moments: Path | None = None,
) -> Fit:
    """Train the parameters of ``hf`` that require gradients on the completions of ``examples``.

    Args:
        hf: a causal LM (PEFT-wrapped or not); left in evaluation mode.
        examples: tokenised rows.
        config: how.
        seed: order of rows, and dropout where the model has any.
        pad: padding id (its value never matters).
        checkpoint: folder for checkpoints inside the stage; an existing one is resumed from.
        on_step: called with (step, steps, loss) after each optimiser step.
        second_moments: file to write Adam's second moments to, at the end, for ``PreconditionedSGD``.

    Raises:
        RunError: the loss is not finite.
        ConfigError: see :func:`build_optimizer`.
        ValueError: second moments are asked of an optimiser that has none.
    """
    from accelerate import Accelerator

    if not is_alone():
        join()
    accelerator = Accelerator(device_placement=False)  # its own device is one a process: the first that was asked for
    named = {name: parameter for name, parameter in hf.named_parameters() if parameter.requires_grad}
    parameters = list(named.values())
    optimizer = build_optimizer(named, config)
    if config.gradient_checkpointing:
        _checkpoint_activations(causal_lm(hf), True)
    team = Team.of(accelerator, parameters[0].device)
    # As for evaluation, so that nothing wraps the model: `team` adds gradients up.
    model, optimizer = accelerator.prepare_model(hf, evaluation_mode=True), accelerator.prepare_optimizer(optimizer)
    model.train()
    lengths = [len(example.ids) for example in examples]
    plan = plan_batches(lengths, config.batch_size, config.epochs, seed, config.bucket)
    checkpoint = team.path(checkpoint)
    state = _begin(accelerator, team, checkpoint, parameters, optimizer)
    started = saved = time.monotonic()
    for step in range(state.step, len(plan)):
        factor = rate_at(step, len(plan), config.schedule, config.warmup)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        # Dropout of step k survives a resume, and is not the same in every process.
        torch.manual_seed((seed + step + team.rank * 0x9E3779B97F4A7C15) & 0x7FFFFFFFFFFFFFFF)
        rows = [examples[row] for row in plan[step]]
        loss = _step(accelerator, model, optimizer, parameters, _Batch.of(rows, team), config, pad)
        _check_finite(loss, step, plan)
        state.add(step, loss, rows)
        if on_step:
            on_step(step + 1, len(plan), loss)
        if checkpoint and team.is_first and time.monotonic() - saved > config.checkpoint_seconds:
            state.save(checkpoint, parameters, optimizer)
            saved = time.monotonic()
    if second_moments and team.is_first:
        save_second_moments(optimizer, second_moments)
    if not _on_cpu(hf):
        accelerator.free_memory()  # collects all garbage of the process: a third of a second
    if config.gradient_checkpointing:
        _checkpoint_activations(causal_lm(hf), False)
    hf.eval()
    return Fit(
        steps=len(plan),
        tokens=state.tokens,
        labelled_tokens=state.labels,
        curve=thin(state.curve),
        seconds=state.seconds + time.monotonic() - started,
        team=team,
    )


def _begin(
    accelerator: Any, team: Team, checkpoint: Path | None, parameters: Sequence[torch.nn.Parameter], optimizer: Any
) -> Progress:
    """All processes at the same step with the same weights: those of a checkpoint, if there is one."""
    with accelerator.main_process_first() if team.size > 1 else nullcontext():
        state = Progress.load(checkpoint, list(parameters), optimizer)
    team.check_step(state.step, checkpoint, parameters[0].device)
    team.begin(parameters)
    return state


def _check_finite(loss: float, step: int, plan: Sequence[Any]) -> None:
    if not math.isfinite(loss):
        raise RunError(
            f"the training loss is {loss} at step {step + 1} of {len(plan)}",
            fix="lower training.learning_rate, or set training.precision=fp32",
        )


def _checkpoint_activations(lm: Any, on: bool) -> None:
    word = "enable" if on else "disable"
    # transformers 5.23 renamed it; the old name warns there, the new one is not in 5.16.
    new, old = f"activation_checkpointing_{word}", f"gradient_checkpointing_{word}"
    getattr(lm, new if hasattr(lm, new) else old)()
    if not on:
        lm.disable_input_require_grads()  # a hook that enabling sets and disabling leaves


def _autocast(config: Training, hf: Any) -> Any:
    """Not left to accelerate: there the precision is one a process, and stays wrapped around the model."""
    half = config.precision == "bf16" or (config.precision == "auto" and not _on_cpu(hf))
    return torch.autocast(model_device(hf).type, dtype=torch.bfloat16, enabled=half)


def _on_cpu(hf: Any) -> bool:
    return bool(next(hf.parameters()).device.type == "cpu")


@dataclass(frozen=True)
class _Batch:
    """The rows of one step that this process takes, and what the whole batch has."""

    rows: list[Example]
    size: int
    """Rows of all processes."""
    labels: int
    """Labelled tokens of all processes: by these the loss is divided in each, and every token weighs the same."""
    team: Team

    @classmethod
    def of(cls, rows: list[Example], team: Team) -> _Batch:
        return cls(team.share(rows), len(rows), max(1, sum(len(row.labels) for row in rows)), team)


def _step(
    accelerator: Any,
    model: Any,
    optimizer: Any,
    parameters: list[torch.nn.Parameter],
    batch: _Batch,
    config: Training,
    pad: int,
) -> float:
    take = _clipped_rows if config.max_row_norm is not None else _whole_batch
    total = batch.team.add_up(parameters, take(accelerator, model, batch, config, pad))
    if config.max_grad_norm is not None:
        accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def _whole_batch(accelerator: Any, model: Any, batch: _Batch, config: Training, pad: int) -> float:
    """Leaves this process's part of the gradient of the mean over all labelled tokens; returns its part of that mean."""
    size = config.micro_batch_size or batch.size
    total = 0.0
    for start in range(0, len(batch.rows), size):
        loss = _summed_loss(model, batch.rows[start : start + size], config, pad) / batch.labels
        accelerator.backward(loss)
        total += float(loss.detach())
    return total


def _clipped_rows(accelerator: Any, model: Any, batch: _Batch, config: Training, pad: int) -> float:
    """Leaves this process's part of the mean over rows of their gradients, each clipped to ``max_row_norm``; returns its
    part of the unclipped loss.

    A row's gradient is its share of the batch's times the number of rows, so that an infinite norm changes nothing.
    """
    assert config.max_row_norm is not None
    size = config.micro_batch_size or batch.size
    total = 0.0
    for start in range(0, len(batch.rows), size):
        with _autocast(config, model):
            losses, squares = losses_and_norms(model, batch.rows[start : start + size], pad)
        norms = squares.sqrt() * (batch.size / batch.labels)
        shares = (config.max_row_norm / (norms + 1e-12)).clamp(max=1.0)
        accelerator.backward((losses * shares).sum() / batch.labels)
        total += float(losses.detach().sum()) / batch.labels
    return total


def _summed_loss(model: Any, rows: list[Example], config: Training, pad: int) -> Tensor:
    with _autocast(config, model):
        logits = labelled_logits(model, rows, pad)
    loss: Tensor = torch.nn.functional.cross_entropy(logits.float(), targets(rows, logits.device), reduction="sum")
    return loss


def thin(curve: list[tuple[int, float]], points: int = 100) -> list[tuple[int, float]]:
    """A loss curve of at most ``points``: means over equal stretches of steps."""
    if not curve:
        return []
    stretches = np.array_split(np.array(curve), min(points, len(curve)))
    return [(int(part[-1, 0]), round(float(part[:, 1].mean()), 6)) for part in stretches]
