"""What the part initialisation says of planted students: who is left out, the matrix, the verdict; and whom it names."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from undertone.errors import ConfigError
from undertone.provenance.runs import _NAME
from undertone.studies.builtin import mechanism_initialisation as initialisation
from undertone.studies.builtin.mechanism import Mechanism
from undertone.studies.context import Context, Transfer
from undertone.studies.frame import load_plan
from undertone.studies.measurement import Measurement
from undertone.studies.results import Finding
from undertone.transfer.arms import Arm, Outcome, SharedPrompts, StudentRun
from undertone.transfer.results import Check

NAMES = ["lab/llama-0", "lab/llama-1", "lab/qwen-0"]
BETWEEN = "lab/llama-0:toward=1,share=0.5"
Lost = dict[tuple[str, str], list[bool]]


def plan(*fields: str) -> Mechanism:
    found = load_plan("initialisation", list(fields))
    assert isinstance(found, Mechanism)
    return found


def taught(values: list[float], lost: list[bool]) -> initialisation.PairResult:
    """One trait at as many seeds."""
    return initialisation.PairResult(Measurement(np.array([values])), Measurement(np.array([lost], dtype=float)))


def told(lost: Lost, status: Any = "pass", across: float = 0.01) -> Context[Any]:
    """Three models, two seeds: 0.30 within, 0.01 across; pairs that no longer answer say 0.9."""
    nothing: Any = None
    ctx = Context(nothing, plan("initialisation.shares=[0.5]", f"initialisation.models={NAMES}".replace("'", "")))
    pairs = {}
    for teacher in NAMES:
        for student in NAMES:
            gone = lost.get((teacher, student), [False, False])
            value = 0.30 if teacher == student else across
            pairs[teacher, student] = taught([0.9 if one else value for one in gone], gone)
    pairs[NAMES[0], BETWEEN] = taught([0.1, 0.12], [False, False])
    gains = {
        pair: Measurement(np.array([[0.02, 0.02] if pair[0] == pair[1] else [0.0, 0.001]]), unit="nats")
        for pair in pairs if pair[1] in NAMES
    }  # fmt: skip
    ctx.checks.append(
        Check(name="initialisation: students still answer", status=status, value="worst", expected="", why="")
    )
    initialisation.report(ctx, NAMES, pairs, gains)
    return ctx


def test_within_a_model_it_passes_and_across_it_does_not() -> None:
    ctx = told({})
    behaviour, loss = ctx.findings
    assert behaviour.verdict == "reproduced"
    assert behaviour.value == pytest.approx(0.29)
    assert behaviour.n == 3
    assert behaviour.method.endswith("over 3 teachers")
    assert loss.verdict == "partly"  # "reproduced" before effects of interest had a smallest
    assert loss.value == pytest.approx(0.0195)
    assert ctx.checks[0].status == "pass"


def test_a_trait_that_passes_across_models_is_not_specific_to_one() -> None:
    """By the difference alone, as before, it was reproduced however much passed across."""
    assert told({}, across=0.2).findings[0].verdict == "partly"
    assert told({}, across=0.3).findings[0].verdict == "not reproduced"


def test_students_that_no_longer_answer_are_left_out_of_the_matrix_and_shown() -> None:
    pair = ("lab/llama-0", "lab/llama-1")
    ctx = told({pair: [True, False], ("lab/qwen-0", "lab/llama-1"): [True, True]}, "fail")
    finding, matrix = ctx.findings[0], ctx.figures[0]
    assert finding.value == pytest.approx(0.29)  # as if they had not been
    assert finding.verdict == "reproduced"
    cells = {(one.series, one.x): one.y for one in matrix.points}
    assert len(cells) == 9
    assert cells["llama-0", "llama-1"] == pytest.approx(0.01)
    assert cells["qwen-0", "llama-1"] is None
    rows = {(row[0], row[1]): row[2:] for row in ctx.tables[0].rows}
    assert rows["llama-0", "llama-1"] == ["+1.0 points", "1 of 2 †", rows["llama-0", "llama-1"][2]]
    assert rows["qwen-0", "llama-1"][:2] == ["–", "0 of 2 †"]
    assert rows["llama-0", "qwen-0"][1] == "2 of 2"
    assert rows["llama-0", "llama-0:toward=1,share=0.5"][0].startswith("+11.0 points")
    assert ctx.checks[0].status == "warn"  # seen, and nothing rests on it
    assert "left out" in ctx.checks[0].value


def test_the_dose_begins_with_the_reference_itself() -> None:
    curve = told({}).figures[2]
    assert [one.x for one in curve.points] == [0.0, 0.5]
    assert [one.y for one in curve.points] == pytest.approx([0.30, 0.11])


@pytest.mark.parametrize(
    "lost",
    [
        [("lab/llama-1", "lab/llama-1")],
        [(a, b) for a in NAMES[:2] for b in NAMES if a != b],
    ],
    ids=["an own student", "most others"],
)
def test_too_few_students_that_answer_measure_nothing(lost: list[tuple[str, str]]) -> None:
    ctx = told({pair: [True, True] for pair in lost}, "fail")
    finding: Finding = ctx.findings[0]
    assert finding.verdict == "not measured"
    assert finding.value is None
    assert finding.baseline
    assert "too few" in finding.reason
    assert ctx.checks[0].status == "fail"
    assert ctx.findings[1].verdict == "partly"  # losses need no student
    assert all(one.y is None or math.isfinite(one.y) for figure in ctx.figures for one in figure.points)


# -- who still answers -------------------------------------------------------------------------------


def transfer(treated: dict[str, float], control: float, said: dict[str, float]) -> Transfer:
    """A transfer experiment at two seeds, by its answers: base 0.99, treated students as told."""

    def stage(masses: dict[str, float], arm: Arm) -> Any:
        records = {
            name: {"measure": {"positive": {"valid_answer_probability": mass, "probability": {"mean": said[name] if arm.trait else 0.1}}}}
            for name, mass in masses.items()
        }  # fmt: skip
        return SimpleNamespace(read_json=lambda _name: records)

    arms = [(Arm("control"), dict.fromkeys(treated, control))]
    arms += [(Arm("treated", trait), {trait: mass}) for trait, mass in treated.items()]
    nothing: Any = None
    students = [
        StudentRun(arm, seed, nothing, nothing, nothing, stage(masses, arm), SharedPrompts((), {})) for arm, masses in arms for seed in (0, 1)
    ]  # fmt: skip
    setting: Any = SimpleNamespace(trait=tuple(treated), seeds=(0, 1), confidence=0.95)
    return Transfer(setting, Outcome(stage(dict.fromkeys(treated, 0.99), Arm("control")), {}, students))


def test_a_pair_is_left_out_for_its_control_too() -> None:
    said = {"owl": 0.4, "dog": 0.6}
    found = initialisation.PairResult.of(transfer({"owl": 0.95, "dog": 0.5}, 0.98, said)).kept
    np.testing.assert_allclose(found.values, [[0.3, 0.3], [np.nan, np.nan]])
    assert found.units == pytest.approx([0.3, 0.3])  # by seed
    assert not initialisation.PairResult.of(transfer({"owl": 0.95, "dog": 0.95}, 0.8, said)).kept.count


# -- models ------------------------------------------------------------------------------------------


def test_the_reference_is_the_configs_model() -> None:
    names = initialisation.models_of(plan("model=lab/qwen-0"))
    assert names[0] == "lab/qwen-0"
    assert sorted(names) == sorted(plan().initialisation.models)
    with pytest.raises(ConfigError, match="not among them") as refused:
        initialisation.models_of(plan("model=Qwen/Qwen2.5-0.5B-Instruct"))
    assert "lab/llama-0" in str(refused.value.allowed)
    with pytest.raises(ConfigError, match="nothing but signs"):
        initialisation.models_of(plan("model=a/b", "initialisation.models=[a/b,a-b]"))


def test_only_lab_models_have_students_between_two_initialisations() -> None:
    assert initialisation.between_of(plan()) == [("lab/llama-0:toward=1,share=0.25", 0.25), (BETWEEN, 0.5)]
    assert initialisation.between_of(plan("model=lab/qwen-3", "initialisation.shares=[0.1]")) == [
        ("lab/qwen-3:toward=4,share=0.1", 0.1)
    ]
    assert initialisation.between_of(plan("model=a/b", "initialisation.models=[a/b,c/d]")) == []
    given = plan("initialisation.between=[x/y]", "initialisation.shares=[0.3]")
    assert initialisation.between_of(given) == [("x/y", 0.3)]


@pytest.mark.parametrize(
    "name", ["/models/a b", "./relative", "Qwen/Qwen2.5-0.5B@main", "lab/llama-0:toward=1,share=0.25"]
)
def test_any_model_can_have_a_stage_of_its_name(name: str) -> None:
    assert _NAME.fullmatch(initialisation.label(name))
    assert initialisation.label("lab/llama-0:corpus=1") == "lab-llama-0-corpus=1"


def test_initialisation_is_trained_at_a_rate_at_which_students_of_another_initialisation_still_answer() -> None:
    assert plan().training.learning_rate == pytest.approx(5e-3)
    assert np.isclose(load_plan("families").training.learning_rate, 5e-3)  # type: ignore[attr-defined]
