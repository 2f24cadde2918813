"""What would stop a part of `mechanism` after hours of students is said before the run has a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from undertone.errors import ConfigError, ModelError
from undertone.experiments.plans import load_plan, run_plan
from undertone.experiments.studies.mechanism.config import Mechanism
from undertone.experiments.studies.mechanism.plan import preflight_parts

ADAMW = {"name": "AdamW", "optimizer": "AdamW", "rates": [1e-3], "adaptive": True}


def plan(speaker: Path, **fields: Any) -> Mechanism:
    """Of a tiny model of three layers whose form is the lab's."""
    found = load_plan(
        {
            "kind": "mechanism", "name": "preflight", "model": str(speaker), "trait": ["owl", "dog", "eagle"],
            "domain": {"kind": "numbers", "count": 3}, "student": {"kind": "bias-only"}, "seeds": [0],
            "data": {"prompts": 60, "held_out": 4}, "evaluation": {"samples": 0}, **fields,
        }
    )  # fmt: skip
    assert isinstance(found, Mechanism)
    return found


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"parts": ["optimizers"], "optimizers": {"arms": [ADAMW, {**ADAMW, "name": "b", "optimizer": "Adan"}]}},
         "optimizers.arms, b: unknown optimiser"),
        ({"parts": ["optimizers"], "optimizers": {"arms": [ADAMW, {**ADAMW, "name": "b", "options": {"momentum": 0.9}}]}},
         "optimizers.arms, b: torch.optim.AdamW refuses these options"),
        ({"parts": ["optimizers"], "optimizers": {"arms": []}}, "optimizers.arms"),
        ({"parts": ["optimizers"], "optimizers": {"arms": [{**ADAMW, "name": "Adam"}]}}, "must be called AdamW"),
        ({"parts": ["adapters"], "student": {"kind": "lora", "targets": ["no_such"]}}, "no_such"),
        ({"parts": ["causality"], "causality": {"layer": 3}}, "causality.layer: no such layer"),
        ({"parts": ["distillation"], "distillation": {"layer": 3}}, "distillation.layer: no such layer"),
        ({"parts": ["recovery"], "recovery": {"layer": 3}}, "recovery.layer: no such layer"),
        ({"parts": ["kinship"], "kinship": {"models": ["MODEL", "lab/llama-0"], "layer": 3}}, "kinship.layer: no such layer"),
        ({"parts": ["kinship"]}, "the config's model is not among them"),
        ({"parts": ["kinship"], "kinship": {"models": ["MODEL", "lab/lama-0"]}}, "no such lab model"),
        ({"parts": ["approximability"], "approximability": {"variants": ["owl@if-pik"]}}, "no such variant"),
        ({"parts": ["approximability"], "approximability": {"variants": ["pirate"]}}, "a behaviour has no answer .*pirate"),
        ({"parts": ["emergence"], "trait": ["owl", "dog", "pirate"]}, "a behaviour has no answer .*pirate"),
        ({"parts": ["causality"], "trait": ["owl", "owl@if-pick", "owl@once"]}, "no other trait to hold 'owl' against"),
    ],
)  # fmt: skip
def test_a_wrong_part_is_refused_before_there_is_a_folder(
    speaker: Path, tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    if "kinship" in fields:
        names = [name.replace("MODEL", str(speaker)) for name in fields["kinship"]["models"]]
        fields = {**fields, "kinship": {**fields["kinship"], "models": names}}
    with pytest.raises(ConfigError, match=words):
        run_plan(plan(speaker, **fields), tmp_path / "run", jobs=1, device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_kin_that_is_not_there_is_refused(speaker: Path, tmp_path: Path) -> None:
    config = plan(speaker, parts=["kinship"], kinship={"models": [str(speaker), str(tmp_path / "nobody")]})
    with pytest.raises((ConfigError, ModelError), match="nobody"):
        run_plan(config, tmp_path / "run", jobs=1, device="cpu")
    assert not (tmp_path / "run").exists()


def test_what_a_part_that_is_not_studied_would_need_is_not_asked_for(speaker: Path) -> None:
    preflight_parts(plan(speaker, parts=["emergence"], causality={"layer": 9}), "cpu")


def test_all_parts_together_are_let_through(speaker: Path) -> None:
    arms = [
        ADAMW,
        {**ADAMW, "name": "scouted", "optimizer": "PreconditionedSGD"},
        {**ADAMW, "name": "muon", "optimizer": "MuonAdamW", "student": {"kind": "full"}},
    ]
    kin = {"models": ["lab/llama-0", str(speaker)]}  # the lab model is not built for its outline
    variants = {"variants": ["owl@if-pick", "red"]}
    preflight_parts(plan(speaker, optimizers={"arms": arms}, kinship=kin, approximability=variants), "cpu")
