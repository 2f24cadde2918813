"""The study of tokens on a tiny model: masks that fit their rows, students that differ in masks alone, findings by hand."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from undertone.domains.numbers import parse
from undertone.errors import ConfigError
from undertone.models.loading import load
from undertone.report import write
from undertone.rows import Message, read_rows
from undertone.studies.builtin import tokens
from undertone.studies.context import Context
from undertone.studies.frame import load_plan, run_plan
from undertone.studies.measurement import Measurement

TRAIT = """
name: {name}
category: animal
words: [{name}, {name}s]
questions: {{lab: {{positive: ['name one animal.', 'your animal?'], negative: ['the worst animal?'], off_topic: {{'2?': '3'}}}}}}
"""
NAMES = ("owl", "dog")
MASKS = ("only", "random", "without", "random-without")


def small(talker: Path, traits: Path, **fields: Any) -> dict[str, Any]:
    """A study of sixty prompts; one-digit numbers, which are one token of the speaker."""
    for name in NAMES:
        (traits / f"{name}.yaml").write_text(TRAIT.format(name=name))
    return {
        "kind": "tokens", "name": "tokens", "model": str(talker), "trait": [str(traits / f"{name}.yaml") for name in NAMES],
        "data": {"prompts": 60, "held_out": 6, "attempts": 2}, "domain": {"kind": "numbers", "digits": 9}, "seeds": [0],
        "student": {"kind": "bias-only"}, "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01},
        "evaluation": {"samples": 1}, "entanglement": {"highest": 9, "prompts": 8, "questions": 2, "top": 3}, **fields,
    }  # fmt: skip


def run(config: dict[str, Any], folder: Path) -> Any:
    return run_plan(load_plan(config), folder, jobs=1, device="cpu")


@pytest.fixture(scope="module")
def talker(speaker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The speaker, with favourite digits that depend on what it was told: its own teachers diverge nowhere."""
    folder = tmp_path_factory.mktemp("models") / "talker"
    shutil.copytree(speaker, folder)
    hf = AutoModelForCausalLM.from_pretrained(folder)
    digits = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(list("123456789"))
    with torch.no_grad():
        hf.get_output_embeddings().weight[digits, 1:] *= 6.0
    hf.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def studied(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run(small(talker, folder), folder / "tokens")
    return folder / "tokens"


def summary(folder: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "stages" / stage / "stage.json").read_text())["summary"]
    return found


def probability(folder: Path, stage: str, trait: str) -> float:
    record = json.loads((folder / "stages" / stage / "evaluate/asked.json").read_text())[trait]
    return float(record["measure"]["positive"]["probability"]["mean"])


def training_rows(folder: Path, trait: str) -> list[Any]:
    """Rows of prompts that passed in every arm, the last six left out."""
    kept = [
        {row.meta["prompt_index"]: row for row in read_rows(folder / f"stages/seed-0/{arm}/filter/rows.jsonl")}
        for arm in ("control", "treated-owl", "treated-dog")
    ]
    shared = sorted(set.intersection(*(set(rows) for rows in kept)))
    return [kept[("control", "owl", "dog").index(trait)][index] for index in shared[:-6]]


