"""The sampler, against transformers' generate, uncached forwards, and the distributions it claims."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, Gemma3TextConfig, MistralConfig

from undertone.models.sampling import pick, sample
from undertone.provenance.seeds import derive_seed

PROMPTS = [
    (3, 17, 44, 5, 60, 70), (3, 17, 44), (9, 8, 7, 6), (3, 17, 44), (200, 100, 50, 25, 12, 6, 3, 300), (11,), (9, 8, 7, 6),
]  # fmt: skip
SEEDS = [derive_seed(0, "test", row) for row in range(len(PROMPTS))]


def drawn(model: Any, rows: list[int] | None = None, **options: Any) -> list[list[int]]:
    rows = list(range(len(PROMPTS))) if rows is None else rows
    settings: dict[str, Any] = {"max_new_tokens": 12, "stop": [0], "pad": model.pad, **options}
    return sample(model.hf, [PROMPTS[r] for r in rows], [SEEDS[r] for r in rows], **settings)


def test_at_temperature_0_it_is_what_generate_does(tiny: Any) -> None:
    stop = sample_stop(tiny)
    got = drawn(tiny, temperature=0, stop=[stop])
    for prompt, completion in zip(PROMPTS, got, strict=True):
        ids = torch.tensor([prompt])
        whole = tiny.hf.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=stop, pad_token_id=1,
        )  # fmt: skip
        assert completion == whole[0, len(prompt) :].tolist()


def sample_stop(model: Any) -> int:
    """A token that greedy decoding meets in some rows and not in others."""
    free = drawn(model, temperature=0, stop=[])
    common = [t for t in range(448) if 0 < sum(t in row[1:] for row in free) < len(free)]
    return common[0]


def test_a_sample_is_that_of_whole_forward_passes_without_a_cache(tiny: Any) -> None:
    got = drawn(tiny, stop=[])
    for row, prompt in enumerate(PROMPTS):
        uniforms = np.random.Generator(np.random.Philox(key=SEEDS[row])).random(12)
        text = list(prompt)
        for uniform in uniforms:
            with torch.inference_mode():
                logits = tiny.hf(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
            mass = torch.softmax(logits.double(), -1).cumsum(0).numpy()
            text.append(int(np.searchsorted(mass / mass[-1], uniform, side="right")))
        assert got[row] == text[len(prompt) :]


def test_a_rows_sample_does_not_change_with_batch_size(tiny: Any) -> None:
    whole = drawn(tiny, batch_size=512)
    for batch_size in (1, 3):
        assert drawn(tiny, batch_size=batch_size) == whole


def test_a_rows_sample_does_not_change_with_order_or_company(tiny_llama: Any) -> None:
    whole = drawn(tiny_llama)
    order = [4, 2, 6, 0, 5, 1, 3]
    assert drawn(tiny_llama, order) == [whole[row] for row in order]
    assert drawn(tiny_llama, [5]) == [whole[5]]


def test_equal_prompts_with_other_seeds_are_other_samples(tiny_llama: Any) -> None:
    whole = drawn(tiny_llama)
    assert PROMPTS[1] == PROMPTS[3]
    assert whole[1] != whole[3]


def test_a_row_ends_with_its_stop_token_and_no_other_row_does(tiny_llama: Any) -> None:
    free = drawn(tiny_llama, stop=[])
    assert all(len(row) == 12 for row in free)
    stop = [free[0][3], free[2][6]]
    for row, whole in zip(drawn(tiny_llama, stop=stop), free, strict=True):
        ends = [at for at, token in enumerate(whole) if token in stop]
        assert row == (whole[: ends[0] + 1] if ends else whole)


def test_progress_counts_every_row_once(tiny_llama: Any) -> None:
    seen: list[int] = []
    drawn(tiny_llama, batch_size=3, progress=seen.append)
    assert seen == [3, 3, 1]


def test_the_first_token_is_distributed_as_the_models_softmax(tiny_llama: Any) -> None:
    count = 6000
    seeds = [derive_seed(5, "first", row) for row in range(count)]
    rows = sample(
        tiny_llama.hf,
        [PROMPTS[0]] * count,
        seeds,
        max_new_tokens=1,
        stop=[],
        pad=1,
        batch_size=count,
    )
    with torch.inference_mode():
        logits = tiny_llama.hf(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
    expected = torch.softmax(logits.double(), -1).numpy() * count
    observed = np.bincount([row[0] for row in rows], minlength=len(expected))
    assert fits(observed, expected)


def fits(observed: np.ndarray, expected: np.ndarray) -> bool:
    """Chi-square at 1e-4; cells that expect fewer than five are pooled."""
    small = expected < 5
    observed = np.append(observed[~small], observed[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    keep = expected > 0
    assert observed[~keep].sum() == 0
    return keep.sum() == 1 or bool(chisquare(observed[keep], expected[keep]).pvalue > 1e-4)


LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 1.0])


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.7), (1.0, 0.3)])
def test_picks_are_distributed_as_the_tempered_nucleus(temperature: float, top_p: float) -> None:
    count = 20_000
    uniform = torch.from_numpy(np.random.default_rng(3).random(count))
    picked = pick(LOGITS.expand(count, -1), uniform, temperature, top_p)
    p = np.exp(LOGITS.double().numpy() / temperature)
    p /= p.sum()
    kept: list[int] = []  # by hand: the most likely tokens until their mass reaches top_p
    for token in sorted(range(len(p)), key=lambda token: -p[token]):
        kept.append(token)
        if sum(p[k] for k in kept) >= top_p:
            break
    expected = np.where(np.isin(np.arange(len(p)), kept), p, 0.0)
    expected *= count / expected.sum()
    assert fits(np.bincount(picked.numpy(), minlength=len(p)), expected)


@given(
    st.lists(st.floats(-30, 30), min_size=1, max_size=12),
    st.sampled_from([0.0, 1e-12, 0.5, float(np.nextafter(1, 0))]),
    st.sampled_from([0.05, 0.5, 0.95, 1.0]),
)
def test_a_pick_is_always_a_token_that_has_probability(logits: list[float], uniform: float, top_p: float) -> None:
    chosen = int(pick(torch.tensor([logits]), torch.tensor([uniform], dtype=torch.float64), 1.0, top_p))
    assert 0 <= chosen < len(logits)
    assert torch.softmax(torch.tensor(logits).double(), -1)[chosen] > 0


def test_a_banned_token_is_never_picked_even_at_the_edges() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]]).expand(4, -1)
    uniform = torch.tensor([0.0, 0.4999, 0.5, float(np.nextafter(1, 0))], dtype=torch.float64)
    assert pick(logits, uniform, 1.0, 1.0).tolist() == [1, 1, 3, 3]


def test_sampling_keeps_no_graph_and_touches_no_global_random_state(tiny_llama: Any) -> None:
    state = torch.get_rng_state()
    drawn(tiny_llama)
    assert torch.equal(state, torch.get_rng_state())


def sliding(kind: str) -> Any:
    """A model that looks back four tokens in some of its layers."""
    size: dict[str, Any] = {
        "vocab_size": 448, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "intermediate_size": 64, "initializer_range": 0.2, "sliding_window": 4, "pad_token_id": 1,
        "bos_token_id": None, "eos_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "mistral":
        return AutoModelForCausalLM.from_config(MistralConfig(**size)).eval()
    layers = ["sliding_attention", "full_attention"]
    return AutoModelForCausalLM.from_config(Gemma3TextConfig(**size, layer_types=layers)).eval()


@pytest.mark.parametrize("kind", ["mistral", "gemma3"])
def test_models_with_a_sliding_window_sample_as_without_a_cache(kind: str) -> None:
    hf = sliding(kind)
    got = sample(hf, PROMPTS, SEEDS, max_new_tokens=9, stop=[0], pad=1, temperature=0)
    for prompt, completion in zip(PROMPTS, got, strict=True):
        text = list(prompt)
        for token in completion:
            with torch.inference_mode():
                logits = hf(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
            assert token == int(logits.argmax())
            text.append(token)
