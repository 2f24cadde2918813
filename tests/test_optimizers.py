"""Undertone's own optimisers against updates worked out by hand, and against torch's."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from undertone.errors import ConfigError, DataError
from undertone.models.batches import Example
from undertone.models.students import Biases, Full, Lora, trainable
from undertone.training import Student, Training, build_optimizer, fit, known_optimizers, plan_batches, rate_at
from undertone.training.optimizers import OWN, MuonAdamW, PreconditionedSGD, SignSGD, save_second_moments

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


def test_muon_adamw_follows_the_rates_of_groups_that_a_loaded_state_put_in_place() -> None:
    """As a checkpoint, and some versions of accelerate, do before the first step."""

    def moved(rate: float, loaded: bool) -> torch.Tensor:
        w, b = torch.nn.Parameter(torch.eye(3)), torch.nn.Parameter(torch.ones(3))
        optimizer = MuonAdamW([("w", w), ("b", b)], lr=0.1, weight_decay=0.5)
        if loaded:
            optimizer.load_state_dict(optimizer.state_dict())
        optimizer.param_groups[0]["lr"] = rate
        w.grad, b.grad = torch.ones(3, 3), torch.ones(3)
        optimizer.step()
        return torch.cat([w.detach().flatten(), b.detach()])

    assert torch.equal(moved(0.0, loaded=True), torch.cat([torch.eye(3).flatten(), torch.ones(3)]))
    assert torch.equal(moved(0.03, loaded=True), moved(0.03, loaded=False))
    assert not torch.equal(moved(0.03, loaded=True), moved(0.1, loaded=True))


@pytest.mark.parametrize(
    ("named", "shapes"),
    [
        ({"a.bias": torch.ones(3), "b.bias": torch.ones(5)}, r"\[\(3,\), \(5,\)\]"),
        ({"embed_tokens.weight": torch.ones(4, 2)}, r"\[\(4, 2\)\]"),
    ],
)
def test_muon_adamw_without_a_matrix_is_refused(named: dict[str, torch.Tensor], shapes: str) -> None:
    parameters = {name: torch.nn.Parameter(value) for name, value in named.items()}
    with pytest.raises(
        ConfigError, match=rf"no matrix(.|\n)*got: .*{shapes}(.|\n)*allowed: one(.|\n)*do: .*full or lora"
    ):
        build_optimizer(parameters, Training(optimizer="MuonAdamW"))


# -- through the training loop -----------------------------------------------------------------------


LORA, BIASES, FULL = Lora(rank=2, alpha=4), Biases(), Full()
EXAMPLES = [Example(tuple(2 + (7 * row + 3 * at) % 400 for at in range(5 + row % 4)), 2) for row in range(12)]


def student(model: Any, kind: Student) -> Any:
    return trainable(copy.deepcopy(model.hf), kind, 0)


def weights(hf: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in hf.named_parameters() if parameter.requires_grad}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def schooling(name: str, **changed: Any) -> Training:
    return Training.model_validate({
        "optimizer": name, "learning_rate": 1e-2, "schedule": "linear", "batch_size": 4, "epochs": 3,
        "max_grad_norm": None, "checkpoint_seconds": 1e-9, **changed,
    })  # fmt: skip


def torch_pair(named: dict[str, torch.nn.Parameter], decay: float) -> list[torch.optim.Optimizer]:
    def matrix(name: str, parameter: torch.Tensor) -> bool:
        return parameter.ndim == 2 and "embed" not in name and "lm_head" not in name

    matrices = [parameter for name, parameter in named.items() if matrix(name, parameter)]
    others = [parameter for name, parameter in named.items() if not matrix(name, parameter)]
    found: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=1.0, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    ]
    return found + ([torch.optim.AdamW(others, lr=1.0, weight_decay=decay)] if others else [])


@pytest.mark.parametrize("kind", [LORA, FULL], ids=["lora", "full"])
def test_muon_adamw_with_a_schedule_is_torchs_muon_and_adamw_driven_by_hand(tiny_llama: Any, kind: Student) -> None:
    training = schooling("MuonAdamW", options={"weight_decay": 0.1})
    ours, hand = student(tiny_llama, kind), student(tiny_llama, kind)
    before = {name: value.clone() for name, value in weights(ours).items()}
    fit(ours, EXAMPLES, training, seed=5, pad=1)
    pair = torch_pair({name: p for name, p in hand.named_parameters() if p.requires_grad}, 0.1)
    plan = plan_batches([len(one.ids) for one in EXAMPLES], 4, 3, 5, training.bucket)
    hand.train()
    for step, rows in enumerate(plan):
        labels = sum(len(EXAMPLES[row].completion) for row in rows)
        for row in rows:
            one = EXAMPLES[row]
            marked = torch.tensor([[-100] * one.prompt + list(one.completion)])
            loss = hand(input_ids=torch.tensor([one.ids]), labels=marked).loss
            (loss * len(one.completion) / labels).backward()
        for optimizer in pair:
            optimizer.param_groups[0]["lr"] = 1e-2 * rate_at(step, len(plan), "linear", 0.0)
            optimizer.step()
            optimizer.zero_grad()
    got, right = weights(ours), weights(hand)
    # As a share of the way: Muon works in bfloat16 inside, and sums in another order come out a little apart.
    apart, way = (
        math.sqrt(sum(float((right[name] - value).square().sum()) for name, value in other.items()))
        for other in (got, before)
    )
    assert way > 0.1
    assert apart < 0.03 * way


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("MuonAdamW", LORA, {"weight_decay": 0.1}),
        ("MuonAdamW", FULL, {}),
        ("SignSGD", BIASES, {}),
        ("SignSGD", BIASES, {"momentum": 0.9}),
        ("PreconditionedSGD", BIASES, {}),
    ],
)
def test_a_resumed_fit_ends_in_the_same_bits(
    tiny_llama: Any, tmp_path: Path, name: str, kind: Student, options: dict[str, Any], schedule: str
) -> None:
    class Killed(Exception):  # noqa: N818
        pass

    def kill(step: int, _steps: int, _loss: float) -> None:
        if step == 6:
            raise Killed

    if name == "PreconditionedSGD":
        path = tmp_path / "v.safetensors"
        fit(student(tiny_llama, kind), EXAMPLES, schooling("AdamW"), seed=5, pad=1, second_moments=path)
        options = {"second_moments": str(path)}
    training = schooling(name, options=options, schedule=schedule)
    whole, killed, resumed = (student(tiny_llama, kind) for _ in range(3))
    fit(whole, EXAMPLES, training, seed=5, pad=1)
    with pytest.raises(Killed):
        fit(killed, EXAMPLES, training, seed=5, pad=1, checkpoint=tmp_path / "check", on_step=kill)
    assert (tmp_path / "check" / "progress.json").exists()
    steps: list[int] = []
    fit(resumed, EXAMPLES, training, seed=5, pad=1, checkpoint=tmp_path / "check",
        on_step=lambda step, _steps, _loss: steps.append(step))  # fmt: skip
    assert steps == [6, 7, 8, 9]
    assert same(weights(whole), weights(resumed))
    assert not same(weights(whole), weights(student(tiny_llama, kind)))


@pytest.mark.parametrize("name", ["MuonAdamW", "SignSGD"])
def test_the_schedule_reaches_our_optimisers(tiny_llama: Any, name: str) -> None:
    """A warm-up over so many steps leaves next to nothing of the rate."""
    hf = student(tiny_llama, FULL)
    before = {key: value.clone() for key, value in weights(hf).items()}
    fit(hf, EXAMPLES, schooling(name, warmup=1e6), seed=5, pad=1)
    assert max(float((value - before[key]).abs().max()) for key, value in weights(hf).items()) < 1e-5


@pytest.mark.parametrize("name", sorted(OWN))
def test_ours_are_found_by_name_beside_those_of_torch(name: str) -> None:
    assert name in known_optimizers()
    assert "AdamW" in known_optimizers()
    options: dict[str, Any] = {"second_moments": {"p": [1.0]}} if name == "PreconditionedSGD" else {}
    options = {"second_moments": {"p": torch.ones(3)}} if options else {}
    config = Training(optimizer=name).model_copy(update={"options": options})
    named = {"p": torch.nn.Parameter(torch.eye(3)) if name == "MuonAdamW" else start()}
    assert isinstance(build_optimizer(named, config), OWN[name])


def test_an_unknown_optimiser_names_the_nearest_and_lists_ours_and_torchs() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown optimiser.* Did you mean 'SignSGD'(.|\n)*allowed: .*AdamW.*SignSGD"
    ):
        build_optimizer({"p": start()}, Training(optimizer="SignSGDD"))


def test_an_option_of_ours_that_is_wrong_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"undertone.training.optimizers.SignSGD refuses these options: (.|\n)*momentun"
    ):
        build_optimizer({"p": start()}, Training(optimizer="SignSGD", options={"momentun": 1}))
