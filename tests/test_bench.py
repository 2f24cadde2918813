"""The benchmark script itself runs, at tiny sizes, and both sides do the same work (no times are judged)."""

from __future__ import annotations

import importlib.util

import pytest


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="the bench extra (TRL) is not installed")
def test_our_fit_and_trl_reach_the_same_loss(tmp_path_factory: pytest.TempPathFactory) -> None:
    from benchmarks import work

    examples = work.examples_of(work.rows_of(640))
    ours = work.fit_ours(work.BIASES, examples)[1]
    theirs = work.fit_theirs(work.BIASES, examples)[1]
    # The orders of rows differ; on uniformly random lists 20 steps move the loss by less than a hundredth.
    assert ours == pytest.approx(theirs, abs=0.02)
