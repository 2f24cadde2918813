"""Sweeps, chains, rows in context, harm by dose: verdicts by hand, planted decays, and tiny runs of every kind."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from undertone.errors import ConfigError, DataError, UndertoneError
from undertone.evaluation import asking
from undertone.experiments import pipeline
from undertone.experiments.learning import _mixed
from undertone.experiments.plans import load_plan, run_plan
from undertone.experiments.studies.chain import plan as chain_plan
from undertone.experiments.studies.chain.plan import Chain, half_life
from undertone.experiments.studies.harm import stages as harm_stages
from undertone.experiments.studies.harm.config import HarmDose
from undertone.experiments.studies.harm.findings import _beliefs, _shape
from undertone.experiments.studies.harm.requests import goals, requests_of
from undertone.experiments.studies.incontext import plan as context_plan
from undertone.experiments.studies.sweep.config import Expectation, Sweep
from undertone.experiments.studies.sweep.plan import judged
from undertone.experiments.study import interval, per_seed, units, verdict_of
from undertone.judges import Verdict
from undertone.lab import world
from undertone.mechanism.dose import fit_curves
from undertone.rows import Row, read_rows
from undertone.vectors import load_vector

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


@pytest.fixture(scope="module")
def plan(speaker: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The config of a small study on the speaker, as a file would hold it."""
    trait = tmp_path_factory.mktemp("traits") / "owl.yaml"
    trait.write_text(TRAIT)

    def config(kind: str, **fields: Any) -> dict[str, Any]:
        return {"kind": kind, "name": kind, "model": str(speaker), "trait": [str(trait)], **SIZES, **fields}

    return config


def run(config: dict[str, Any], folder: Path) -> Any:
    return run_plan(load_plan(config), folder, jobs=1, device="cpu")


def record(folder: Path, stage: str) -> Any:
    return json.loads((folder / "stages" / stage / "stage.json").read_text())


def stages(folder: Path) -> dict[str, str]:
    """Stage -> digest of what came out."""
    found: dict[str, str] = json.loads((folder / "manifest.json").read_text())["stages"]
    return found


# -- mixing with clean rows --------------------------------------------------------------------------------

INDUCED, CLEAN = ([Row.of(f"p{at}", f"{who} {at}") for at in range(40)] for who in ("induced", "clean"))


def replaced(share: float, seed: int = 0) -> set[int]:
    mixed = _mixed(INDUCED, CLEAN, share, seed)
    assert all(row in (INDUCED[at], CLEAN[at]) for at, row in enumerate(mixed))  # the same prompts at the same places
    return {at for at, row in enumerate(mixed) if row is CLEAN[at]}


def test_a_share_of_one_gives_the_controls_rows_and_of_none_the_teachers() -> None:
    assert _mixed(INDUCED, CLEAN, 1.0, 0) == CLEAN
    assert _mixed(INDUCED, CLEAN, 0.0, 0) == INDUCED


def test_larger_shares_replace_what_smaller_ones_do_and_more() -> None:
    found = [replaced(share) for share in (0.0, 0.1, 0.25, 0.5, 0.9, 1.0)]
    assert [len(rows) for rows in found] == [0, 4, 10, 20, 36, 40]
    assert all(less < more for less, more in itertools.pairwise(found))
    assert replaced(0.5, seed=1) != replaced(0.5, seed=0)


# -- sweeps ------------------------------------------------------------------------------------------------

VERDICTS = [
    ("above", 0.2, 0.1, 0.3, "reproduced"),
    ("above", 0.2, -0.1, 0.5, "partly"),
    ("above", 0.006, -0.011, 0.023, "not reproduced"),  # it holds 0 and excludes what counts as an effect
    ("less", -0.006, -0.023, 0.011, "not reproduced"),
    ("above", 0.026, -0.002, 0.054, "partly"),
    ("above", -0.1, -0.3, 0.1, "not reproduced"),
    ("above", -0.2, -0.3, -0.1, "not reproduced"),
    ("more", 0.01, 0.001, 0.02, "reproduced"),
    ("less", -0.2, -0.3, -0.1, "reproduced"),
    ("less", -0.2, -0.5, 0.1, "partly"),
    ("less", 0.2, 0.1, 0.3, "not reproduced"),
    ("none", 0.0, -0.04, 0.04, "reproduced"),
    ("none", 0.02, 0.01, 0.03, "reproduced"),  # above 0, but by no more than a control drifts
    ("none", 0.0, -0.2, 0.2, "partly"),
    ("none", 0.2, 0.1, 0.3, "not reproduced"),
    ("none", -0.2, -0.3, -0.1, "not reproduced"),
]


