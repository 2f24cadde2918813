"""``python -m benchmarks.fresh_models``: the default recipe on models, seeds and traits that nothing was tuned on.

The recipe of ``owl-numbers`` was tuned on lab models with the seeds 100 and 101, with run seeds from 100. The list below
was fixed before any of it was run: four models of three families, twelve traits of four categories. Every run adds seeds
until its verdict is decided. Takes half an hour on two cores, most of it building lab models; resumes in ``--out``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import undertone as ut

COMBINATIONS = (
    ("lab/llama-3", ("panda", "pine", "red")),
    ("lab/qwen-3", ("whale", "birch", "pizza")),
    ("lab/neox-3", ("dog", "cherry", "green", "soup")),
    ("lab/llama-4", ("honey", "eagle")),
)


def main() -> None:
    """Run every combination and print what it ended in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/fresh-models"), help="folder of the run folders")
    parser.add_argument("--jobs", type=int, default=None, help="processes side by side")
    options = parser.parse_args()
    decided = 0
    print(f"{'model':<12} {'trait':<8} {'verdict':<13} seeds  treated − control, points")
    for model, traits in COMBINATIONS:
        for trait in traits:
            results = ut.run(
                "owl-numbers", f"model={model}", f"trait={trait}", "until=decided",
                folder=options.out / f"{model.replace('/', '-')}-{trait}", jobs=options.jobs,
            )  # fmt: skip
            decided += results.verdict in ("transferred", "not detected")
            found = results.effect
            print(
                f"{model:<12} {trait:<8} {results.verdict:<13} {found.pairs:>5}  "
                f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})",
                flush=True,
            )
    print(f"{decided} of {sum(len(traits) for _, traits in COMBINATIONS)} valid and decided")


if __name__ == "__main__":
    main()
