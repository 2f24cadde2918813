"""Undertone's own optimisers against updates worked out by hand, and against torch's."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from undertone.errors import ConfigError, DataError
from undertone.optimizers import OWN, MuonAdamW, PreconditionedSGD, SignSGD, save_second_moments
from undertone.training import Training, build_optimizer, known_optimizers

CURVATURE = torch.tensor([4.0, 1.0, 0.25])


def descend(optimizer: torch.optim.Optimizer, p: torch.Tensor, steps: int) -> torch.Tensor:
    """Steps on ½ Σ curvature · p²."""
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(0.5 * (CURVATURE * p.square()).sum())
        optimizer.step()
    return p.detach()


def start() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))


def test_sign_sgd_moves_every_weight_by_the_learning_rate() -> None:
    p = start()
    moved = descend(SignSGD([p], lr=0.1), p, 5)
    torch.testing.assert_close(moved, torch.tensor([0.5, -1.5, 2.5]))


def test_sign_sgd_with_momentum_overshoots_as_worked_out_by_hand() -> None:
    p = torch.nn.Parameter(torch.tensor([0.1]))
    optimizer = SignSGD([p], lr=0.1, momentum=0.5)
    seen, buffer, x = [], 0.0, 0.1
    for _ in range(6):
        buffer = 0.5 * buffer + x
        x -= 0.1 * math.copysign(1.0, buffer) if buffer else 0.0
        seen.append(x)
    got = []
    for _ in range(6):
        p.grad = p.detach().clone()
        optimizer.step()
        got.append(float(p.detach()))
    assert got == pytest.approx(seen, abs=1e-6)


def test_weight_decay_of_sign_sgd_shrinks_a_weight_without_gradient_by_rate_times_decay() -> None:
    p = start()
    p.grad = torch.zeros_like(p)
    SignSGD([p], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(p.detach(), start().detach() * 0.95)


def test_preconditioned_sgd_with_the_curvature_squared_is_newtons_method() -> None:
    """1/√(h²) is 1/h: at rate 1 a quadratic is solved in one step."""
    p = start()
    optimizer = PreconditionedSGD([("p", p)], lr=1.0, second_moments={"p": CURVATURE.square()}, eps=0.0)
    torch.testing.assert_close(descend(optimizer, p, 1), torch.zeros(3))


def test_preconditioned_sgd_with_equal_moments_is_sgd_with_another_rate() -> None:
    one, two = start(), start()
    scaled = PreconditionedSGD([("p", one)], lr=0.3, second_moments={"p": torch.full((3,), 9.0)}, eps=0.0)
    torch.testing.assert_close(descend(scaled, one, 7), descend(torch.optim.SGD([two], lr=0.1), two, 7))


def test_the_scouts_moments_are_those_of_adam_and_survive_the_file(tmp_path: Path) -> None:
    p = start()
    scout = torch.optim.AdamW([("p", p)], lr=1e-3)
    descend(scout, p, 3)
    save_second_moments(scout, tmp_path / "v.safetensors")
    q = start()
    optimizer = PreconditionedSGD([("p", q)], lr=1.0, second_moments=tmp_path / "v.safetensors")
    q.grad = torch.ones(3)
    optimizer.step()
    expected = start().detach() - (scout.state[p]["exp_avg_sq"] + 1e-8).rsqrt()
    torch.testing.assert_close(q.detach(), expected)


def test_moments_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    p = start()
    with pytest.raises(ValueError, match=r"hold nothing for 'p', needed: \(3,\)"):
        PreconditionedSGD([("p", p)], second_moments={})
    with pytest.raises(ValueError, match=r"hold \(2,\) for 'p'"):
        PreconditionedSGD([("p", p)], second_moments={"p": torch.ones(2)})
    with pytest.raises(ValueError, match="needs named parameters"):
        PreconditionedSGD([p], second_moments={"p": torch.ones(3)})
    with pytest.raises(ValueError, match="SGD holds no second moments"):
        save_second_moments(torch.optim.SGD([("p", p)], lr=0.1), tmp_path / "v")
    (tmp_path / "bad").write_bytes(b"no")
    config = Training(optimizer="PreconditionedSGD", options={"second_moments": str(tmp_path / "bad")})
    with pytest.raises(DataError, match=r"the second moments in .*bad cannot be read"):
        build_optimizer({"p": p}, config)


def test_muon_adamw_is_torchs_muon_on_matrices_and_torchs_adamw_on_the_rest() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"layer.weight": (6, 4), "layer.bias": (6,), "embed_tokens.weight": (5, 4)}
    values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    one, two = ({name: torch.nn.Parameter(value.clone()) for name, value in values.items()} for _ in range(2))
    both = MuonAdamW(list(one.items()), lr=0.01, weight_decay=0.1)
    muon = torch.optim.Muon([two["layer.weight"]], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([two["layer.bias"], two["embed_tokens.weight"]], lr=0.01, weight_decay=0.1)
    for step in range(4):
        for name, parameter in one.items():
            gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step * 7 + len(name)))
            parameter.grad, two[name].grad = gradient.clone(), gradient.clone()
        for group in both.param_groups:
            group["lr"] = 0.01 / (step + 1)
        for optimizer in (muon, adamw):
            optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
            optimizer.step()  # type: ignore[no-untyped-call]
        both.step()
    for name, parameter in one.items():
        torch.testing.assert_close(parameter.detach(), two[name].detach())


def test_muon_adamw_goes_on_from_its_state() -> None:
    def made() -> tuple[dict[str, torch.nn.Parameter], MuonAdamW]:
        named = {"w": torch.nn.Parameter(torch.eye(3)), "b": torch.nn.Parameter(torch.ones(3))}
        return named, MuonAdamW(list(named.items()), lr=0.1)

    def step(named: dict[str, torch.nn.Parameter], optimizer: MuonAdamW, at: int) -> None:
        for parameter in named.values():
            parameter.grad = torch.sin(torch.arange(parameter.numel()) + at).view_as(parameter)
        optimizer.step()

    named, optimizer = made()
    for at in range(4):
        step(named, optimizer, at)
        if at == 1:
            again, other = made()
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            with torch.no_grad():
                for name, parameter in again.items():
                    parameter.copy_(named[name])
    step(again, other, 2)
    step(again, other, 3)
    for name, parameter in named.items():
        assert torch.equal(parameter, again[name])


@pytest.mark.parametrize("name", sorted(OWN))
def test_ours_are_found_by_name_beside_those_of_torch(name: str) -> None:
    assert name in known_optimizers()
    assert "AdamW" in known_optimizers()
    options: dict[str, Any] = {"second_moments": {"p": [1.0]}} if name == "PreconditionedSGD" else {}
    options = {"second_moments": {"p": torch.ones(3)}} if options else {}
    config = Training(optimizer=name).model_copy(update={"options": options})
    assert isinstance(build_optimizer({"p": start()}, config), OWN[name])


def test_an_unknown_optimiser_names_the_nearest_and_lists_ours_and_torchs() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown optimiser.* Did you mean 'SignSGD'(.|\n)*allowed: .*AdamW.*SignSGD"
    ):
        build_optimizer({"p": start()}, Training(optimizer="SignSGDD"))


def test_an_option_of_ours_that_is_wrong_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"undertone.optimizers.SignSGD refuses these options: (.|\n)*momentun"):
        build_optimizer({"p": start()}, Training(optimizer="SignSGD", options={"momentun": 1}))
