"""Optimisers that torch.optim lacks, for telling adaptive steps from plain ones.

The question they answer (arXiv 2606.00995, section on optimisers): what of Adam is needed? The sign alone (`SignSGD`),
a frozen preconditioner (`PreconditionedSGD`), an orthogonal step (`MuonAdamW`), or nothing (torch's ``SGD``).
All are found by ``training.optimizer`` under their class names, beside those of torch.optim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from undertone.errors import ConfigError, DataError

Parameters = Iterable[Any]  # tensors, (name, tensor) pairs, or groups of either, as torch.optim takes them
SECOND_MOMENTS = "exp_avg_sq"  # what Adam, AdamW, NAdam and RAdam call them


def _closed(closure: Callable[[], float] | None) -> float | None:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _positive(name: str, value: float) -> None:
    if not value >= 0.0:
        raise ValueError(f"Invalid {name}: {value}")


class SignSGD(torch.optim.Optimizer):
    """``p ← p − lr · sign(m)``, where m is the gradient or, with momentum, its running sum (Bernstein et al. 2018).

    Weight decay is decoupled, as in AdamW: ``p ← p · (1 − lr · weight_decay)`` first.
    """

    def __init__(self, params: Parameters, lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        for name, value in (("learning rate", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            _positive(name, value)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = _closed(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                direction = parameter.grad
                if group["momentum"]:
                    state = self.state[parameter]
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                    direction = state["momentum_buffer"].mul_(group["momentum"]).add_(direction)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction.sign(), alpha=-group["lr"])
        return loss


class PreconditionedSGD(torch.optim.Optimizer):
    """``p ← p − lr · s · g`` with a frozen scale ``s = 1 / √(v + eps)`` for every weight (2606.00995, released code).

    ``v`` are the second moments that an Adam run before this one (a scout) ended with: see
    :func:`save_second_moments`. So Adam's preconditioner stays, and its adaptation goes.

    Args:
        params: must be named, as ``training.build_optimizer`` does it.
        lr: learning rate.
        second_moments: name of the parameter -> v, or a safetensors file of that.
        eps: added to v, inside the root.

    Raises:
        ValueError: parameters without names, or second moments that are missing or of another shape.
        DataError: the file cannot be read.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        *,
        second_moments: str | Path | Mapping[str, Tensor],
        eps: float = 1e-8,
    ) -> None:
        _positive("learning rate", lr)
        super().__init__(params, {"lr": lr, "eps": eps})
        known = second_moments if isinstance(second_moments, Mapping) else _read_moments(Path(second_moments))
        for group in self.param_groups:
            if "param_names" not in group:
                raise ValueError("PreconditionedSGD needs named parameters: give it pairs of (name, tensor)")
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                v = known.get(name)
                if v is None or v.shape != parameter.shape:
                    found = "nothing" if v is None else tuple(v.shape)
                    raise ValueError(f"second_moments hold {found} for {name!r}, needed: {tuple(parameter.shape)}")
                self.state[parameter]["scale"] = (v.to(parameter) + eps).rsqrt()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = _closed(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.addcmul_(self.state[parameter]["scale"], parameter.grad, value=-group["lr"])
        return loss


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon for the matrices, torch's AdamW for everything else, at one learning rate.

    Muon's steps are scaled to the root mean square of AdamW's (``match_rms_adamw``), so that one rate fits both.

    Args:
        params: tensors or named tensors; only named ones can be spared.
        lr: learning rate of both.
        weight_decay: of both, decoupled.
        momentum: of Muon.
        nesterov: of Muon.
        betas: of AdamW.
        eps: of AdamW.
        spared: matrices whose name contains one of these go to AdamW, as is the custom for embeddings and heads.

    Raises:
        ConfigError: there is no matrix for Muon, so that this would be AdamW under another name.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        spared: Sequence[str] = ("embed", "lm_head", "wte", "wpe"),
    ) -> None:
        _positive("learning rate", lr)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        muon: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "adjust_lr_fn": "match_rms_adamw"}
        adamw: dict[str, Any] = {"betas": betas, "eps": eps}
        # By index: loading a state puts other dicts in the groups' place.
        self._parts: list[tuple[int, torch.optim.Optimizer]] = []
        for index, group in enumerate(self.param_groups):
            names = group.get("param_names", [""] * len(group["params"]))
            matrices: list[Tensor] = []
            others: list[Tensor] = []
            for name, parameter in zip(names, group["params"], strict=True):
                whole = parameter.ndim == 2 and not any(part in name for part in spared)
                (matrices if whole else others).append(parameter)
            shared: dict[str, Any] = {"lr": lr, "weight_decay": group["weight_decay"]}
            if matrices:
                self._parts.append((index, torch.optim.Muon(matrices, **shared, **muon)))
            if others:
                self._parts.append((index, torch.optim.AdamW(others, **shared, **adamw)))
        if not any(isinstance(part, torch.optim.Muon) for _, part in self._parts):
            shapes = sorted({tuple(one.shape) for group in self.param_groups for one in group["params"]})
            raise ConfigError(
                "MuonAdamW has no matrix to train: all of it would be AdamW",
                got=f"parameters of shapes {shapes}",
                allowed="one matrix or more" + (f", with none of {', '.join(spared)} in its name" if spared else ""),
                fix="set student.kind to full or lora, or training.optimizer to AdamW",
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = _closed(closure)
        for index, part in self._parts:
            part.state = self.state  # one state for all, so that a checkpoint of this optimiser holds it whole
            for inner in part.param_groups:
                inner |= {name: self.param_groups[index][name] for name in ("lr", "weight_decay")}
            part.step()
        return loss


OWN: dict[str, type[torch.optim.Optimizer]] = {kind.__name__: kind for kind in (SignSGD, PreconditionedSGD, MuonAdamW)}
"""Name in a config -> class."""


def save_second_moments(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Write what an Adam-like optimiser over named parameters has learnt of their gradients' squares.

    Raises:
        ValueError: it holds none, or its parameters have no names.
    """
    found = {
        name: optimizer.state[parameter][SECOND_MOMENTS].detach().float().cpu().contiguous()
        for group in optimizer.param_groups
        for name, parameter in zip(group.get("param_names", ()), group["params"], strict=False)
        if SECOND_MOMENTS in optimizer.state.get(parameter, {})
    }
    if not found:
        raise ValueError(
            f"{type(optimizer).__name__} holds no second moments of named parameters; a scout is trained with AdamW"
        )
    save_file(found, path)


def _read_moments(path: Path) -> dict[str, Tensor]:
    try:
        found: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"the second moments in {path} cannot be read",
            got=f"{type(error).__name__}: {error}",
            allowed="a safetensors file as `fit(…, second_moments=PATH)` writes it",
        ) from error
    return found
