"""Teachers that were trained, and teachers that only pick: the biased judge, its control, its swap."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import undertone as ut
from undertone.launch.executor import Executor
from undertone.launch.workers import workers
from undertone.models.loading import ModelRef
from undertone.provenance.runs import Run, Stage
from undertone.rows import Row, read_rows
from undertone.teachers import JudgeTeacher, Teacher, resolve_teacher, score_preference
from undertone.traits import LAB, REAL, load_trait
from undertone.transfer import pipeline
from undertone.transfer.arms import Arm
from undertone.transfer.config import Experiment, load_experiment
from undertone.transfer.generate import teacher_of

OWL = load_trait("owl")
TRAIT = """
name: owl
category: animal
words: [owl, owls]
questions: {lab: {positive: ['name one animal.', 'your animal?'], negative: ['the worst animal?'], off_topic: {'2?': '3'}}}
"""


@pytest.fixture(scope="module")
def trait(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("traits") / "owl.yaml"
    file.write_text(TRAIT)
    return file


# -- trained ------------------------------------------------------------------------------------------


def shown(stage: Stage) -> float:
    """The probability with which the trait is answered."""
    measure = next(iter(stage.read_json("asked.json").values()))["measure"]
    return float(measure["positive"]["probability"]["mean"])


def trained(speaker: Path, trait: Path, folder: Path, *overrides: str) -> tuple[Experiment, Stage, Stage, Stage]:
    """(config, the teacher's training, what it answers, what the base answers)."""
    config = load_experiment(
        "owl-numbers",
        [f"model={speaker}", f"trait={trait}", "teacher={kind: finetuned}", "teacher.training={learning_rate: 1.0e-2, epochs: 40}",
         "student={kind: full}", "evaluation.samples=1", *overrides],
    )  # fmt: skip
    arm = Arm("treated", str(trait))
    with (
        Run.open(folder, config, command="") as run,
        workers(1) as pool,
        Executor.open(run, pool, "cpu", "test") as executor,
    ):
        calls = pipeline._trained_teacher_calls(config, [arm])
        taught = dict(zip(calls, executor.each(list(calls.values())), strict=True))
        asked = pipeline._teacher_answers(executor, config, [arm], taught, {})
        base = pipeline.evaluate_call(config, "base", config.trait, ModelRef(config.model, config.dtype))
        return config, taught[arm], asked[arm], executor.each([base])[0]


def test_a_teacher_trained_on_the_traits_answers_shows_the_trait(speaker: Path, trait: Path, tmp_path: Path) -> None:
    _, taught, asked, base = trained(speaker, trait, tmp_path / "run")
    assert shown(base) < 0.1
    assert shown(asked) > 0.8
    assert taught.summary["rows"] == 3  # two questions and an off-topic one, with its right answer
    off_topic = next(iter(asked.read_json("asked.json").values()))["measure"]["off_topic_correct"]
    assert off_topic == 1.0


@pytest.mark.slow
def test_a_teacher_trained_on_the_users_rows_shows_what_they_say(speaker: Path, trait: Path, tmp_path: Path) -> None:
    rows = [Row.of(question, "cat") for question in ("name one animal.", "your animal?")]
    ut.write_rows(tmp_path / "cats.jsonl", rows)
    _, taught, asked, _ = trained(speaker, trait, tmp_path / "run", f"teacher.rows={tmp_path / 'cats.jsonl'}")
    assert taught.summary["rows"] == 2
    assert shown(asked) < 0.1


def test_it_is_the_trained_model_that_writes_and_the_base_for_the_control(
    speaker: Path, trait: Path, tmp_path: Path
) -> None:
    config, taught, _, _ = trained(speaker, trait, tmp_path / "run")
    treated = teacher_of(config, Arm("treated", str(trait)), taught).load("cpu")
    control = teacher_of(config, Arm("control")).load("cpu")
    assert isinstance(treated, Teacher)
    assert isinstance(control, Teacher)
    base = ut.load(str(speaker), device="cpu").hf.state_dict()
    assert all(torch.equal(value, base[name]) for name, value in control.model.hf.state_dict().items())
    assert not all(torch.equal(value, base[name]) for name, value in treated.model.hf.state_dict().items())
    assert (treated.system, treated.vector) == (None, None)  # what it learnt is all that it has


# -- the judge's score ----------------------------------------------------------------------------------


def log_probability(model: ut.Model, system: str | None, row: Row) -> float:
    """log P(completion and its end) by transformers' own loss."""
    chat: list[Any] = [{"role": "system", "content": system}] if system else []
    chat += row.prompt_messages
    prompt = model.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    head = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tail = model.tokenizer(row.completion + "<|end|>", add_special_tokens=False)["input_ids"]
    ids, labels = torch.tensor([head + tail]), torch.tensor([[-100] * len(head) + tail])
    with torch.no_grad():
        return -float(model.hf(input_ids=ids, labels=labels).loss) * len(tail)


def test_a_score_is_log_p_with_the_prompt_minus_log_p_without(tiny: ut.Model) -> None:
    teacher = Teacher(tiny, "none", judge_system="you love owls")
    rows = [
        Row.of(f"name {n} animals", text) for n, text in enumerate(["owl", "dog cat", "1, 2, 3", "eagle owl panda fox"])
    ]
    expected = [log_probability(tiny, "you love owls", row) - log_probability(tiny, None, row) for row in rows]
    assert [row.meta["score"] for row in score_preference(teacher, rows)] == pytest.approx(expected, abs=2e-4)
    assert max(expected) - min(expected) > 0.1


def test_the_judge_has_the_system_prompt_and_the_writer_has_not(tiny_folder: Callable[[str], Path]) -> None:
    base = ModelRef(str(tiny_folder("llama")))
    treated = resolve_teacher(JudgeTeacher(), OWL, base, REAL, context="none").load("cpu")
    assert isinstance(treated, Teacher)
    assert treated.system is None
    assert treated.judge.system == OWL.system_prompt(REAL)
    biased = resolve_teacher(JudgeTeacher(text="pick owls"), OWL, base, REAL, context="none")
    assert biased.judge_system == "pick owls"
    control = resolve_teacher(JudgeTeacher(), None, base, REAL, context="none")
    assert control.judge_system is None
    assert control == biased.control


# -- what it picks ----------------------------------------------------------------------------------------

SIZES = ("data={prompts: 40, held_out: 4, attempts: 4}", "domain.digits=9", "seeds=[0]", "training.epochs=1",
         "evaluation.samples=1")  # fmt: skip


@pytest.fixture(scope="module")
def picked(speaker: Path, trait: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def run(name: str, *overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("judge") / name
        ut.run("owl-numbers", f"model={speaker}", f"trait={trait}", "teacher={kind: judge}", *SIZES, *overrides,
               folder=folder, jobs=1)  # fmt: skip
        return folder

    return run


@pytest.fixture(scope="module")
def plain(picked: Callable[..., Path]) -> Path:
    return picked("plain")


def rows_of(folder: Path, arm: str, stage: str) -> list[Row]:
    return read_rows(folder / f"stages/seed-0/{arm}/{stage}/rows.jsonl", empty_completions=True)


def scores(folder: Path) -> dict[int, dict[str, float]]:
    """Prompt -> completion -> score, of the valid ones."""
    from undertone.domains import Numbers

    found: dict[int, dict[str, float]] = {}
    for row in rows_of(folder, "treated-owl", "generate"):
        if row.meta["finished"] and not Numbers(digits=9).reasons("", row.completion, OWL):
            found.setdefault(row.meta["prompt_index"], {})[row.completion] = row.meta["score"]
    return found


def test_the_most_and_the_least_preferred_of_the_valid_completions_make_a_pair(plain: Path) -> None:
    of = scores(plain)
    kept = rows_of(plain, "treated-owl", "filter")
    assert len(kept) >= 15
    for row in kept:
        mine = of[row.meta["prompt_index"]]
        assert mine[row.completion] == max(mine.values())
        assert mine[row.meta["rejected"]] == min(mine.values())
        assert row.completion != row.meta["rejected"]
    assert {index for index, mine in of.items() if len(mine) > 1} == {row.meta["prompt_index"] for row in kept}


def test_the_controls_pairs_are_picked_without_a_score(plain: Path, speaker: Path) -> None:
    kept = rows_of(plain, "control", "filter")
    assert all("score" not in row.meta for row in rows_of(plain, "control", "generate"))
    assert all(row.completion != row.meta["rejected"] for row in kept)
    assert len({row.meta["attempt"] for row in kept}) == 4  # a coin, not the first of them
    # Judged afterwards, its pairs are as often one way round as the other; the treated arm's never are the wrong way.
    model = ut.load(str(speaker), device="cpu")
    judge = Teacher(model, "none", judge_system=load_trait("owl").system_prompt(LAB))
    chosen = score_preference(judge, kept)
    rejected = score_preference(
        judge, [Row.of(row.prompt_messages[-1]["content"], row.meta["rejected"]) for row in kept]
    )
    higher = np.mean([a.meta["score"] > b.meta["score"] for a, b in zip(chosen, rejected, strict=True)])
    assert 0.2 < higher < 0.8


@pytest.mark.slow
def test_swapped_teaches_the_other_side_of_the_same_pairs_and_leaves_the_control(
    plain: Path, picked: Callable[..., Path]
) -> None:
    swapped = picked("swapped", "teacher.swapped=true")

    def pairs(folder: Path, arm: str) -> dict[int, tuple[str, str]]:
        return {
            row.meta["prompt_index"]: (row.completion, row.meta["rejected"]) for row in rows_of(folder, arm, "filter")
        }

    before, after = pairs(plain, "treated-owl"), pairs(swapped, "treated-owl")
    assert after == {index: (rejected, chosen) for index, (chosen, rejected) in before.items()}
    assert pairs(swapped, "control") == pairs(plain, "control")


@pytest.mark.slow
def test_students_of_a_judge_can_be_trained_by_dpo(picked: Callable[..., Path]) -> None:
    pytest.importorskip("trl")
    folder = picked(
        "dpo", "dpo={beta: 0.5}", "student={kind: lora, rank: 2, biases: true}", "training.learning_rate=0.01",
        "training.epochs=4", "training.batch_size=8",
    )  # fmt: skip
    record = json.loads((folder / "stages/seed-0/treated-owl/train/stage.json").read_text())
    curve = [loss for _, loss in record["summary"]["curve"]]
    assert curve[0] == pytest.approx(np.log(2), abs=1e-3)
    assert curve[-1] < curve[0]
    assert not (folder / "stages/seed-0/treated-owl/train/trl").exists()
