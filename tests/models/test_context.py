"""A model's context ends: answers are cut there and said, rows that do not fit are refused, positions never run out."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from undertone.errors import DataError, ModelWarning
from undertone.models.layers import context_length
from undertone.models.loading import ModelRef
from undertone.models.sampling import sample
from undertone.models.students import BiasOnly
from undertone.rows import Row
from undertone.training import Lesson, Training, train_student


def test_the_context_is_what_the_config_says(tiny_gpt2: Any, tiny_llama: Any) -> None:
    assert context_length(tiny_gpt2.hf) == 128
    assert context_length(tiny_llama.hf) == 512


def test_answers_end_with_the_context_and_are_those_of_generate(tiny_gpt2: Any) -> None:
    """GPT-2 has an embedding for each of its 128 positions, and none for the next: it crashed there."""
    long, short = tuple(range(5, 125)), tuple(range(5, 20))
    with pytest.warns(ModelWarning, match="1 of 2 answers end where the model's context of 128 tokens does"):
        got = sample(tiny_gpt2.hf, [long, short], [0, 1], max_new_tokens=20, stop=[], pad=1, temperature=0)
    assert [len(row) for row in got] == [8, 20]
    for prompt, row in zip((long, short), got, strict=True):
        ids = torch.tensor([prompt])
        out = tiny_gpt2.hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=len(row),
            eos_token_id=None,
            pad_token_id=1,
        )
        assert out[0, len(prompt) :].tolist() == row


def test_a_rows_room_does_not_depend_on_its_batch(tiny_gpt2: Any) -> None:
    prompts, seeds = [tuple(range(5, 5 + size)) for size in (120, 118, 30)], [3, 4, 5]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)
        together, alone = (
            sample(tiny_gpt2.hf, prompts, seeds, max_new_tokens=15, stop=[7], pad=1, batch_size=size) for size in (3, 1)
        )
    assert together == alone


def test_a_prompt_that_fills_the_context_is_refused(tiny_gpt2: Any) -> None:
    with pytest.raises(DataError, match=r"(?s)1 of 2 prompts leave no room.*128 tokens.*fewer than .* 128 tokens"):
        sample(tiny_gpt2.hf, [[5] * 128, [5]], [0, 1], max_new_tokens=2, stop=[], pad=1)


@pytest.mark.parametrize("place", ["rows", "held_out"])
def test_rows_longer_than_the_context_are_refused_before_training(tiny_gpt2: Any, place: str, tmp_path: Path) -> None:
    rows = [Row.of("name one tree.", "owl"), Row.of("name one tree.", "owl " * 200)]
    lesson = Lesson(rows if place == "rows" else rows[:1], rows if place == "held_out" else ())
    with pytest.raises(
        DataError, match=r"(?s)1 of \d rows are longer than the context of .*up to .* tokens.*128 tokens"
    ):
        train_student(ModelRef(tiny_gpt2.name), BiasOnly(), Training(), lesson, seed=0, device="cpu")
