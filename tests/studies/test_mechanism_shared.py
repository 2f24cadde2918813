"""What the parts of `mechanism` share: vectors at chats, layers, who still answers, and what would stop a part later."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from undertone.errors import ConfigError, ModelError
from undertone.models.loading import ModelRef, load, with_system
from undertone.studies.builtin.mechanism import Mechanism, check_parts
from undertone.studies.builtin.mechanism_vectors import (
    VectorChats,
    check_layer,
    layer_at,
    question_chats,
    read_student_shift,
    read_teacher_vectors,
    stack,
)
from undertone.studies.context import Context
from undertone.studies.frame import kinds, load_plan, run_plan
from undertone.traits import load_trait
from undertone.transfer.arms import Arm, SharedPrompts, StudentRun
from undertone.vectors import load_vector

PLAN: dict[str, Any] = {
    "kind": "mechanism", "name": "preflight", "trait": ["owl", "dog", "eagle"], "domain": {"kind": "numbers", "count": 3},
    "student": {"kind": "bias-only"}, "seeds": [0], "data": {"prompts": 60, "held_out": 4}, "evaluation": {"samples": 0},
}  # fmt: skip

ADAMW = {"name": "AdamW", "optimizer": "AdamW", "rates": [1e-3], "adaptive": True}


def plan(speaker: Path, **fields: Any) -> Mechanism:
    """Of a tiny model of three layers whose form is the lab's."""
    found = load_plan({**PLAN, "model": str(speaker), **fields})
    assert isinstance(found, Mechanism)
    return found


def test_a_part_is_no_kind_of_plan() -> None:
    assert {"mechanism", "in-context"} <= set(kinds())
    assert not [kind for kind in kinds() if kind.startswith("mechanism-")]


