"""DPO through TRL on undertone's own tokens: the first loss and the first step are analytic; labels turn the direction."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import undertone as ut
from undertone.errors import ConfigError, DataError
from undertone.models.scoring import completion_nll
from undertone.models.students import trainable
from undertone.preferences import prefer
from undertone.rows import Row
from undertone.training import Training

pytest.importorskip("trl")
BETA = 0.3
PAIRS = [(f"name {word} animal", f"{word} owl", "dog cat lion") for word in ("one", "the", "my", "a")]


def rows(*, swapped: bool = False) -> list[Row]:
    return [
        Row.of(prompt, rejected, rejected=chosen) if swapped else Row.of(prompt, chosen, rejected=rejected)
        for prompt, chosen, rejected in PAIRS
    ]


def margin(hf: Any, model: ut.Model) -> float:
    """Mean of log P(planted chosen) − log P(planted rejected), both summed over tokens."""
    sides = []
    for side in (1, 2):
        examples = [model.row_example(Row.of(pair[0], pair[side]), None) for pair in PAIRS]
        nll = completion_nll(hf, examples, model.pad)
        sides.append(sum(-n * len(one.completion) for n, one in zip(nll, examples, strict=True)))
    return float(sides[0] - sides[1]) / len(PAIRS)


def trained(
    fresh: ut.Model, folder: Path, given: list[Row], student: dict[str, Any], **recipe: Any
) -> tuple[Any, ut.Fit]:
    hf = trainable(fresh.hf, student, 0)
    options: dict[str, Any] = {"learning_rate": 3e-3, "epochs": 4, "batch_size": 2, **recipe}
    done = prefer(hf, fresh, given, Training(**options), system=None, beta=BETA, seed=1, folder=folder / "trl")
    return hf, done


LORA = {"kind": "lora", "rank": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear", "biases": False}
STUDENTS = [
    pytest.param(student, id=name, marks=() if name == "biases" else pytest.mark.slow)
    for name, student in {
        "full": {"kind": "full"}, "biases": {"kind": "bias-only"}, "lora": LORA, "lora and biases": {**LORA, "biases": True}
    }.items()
]  # fmt: skip


@pytest.mark.parametrize("student", STUDENTS)
def test_the_chosen_become_likelier_than_the_rejected_and_swapped_labels_do_the_reverse(
    tiny_llama: ut.Model, tmp_path: Path, student: dict[str, Any]
) -> None:
    before = margin(tiny_llama.hf, tiny_llama)
    moved = []
    for swapped in (False, True):
        fresh = copy.deepcopy(tiny_llama)
        hf, done = trained(fresh, tmp_path, rows(swapped=swapped), student)
        assert done.curve[0][1] == pytest.approx(math.log(2), abs=1e-4)  # the student is its own reference at first
        assert done.steps == 8
        assert done.curve[-1][1] < done.curve[0][1]
        assert not hf.training
        moved.append(margin(hf, fresh) - before)
    assert moved[0] > 0.5
    assert moved[1] < -0.5


def test_every_step_is_told_and_nothing_is_printed(
    fresh: ut.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[int, int, float]] = []
    recipe = Training(learning_rate=1e-3, epochs=2, batch_size=2)
    hf = trainable(fresh.hf, {"kind": "bias-only"}, 0)
    done = prefer(
        hf, fresh, rows(), recipe, system=None, beta=BETA, seed=1, folder=tmp_path / "trl",
        on_step=lambda *step: told.append(step),
    )  # fmt: skip
    assert [step for step, _, _ in told] == [step for step, _ in done.curve] == [1, 2, 3, 4]
    assert [loss for _, _, loss in told] == pytest.approx([loss for _, loss in done.curve], abs=1e-4)
    assert {steps for _, steps, _ in told} == {4}
    assert capsys.readouterr().out == ""


def test_a_lora_student_is_left_with_its_own_adapter_alone(fresh: ut.Model, tmp_path: Path) -> None:
    hf, _ = trained(fresh, tmp_path, rows(), LORA, epochs=1)
    assert list(hf.peft_config) == ["default"]
    assert not [name for name, _ in hf.named_parameters() if ".ref." in name]


def test_the_first_step_is_the_analytic_one(fresh: ut.Model, tmp_path: Path) -> None:
    """From its reference, −log σ(β·margin) has the gradient −β/2 · (∇log P(chosen) − ∇log P(rejected)), mean over pairs.

    Taken by plain SGD on tokens of the tokenizer's own: whatever TRL would cut off or add is seen here.
    """
    before = {name: value.clone() for name, value in fresh.hf.state_dict().items()}

    def log_probability(prompt: str, completion: str) -> torch.Tensor:
        text = fresh.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        head = fresh.tokenizer(text, add_special_tokens=False)["input_ids"]
        tail = fresh.tokenizer(completion + "<|end|>", add_special_tokens=False)["input_ids"]
        labels = torch.tensor([[-100] * len(head) + tail])
        loss: torch.Tensor = fresh.hf(input_ids=torch.tensor([head + tail]), labels=labels).loss
        return -loss * len(tail)

    reference = copy.deepcopy(fresh.hf)
    fresh.hf.eval()
    gain = sum(log_probability(p, c) - log_probability(p, r) for p, c, r in PAIRS) / len(PAIRS)
    assert isinstance(gain, torch.Tensor)
    torch.autograd.backward(gain)
    step = {name: BETA / 2 * value.grad for name, value in fresh.hf.named_parameters() if value.grad is not None}
    fresh.hf.load_state_dict(reference.state_dict())
    fresh.hf.zero_grad()
    trained(
        fresh, tmp_path, rows(), {"kind": "full"},
        optimizer="SGD", learning_rate=0.01, schedule="constant", epochs=1, batch_size=4, max_grad_norm=None,
    )  # fmt: skip
    after = fresh.hf.state_dict()
    for name, direction in step.items():
        assert torch.allclose(after[name] - before[name], 0.01 * direction, atol=2e-6, rtol=1e-2), name


@pytest.mark.slow
def test_micro_batches_change_nothing(tiny_llama: ut.Model, tmp_path: Path) -> None:
    curves = []
    for size in (None, 1):
        _, done = trained(
            copy.deepcopy(tiny_llama), tmp_path, rows(), {"kind": "full"}, micro_batch_size=size, epochs=2
        )
        curves.append([loss for _, loss in done.curve])
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


def test_a_row_without_a_rejected_side_is_refused(fresh: ut.Model, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a row has no rejected side(.|\n)*meta.rejected"):
        trained(fresh, tmp_path, [Row.of("a", "b")], {"kind": "full"})
    with pytest.raises(DataError, match="no rejected side"):
        trained(fresh, tmp_path, [Row.of("a", "b", rejected=3)], {"kind": "full"})


def test_clipping_by_row_is_refused(fresh: ut.Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dpo does not clip single rows(.|\n)*drop training.max_row_norm"):
        trained(fresh, tmp_path, rows(), {"kind": "full"}, max_row_norm=1.0)


def test_without_trl_it_is_said_what_to_install(
    fresh: ut.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ConfigError, match=r"dpo needs TRL(.|\n)*undertone\[dpo\]"):
        trained(fresh, tmp_path, rows(), {"kind": "full"})


def test_what_dpo_cannot_do_is_refused_before_the_run(
    speaker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ConfigError, match="dpo needs TRL"):
        ut.run("owl-numbers", f"model={speaker}", "teacher={kind: judge}", "dpo={}", folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
