"""The one-step theorem: over random networks, inputs and losses it never fails; from another start both signs occur."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from undertone.mechanism.theory import Imitation, Parameters, descent, first_order_step, imitation_step

LOSSES: list[Imitation] = ["squared", "cross-entropy"]


def network(seed: int, width: int, activation: Any) -> tuple[Any, Any]:
    """(parameters of a seed, function) of a small network with two heads: what the teacher learns, what is imitated."""

    def drawn(at: int) -> Parameters:
        stream = torch.Generator().manual_seed(at)
        shapes = {"a": (3, width), "b": (width,), "c": (width, width), "d": (width, 5)}
        return {name: torch.randn(shape, generator=stream, dtype=torch.float64) for name, shape in shapes.items()}

    def forward(parameters: Parameters, x: torch.Tensor) -> torch.Tensor:
        hidden = activation(x @ parameters["a"] + parameters["b"])
        out: torch.Tensor = activation(hidden @ parameters["c"]) @ parameters["d"]
        return out

    return drawn, forward


def teacher_of(start: Parameters, forward: Any, seed: int) -> tuple[Parameters, Any]:
    stream = torch.Generator().manual_seed(seed + 77)
    x = torch.randn(9, 3, generator=stream, dtype=torch.float64)
    y = torch.randint(0, 2, (9,), generator=stream)

    def loss(parameters: Parameters) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(forward(parameters, x)[:, :2], y)

    return descent(loss, start), loss


draws = given(
    st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 12), st.sampled_from([torch.tanh, torch.relu, torch.sin]),
    st.sampled_from(LOSSES), st.floats(0.01, 10),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@draws
def test_the_students_first_step_is_never_against_the_teachers(
    seed: int, width: int, rows: int, activation: Any, loss: Imitation, scale: float
) -> None:
    drawn, forward = network(seed, width, activation)
    start = drawn(seed)
    teacher, _ = teacher_of(start, forward, seed)
    inputs = scale * torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    step = first_order_step(lambda p, x: forward(p, x)[:, 2:], start, teacher, inputs, loss)
    size = sum(float(part.square().sum()) for part in teacher.values())
    assert step.inner >= -1e-12 * (1 + size)
    assert -1 - 1e-9 <= step.cosine <= 1 + 1e-9


@pytest.mark.parametrize("loss", LOSSES)
def test_the_first_order_step_is_the_limit_of_real_steps(loss: Imitation) -> None:
    drawn, forward = network(1, 5, torch.tanh)
    start = drawn(1)
    teacher, _ = teacher_of(start, forward, 1)
    inputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def imitated(p: Parameters, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = forward(p, x)[:, 2:]
        return out

    limit = first_order_step(imitated, start, teacher, inputs, loss)
    small = 1e-5
    moved = {name: start[name] + small * teacher[name] for name in start}
    real = imitation_step(imitated, start, imitated(moved, inputs), teacher, inputs, loss)
    assert real.inner / small == pytest.approx(limit.inner, rel=1e-3)
    for name, part in real.student.items():
        torch.testing.assert_close(part / small, limit.student[name], rtol=1e-2, atol=1e-4)


def test_for_a_linear_network_it_is_the_gram_matrix_worked_out_by_hand() -> None:
    """f(W, x) = x W: J Δ = x Δ, so the student's step is xᵀ x Δ / rows."""
    stream = torch.Generator().manual_seed(0)
    x, w, d = (torch.randn(shape, generator=stream, dtype=torch.float64) for shape in ((7, 3), (3, 4), (3, 4)))
    step = first_order_step(lambda p, inputs: inputs @ p["w"], {"w": w}, {"w": d}, x)
    torch.testing.assert_close(step.student["w"], x.T @ x @ d / 7)
    assert step.inner == pytest.approx(float((x @ d).square().sum()) / 7)


def test_a_small_step_lowers_the_teachers_own_loss() -> None:
    """The theorem's other half, on inputs that have nothing to do with the teacher's."""
    for seed in range(20):
        drawn, forward = network(seed, 6, torch.tanh)
        start = drawn(seed)
        teacher, loss = teacher_of(start, forward, seed)
        inputs = torch.rand(16, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        step = first_order_step(lambda p, x, f=forward: f(p, x)[:, 2:], start, teacher, inputs)  # type: ignore[misc]
        if step.inner > 1e-9:
            small = 1e-6 / step.inner
            moved = {name: start[name] + small * part for name, part in step.student.items()}
            assert float(loss(moved)) < float(loss(start))


@pytest.mark.parametrize("loss", LOSSES)
def test_from_another_start_both_signs_occur(loss: Imitation) -> None:
    inner = []
    for seed in range(40):
        drawn, forward = network(seed, 6, torch.tanh)
        start, other = drawn(seed), drawn(seed + 1000)
        teacher, _ = teacher_of(start, forward, seed)
        inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        moved = {name: start[name] + 0.01 * teacher[name] for name in start}

        def imitated(p: Parameters, x: torch.Tensor, f: Any = forward) -> torch.Tensor:
            out: torch.Tensor = f(p, x)[:, 2:]
            return out

        inner.append(imitation_step(imitated, other, imitated(moved, inputs), teacher, inputs, loss).inner)
    assert 5 < sum(value > 0 for value in inner) < 35
