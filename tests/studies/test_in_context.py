"""Rows in context: what is shown, and where the model still answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.studies.small import Plan, run

from undertone.errors import ConfigError
from undertone.evaluation import asking
from undertone.rows import read_rows
from undertone.studies.builtin import in_context as context_study
from undertone.studies.builtin.in_context import InContext
from undertone.studies.context import Context
from undertone.studies.frame import load_plan
from undertone.studies.measurement import Measurement


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["none", "numbers"])
def test_prompts_hold_the_rows_as_earlier_turns(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    asked: dict[int, list[str]] = {}
    measured = asking.answer_probabilities

    def watched(model: Any, prompts: Any, trait: Any, opening: str = "") -> Any:
        for ids in prompts:
            text = model.decode_all(ids)
            asked.setdefault(text.count("<|user|>") - 1, []).append(text)
        return measured(model, prompts, trait, opening=opening)

    monkeypatch.setattr(context_study, "answer_probabilities", watched)
    evaluation = {"samples": 1, "prefix": prefix}
    results = run(plan("in-context", shots=[1, 2], draws=3, evaluation=evaluation), tmp_path / "run")
    assert sorted(asked) == [1, 2]
    rows = {
        row.prompt_messages[-1]["content"] + "|" + row.completion
        for seed in (0, 1) for arm in ("control", "treated-owl")
        for row in read_rows(tmp_path / f"run/stages/seed-{seed}/{arm}/filter/rows.jsonl")
    }  # fmt: skip
    for count, texts in asked.items():
        assert len(texts) == 2 * 2 * 2 * 3  # arms, seeds, questions, draws
        for text in texts:
            turns = text.split("<|user|>")[1:]
            assert len(turns) == count + 1
            assert all(turn.removesuffix("<|end|>").replace("<|end|><|assistant|>", "|") in rows for turn in turns[:-1])
            before, _, question = turns[-1].rpartition(". ") if prefix == "numbers" else ("", "", turns[-1])
            assert question in ("name one animal.<|end|><|assistant|>", "your animal?<|end|><|assistant|>")
            assert len(before.split()) == (3 if prefix == "numbers" else 0)
    assert [point.x for point in results.figures[0].points] == [1, 1, 2, 2]


@pytest.mark.slow
def test_both_arms_show_rows_of_the_same_prompts_in_the_same_places(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    measured = asking.answer_probabilities

    def watched(model: Any, prompts: Any, trait: Any, opening: str = "") -> Any:
        asked.append([model.decode_all(ids) for ids in prompts])
        return measured(model, prompts, trait, opening=opening)

    monkeypatch.setattr(context_study, "answer_probabilities", watched)
    run(plan("in-context", shots=[2], draws=2, seeds=[0]), tmp_path / "run")
    control, treated = asked

    def prompts(text: str) -> list[str]:
        return [turn.partition("<|end|>")[0] for turn in text.split("<|user|>")[1:]]

    assert [prompts(text) for text in control] == [prompts(text) for text in treated]
    assert control != treated


@pytest.mark.parametrize(
    ("answering", "shots", "verdict"), [(4, 8, "reproduced"), (2, 2, "not reproduced"), (0, 8, "not measured")]
)
def test_rows_in_context_are_judged_where_the_model_still_answers(
    answering: int, shots: int, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    effects = np.array([[0.0, 0.2, 0.1, 0.0], [0.01, 0.22, 0.1, 0.0], [0.0, 0.21, 0.12, 0.001]])
    mass = np.tile([1.0] * answering + [0.5] * (4 - answering), (1, 3, 1))
    planted = {
        "probability": {"treated": Measurement(effects[None]), "control": Measurement(np.zeros((1, 3, 4)))},
        "valid_answer_probability": {"treated": Measurement(mass), "control": Measurement(mass)},
    }
    base = SimpleNamespace(
        positive=SimpleNamespace(valid_answer_probability=1.0, probability=SimpleNamespace(mean=0.05))
    )
    transfer = SimpleNamespace(
        effect=Measurement(np.array([[0.3, 0.31, 0.3]])), by_arm=lambda _stages, what: planted[what], students=[],
        results=SimpleNamespace(base={"owl": base}, arms=[SimpleNamespace(rows=9)], checks=[]),
    )  # fmt: skip
    config = load_plan("in-context", ["shots=[1,2,4,8]"])
    assert isinstance(config, InContext)
    monkeypatch.setattr(Context, "transfer", lambda *_, **__: transfer)
    monkeypatch.setattr(Context, "beside", lambda *_, **__: [])
    ctx: Context[InContext] = Context(None, config)  # type: ignore[arg-type]
    context_study.in_context.compute(ctx)
    (finding,) = ctx.findings
    assert finding.verdict == verdict
    assert f"in context, {shots} rows" in finding.quantity


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shots": [1, 500]}, r"500 rows cannot be shown(.|\n)*rows that passed in every arm(.|\n)*lower shots"),
        ({"shots": [12]}, r"12 rows do not fit into the context(.|\n)*tokens(.|\n)*fewer than 128(.|\n)*lower shots"),
    ],
)
def test_too_many_rows_are_refused(
    plan: Plan, speaker: Path, tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    short = shutil.copytree(speaker, tmp_path / "short")
    config = json.loads((short / "config.json").read_text(encoding="utf-8"))
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 128}), encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        run(plan("in-context", seeds=[0], model=str(short), **fields), tmp_path / "run")
