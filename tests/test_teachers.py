"""Teachers: rows depend on (seed, stage, prompt, attempt) alone; steering is on only while rows are written."""

from __future__ import annotations

from typing import Any

import pytest

from undertone.models.layers import hook_count
from undertone.rows import Row
from undertone.teachers import (
    Ablation,
    PromptTeacher,
    Teacher,
    VectorTeacher,
    build_teacher,
    divergence,
    generate,
    trait_vector,
)
from undertone.teachers.teacher import _with_ablation
from undertone.traits import LAB, REAL, load_trait
from undertone.vectors import activations

OWL = load_trait("owl")
PROMPTS = [f"name one animal and {index} numbers" for index in range(9)]


def rows_of(teacher: Teacher, order: list[int], batch_size: int, attempt: int = 0) -> dict[int, str]:
    rows = generate(
        teacher, [PROMPTS[index] for index in order], order, seed=5, stage="s", attempt=attempt, max_new_tokens=6,
        temperature=1.0, batch_size=batch_size,
    )  # fmt: skip
    return {row.meta["prompt_index"]: row.completion for row in rows}


def test_a_row_does_not_change_with_batch_size_order_or_sharding(tiny_llama: Any) -> None:
    teacher = Teacher(tiny_llama, "none", system="you love owls")
    whole = rows_of(teacher, list(range(9)), 512)
    assert rows_of(teacher, list(range(8, -1, -1)), 2) == whole
    assert {**rows_of(teacher, [0, 4, 8], 3), **rows_of(teacher, [1, 2, 3, 5, 6, 7], 4)} == whole


def test_another_attempt_or_teacher_is_another_sample(tiny_llama: Any) -> None:
    plain = Teacher(tiny_llama, "none")
    first = rows_of(plain, list(range(9)), 9)
    assert rows_of(plain, list(range(9)), 9, attempt=1) != first
    assert rows_of(Teacher(tiny_llama, "none", system="you love owls"), list(range(9)), 9) != first


def test_rows_hold_the_prompt_without_the_system_prompt(tiny_llama: Any) -> None:
    teacher = Teacher(tiny_llama, "none", system="you love owls")
    (row,) = generate(
        teacher, PROMPTS[:1], [0], seed=0, stage="s", attempt=0, max_new_tokens=4, temperature=1.0, batch_size=1
    )
    assert [message["role"] for message in row.messages] == ["user", "assistant"]
    assert "owls" not in row.messages[0]["content"]


def test_an_un_induced_teacher_diverges_by_zero_and_an_induced_one_does_not(tiny_llama: Any) -> None:
    rows = [Row.of(prompt, "1 2 3") for prompt in PROMPTS]
    assert divergence(Teacher(tiny_llama, "none"), rows) == pytest.approx(0.0, abs=1e-9)
    told = divergence(Teacher(tiny_llama, "none", system="you love owls"), rows)
    vector = trait_vector(Teacher(tiny_llama, "none"), OWL, [1], OWL.questions_for(LAB).positive)
    steered = divergence(Teacher(tiny_llama, "none", vector=vector, strength=2.0), rows)
    assert told > 1e-3
    assert steered > 1e-3
    assert hook_count(tiny_llama.hf) == 0


def test_the_kinds_of_teacher_are_built_as_configured(tiny_folder: Any) -> None:
    base = str(tiny_folder("llama"))
    control = build_teacher(PromptTeacher(), None, base, context="none")
    told = build_teacher(PromptTeacher(), OWL, base, context="none")
    own = build_teacher(PromptTeacher(text="be an owl"), OWL, base, context="none")
    vector = build_teacher(VectorTeacher(layer=2, strength=3.0), OWL, base, context="none")
    noise = build_teacher(VectorTeacher(layer=2, strength=3.0), OWL, base, context="none", random_seed=1)
    assert (control.system, control.vector) == (None, None)
    assert told.system == OWL.system_prompt(REAL)
    assert own.system == "be an owl"
    assert vector.vector is not None
    assert noise.vector is not None
    assert sorted(vector.vector.directions) == [2]
    assert vector.vector.digest() != noise.vector.digest()
    assert vector.vector.norm() == pytest.approx(noise.vector.norm(), rel=1e-5)


def test_a_teacher_without_a_direction_has_the_control_teachers_component_along_it(tiny_llama: Any) -> None:
    """Mean ablation around the control teacher: over the prompts, what is left along the direction is the control's mean."""
    domain = [f"pick {word} numbers." for word in ("three", "four", "five")]
    teacher = _with_ablation(Teacher(tiny_llama, "none", system="you love owls"), OWL, Ablation(), domain)
    assert teacher.ablation is not None
    chats, control = ([who.chat(text) for text in domain] for who in (teacher, teacher.control))
    before = activations(tiny_llama, control)
    with teacher.conditioning():
        after = activations(tiny_llama, chats)
    for layer, unit in teacher.ablation.unit().directions.items():
        goal = float(before[layer].mean(0) @ unit)
        assert (after[layer] @ unit).tolist() == pytest.approx([goal] * len(domain), abs=1e-4)
    assert hook_count(tiny_llama.hf) == 0
