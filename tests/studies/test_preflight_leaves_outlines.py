"""A preflight looks at the outline that all of a process share, and must leave it as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from undertone.models.loading import shared_outline
from undertone.studies.builtin import mechanism_optimizers
from undertone.studies.builtin.mechanism import Mechanism, check_parts
from undertone.studies.frame import load_plan
from undertone.transfer.config import Experiment, presets
from undertone.transfer.pipeline import preflight

STUDENTS = ("student={kind: lora}", "student={kind: bias-only}", "student={kind: full}")
PRESETS = [name for name in presets() if load_plan(name).kind in ("mechanism", "transfer")]


def state(model: str) -> list[tuple[str, bool]]:
    """Names of the shared outline's weights, and whether they are trained: an adapter renames them."""
    return [(name, weight.requires_grad) for name, weight in shared_outline(model).hf.named_parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_outline_that_all_share_is_not_trained_on(speaker: Path, preset: str, student: str) -> None:
    before = state(str(speaker))
    plan = load_plan(preset, [f"model={speaker}", student])
    if isinstance(plan, Mechanism):
        initialisation = plan.initialisation.model_copy(update={"models": (str(speaker),), "between": None})
        check_parts(plan.model_copy(update={"initialisation": initialisation}), "cpu")
    else:
        assert isinstance(plan, Experiment)
        preflight(plan, "cpu")
    assert state(str(speaker)) == before


def test_the_optimizers_part_looks_at_an_outline_of_its_own(speaker: Path) -> None:
    before = state(str(speaker))
    plan = load_plan("mechanism", [f"model={speaker}", "student={kind: lora}"])
    assert isinstance(plan, Mechanism)
    mechanism_optimizers.preflight(plan)
    assert state(str(speaker)) == before
