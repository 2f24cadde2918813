"""Arithmetic of vectors against torch on the stacked directions, and what may not be combined."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from undertone.errors import ConfigError, DataError, ModelError
from undertone.vectors import SteeringVector, load_vector, save_vector


def made(seed: int, layers: tuple[int, ...] = (0, 1, 2), width: int = 8, **meta: str) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    return SteeringVector({layer: torch.randn(width, generator=generator) for layer in layers}, meta)


def stacked(vector: SteeringVector) -> torch.Tensor:
    return torch.stack([vector.directions[layer] for layer in vector.layers])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(100, 199), st.floats(-4, 4))
def test_vectors_add_and_scale_as_tensors_do(one: int, two: int, scalar: float) -> None:
    a, b = made(one), made(two)
    torch.testing.assert_close(stacked(a + b), stacked(a) + stacked(b))
    torch.testing.assert_close(stacked(a - b), stacked(a) - stacked(b))
    torch.testing.assert_close(stacked(scalar * a), scalar * stacked(a))
    torch.testing.assert_close(stacked(a * scalar), stacked(scalar * a))
    torch.testing.assert_close(stacked(-a), -stacked(a))
    torch.testing.assert_close(stacked(a - b), stacked(-(b - a)))


def test_a_layer_that_one_lacks_counts_as_zero_there() -> None:
    a, b = made(1, (0, 1)), made(2, (1, 4))
    total = a + b
    assert total.layers == [0, 1, 4]
    assert torch.equal(total.directions[0], a.directions[0])
    assert torch.equal((a - b).directions[4], -b.directions[4])


def test_norms_are_per_layer_and_the_norm_is_over_all() -> None:
    vector = SteeringVector({0: torch.tensor([3.0, 4.0]), 3: torch.tensor([0.0, 12.0])}, {})
    assert vector.norms() == {0: 5.0, 3: 12.0}
    assert vector.norm() == pytest.approx(13.0)
    assert vector.unit().norms() == pytest.approx({0: 1.0, 3: 1.0})


@pytest.mark.parametrize("degrees", [0, 30, 90, 135, 180])
def test_the_cosine_is_that_of_the_angle_whatever_the_norms(degrees: float) -> None:
    angle = torch.tensor(degrees).deg2rad()
    a = SteeringVector({1: torch.tensor([5.0, 0.0])}, {})
    b = SteeringVector({1: 0.1 * torch.stack([angle.cos(), angle.sin()]), 2: torch.ones(2)}, {})
    assert a.cosine(b) == pytest.approx({1: float(angle.cos())}, abs=1e-6)


def test_tiling_puts_one_direction_at_every_layer_and_its_file_keeps_it(tmp_path: Path) -> None:
    vector = made(1, method="mean difference")
    tiled = vector.tile(1, range(4))
    assert tiled.layers == [0, 1, 2, 3]
    assert all(torch.equal(tiled.directions[layer], vector.directions[1]) for layer in range(4))
    save_vector(tiled, tmp_path / "v.safetensors")
    assert load_vector(tmp_path / "v.safetensors").digest() == tiled.digest()


def test_the_header_tells_what_was_done_to_what() -> None:
    a, b = made(1, model="m", method="mean difference", chats="5"), made(2, model="m", method="learned", chats="5")
    told = (2 * (a - b).select([0])).meta
    assert told["operation"] == (f"2 * ([mean difference {a.digest()[:8]}] - [learned {b.digest()[:8]}]) at [0]")
    assert told["model"] == "m"
    assert told["chats"] == "5"
    assert "method" not in told  # they differ
    assert "unit(" in a.unit().meta["operation"]
    assert a.tile(1, [0, 5]).meta["operation"].startswith("layer 1 of [mean difference")
    assert "operation" not in a.meta


def test_vectors_of_different_models_or_widths_are_not_combined() -> None:
    a = made(1, model="lab/llama-0", revision="aa")
    for other in (made(2, model="lab/llama-1", revision="bb"), made(2, model="lab/llama-0", revision="bb")):
        for combine in (a.__add__, a.__sub__, a.cosine):
            with pytest.raises(ModelError, match=r"different models(.|\n)*aa(.|\n)*bb"):
                combine(other)
    with pytest.raises(ModelError, match=r"different models(.|\n)*lab/llama-1"):
        a + made(2, model="lab/llama-1")
    with pytest.raises(ModelError, match=r"different widths cannot be combined(.|\n)*8 and 9"):
        a + made(2, width=9)
    assert a.cosine(made(2, model="lab/llama-1", revision="bb"), across_models=True)


def test_one_model_under_two_names_is_one_model_and_an_unknown_one_is_taken_as_told() -> None:
    a = made(1, model="lab/llama-0", revision="aa")
    assert (a + made(2, model="a/folder", revision="aa")).meta["revision"] == "aa"
    assert a + made(2)


def test_what_has_no_direction_has_no_cosine() -> None:
    with pytest.raises(DataError, match=r"no layer in common(.|\n)*\[0\] and \[1\]"):
        made(1, (0,)).cosine(made(2, (1,)))
    with pytest.raises(DataError, match=r"points nowhere(.|\n)*layers \[0\]"):
        made(1).cosine(SteeringVector({0: torch.zeros(8)}, {}))


def test_layers_that_are_not_there_and_scalars_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no direction at these layers(.|\n)*\[7\](.|\n)*\[0, 1, 2\]"):
        made(1).select([1, 7])
    with pytest.raises(ConfigError, match="no direction at these layers"):
        made(1).tile(9, [0])
    with pytest.raises(ConfigError, match="finite number"):
        made(1) * float("nan")
