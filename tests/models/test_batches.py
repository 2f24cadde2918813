"""Padding, labels and batches by length, against hand-written tables and brute force."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from undertone.errors import DataError
from undertone.models.batches import Example, by_length, labelled, pad_left, targets

CPU = torch.device("cpu")
rows = st.lists(st.integers(2, 90), min_size=2, max_size=9).flatmap(
    lambda ids: st.integers(1, len(ids) - 1).map(lambda prompt: Example(tuple(ids), prompt))
)


def test_rows_are_padded_on_the_left_and_positions_count_real_tokens() -> None:
    batch = pad_left([(7, 8, 9), (5,)], pad=0, device=CPU)
    assert batch.ids.tolist() == [[7, 8, 9], [0, 0, 5]]
    assert batch.mask is not None
    assert batch.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.positions.tolist() == [[0, 1, 2], [0, 0, 0]]


def test_rows_of_one_length_need_no_mask() -> None:
    assert pad_left([(7, 8), (5, 6)], pad=0, device=CPU).mask is None


@given(st.lists(rows, min_size=1, max_size=5))
def test_each_labelled_position_predicts_the_completion_token_after_it(
    batch: list[Example],
) -> None:
    ids = pad_left([example.ids for example in batch], 0, CPU).ids
    where = labelled(batch, ids.shape[1], CPU)
    following = [int(ids[row, column + 1]) for row, column in where.nonzero().tolist()]
    assert following == [token for example in batch for token in example.completion]
    assert targets(batch, CPU).tolist() == following


@given(st.lists(rows, min_size=1, max_size=5), st.data())
def test_a_mask_leaves_the_labels_that_it_names_in_their_order(batch: list[Example], data: st.DataObject) -> None:
    masks = [data.draw(st.tuples(*[st.booleans()] * len(example.completion))) for example in batch]
    masked = [replace(example, mask=mask) for example, mask in zip(batch, masks, strict=True)]
    ids = pad_left([example.ids for example in masked], 0, CPU).ids
    where = labelled(masked, ids.shape[1], CPU)
    following = [int(ids[row, column + 1]) for row, column in where.nonzero().tolist()]
    pairs = [
        pair for example, mask in zip(batch, masks, strict=True) for pair in zip(example.completion, mask, strict=True)
    ]
    assert following == [token for token, kept in pairs if kept]
    assert targets(masked, CPU).tolist() == following
    assert [example.completion for example in masked] == [example.completion for example in batch]


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(DataError, match=r"the mask of a row does not fit(.|\n)*2 entries for 3 tokens"):
        Example((4, 5, 6, 7), 1, (True, False))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 7))
def test_batches_by_length_hold_every_row_once_longest_first(lengths: list[int], batch_size: int) -> None:
    batches = by_length(lengths, batch_size)
    flat = [row for batch in batches for row in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[row] for row in flat] == sorted(lengths, reverse=True)
    assert all(len(batch) == batch_size for batch in batches[:-1])


def test_a_row_without_a_prompt_token_is_refused() -> None:
    """Its first token would be predicted from padding, or from nothing."""
    with pytest.raises(DataError, match=r"no prompt token to predict from(.|\n)*allowed: at least one"):
        Example((4, 5), 0)
