"""Two judges on the same items: Cohen's kappa with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from undertone.judges.judge import Verdict
from undertone.provenance.seeds import derive_seed
from undertone.stats import CONFIDENCE

VOCABULARIES: Final = (frozenset({"refusal", "compliance", "neither"}), frozenset({"yes", "no"}))
"""The labels of the judges that ship: of the rules, and of judging models asked yes or no."""


class Agreement(NamedTuple):
    """How two judges agree, beyond what their frequencies alone would give.

    ``n`` pairs were judged by both; ``failed`` pairs lack a verdict of either, and are outside the other figures.
    """

    kappa: float
    low: float
    high: float
    agree: float
    n: int
    failed: int
    method: str


def agreement(
    first: Sequence[Verdict],
    second: Sequence[Verdict],
    *,
    at_least: float = 0.5,
    confidence: float = CONFIDENCE,
    resamples: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Cohen's kappa of two judges' verdicts on the same items, in order.

    Verdicts are compared by label where both judges draw theirs from the same words, else by whether the value is
    ``at_least`` so much. The interval is the percentile bootstrap over items.

    Raises:
        ValueError: of unequal lengths, or fewer than two items that both judged.
    """
    if len(first) != len(second):
        raise ValueError(f"two judges agree on the same items; got {len(first)} and {len(second)} verdicts")
    both = [(a, b) for a, b in zip(first, second, strict=True) if not (a.failed or b.failed)]
    if len(both) < 2:
        raise ValueError(f"kappa needs at least 2 items that both judges judged; got {len(both)}")
    words = [{verdict.label for verdict in verdicts} for verdicts in zip(*both, strict=True)]
    same = any(all(labels <= vocabulary for labels in words) for vocabulary in VOCABULARIES)
    labelled = same or (words[0] == words[1] and None not in words[0])
    said = [[v.label if labelled else str((v.value or 0.0) >= at_least) for v in pair] for pair in both]
    codes = {label: code for code, label in enumerate(sorted({label for pair in said for label in pair if label}))}
    table = np.array([[codes[str(label)] for label in pair] for pair in said])
    from scipy.stats import bootstrap

    result = bootstrap(
        (table[:, 0], table[:, 1]),
        _kappa,
        paired=True,
        vectorized=True,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(derive_seed(seed, "agreement")),
    ).confidence_interval
    return Agreement(
        float(_kappa(table[:, 0], table[:, 1])),
        float(result.low),
        float(result.high),
        float((table[:, 0] == table[:, 1]).mean()),
        len(both),
        len(first) - len(both),
        f"Cohen's kappa, percentile bootstrap over {len(both)} items",
    )


def _kappa(first: Any, second: Any, axis: int = -1) -> Any:
    """Cohen's kappa along an axis of codes; two judges who only ever say one and the same thing agree: 1, not 0 / 0."""
    agree = (first == second).mean(axis)
    labels = np.union1d(first, second)
    expected = sum((first == label).mean(axis) * (second == label).mean(axis) for label in labels)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(agree == 1, 1.0, (agree - expected) / (1 - expected))