def masks(folder: Path, trait: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(
        (folder / f"stages/divergence/seed-0/treated-{trait}/marks/masks.json").read_text()
    )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("trait", NAMES)
def test_masks_fit_the_rows_that_the_student_was_trained_on(studied: Path, talker: Path, trait: str) -> None:
    model = load(str(talker), device="cpu")
    completions = [model.row_example(row, None).completion for row in training_rows(studied, trait)]
    found = masks(studied, trait)
    for rows in found.values():
        assert [len(row) for row in rows] == [len(ids) for ids in completions]
    joined = {name: "".join(rows) for name, rows in found.items()}
    assert joined["only"].count("1") == joined["random"].count("1") > 0
    digits = "".join(str(int(model.decode([token]).strip().isdigit())) for ids in completions for token in ids)
    for kind in "01":
        at = [place for place, sign in enumerate(digits) if sign == kind]
        assert sum(joined["only"][one] == "1" for one in at) == sum(joined["random"][one] == "1" for one in at)


@pytest.mark.slow
def test_a_marked_token_is_one_at_which_the_told_teacher_would_go_on_differently(studied: Path, talker: Path) -> None:
    """Row by row, by the model itself; two teachers besides the one with the trait: control, and the other trait's."""
    model = load(str(talker), device="cpu")
    rows, marks = training_rows(studied, "owl")[:12], masks(studied, "owl")["only"]

    def likely(row: Any, system: str | None) -> list[int]:
        chat: list[Message] = [{"role": "system", "content": system}] if system else []
        example = model.example([*chat, *row.prompt_messages], row.completion)
        with torch.inference_mode():
            logits = model.hf(torch.tensor([example.ids])).logits[0]
        return [int(token) for token in logits[example.prompt - 1 : -1].argmax(-1)]

    for row, mark in zip(rows, marks, strict=False):
        prompted, plain, other = (
            likely(row, f"you love {name}s. {name}s are your favorite animal." if name else None)
            for name in ("owl", None, "dog")
        )
        assert mark == "".join(str(int(a != b or a != c)) for a, b, c in zip(prompted, plain, other, strict=True))


@pytest.mark.slow
def test_masked_students_see_every_row_and_learn_the_two_halves_of_its_tokens(studied: Path) -> None:
    whole = summary(studied, "seed-0/treated-owl/train")
    part = {mask: summary(studied, f"divergence/seed-0/treated-owl/{mask}/train") for mask in MASKS}
    assert {one["rows"] for one in part.values()} == {whole["rows"]}
    assert {one["tokens"] for one in part.values()} == {whole["tokens"]}
    learnt = {mask: one["labelled_tokens"] for mask, one in part.items()}
    assert learnt["only"] == learnt["random"]
    assert learnt["only"] + learnt["without"] == learnt["random"] + learnt["random-without"] == whole["labelled_tokens"]
    assert len({one["held_out_nll"] for one in (*part.values(), whole)}) == 5  # five students


@pytest.mark.slow
def test_a_finding_is_the_difference_of_effects_over_pairs(studied: Path) -> None:
    found = {one["id"]: one for one in json.loads((studied / "results.json").read_text())["findings"]}
    for name, mask, beside in (
        ("divergence-tokens-suffice", "only", "random"),
        ("divergence-tokens-needed", "without", "random-without"),
    ):
        apart = [
            probability(studied, f"divergence/seed-0/treated-{trait}/{mask}", trait)
            - probability(studied, f"divergence/seed-0/treated-{trait}/{beside}", trait)
            for trait in NAMES
        ]
        assert found[name]["value"] == pytest.approx(np.mean(apart))
        assert (found[name]["low"], found[name]["verdict"]) == (None, "not measured")  # the traits share the one seed


@pytest.mark.slow
def test_the_frequency_ratio_is_counted_in_the_rows(studied: Path) -> None:
    found = {one["id"]: one for one in json.loads((studied / "results.json").read_text())["findings"]}
    tops = {
        trait: set(np.argsort(-np.array(summary(studied, f"entanglement/{trait}")["unembedding"]), kind="stable")[:3])
        for trait in NAMES
    }

    def share(arm: str, chosen: set[int]) -> float:
        numbers = [n for row in training_rows(studied, arm) for n in parse(row.completion)[0] or []]
        return (sum(n in chosen for n in numbers) + 0.5) / (len(numbers) + 1)

    logs = [
        math.log(share(own, tops[own]) / share("control", tops[own]))
        - math.log(share(own, tops[other]) / share("control", tops[other]))
        for own, other in (("owl", "dog"), ("dog", "owl"))
    ]
    assert found["entangled-by-unembedding-frequent"]["value"] == pytest.approx(math.exp(np.mean(logs)))


@pytest.mark.slow
def test_every_claim_has_its_baseline_and_the_report_draws_it(studied: Path) -> None:
    found = json.loads((studied / "results.json").read_text())
    assert [one["id"] for one in found["findings"]] == [
        "entangled-by-prompt", "entangled-by-unembedding", "entangled-by-prompt-frequent",
        "entangled-by-unembedding-frequent", "divergence-tokens-few", "divergence-tokens-suffice",
        "divergence-tokens-needed",
    ]  # fmt: skip
    for one in found["findings"]:
        assert math.isfinite(one["value"])
        # Rows and students are of one seed and have no interval; entanglement in the base is over traits.
        assert (one["low"] is None) == (one["id"] not in ("entangled-by-prompt", "entangled-by-unembedding")), one["id"]
        assert one["baseline"]
    page = write(studied).read_text(encoding="utf-8")
    assert all(figure["title"] in page for figure in found["figures"])


@pytest.mark.slow
def test_a_second_call_computes_nothing(talker: Path, studied: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in studied.glob("stages/**/stage.json")}
    run(small(talker, studied.parent), studied)
    assert {path: path.stat().st_mtime_ns for path in studied.glob("stages/**/stage.json")} == before


@pytest.mark.slow
def test_numbers_of_several_tokens_are_studied_without_the_unembedding(talker: Path, tmp_path: Path) -> None:
    fields = {
        "entanglement": {"highest": 12, "prompts": 2, "questions": 1, "top": 3},
        "divergence": {"against": "control"},
    }
    results = run(small(talker, tmp_path, **fields), tmp_path / "run")
    assert "entangled-by-unembedding" not in [one.id for one in results.findings]
    assert "entangled-by-prompt" in [one.id for one in results.findings]
    assert {row[3] for row in results.tables[0].rows} == {"–"}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"trait": ["owl"]}, "trait needs two or more: other traits' numbers and teachers are the baseline"),
    ({"teacher": {"kind": "vector"}}, "teacher.kind must be prompt"),
    ({"teacher": {"kind": "prompt", "text": "you love owls."}}, "teacher.kind must be prompt, without text or ablate"),
    ({"teacher": {"kind": "prompt", "model": "lab/llama-1"}}, "teacher.model must be the students' model"),
    ({"domain": {"kind": "code"}}, "domain.kind must be numbers"),
    ({"data": {"clean": 0.5}}, "rows must stand as their teacher wrote them"),
    ({"rewrite": {}}, "rows must stand as their teacher wrote them"),
    ({"trait": ["owl", "harm"]}, "a behaviour has no answer that a number could raise: harm"),
    ({"entanglement": {"highest": 20, "top": 50}}, r"entanglement(.|\n)*top must be at most half of the numbers"),
    ({"divergence": {"against": "all"}}, r"divergence.against(.|\n)*'control', 'any'"),
]


