"""How well a vector stands for a prompt: exact where the told model is the plain one plus a vector."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from undertone.mechanism.approximation import Pair, answer_pairs, best_fits, divergences
from undertone.mechanism.shift import by_layer, centred, rank_of_own
from undertone.models.batches import Example
from undertone.vectors import SteeringVector, random_like, steer

PROMPTS = [(1, 9, 12), (1, 30, 14, 15), (1, 20, 33), (1, 8, 9, 10, 11), (1, 40, 41)]


def vector(model: Any, layer: int = 0, size: float = 3.0) -> SteeringVector:
    generator = torch.Generator().manual_seed(1)
    width = model.hf.config.hidden_size
    direction = torch.randn(width, generator=generator)
    return SteeringVector({layer: size * direction / direction.norm()}, {"model": model.name})


def test_a_prompt_that_changes_nothing_has_no_effect_to_explain(tiny_llama: Any) -> None:
    pairs = answer_pairs(tiny_llama, PROMPTS, PROMPTS)
    assert divergences(tiny_llama, pairs)[0] == pytest.approx(np.zeros(len(pairs)), abs=1e-6)
    (fit,) = best_fits(tiny_llama, pairs, [vector(tiny_llama)], [0.0, 1.0])
    assert fit.effect == pytest.approx(0, abs=1e-6)


def test_divergence_is_the_analytic_kl_of_the_two_next_token_distributions(tiny_llama: Any) -> None:
    told, plain = (1, 9, 12, 13), (1, 30)
    ((found,),) = divergences(tiny_llama, answer_pairs(tiny_llama, [told], [plain]))
    with torch.no_grad():
        p, q = (torch.log_softmax(tiny_llama.hf(torch.tensor([ids])).logits[0, -1], -1) for ids in (told, plain))
    assert found == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4)


def test_the_share_explained_falls_when_the_vector_is_wrong_and_zero_strength_explains_nothing(tiny_llama: Any) -> None:
    pairs = [
        Pair(Example((1, 5, 6, 7, 30, 31), 4), Example((1, 7, 30, 31), 2)),
        Pair(Example((1, 5, 6, 8, 33, 31), 4), Example((1, 8, 33, 31), 2)),
        Pair(Example((1, 5, 6, 9, 12, 31), 4), Example((1, 9, 12, 31), 2)),
    ]
    (nothing,) = best_fits(tiny_llama, pairs, [vector(tiny_llama)], [0.0])
    assert nothing.explained == pytest.approx(0.0, abs=1e-6)
    (harm,) = best_fits(tiny_llama, pairs, [random_like(vector(tiny_llama, size=50.0), 3)], [1.0])
    assert harm.explained < 0


def test_steering_by_the_very_vector_explains_all_of_a_steered_models_effect(tiny_llama: Any) -> None:
    own = vector(tiny_llama)
    pairs = answer_pairs(tiny_llama, PROMPTS, PROMPTS)
    with steer(tiny_llama, own, 1.0):
        # told: steered once; plain: steered once, then steered back, so that now they differ
        apart, twice = divergences(tiny_llama, pairs, [nullcontext, partial(steer, tiny_llama, own, -1.0)])
    assert apart == pytest.approx(np.zeros(len(pairs)), abs=1e-6)
    assert twice.min() > 1e-6


def test_what_a_vector_is_chosen_by_and_what_is_reported_are_the_two_halves_of_the_pairs(tiny_llama: Any) -> None:
    """By hand, for two vectors at once: the strength is the best on even pairs, each share is its own half's."""
    told = [(*ids[:1], 21, 22, *ids[1:]) for ids in PROMPTS]
    pairs = answer_pairs(tiny_llama, told, PROMPTS)
    vectors = [vector(tiny_llama, layer, size=0.3) for layer in (0, 2)]
    strengths = [-1.0, 0.5, 1.0]
    fits = best_fits(tiny_llama, pairs, vectors, strengths)
    plain = divergences(tiny_llama, pairs)[0]
    for one, fit in zip(vectors, fits, strict=True):
        costs = {
            s: divergences(tiny_llama, pairs, [partial(steer, tiny_llama, one, s)])[0] for s in strengths
        }  # fmt: skip
        best = min(strengths, key=lambda s: costs[s][::2].mean())
        assert fit.strength == best
        # Near 0 a share is the difference of two float32 sums that are nearly equal.
        assert fit.chosen == pytest.approx(1 - costs[best][::2].mean() / plain[::2].mean(), rel=1e-4, abs=2e-6)
        assert fit.explained == pytest.approx(1 - costs[best][1::2].mean() / plain[1::2].mean(), rel=1e-4)
        assert fit.effect == pytest.approx(plain[1::2].mean(), rel=1e-4)
    assert fits[0].chosen != pytest.approx(fits[0].explained, abs=1e-3)


def test_centring_leaves_an_arm_out_of_its_own_mean_and_removes_what_all_share() -> None:
    generator = np.random.default_rng(0)
    shared = 10 * generator.normal(size=(2, 32))
    own = {name: generator.normal(size=(2, 32)) for name in "abcd"}
    shifts = {name: shared + value for name, value in own.items()}
    raw = by_layer(shifts["a"], shared + own["b"])
    assert min(raw) > 0.95  # raw cosines cannot tell the arms apart
    apart = centred(shifts, list(shifts))
    np.testing.assert_allclose(apart["a"], own["a"] - (own["b"] + own["c"] + own["d"]) / 3)
    assert rank_of_own(apart["a"][0], {name: value[0] for name, value in own.items()}, "a") == 1
