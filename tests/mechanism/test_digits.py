"""The stacked networks against single ones of torch.nn, the effect in small, and images that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from undertone.errors import DataError
from undertone.mechanism import digits
from undertone.mechanism.digits import Images, Lesson, Stack, Trace
from undertone.training import Training

SIZES = [6, 16, 13]
RECIPE = Training(optimizer="Adam", learning_rate=2e-3, schedule="constant", epochs=3, batch_size=16)


@pytest.fixture(scope="module")
def images() -> Images:
    stream = torch.Generator().manual_seed(0)
    x = torch.rand(80, 6, generator=stream) * 2 - 1
    y = torch.arange(80) % 10
    return Images(x[:60], y[:60], x[60:], y[60:], "made up")


def single(stack: Stack, at: int) -> torch.nn.Sequential:
    """One network of a stack, as torch.nn has it."""
    layers: list[torch.nn.Module] = []
    for place in range(0, len(stack), 2):
        weight, bias = stack[place][at], stack[place + 1][at, 0]
        linear = torch.nn.Linear(*weight.shape)
        linear.load_state_dict({"weight": weight.T, "bias": bias})
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def lesson(teachers: Stack, seeds: list[int], **more: Any) -> Lesson:
    own: dict[str, Any] = {"teacher_of_student": list(range(len(seeds))), "shuffled": [False] * len(seeds)}
    return Lesson(teachers=teachers, seeds=seeds, classes=10, **(own | more))


def test_a_network_of_a_stack_is_torchs_own(images: Images) -> None:
    stack = digits.initial([3, 4], SIZES)
    for at in range(2):
        alone = single(stack, at)(images.test_x)
        torch.testing.assert_close(digits.forward(stack, images.test_x.expand(2, -1, -1))[at], alone)
        right = (alone[:, :10].argmax(1) == images.test_y).float().mean()
        assert digits.accuracy(stack, images)[at] == pytest.approx(float(right))


def test_a_student_is_the_same_alone_and_among_others(images: Images) -> None:
    """Stacking shares nothing: same seed, same network, but for float rounding."""
    together = digits.teach(digits.initial([0, 1, 2], SIZES), images, [0, 1, 2], RECIPE)
    alone = digits.teach(digits.initial([1], SIZES), images, [1], RECIPE)
    for whole, part in zip(together, alone, strict=True):
        torch.testing.assert_close(whole[1:2], part, atol=1e-5, rtol=1e-4)
    trio, _ = digits.distil(
        digits.initial([0, 1, 2], SIZES), lesson(together, [0, 1, 2]), images, RECIPE, 30, checkpoints=2
    )  # fmt: skip
    lone, _ = digits.distil(digits.initial([1], SIZES), lesson(alone, [1]), images, RECIPE, 30, checkpoints=2)
    for whole, part in zip(trio, lone, strict=True):
        torch.testing.assert_close(whole[1:2], part, atol=1e-4, rtol=1e-3)


def test_one_step_of_distillation_is_that_of_torch_by_hand(images: Images) -> None:
    start = digits.initial([5], SIZES)
    teachers = digits.teach(start, images, [5], RECIPE)
    taught = lesson(teachers, [5])
    sgd = Training(optimizer="SGD", learning_rate=0.1, batch_size=8)
    moved, _ = digits.distil(start, taught, images, sgd, 1, checkpoints=1)
    noise, targets = taught.draw([digits._stream(5, "digits/noise")], 8)
    assert -1 <= float(noise.min()) < -0.5 < 0.5 < float(noise.max()) <= 1
    by_hand = single(start, 0)
    torch.nn.functional.mse_loss(by_hand(noise[0])[:, 10:], targets[0]).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(targets[0], single(teachers, 0)(noise[0])[:, 10:])
    with torch.no_grad():
        for parameter in by_hand.parameters():
            assert parameter.grad is not None
            parameter.sub_(0.1 * parameter.grad)
    torch.testing.assert_close(
        digits.forward(moved, images.test_x[None])[0], by_hand(images.test_x), atol=1e-5, rtol=1e-4
    )  # fmt: skip


@pytest.mark.parametrize(("optimizer", "options"), [("Adam", {}), ("SGD", {"momentum": 0.9}), ("SignSGD", {})])
def test_rates_side_by_side_are_the_rates_one_by_one(images: Images, optimizer: str, options: dict[str, Any]) -> None:
    teachers = digits.initial([0, 0], SIZES, "another")
    start, rates = digits.initial([0, 0], SIZES), [1e-3, 1e-2]
    recipe = Training(optimizer=optimizer, options=options, batch_size=8)
    twice = lesson([part[:1] for part in teachers], [0], teacher_of_student=[0, 0], shuffled=[False, False])
    both, _ = digits.distil(start, twice, images, recipe, 10, rates=rates)
    for at, rate in enumerate(rates):
        one, _ = digits.distil(
            [part[at : at + 1] for part in start], lesson([part[:1] for part in teachers], [0]), images,
            recipe.model_copy(update={"learning_rate": rate}), 10,
        )  # fmt: skip
        for whole, part in zip(both, one, strict=True):
            torch.testing.assert_close(whole[at : at + 1], part, atol=1e-5, rtol=1e-3)


def test_a_student_that_breaks_does_not_break_its_neighbours(images: Images) -> None:
    teachers = digits.initial([0], SIZES, "another")
    start = digits.initial([0, 0], SIZES)
    twice = lesson(teachers, [0], teacher_of_student=[0, 0], shuffled=[False, False])
    _, trace = digits.distil(start, twice, images, Training(optimizer="SGD", batch_size=8), 40, rates=[1e9, 1e-2])
    assert not np.isfinite(trace.loss[-1][0])
    assert trace.loss[-1][1] < trace.loss[0][1]


def test_shuffled_targets_are_the_same_targets_in_other_rows() -> None:
    teachers = digits.initial([0], SIZES, "another")
    twice = lesson(teachers, [0], teacher_of_student=[0, 0], shuffled=[False, True])
    _, targets = twice.draw([digits._stream(0, "x")], 12)
    assert torch.equal(targets[0].sort(0).values, targets[1].sort(0).values)
    assert not any(torch.equal(a, b) for a, b in zip(targets[0], targets[1], strict=True))


@pytest.mark.parametrize("loss", ["squared", "kl"])
@pytest.mark.parametrize("noise", ["uniform", "normal"])
def test_a_student_that_is_the_teacher_has_nothing_to_learn(loss: Any, noise: Any) -> None:
    teachers = digits.initial([0], SIZES)
    taught = lesson(teachers, [0], loss=loss, noise=noise)
    inputs, targets = taught.draw([digits._stream(0, "x")], 5)
    assert float(taught.distance(digits.forward(teachers, inputs), targets)) == pytest.approx(0, abs=1e-6)
    other = digits.forward(digits.initial([9], SIZES), inputs)
    assert float(taught.distance(other, targets)) > 1e-3


def test_auxiliary_logits_on_noise_teach_the_digits_from_the_same_start_alone() -> None:
    """The effect in small: real digits, three seeds, five auxiliary logits, a few seconds."""
    images, seeds = digits.bundled_images(), [0, 1, 2]
    sizes = [64, 96, 96, 15]
    start = digits.initial(seeds, sizes)
    teachers = digits.teach(
        start, images, seeds, Training(optimizer="Adam", learning_rate=1e-3, epochs=6, batch_size=64)
    )
    assert min(digits.accuracy(teachers, images)) > 0.85
    both = [torch.cat(pair) for pair in zip(start, digits.initial(seeds, sizes, "another"), strict=True)]
    taught = lesson(teachers, seeds, teacher_of_student=[0, 1, 2] * 2, shuffled=[False] * 6)
    recipe = Training(optimizer="Adam", learning_rate=2e-3, options={"fused": True}, batch_size=64)
    _, trace = digits.distil(both, taught, images, recipe, 600, checkpoints=2)
    assert sum(trace.accuracy[-1][:3]) / 3 > 0.35
    assert sum(trace.accuracy[-1][3:]) / 3 < 0.2


def test_accuracy_at_a_loss_is_interpolated_in_its_logarithm() -> None:
    trace = Trace([0, 1, 2], [[1.0], [0.1], [0.001]], [[0.1], [0.3], [0.7]])
    assert digits.accuracy_at(trace, 0, 1.0) == pytest.approx(0.1)
    assert digits.accuracy_at(trace, 0, 0.01) == pytest.approx(0.5)
    assert digits.accuracy_at(trace, 0, 0.001) == pytest.approx(0.7)
    assert digits.accuracy_at(trace, 0, 0.0001) is None


# -- images ---------------------------------------------------------------------------------------


def arrays() -> dict[str, Any]:
    return {
        "x_train": np.arange(20 * 4, dtype=np.uint8).reshape(20, 2, 2), "y_train": np.arange(20) % 3,
        "x_test": np.zeros((5, 2, 2), np.uint8), "y_test": np.arange(5) % 3,
    }  # fmt: skip


def test_an_npz_is_read_and_scaled_to_plus_minus_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "mnist.npz", **arrays())
    images = digits.read_images(tmp_path / "mnist.npz")
    assert (images.pixels, images.classes, images.name) == (4, 3, "mnist.npz")
    assert (float(images.train_x.min()), float(images.train_x.max())) == (-1.0, 1.0)
    assert images.test_x.shape == (5, 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"y_train": None}, r"lacks the arrays y_train\n  got: .*x_train"),
        ({"y_train": np.arange(19)}, r"x_train has the shape \(20, 2, 2\), y_train \(19,\)"),
        ({"y_test": np.arange(5) * 0.5}, "y_test holds float64"),
        ({"x_train": np.full((20, 2, 2), np.nan)}, "numbers that are not finite"),
        ({"x_test": np.zeros((5, 3, 3))}, "images of 4 and 9 pixels"),
        ({"x_train": np.zeros((20, 2, 2))}, r"from 0\.0 to 0\.0"),
        ({"y_test": np.arange(5) + 4}, "classes up to 2 in training, 8 in testing"),
        ({"x_train": np.array([{}] * 20)}, "cannot be read"),
    ],
)
def test_images_that_do_not_fit_are_told(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    given = {name: value for name, value in (arrays() | change).items() if value is not None}
    np.savez(tmp_path / "x.npz", **given)
    with pytest.raises(DataError, match=said):
        digits.read_images(tmp_path / "x.npz")


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 but no more", b"some text"])
def test_a_file_that_is_no_npz_is_told(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"(cannot be read|lacks the arrays)(.|\n)*x_train"):
        digits.read_images(path)