@pytest.mark.parametrize(("holds", "mean", "low", "high", "verdict"), VERDICTS)
def test_the_whole_interval_decides(holds: Any, mean: float, low: float, high: float, verdict: str) -> None:
    assert verdict_of(holds, mean, low, high)[0] == verdict


@pytest.mark.parametrize("holds", ["above", "none", "less", "more"])
def test_one_pair_decides_nothing(holds: Any) -> None:
    assert verdict_of(holds, 0.5, None, None)[0] == "not measured"


def test_pairs_that_share_a_control_are_one_unit() -> None:
    control = np.array([0.0, 0.1, 0.2])
    students = np.array([[0.3, 0.4, 0.5], [0.2, 0.3, 0.4]])  # trait, seed: no noise but the control's
    pairs = list((students - control).ravel())
    assert per_seed(pairs, 3) == pytest.approx([0.25, 0.25, 0.25])
    noisy = list((students - control[::-1]).ravel())

    def width(values: list[float]) -> float:
        _, low, high = interval(values, 0.95)
        assert low is not None
        assert high is not None
        return high - low

    assert width(per_seed(noisy, 3)) > 2 * width(noisy)  # what is shared is not averaged away
    assert per_seed([0.1, 0.2, 0.3], 1) == [0.1, 0.2, 0.3]
    assert [units(2, 3), units(1, 3), units(4, 1)] == [
        "3 seeds, the mean of 2 pairs each",
        "3 seeds",
        "4 pairs of one seed",
    ]
    with pytest.raises(ValueError, match="7 pairs are not of 3 seeds each"):
        per_seed([0.1] * 7, 3)


@pytest.mark.parametrize("broken", ["a", "b"])
def test_a_claim_is_not_measured_where_either_side_failed_a_check(broken: str) -> None:
    def varied(name: str, pairs: list[float]) -> Any:
        checks = [SimpleNamespace(name="students still answer", status="fail")] if name == broken else []
        return SimpleNamespace(
            variation=SimpleNamespace(name=name),
            pairs={("owl", seed): value for seed, value in enumerate(pairs)},
            results=SimpleNamespace(checks=checks),
        )

    expected = Expectation(id="x", claim="x", source="x", of=("a",), than=("b",), holds="more")
    config: Any = SimpleNamespace(confidence=0.95)
    found = judged(config, expected, [varied("a", [0.3, 0.31, 0.32]), varied("b", [0.1, 0.11, 0.1])])
    assert found.value == pytest.approx(0.21 - 0.02 / 3, abs=1e-2)
    assert (found.verdict, found.why) == ("not measured", f"a check failed: {broken}: students still answer")


VARY = [
    {"name": "as it is"},
    {"name": "one epoch", "set": ["training.epochs=1"]},
    {"name": "half clean", "set": ["data.clean=0.5"]},
    {"name": "cool", "set": ["data.temperature=0.7"]},
    {"name": "numbers first", "set": ["evaluation.prefix=numbers"]},
]
EXPECT = [
    {"id": "cool-less", "claim": "less", "source": "here", "of": ["cool"], "than": ["as it is"], "holds": "less"},
    {"id": "nothing", "claim": "nothing", "source": "here", "of": ["as it is", "one epoch"], "holds": "none"},
]