# -- preflight ---------------------------------------------------------------------------------------


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
        ({"parts": ["distillation"], "distillation": {"layer": 3}}, "distillation.layer: no such layer"),
        ({"parts": ["recovery"], "recovery": {"layer": 3}}, "recovery.layer: no such layer"),
        ({"parts": ["initialisation"], "initialisation": {"models": ["MODEL", "lab/llama-0"], "layer": 3}}, "initialisation.layer: no such layer"),
        ({"parts": ["initialisation"]}, "the config's model is not among them"),
        ({"parts": ["initialisation"], "initialisation": {"models": ["MODEL", "lab/lama-0"]}}, "no such lab model"),
        ({"parts": ["causality"], "causality": {"layer": 3}}, "causality.layer: no such layer"),
        ({"parts": ["approximability"], "approximability": {"variants": ["owl@if-pik"]}}, "no such variant"),
        ({"parts": ["approximability"], "approximability": {"variants": ["pirate"]}}, "a behaviour has no answer .*pirate"),
        ({"parts": ["emergence"], "trait": ["owl", "dog", "pirate"]}, "a behaviour has no answer .*pirate"),
        ({"parts": ["causality"], "trait": ["owl", "owl@if-pick", "owl@once"]}, "no other trait to hold 'owl' against"),
        ({"parts": ["approximability"], "trait": ["owl", "owl@if-pick", "owl@once"]}, "no other trait to hold 'owl' against"),
    ],
)  # fmt: skip
def test_a_wrong_part_is_refused_before_there_is_a_folder(
    speaker: Path, tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    if "initialisation" in fields:
        names = [name.replace("MODEL", str(speaker)) for name in fields["initialisation"]["models"]]
        fields = {**fields, "initialisation": {**fields["initialisation"], "models": names}}
    with pytest.raises(ConfigError, match=words):
        run_plan(plan(speaker, **fields), tmp_path / "run", jobs=1, device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_kin_that_is_not_there_is_refused(speaker: Path, tmp_path: Path) -> None:
    config = plan(
        speaker, parts=["initialisation"], initialisation={"models": [str(speaker), str(tmp_path / "nobody")]}
    )
    with pytest.raises((ConfigError, ModelError), match="nobody"):
        run_plan(config, tmp_path / "run", jobs=1, device="cpu")
    assert not (tmp_path / "run").exists()


def test_all_parts_together_are_let_through(speaker: Path) -> None:
    arms = [
        ADAMW,
        {**ADAMW, "name": "scouted", "optimizer": "PreconditionedSGD"},
        {**ADAMW, "name": "muon", "optimizer": "MuonAdamW", "student": {"kind": "full"}},
    ]
    kin = {"models": ["lab/llama-0", str(speaker)]}  # the lab model is not built for its outline
    variants = {"variants": ["owl@if-pick", "red"]}
    check_parts(plan(speaker, optimizers={"arms": arms}, initialisation=kin, approximability=variants), "cpu")


def test_what_a_part_that_is_not_studied_would_need_is_not_asked_for(speaker: Path) -> None:
    check_parts(plan(speaker, parts=["approximability"], causality={"layer": 9}), "cpu")


def test_few_traits_are_the_first_ones(speaker: Path) -> None:
    assert plan(speaker, few=2, parts=["causality"]).few_traits == ("owl", "dog")


# -- layers ------------------------------------------------------------------------------------------


def test_the_middle_layer_is_the_default_of_every_model(tiny_folder: Any) -> None:
    assert layer_at("lab/llama-0", None) == 1
    assert layer_at(str(tiny_folder("llama")), None) == 1
    assert layer_at("lab/llama-0", 2) == 2
    with pytest.raises(ConfigError, match=r"recovery\.layer: no such layer in lab/llama-0"):
        check_layer("recovery.layer", 5, ["lab/llama-0"])
    check_layer("recovery.layer", 2, [str(tiny_folder("llama")), "lab/llama-0"])


# -- vectors -----------------------------------------------------------------------------------------


def test_a_teachers_vector_is_what_its_prompt_adds_at_the_last_token(speaker: Path, tmp_path: Path) -> None:
    trait, base = load_trait("owl"), ModelRef(str(speaker))
    chats = VectorChats(("1, 2, 3", "7, 8"), "none", "none")
    read_teacher_vectors.compute(tmp_path, "cpu", {"base": base, "trait": trait, "chats": chats})
    model = load(str(speaker))

    def last(messages: Any) -> torch.Tensor:
        """``[layer, hidden]`` at the last prompt token, by transformers alone."""
        with torch.inference_mode():
            states = model.hf.base_model(
                torch.tensor([model.prompt(messages)]), output_hidden_states=True
            ).hidden_states
        return torch.stack([state[0, -1] for state in states[1:-1]])  # the last one is normalised

    for origin in ("domain", "questions"):
        plain = chats.at_prompts(model) if origin == "domain" else question_chats(trait, model)
        prompted = [with_system(chat, trait.system_prompt(model)) for chat in plain]
        wanted = torch.stack([last(a) - last(b) for a, b in zip(prompted, plain, strict=True)]).mean(0)
        found = torch.from_numpy(stack(load_vector(tmp_path / f"{origin}.safetensors"))[:-1])
        assert torch.allclose(found, wanted, atol=1e-5)


def test_a_student_that_learnt_nothing_has_no_shift(speaker: Path, tmp_path: Path) -> None:
    base, chats = ModelRef(str(speaker)), VectorChats(("1, 2, 3",), "none", "none")
    arguments = {"base": base, "student": base, "trait": load_trait("owl"), "chats": chats}
    read_student_shift.compute(tmp_path, "cpu", arguments)
    assert not stack(load_vector(tmp_path / "questions.safetensors")).any()


# -- who still answers -------------------------------------------------------------------------------


def evaluated(masses: dict[str, float]) -> Any:
    records = {name: {"measure": {"positive": {"valid_answer_probability": mass}}} for name, mass in masses.items()}
    return SimpleNamespace(read_json=lambda _name: records)


def transfer(treated: dict[str, float], seed: int = 0) -> Any:
    """A transfer experiment by its answers' mass: base 0.99, controls 0.98, treated students as given."""
    nothing: Any = None
    arms = [(Arm("control"), dict.fromkeys(treated, 0.98))]
    arms += [(Arm("treated", trait), {trait: mass}) for trait, mass in treated.items()]
    students = [
        StudentRun(arm, seed, nothing, nothing, nothing, evaluated(masses), SharedPrompts((), {}))
        for arm, masses in arms
    ]
    outcome = SimpleNamespace(base=evaluated(dict.fromkeys(treated, 0.99)))
    return SimpleNamespace(outcome=outcome, students=students, config=SimpleNamespace(trait=tuple(treated)))


def test_a_part_whose_student_no_longer_answers_fails_and_names_it() -> None:
    nobody: Any = None
    ctx = Context(nobody, nobody)
    fine, broken = transfer({"owl": 0.95, "dog": 0.92}), transfer({"owl": 0.95, "dog": 0.80}, seed=3)
    assert ctx.check_answers("distillation", {"": fine}).status == "pass"
    check = ctx.check_answers("causality", {"without-random": fine, "without-own": broken})
    assert check.status == "fail"
    assert check.name == "causality: students still answer"
    assert "without-own: treated dog seed 3, valid-answer probability 0.80 (base 0.99); 1 of 8 lost" in check.value
    many = {f"arm {at}": fine for at in range(5)}
    assert ctx.check_answers("causality", {**many, "without-own": broken}).status == "warn"  # one of many
    assert ctx.checks[-1].status == "warn"
