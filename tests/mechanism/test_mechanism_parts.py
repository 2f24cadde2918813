"""What the parts of `mechanism` say of planted numbers: verdicts, baselines, who is left out."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from undertone.errors import ConfigError
from undertone.experiments.cells import Arm, StudentRun
from undertone.experiments.plans import load_plan
from undertone.experiments.studies.mechanism import (
    approximability,
    causality,
    distillation,
    gradients,
    kinship,
    recovery,
)
from undertone.experiments.studies.mechanism.config import Mechanism
from undertone.experiments.studies.mechanism.material import answering, answers_kept, layer_at
from undertone.mechanism.approximation import VectorFit

SOME: Any = SimpleNamespace(confidence=0.95, few=1, seeds=(0, 1, 2, 3), gradients=SimpleNamespace(shares=(0.1,)))
ABOVE, BELOW, WILD = [0.30, 0.31, 0.32, 0.30], [-0.20, -0.21, -0.19, -0.20], [0.9, -0.6, 0.7, -0.5]


# -- verdicts ----------------------------------------------------------------------------------------


def aligned_gradients(own: list[float], others: list[float]) -> Any:
    steady = [{"mean": 0.01, "t": None, "share": 0.01}, {"mean": 0.02, "t": 8.0, "share": 0.3}]
    found = [
        {
            "counts": [1, 100 + at], "own": [0.0, one], "others": [0.0, other], "random": [0.0, -1.0 + at / 100],
            "clean": [-1.0 + at / 100], "centred": [0.0, one], "by_layer": [one], "row": 0.01,
            "steady": {"treated": steady, "control": steady},
            "tails": [{"share": 0.1, "of_norm": 0.3, "dropped": one, "clipped": one}],
        }
        for at, (one, other) in enumerate(zip(own, others, strict=True))
    ]  # fmt: skip
    return gradients._told(SOME, found)


def distilled(own: list[float], others: list[float]) -> Any:
    lines = {"own vector": own, distillation.OTHERS: others, "control student": [value - 1.0 for value in others]}
    return distillation._alignment(SOME, lines, "random", "random vectors")


def recovered(own: list[float], others: list[float]) -> Any:
    return recovery._aligned(SOME, own, others, [value - 1.0 for value in others], "raw", [])


@pytest.mark.parametrize(
    "told", [lambda own, others: aligned_gradients(own, others).findings[0], distilled, recovered],
    ids=["gradients", "distillation", "recovery"],
)  # fmt: skip
def test_reproduced_means_above_zero_and_beyond_every_baseline(told: Any) -> None:
    assert told(ABOVE, BELOW).verdict == "reproduced"
    assert told(BELOW, [value - 0.5 for value in BELOW]).verdict == "not reproduced"  # beyond, and yet below 0
    assert told(ABOVE, [value + 0.1 for value in ABOVE]).verdict == "not reproduced"  # other traits' vectors do better
    assert told(WILD, [value - 0.5 for value in WILD]).verdict == "not reproduced"  # beyond each, 0 in the interval


def test_a_vector_counts_as_necessary_only_where_the_loss_itself_is_above_zero() -> None:
    told = {
        "prompted": [value + 0.05 for value in WILD],
        "prompted, without own-domain": [0.0 for _ in WILD],
        "prompted, without random": ABOVE,
        "prompted, without other-trait": ABOVE,
    }
    assert causality._necessary(SOME, told, "own-domain").verdict == "partly"
    assert causality._necessary(SOME, {**told, "prompted": ABOVE}, "own-domain").verdict == "reproduced"


def test_gradients_show_their_component_against_the_number_of_rows() -> None:
    told = aligned_gradients(ABOVE, BELOW)
    table = next(one for one in told.tables if "by how many rows" in one.title)
    assert [row[0] for row in table.rows] == ["1", "all (100)"]
    assert table.rows[0][1:4] == ["0.010 (0.010 to 0.010)", "–", "0.010 (0.010 to 0.010)"]
    assert table.rows[1][2].startswith("8.000")
    steady = next(one for one in told.figures if one.title.startswith("How steady"))
    assert {one.x for one in steady.points} == {100}  # a single row has no t
    assert {one.series for one in steady.points} == {"treated rows", "control rows"}
    assert "treated 0.02 (0.02 to 0.02), t 8.00" in told.findings[0].baseline


def test_a_layer_is_chosen_on_the_pairs_that_are_not_reported() -> None:
    fits = {
        0: VectorFit(1.0, chosen=0.2, explained=0.9, effect=1.0),
        1: VectorFit(2.0, chosen=0.7, explained=0.4, effect=1.0),
    }
    found = approximability._of(fits)
    assert (found["layer"], found["strength"], found["explained"]) == (1, 2.0, 0.4)
    assert found["by_layer"] == {"0": 0.9, "1": 0.4}


# -- strangers ---------------------------------------------------------------------------------------


def test_no_trait_is_held_against_itself_or_its_own_answer() -> None:
    traits = ("owl", "dog", "eagle")
    few = causality._strangers(traits, traits)
    assert few == [("other-trait", "eagle", ("owl", "dog")), ("other-trait/dog", "dog", ("eagle",))]
    assert causality._strangers((*traits, "wolf"), traits) == [("other-trait", "wolf", traits)]
    told_twice = ("owl", "dog", "dog@if-pick")
    assert causality._strangers(told_twice, ("dog",)) == [("other-trait/owl", "owl", ("dog",))]
    with pytest.raises(ConfigError, match="no other trait to hold 'owl' against"):
        causality.stranger("owl", ["owl@if-pick", "owl@once"])


def test_the_other_student_is_the_next_ones_also_where_one_trait_is_studied() -> None:
    assert causality._after("dog", ("owl", "dog", "eagle", "wolf"), ("owl", "dog", "eagle"))[:2] == ["eagle", "owl"]
    assert causality._after("owl", ("owl", "dog", "eagle"), ("owl",)) == ["dog", "eagle"]


def test_effects_keep_the_order_of_the_traits_when_strangers_split_them() -> None:
    config: Any = SimpleNamespace(seeds=(0,))
    first, second = transfer({"owl": 0.9}, said={"owl": 0.7}), transfer({"dog": 0.9}, said={"dog": 0.4})
    taught: Any = [(("dog",), second, "treated"), (("owl",), first, "treated")]
    assert causality._effects(config, ("owl", "dog"), taught) == pytest.approx([0.6, 0.3])


# -- who still answers -------------------------------------------------------------------------------


def asked(mass: float | None, said: float = 0.1) -> dict[str, Any]:
    return {"measure": {"positive": {"valid_answer_probability": mass, "probability": {"mean": said}}}}


def stage(records: dict[str, Any]) -> Any:
    return SimpleNamespace(read_json=lambda _name: records)


def transfer(
    treated: dict[str, float],
    control: float = 0.98,
    seeds: tuple[int, ...] = (0,),
    said: dict[str, float] | None = None,
) -> Any:
    """A transfer experiment by its answers: base 0.99, controls 0.98, treated students as told."""
    arms = [(Arm("control"), dict.fromkeys(treated, control))]
    arms += [(Arm("treated", trait), {trait: mass}) for trait, mass in treated.items()]
    nothing: Any = None
    cells = [
        StudentRun(arm, seed, nothing, nothing, nothing, stage({
            name: asked(mass, (said or {}).get(name, 0.5) if arm.trait else 0.1) for name, mass in masses.items()
        }), ())
        for arm, masses in arms
        for seed in seeds
    ]  # fmt: skip
    return SimpleNamespace(base=stage({name: asked(0.99) for name in treated}), cells=cells)


def test_a_part_whose_student_no_longer_answers_fails_and_names_it() -> None:
    fine, broken = transfer({"owl": 0.95, "dog": 0.92}), transfer({"owl": 0.95, "dog": 0.80}, seeds=(3,))
    assert answers_kept("distillation", {"": fine}).status == "pass"
    check = answers_kept("causality", {"without-random": fine, "without-own": broken})
    assert check.status == "fail"
    assert check.name == "causality: students still answer"
    assert "without-own: treated dog seed 3, valid-answer probability 0.80 (base 0.99); 1 of 8 lost" in check.value
    many = {f"arm {at}": fine for at in range(5)}
    assert answers_kept("causality", {**many, "without-own": broken}).status == "warn"  # one of many


def test_a_behaviour_has_no_answers_to_lose() -> None:
    outcome = transfer({"owl": 0.5})
    outcome.base = stage({"owl": asked(None)})
    assert answering(outcome) == []


def kin(lost: dict[tuple[str, str], list[bool]]) -> tuple[Any, list[str], dict[tuple[str, str], Any]]:
    """Three models, two seeds: 0.30 within, 0.01 across; pairs that no longer answer say 0.9."""
    names = ["lab/llama-0", "lab/llama-1", "lab/qwen-0"]
    taught = {}
    for teacher in names:
        for student in names:
            gone = lost.get((teacher, student), [False, False])
            value = 0.30 if teacher == student else 0.01
            taught[teacher, student] = kinship.Taught(
                [0.9 if one else value for one in gone], [not one for one in gone]
            )
    return SimpleNamespace(confidence=0.95, model=names[0]), names, taught


def told_kin(lost: dict[tuple[str, str], list[bool]], status: str) -> Any:
    config, names, taught = kin(lost)
    losses = {pair: [0.02 if pair[0] == pair[1] else 0.0, 0.02 if pair[0] == pair[1] else 0.001] for pair in taught}
    check = answers_kept("kinship", {"a to b": transfer({"owl": 0.95 if status == "pass" else 0.5})})
    curve = [("lab/llama-0:toward=1,share=0.5", 0.5, kinship.Taught([0.1, 0.12], [True, True]))]
    return kinship._told(config, names, taught, losses, curve, check)


def test_students_that_no_longer_answer_are_left_out_of_the_matrix_and_shown() -> None:
    whole = told_kin({}, "pass")
    assert (whole.findings[0].verdict, whole.checks[0].status) == ("reproduced", "pass")
    pair = ("lab/llama-0", "lab/llama-1")
    found = told_kin({pair: [True, False], ("lab/qwen-0", "lab/llama-1"): [True, True]}, "fail")
    finding, matrix = found.findings[0], found.figures[0]
    assert finding.value == pytest.approx(0.29)  # as if they had not been
    assert finding.verdict == "reproduced"
    cells = {(one.series, one.x): one.y for one in matrix.points}
    assert cells["llama-0", "llama-1"] == pytest.approx(0.01)
    assert cells["qwen-0", "llama-1"] is None
    rows = {(row[0], row[1]): row[2:] for row in found.tables[0].rows}
    assert rows["llama-0", "llama-1"] == ["+1.0 points", "1 of 2 †", rows["llama-0", "llama-1"][2]]
    assert rows["qwen-0", "llama-1"][:2] == ["–", "0 of 2 †"]
    assert rows["llama-0", "qwen-0"][1] == "2 of 2"
    assert rows["llama-0", "llama-0:toward=1,share=0.5"][0].startswith("+11.0 points")
    assert found.checks[0].status == "warn"  # seen, and nothing rests on it
    assert "left out" in found.checks[0].value


@pytest.mark.parametrize(
    "lost",
    [
        [("lab/llama-1", "lab/llama-1")],
        [
            (a, b)
            for a in ("lab/llama-0", "lab/llama-1")
            for b in ("lab/llama-0", "lab/llama-1", "lab/qwen-0")
            if a != b
        ],
    ],
    ids=["an own student", "most others"],
)
def test_too_few_students_that_answer_measure_nothing(lost: list[tuple[str, str]]) -> None:
    found = told_kin({pair: [True, True] for pair in lost}, "fail")
    finding = found.findings[0]
    assert finding.verdict == "not measured"
    assert finding.value is None
    assert finding.baseline
    assert "too few" in finding.why
    assert found.checks[0].status == "fail"
    assert found.findings[1].verdict == "reproduced"  # losses need no student
    assert all(one.y is None or math.isfinite(one.y) for figure in found.figures for one in figure.points)


def test_a_pair_is_left_out_for_its_control_too() -> None:
    material: Any = SimpleNamespace(few=("owl", "dog"), config=SimpleNamespace(seeds=(0, 1)))
    outcome = transfer({"owl": 0.95, "dog": 0.5}, seeds=(0, 1), said={"owl": 0.4, "dog": 0.6})
    assert kinship._taught(material, outcome).answers == [True, True, False, False]
    assert kinship._taught(material, outcome).kept == pytest.approx([0.3, 0.3])
    assert not any(kinship._taught(material, transfer({"owl": 0.95, "dog": 0.95}, 0.8, (0, 1))).answers)


# -- models and layers -------------------------------------------------------------------------------


def plan(*fields: str) -> Mechanism:
    found = load_plan("kinship", list(fields))
    assert isinstance(found, Mechanism)
    return found


def test_the_reference_is_the_configs_model() -> None:
    names = kinship.models_of(plan("model=lab/qwen-0"))
    assert names[0] == "lab/qwen-0"
    assert sorted(names) == sorted(plan().kinship.models)
    with pytest.raises(ConfigError, match="not among them") as refused:
        kinship.models_of(plan("model=Qwen/Qwen2.5-0.5B-Instruct"))
    assert "lab/llama-0" in str(refused.value.allowed)
    with pytest.raises(ConfigError, match="nothing but signs"):
        kinship.models_of(plan("model=a/b", "kinship.models=[a/b,a-b]"))


def test_only_lab_models_have_students_between_two_initialisations() -> None:
    assert kinship.between_of(plan()) == [
        ("lab/llama-0:toward=1,share=0.25", 0.25),
        ("lab/llama-0:toward=1,share=0.5", 0.5),
    ]
    assert kinship.between_of(plan("model=lab/qwen-3", "kinship.shares=[0.1]")) == [
        ("lab/qwen-3:toward=4,share=0.1", 0.1)
    ]
    assert kinship.between_of(plan("model=a/b", "kinship.models=[a/b,c/d]")) == []
    given = plan("kinship.between=[x/y]", "kinship.shares=[0.3]")
    assert kinship.between_of(given) == [("x/y", 0.3)]


@pytest.mark.parametrize("name", ["/models/a b", "./kin", "Qwen/Qwen2.5-0.5B@main", "lab/llama-0:toward=1,share=0.25"])
def test_any_model_can_have_a_stage_of_its_name(name: str) -> None:
    from undertone.provenance.runs import _NAME

    assert _NAME.fullmatch(kinship._label(name))
    assert kinship._label("lab/llama-0:corpus=1") == "lab-llama-0-corpus=1"


def test_the_middle_layer_is_the_default_of_every_model(tiny_folder: Any) -> None:
    assert layer_at("lab/llama-0", None) == 1
    assert layer_at(str(tiny_folder("llama")), None) == 1
    assert layer_at("lab/llama-0", 2) == 2
    config = plan()
    parts = (config.causality, config.distillation, config.recovery, config.kinship)
    assert [part.layer for part in parts] == [None] * 4


def test_kinship_is_trained_at_a_rate_at_which_strangers_still_answer() -> None:
    assert plan().training.learning_rate == pytest.approx(5e-3)
    assert np.isclose(load_plan("families").training.learning_rate, 5e-3)  # type: ignore[attr-defined]