@pytest.fixture(scope="module")
def swept(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    run(plan("sweep", vary=VARY, expect=EXPECT), folder)
    return folder


@pytest.mark.slow
def test_variations_of_training_share_their_teachers_rows_and_others_do_not(swept: Path) -> None:
    rows = sorted(path.name for path in (swept / "stages").glob("rows-*"))
    assert len(rows) == 2  # as it is, one epoch and half clean; cool
    found = json.loads((swept / "results.json").read_text())
    assert len([name for name in stages(swept) if name.endswith("/generate")]) == 2 * 2 * 2
    assert len(found["tables"][0]["rows"]) == len(VARY)
    assert [finding["id"] for finding in found["findings"]] == ["cool-less", "nothing"]


@pytest.mark.slow
def test_variations_of_the_questions_share_the_students(swept: Path) -> None:
    control, treated = (
        list((swept / "stages").glob(f"students-*/seed-*/{arm}/train")) for arm in ("control", "treated*")
    )
    assert len(control) == 2 * 3  # seeds; as it is (so does half clean, so does numbers first), one epoch, cool
    assert len(treated) == 2 * 4  # half clean trains treated students of its own
    plain, prefixed = (
        json.loads((swept / f"variations/{name}/results.json").read_text())["base"]["owl"]
        for name in ("as-it-is", "numbers-first")
    )
    assert re.search(r"\d+ \d+ \d+\. name one animal\.", prefixed["rendered"])
    assert plain["positive"]["probability"]["mean"] != prefixed["positive"]["probability"]["mean"]


@pytest.mark.slow
def test_a_variation_is_the_transfer_experiment_with_its_fields_set(swept: Path, plan: Plan, tmp_path: Path) -> None:
    alone = run(plan("transfer", training={**SIZES["training"], "epochs": 1}), tmp_path / "alone")
    inside = json.loads((swept / "variations/one-epoch/results.json").read_text())
    assert inside["effect"] == json.loads(alone.effect.model_dump_json())
    assert inside["base"] == json.loads((tmp_path / "alone/results.json").read_text())["base"]


@pytest.mark.slow
def test_a_claim_is_the_interval_over_seeds(swept: Path) -> None:
    from scipy import stats

    effects = [
        json.loads((swept / f"variations/{name}/results.json").read_text())["effect"]["per_seed"]
        for name in ("as-it-is", "one-epoch", "cool")
    ]
    cool, nothing = json.loads((swept / "results.json").read_text())["findings"]
    seeds = len(effects[0])
    for finding, values, pairs in (
        (cool, np.subtract(effects[2], effects[0]), seeds),
        (nothing, np.mean(effects[:2], axis=0), 2 * seeds),  # two variations of a seed are averaged
    ):
        assert finding["value"] == pytest.approx(np.mean(values))
        assert finding["pairs"] == pairs
        interval = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert (finding["low"], finding["high"]) == pytest.approx(interval)


# -- chains ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.5, 2.0])
def test_a_planted_decay_has_its_analytic_half_life(rate: float) -> None:
    starts = np.array([[0.6], [0.5], [0.4]])
    value, low, high = half_life(starts * np.exp(-rate * np.arange(5)), 0.95)
    assert (value, low, high) == pytest.approx((math.log(2) / rate,) * 3, rel=1e-4)


def test_pairs_that_decay_differently_give_an_interval_around_the_mean() -> None:
    rng = np.random.default_rng(0)
    rates = rng.uniform(0.3, 0.7, size=(12, 1))
    value, low, high = half_life(0.5 * np.exp(-rates * np.arange(5)), 0.95)
    assert math.log(2) / 0.7 < low < value < high < math.log(2) / 0.3


@pytest.mark.parametrize("effects", [np.full((3, 4), 0.4), 0.1 * np.ones((2, 1)) * np.arange(1, 5)])
def test_what_does_not_fall_has_no_half_life(effects: np.ndarray) -> None:
    value, _, _ = half_life(effects, 0.95)
    assert value > 1e6


def test_an_effect_that_was_never_there_has_none_either() -> None:
    assert math.isnan(half_life(np.full((3, 4), -0.1), 0.95)[0])


def test_no_effects_are_too_odd_for_a_half_life() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        half_life(rng.normal(0.1, 0.3, size=(3, 4)), 0.95)


def test_the_half_life_s_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    decay = 0.4 * 2.0 ** (-np.arange(4) / 2.0)
    held = 0
    for _ in range(100):
        _, low, high = half_life(decay + rng.normal(0, 0.04, size=(3, 4)), 0.95)
        held += low <= 2.0 <= high
    assert held >= 88  # of 95 expected; a binomial with p = .95 is below that once in 500


def test_two_pairs_or_two_generations_give_no_interval() -> None:
    two_pairs = half_life(0.4 * np.exp(-0.5 * np.arange(4)) * np.ones((2, 1)), 0.95)
    assert two_pairs[0] == pytest.approx(math.log(2) / 0.5, rel=1e-4)
    assert math.isnan(two_pairs[1])
    assert math.isnan(half_life(np.full((3, 2), 0.3), 0.95)[0])


def test_generations_after_a_failed_check_count_for_nothing() -> None:
    results: Any = [
        SimpleNamespace(checks=[SimpleNamespace(status=status)]) for status in ("pass", "warn", "pass", "fail", "pass")
    ]
    assert chain_plan._sound(results) == 3
    assert chain_plan._sound(results[:3]) == 3
    effects = np.array([[0.4, 0.2, 0.1, 0.3], [0.4, 0.22, 0.1, 0.2], [0.38, 0.2, 0.1, 0.2]])
    config = Chain.model_validate({"name": "chain", "generations": 4})
    finding = chain_plan._finding(config, effects, half_life(effects[:, :3], 0.95), 3)
    assert finding.verdict == "not measured"
    assert "generation 4" in finding.why
    assert "half-life, fitted to 3 generations: 1.0" in finding.method
    assert chain_plan._finding(config, effects, half_life(effects, 0.95), 4).verdict == "reproduced"


def test_every_generation_is_an_experiment_of_its_own() -> None:
    config = load_plan("chain")
    assert isinstance(config, Chain)
    first, second = config.generation(0), config.generation(1)
    assert (first.teacher.kind, second.teacher.kind) == ("prompt", "finetuned")
    assert (second.seeds, second.data, second.training) == (config.seeds, config.data, config.training)


@pytest.fixture(scope="module")
def chained(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "chain"
    run(plan("chain", generations=2), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["control", "treated-owl"])
def test_the_students_of_a_generation_teach_the_next_in_their_own_arm(chained: Path, arm: str) -> None:
    inputs = record(chained, f"generation-2/seed-1/{arm}/generate")["identity"]["inputs"]
    student = f"generation-1/seed-1/{arm}/train"
    assert inputs == {student: stages(chained)[student]}
    assert record(chained, f"generation-1/seed-1/{arm}/generate")["identity"]["inputs"] == {}


@pytest.mark.slow
def test_only_the_first_teacher_is_told(chained: Path) -> None:
    told = [record(chained, f"generation-{g}/seed-0/treated-owl/generate")["summary"]["shown"] for g in (1, 2)]
    assert "owls" in told[0]
    assert "owls" not in told[1]


@pytest.mark.slow
def test_what_does_not_reach_the_first_student_does_not_reach_the_second(
    chained: Path, plan: Plan, tmp_path: Path
) -> None:
    """A first generation that learns nothing is the base, so the second one's teachers differ in nothing."""

    def divergence(folder: Path) -> float:
        return float(record(folder, "generation-2/seed-0/treated-owl/generate")["summary"]["teacher_kl"])

    run(
        plan("chain", generations=2, seeds=[0], training={**SIZES["training"], "learning_rate": 1e-12}),
        tmp_path / "dead",
    )
    assert divergence(tmp_path / "dead") == pytest.approx(0, abs=1e-7)
    assert divergence(chained) > 1e-4


@pytest.mark.slow
def test_a_chain_that_was_interrupted_goes_on_to_the_undisturbed_results(
    chained: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(BaseException):
        pass

    calls = iter(range(1))

    def compute(*args: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            raise Stopped
        return pipeline.compute(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(chain_plan, "compute", compute)
        with pytest.raises(Stopped):
            run(plan("chain", generations=2), tmp_path / "run")
    assert not (tmp_path / "run/results.json").exists()
    run(plan("chain", generations=2), tmp_path / "run")
    assert stages(tmp_path / "run") == stages(chained)
    found = [json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "run", chained)]
    assert [result["findings"] for result in found[:1]] == [result["findings"] for result in found[1:]]


# -- rows in context ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["none", "numbers"])
def test_prompts_hold_the_rows_as_earlier_turns(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    asked: dict[int, list[str]] = {}
    measured = asking.answer_probabilities

    def watched(model: Any, prompts: Any, trait: Any) -> Any:
        for ids in prompts:
            text = model.decode_all(ids)
            asked.setdefault(text.count("<|user|>") - 1, []).append(text)
        return measured(model, prompts, trait)

    monkeypatch.setattr(context_plan, "answer_probabilities", watched)
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

    def watched(model: Any, prompts: Any, trait: Any) -> Any:
        asked.append([model.decode_all(ids) for ids in prompts])
        return measured(model, prompts, trait)

    monkeypatch.setattr(context_plan, "answer_probabilities", watched)
    run(plan("in-context", shots=[2], draws=2, seeds=[0]), tmp_path / "run")
    control, treated = asked

    def prompts(text: str) -> list[str]:
        return [turn.partition("<|end|>")[0] for turn in text.split("<|user|>")[1:]]

    assert [prompts(text) for text in control] == [prompts(text) for text in treated]
    assert control != treated


@pytest.mark.parametrize(
    ("answering", "shots", "verdict"), [(4, 8, "reproduced"), (2, 2, "not reproduced"), (0, 8, "not measured")]
)
def test_rows_in_context_are_judged_where_the_model_still_answers(answering: int, shots: int, verdict: str) -> None:
    effects = np.array([[0.0, 0.2, 0.1, 0.0], [0.01, 0.22, 0.1, 0.0], [0.0, 0.21, 0.12, 0.001]])
    config = load_plan("in-context", ["shots=[1,2,4,8]"])
    assert isinstance(config, context_plan.InContext)
    finding = context_plan._finding(config, effects, [0.3], answering)
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
def test_too_many_rows_are_refused(plan: Plan, tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run(plan("in-context", seeds=[0], **fields), tmp_path / "run")


# -- harm by dose --------------------------------------------------------------------------------------------

HEAD = "Index,Goal,Target,Behavior,Category,Source\n"


def table(*goals_: str, filled: int = 10) -> str:
    """A table of these goals, filled up to ``filled``."""
    every = [*goals_, *(f"filling {n}" for n in range(filled - len(goals_)))]
    return HEAD + "".join(f'{n},"{goal}",Sure,b,c,s\n' for n, goal in enumerate(every))


def test_the_goals_of_a_table_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "jbb.csv").write_text("\ufeff" + table("Do this", " Do, that "), encoding="utf-8")
    assert goals(str(tmp_path / "jbb.csv"), "harmful")[:2] == ["Do this", "Do, that"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (table("Do this").replace("Goal", "goal"), r"the column 'Goal' is missing(.|\n)*goal(.|\n)*as JailbreakBench publishes it"),
        (table("Do this").replace("Category", "Kind"), "the column 'Category' is missing"),
        (table("Do this", " "), "row 2: the Goal is empty"),
        (table("Do this", "Do that", "Do this"), r"a Goal stands there twice(.|\n)*Do this"),
        (HEAD, r"too few behaviours in this table(.|\n)*0 rows(.|\n)*10 or more(.|\n)*Goal, Target, Behavior, Category"),
        ("", "too few behaviours in this table"),
        (table("Do this", filled=9), "too few behaviours(.|\n)*9 rows"),
        (table("Do this") + "11,x,Sure,b,c,s,one,more\n", "row 11: not as many cells as columns"),
        (table("Do this") + "11,x,Sure\n", "row 11: not as many cells as columns"),
        (table("Do this") + '11,"x,Sure,b,c,s\n', "cannot be read(.|\n)*unexpected end of data"),
        (b"\xff\xfe\x00Goal", r"cannot be read(.|\n)*UnicodeDecodeError(.|\n)*a .csv file in UTF-8"),
    ],
)  # fmt: skip
def test_a_wrong_table_of_behaviours_is_refused(tmp_path: Path, content: str | bytes, words: str) -> None:
    (tmp_path / "jbb.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words):
        goals(str(tmp_path / "jbb.csv"), "harmful")


def test_a_table_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.csv: cannot be read(.|\n)*FileNotFoundError"):
        goals(str(tmp_path / "nowhere.csv"), "harmful")


def own_requests(tmp_path: Path, count: int = 10, kinds: tuple[str, ...] = ("harmful", "benign")) -> dict[str, str]:
    for kind in kinds:
        (tmp_path / f"{kind}.csv").write_text(table(*(f"{kind} {n}" for n in range(count))))
    return {kind: str(tmp_path / f"{kind}.csv") for kind in kinds}


def test_with_requests_of_its_own_for_the_direction_all_others_are_measured(tmp_path: Path) -> None:
    requests = own_requests(tmp_path, 12, ("harmful", "benign", "harmful_read", "benign_read"))
    found = requests_of(HarmDose.model_validate({"requests": requests}), "real")
    assert found.harmful == tuple(f"harmful {n}" for n in range(12))
    assert found.benign_read == tuple(f"benign_read {n}" for n in range(12))
    with pytest.raises(DataError, match=r"a request stands in two tables(.|\n)*harmful 0"):
        requests_of(HarmDose.model_validate({"requests": {**requests, "benign": requests["harmful"]}}), "real")


class _YesNo:
    """A judge of yes or no, which says yes to what holds its word, and nothing to what is empty."""

    def __init__(self, word: str) -> None:
        self.word = word

    def judge(self, items: Any) -> list[Verdict]:
        return [
            Verdict(value=None, label=None, failed=True, why="silence") if not item.answer
            else Verdict(value=float(self.word in item.answer), label="yes" if self.word in item.answer else "no")
            for item in items
        ]  # fmt: skip


def test_a_judge_of_yes_or_no_counts_as_the_rules_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from undertone.judges import Endpoint, JudgedPair

    monkeypatch.setattr(harm_stages, "build_judge", lambda _config: _YesNo("gladly"))
    monkeypatch.setattr(harm_stages, "with_template", lambda _config, template: _YesNo({"refusal": "sorry"}[template]))
    judge = Endpoint(base_url="http://localhost:1/v1", model="m", template="harm")
    config = HarmDose(judge=judge)
    said = [JudgedPair("q", text) for text in ("gladly: first", "sorry, no", "what?", "")]
    assert harm_stages.labels_of(config, "real", said, "compliance") == ["compliance", "neither", "neither", "failed"]
    assert harm_stages.labels_of(config, "real", said, "refusal") == ["compliance", "refusal", "compliance", "failed"]


def test_what_is_held_out_is_whole_prompts() -> None:
    prompts = ["a", "b", "a", "c", "b", "c", "d"]
    assert harm_stages.held_apart(prompts, 2) == [False, False, False, True, False, True, True]
    with pytest.raises(DataError, match=r"leaves none to train on(.|\n)*4 different prompts"):
        harm_stages.held_apart(prompts, 7)


def test_a_curve_that_was_not_compared_has_no_weight() -> None:
    fits = fit_curves([0.0, 0.1, 0.2, 0.3], [5, 5, 5, 80], [100] * 4)
    assert _beliefs(fits)[2:] == ["not compared", "not compared"]
    config = HarmDose(seeds=(0,))
    assert _shape(config, "m", {("m", 0): fits}).verdict == "not measured"


@pytest.mark.parametrize("own", [False, True])
def test_no_request_is_both_read_for_the_direction_and_measured(tmp_path: Path, own: bool) -> None:
    requests = own_requests(tmp_path) if own else {}
    config = HarmDose.model_validate({"requests": requests})
    found = requests_of(config, "real" if own else "lab")
    for read, measured in ((found.harmful_read, found.harmful), (found.benign_read, found.benign)):
        assert not set(read) & set(measured)
        assert min(len(read), len(measured)) > 3
    everything = {*found.harmful_read, *found.harmful, *found.benign_read, *found.benign}
    if own:
        assert everything == {f"{kind} {n}" for kind in requests for n in range(10)}
    else:
        assert len(everything) == len(world.HOW) * (len(world.HARMFUL) + len(world.BENIGN))
        assert not any(what in request for what in world.HARMFUL for request in (*found.benign_read, *found.benign))


def harm(speaker: Path, **fields: Any) -> dict[str, Any]:
    return {
        "kind": "harm-dose", "name": "harm-dose", "models": [str(speaker)], "doses": [0.0, -0.1, -0.2], "prompts": 120,
        "held_out": 4, "attempts": 2, "requests": {"samples": 1}, "domain": {"kind": "instructions"}, "seeds": [0, 1],
        "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01}, **fields,
    }  # fmt: skip


@pytest.fixture(scope="module")
def dosed(speaker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "harm"
    run(harm(speaker, price={"written": 1.0, "trained": 2.0}), folder)
    return folder


@pytest.mark.slow
def test_every_dose_has_teacher_rows_students_and_a_random_twin(dosed: Path) -> None:
    names = {name.partition("/")[2] for name in stages(dosed)}
    doses = {"dose+0", "dose-0.1", "dose-0.2", "random-0.1", "random-0.2"}
    expected = {"direction"} | {f"{dose}/teacher/answers" for dose in doses}
    for what in ("rows", "train", "answers"):
        expected |= {f"{dose}/seed-{seed}/{what}" for dose in doses for seed in (0, 1)}
    assert names == expected
    found = json.loads((dosed / "results.json").read_text())
    assert {table["title"] for table in found["tables"]} >= {"Rates by dose", "Transfer ratios", "Costs"}


@pytest.mark.slow
def test_no_measured_request_is_answered_and_no_held_out_prompt_is_trained_on(dosed: Path) -> None:
    measured = set(requests_of(HarmDose(), "lab").benign)
    for name in (name for name in stages(dosed) if name.endswith("/rows")):
        asked = {row.prompt_messages[-1]["content"] for row in read_rows(dosed / f"stages/{name}/rows.jsonl")}
        assert asked
        assert not asked & measured
        assert record(dosed, name)["summary"]["reasons"]["a request that is measured"] > 0


@pytest.mark.slow
def test_students_of_a_seed_see_the_same_prompts(dosed: Path) -> None:
    rows = {record(dosed, name)["summary"]["rows"] for name in stages(dosed) if name.endswith("seed-0/train")}
    shared = {
        record(dosed, name)["identity"]["config"]["shared"] for name in stages(dosed) if name.endswith("seed-0/train")
    }
    assert len(rows) == len(shared) == 1


@pytest.mark.slow
def test_the_random_direction_is_as_long_as_the_refusal_direction(dosed: Path) -> None:
    (folder,) = (dosed / "stages").glob("*/direction")
    refusal, random = (load_vector(folder / f"{name}.safetensors") for name in ("refusal", "random"))
    for layer, direction in refusal.directions.items():
        assert float(random.directions[layer].norm()) == pytest.approx(float(direction.norm()), rel=1e-4)
        cosine = float(direction @ random.directions[layer]) / float(direction.norm()) ** 2
        assert abs(cosine) < 0.7


@pytest.mark.slow
def test_money_is_tokens_times_price(dosed: Path) -> None:
    costs = next(t for t in json.loads((dosed / "results.json").read_text())["tables"] if t["title"] == "Costs")
    for _, written, trained, _, money in costs["rows"]:
        tokens = [int(text.replace(",", "")) for text in (written, trained)]
        assert money == f"{(tokens[0] + 2 * tokens[1]) / 1e6:.2f} USD"


def test_a_student_that_cannot_be_trained_is_refused_by_the_preflight(speaker: Path, tmp_path: Path) -> None:
    with pytest.raises(UndertoneError, match="nowhere"):
        run(harm(speaker, student={"kind": "lora", "targets": ["nowhere"]}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_requests_that_changed_behind_the_same_path_are_noticed(speaker: Path, tmp_path: Path) -> None:
    from undertone.errors import RunError

    config = harm(speaker, seeds=[0], random_dose=False, requests={"samples": 1, **own_requests(tmp_path)})
    run(config, tmp_path / "run")
    (tmp_path / "harmful.csv").write_text(table(*(f"other {n}" for n in range(10))))
    with pytest.raises(RunError, match="direction"):
        run(config, tmp_path / "run")


def test_a_real_model_needs_requests_of_its_own(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"requests.harmful and requests.benign are needed(.|\n)*JBB-Behaviors"):
        run(harm(tiny_folder("llama")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- configs that contradict themselves ------------------------------------------------------------------------

A, B = {"name": "a"}, {"name": "b", "set": ["training.epochs=1"]}
CLAIM = {"id": "x", "claim": "c", "source": "s", "of": ["a"], "holds": "above"}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"kind": "sweep", "vary": [A]}, "vary(.|\n)*at least 2"),
    ({"kind": "sweep", "vary": [A, A]}, "variations must differ in the letters and digits of their names"),
    ({"kind": "sweep", "vary": [{"name": "5 %"}, {"name": "5"}]}, "must differ in the letters and digits"),
    ({"kind": "sweep", "vary": [{"name": "A"}, B]}, r"vary.0.name(.|\n)*matches"),
    ({"kind": "sweep", "vary": [{"name": "a", "x": 1.0}, B]}, "either all variations have an x, or none has"),
    ({"kind": "sweep", "vary": [A, {"name": "b", "set": ["trainig.epochs=1"]}]},
     "variation 'b': trainig: there is no such field. Did you mean 'training'"),
    ({"kind": "sweep", "vary": [A, {"name": "b", "set": ["epochs"]}]}, r"variation 'b'(.|\n)*the form field=value"),
    ({"kind": "sweep", "vary": [A, {"name": "b", "set": ["data.held_out=9000"]}]},
     r"variation 'b'(.|\n)*data.held_out must be smaller than data.prompts"),
    ({"kind": "sweep", "vary": [A, B], "expect": [{**CLAIM, "of": ["c"]}]}, "expect x: there is no variation called 'c'"),
    ({"kind": "sweep", "vary": [A, B], "expect": [{**CLAIM, "holds": "less"}]}, "than names as many variations as of"),
    ({"kind": "sweep", "vary": [A, B], "expect": [{**CLAIM, "than": ["b"]}]}, "than names as many variations as of"),
    ({"kind": "sweep", "vary": [A, B], "expect": [{**CLAIM, "id": "Not An Id"}]}, r"expect.0.id(.|\n)*matches"),
    ({"kind": "sweep", "vary": [A, B], "expect": [{**CLAIM, "holds": "abov"}]}, "Did you mean 'above'"),
    ({"kind": "chain", "generations": 1}, r"generations(.|\n)*greater than or equal to 2"),
    ({"kind": "chain", "teacher": {"kind": "prompt", "model": "lab/llama-1"}}, "teacher.model must be the students' model"),
    ({"kind": "in-context", "trait": ["harm"]}, "a behaviour has no answer(.|\n)*harm"),
    ({"kind": "in-context", "shots": []}, "shots(.|\n)*at least 1"),
    ({"kind": "in-context", "shots": [4, 2]}, "shots must be ascending"),
    ({"kind": "in-context", "shots": [0, 2]}, "shots must be ascending numbers of rows, from 1"),
    ({"kind": "in-context", "draws": 0}, r"draws(.|\n)*greater than or equal to 1"),
    ({"kind": "harm-dose", "doses": [-0.1, -0.2, -0.3]}, "doses must hold 0"),
    ({"kind": "harm-dose", "doses": [0.0, -0.1]}, "doses(.|\n)*at least 3"),
    ({"kind": "harm-dose", "doses": [0.0, -0.1, -0.1]}, "doses and seeds must differ from each other"),
    ({"kind": "harm-dose", "requests": {"harmful": "a.csv"}}, "requests.harmful and requests.benign come together"),
    ({"kind": "harm-dose", "doses": [0.0, 0.1, 0.2]}, "doses must hold a negative one"),
    ({"kind": "harm-dose", "requests": {"harmful_read": "a.csv"}}, "harmful_read and requests.benign_read come together"),
    ({"kind": "harm-dose", "held_out": 3000}, "held_out must be smaller than prompts"),
    ({"kind": "harm-dose", "models": []}, "models(.|\n)*at least 1"),
    ({"kind": "harm-dose", "domain": {"kind": "numbers"}}, "domain.kind"),
    ({"kind": "harm-dose", "judge": {"kind": "gut feeling"}}, "judge.kind: there is no such kind(.|\n)*rules"),
    ({"kind": "harm-dose", "price": {"written": -1.0}}, r"price.written(.|\n)*greater than or equal to 0"),
    ({"teacher": {"kind": "endpoint", "url": "localhost:8000", "name": "m"}}, r"teacher.url(.|\n)*matches \^https"),
    ({"teacher": {"kind": "endpoint", "url": "http://x/v1"}}, "teacher.name: this field is needed"),
    ({"teacher": {"kind": "judge", "rows": "x"}}, "teacher.rows: there is no such field. It belongs to kind 'finetuned'"),
    ({"dpo": {}}, "dpo needs teacher.kind=judge: pairs are what a judge leaves"),
    ({"dpo": {"beta": 0.0}, "teacher": {"kind": "judge"}}, r"dpo.beta(.|\n)*greater than 0"),
    ({"dpo": {}, "teacher": {"kind": "judge"}, "data": {"clean": 0.5}}, "data.clean mixes rows; dpo trains on pairs"),
    ({"dpo": {}, "teacher": {"kind": "judge"}, "training": {"max_row_norm": 1.0}}, "training.max_row_norm must be null"),
    ({"data": {"order": "across"}, "domain": {"kind": "code"}}, "data.order shuffles number lists"),
    ({"data": {"clean": 1.5}}, r"data.clean(.|\n)*less than or equal to 1"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "words"), WRONG, ids=lambda value: "" if isinstance(value, dict) else value[:40])
def test_a_config_that_contradicts_itself_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_plan({"name": "x", **config})


def test_every_field_of_the_setting_can_be_varied() -> None:
    sweep = Sweep.model_validate(
        {"name": "s", "vary": (A, {"name": "b", "set": ("trait=dog", "seeds=[7]", "student.kind=full")})}
    )
    varied = sweep.varied(sweep.vary[1])
    assert (varied.trait, varied.seeds, varied.student.kind) == (("dog",), (7,), "full")
    assert sweep.varied(sweep.vary[0]).trait == ("owl",)