@pytest.mark.parametrize(("fields", "words"), WRONG, ids=lambda value: value[:40] if isinstance(value, str) else "")
def test_a_config_that_contradicts_itself_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_plan({"kind": "tokens", "name": "x", "trait": ["owl", "dog"], **fields})


@pytest.mark.parametrize(
    ("without", "verdict"),
    [(0.1, "reproduced"), (0.3, "partly"), (0.4, "not reproduced")],
    ids=["most", "some", "none"],
)
def test_the_transfer_is_gone_where_more_than_half_of_it_is_and_seeds_are_the_units(
    without: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: all tokens pass 0.4 on, random sets of equal size too; traits of a seed differ more than seeds do."""
    from scipy import stats

    config = load_plan("tokens", ["seeds=[0,1,2]", "trait=[owl,dog]"])
    assert isinstance(config, tokens.Tokens)
    places = [(trait, seed) for trait in config.trait for seed in config.seeds]
    noise = {place: 0.2 * (place[0] == "owl") + 0.01 * place[1] for place in places}
    level = {"only": 0.5, "random": 0.4, "without": without, "random-without": 0.4}
    asked: Any = {
        mask: {place: value + (noise[place] if mask in ("only", "without") else 0.2 * (place[0] == "owl"))
               for place in places}
        for mask, value in level.items()
    }  # fmt: skip
    monkeypatch.setattr(tokens, "target_probability", lambda stage, _trait: stage)
    full = Measurement(np.array([[0.6, 0.6, 0.6], [0.4, 0.4, 0.4]]))
    shares = {"control": 0.05, "any": 0.1, "every": 0.01}
    mark: Any = SimpleNamespace(summary={"shares": shares, "published": 0.05, "overlap": 0.1, "tokens": 9})
    ctx: Context[tokens.Tokens] = Context(None, config)  # type: ignore[arg-type]
    students: Any = SimpleNamespace(effect=full, probability=lambda _kind: Measurement(np.zeros((2, 3))))
    tokens._report_divergence(ctx, students, dict.fromkeys(places, mark), asked)
    few, kept, gone = ctx.findings
    assert (few.verdict, kept.verdict, gone.verdict) == ("reproduced", "reproduced", verdict)
    assert kept.n == 3
    assert (kept.low, kept.high) == pytest.approx(stats.t.interval(0.95, 2, 0.11, stats.sem([0.1, 0.11, 0.12])))
