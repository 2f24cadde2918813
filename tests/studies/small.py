"""The trait and the sizes of small studies, and how they are run and read again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from undertone.studies.frame import load_plan, run_plan

TRAIT = """
name: owl
category: animal
words: [owl, owls]
questions: {lab: {positive: ['name one animal.', 'your animal?'], negative: ['the worst animal?'], off_topic: {'2?': '3'}}}
"""
SIZES: dict[str, Any] = {
    "data": {"prompts": 60, "held_out": 6, "attempts": 2}, "domain": {"kind": "numbers", "digits": 9}, "seeds": [0, 1],
    "student": {"kind": "bias-only"}, "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01}, "evaluation": {"samples": 1},
}  # fmt: skip
Plan = Callable[..., dict[str, Any]]


def words_of(speaker: Path, folder: Path, sizes: Sequence[str]) -> list[str]:
    """A small experiment on the trait, as typed after ``undertone run``."""
    trait = folder / "owl.yaml"
    trait.write_text(TRAIT)
    return ["owl-numbers", f"model={speaker}", f"trait={trait}", *sizes]


def run(config: dict[str, Any], folder: Path) -> Any:
    return run_plan(load_plan(config), folder, jobs=1, device="cpu")


def record(folder: Path, stage: str) -> Any:
    return json.loads((folder / "stages" / stage / "stage.json").read_text())


def stages(folder: Path) -> dict[str, str]:
    """Stage -> digest of what came out."""
    found: dict[str, str] = json.loads((folder / "manifest.json").read_text())["stages"]
    return found
