"""Verdicts and checks on records made by hand: each check fails on the fault it exists for, and on no other."""

from __future__ import annotations

from typing import Any

import pytest

from undertone.evaluation.measures import Interval, Measure, SetMeasure
from undertone.transfer.checks import checks_of, word_of
from undertone.transfer.config import Experiment
from undertone.transfer.results import ArmResult, Effect, FilterCount

CONFIG = Experiment(trait=("owl",), seeds=(0, 1, 2))


def interval(mean: float) -> Interval:
    return Interval(mean=mean, low=max(0.0, mean - 0.01), high=min(1.0, mean + 0.01), n=24, method="by hand")


def set_measure(probability: float, mass: float | None = 0.97) -> SetMeasure:
    return SetMeasure(
        questions=24, samples=0, probability=interval(probability), rate=None, literal_rate=None, non_answer=None,
        rate_among_answers=None, valid_answer_probability=mass,
    )  # fmt: skip


def measure(probability: float, mass: float = 0.97, off_topic: float = 0.0, correct: float = 1.0) -> Measure:
    return Measure(
        context="none", rendered="", positive=set_measure(probability, mass), off_topic=set_measure(off_topic, None),
        off_topic_correct=correct,
    )  # fmt: skip


def arm(kind: str, seed: int, probability: float, **changed: Any) -> ArmResult:
    values: dict[str, Any] = {
        "arm": kind, "trait": "owl", "seed": seed, "rate": None, "probability": probability, "non_answer": None,
        "held_out_nll": 5.0, "base_nll": 5.1, "rows": 100, "steps": 10,
        "teacher_kl": 0.1 if kind == "treated" else None, "filter": FilterCount(asked=110, kept=100, reasons={}),
        "measure": measure(probability), "curve": [], "samples": [],
    }  # fmt: skip
    return ArmResult(**{**values, **changed})


def statuses(arms: list[ArmResult], told: float = 0.9, config: Experiment = CONFIG) -> dict[str, str]:
    checks = checks_of(config, {"owl": measure(0.06)}, {"treated-owl": measure(told)}, arms)
    return {check.name: check.status for check in checks if check.status != "pass"}


SOUND = [arm(kind, seed, p) for seed in (0, 1, 2) for kind, p in (("control", 0.06), ("treated", 0.5))]


def with_one(changed: ArmResult) -> list[ArmResult]:
    return [changed if (one.arm, one.seed) == (changed.arm, changed.seed) else one for one in SOUND]


def test_a_sound_run_passes_every_check() -> None:
    assert statuses(SOUND) == {}


@pytest.mark.parametrize(
    ("fault", "name", "status"),
    [
        (arm("treated", 1, 0.5, measure=measure(0.5, mass=0.6)), "students still answer", "fail"),
        (arm("control", 1, 0.06, measure=measure(0.06, mass=0.6)), "students still answer", "fail"),
        (arm("treated", 1, 0.5, teacher_kl=0.0001), "the data differ from the control's", "warn"),
        (arm("treated", 2, 0.5, held_out_nll=5.3), "students fit data they had not seen", "warn"),
        (arm("control", 0, 0.4), "the control stays at the base", "warn"),
        (arm("treated", 0, 0.5, measure=measure(0.5, off_topic=0.4)), "the target is not babbled everywhere", "warn"),
        (arm("treated", 0, 0.5, measure=measure(0.5, correct=0.3)), "off-topic questions are still answered", "warn"),
    ],
)  # fmt: skip
def test_each_fault_is_caught_by_its_own_check(fault: ArmResult, name: str, status: str) -> None:
    assert statuses(with_one(fault)) == {name: status}


def test_a_teacher_without_the_trait_is_noticed() -> None:
    assert statuses(SOUND, told=0.08) == {"the teacher shows the trait": "warn"}


def test_fewer_than_three_seeds_are_noticed() -> None:
    two = CONFIG.model_copy(update={"seeds": (0, 1)})
    assert statuses(SOUND[:4], config=two) == {"training runs are replicated": "warn"}


def effect(low: float, high: float, pairs: int = 3) -> Effect:
    return Effect(
        trait="owl", metric="probability", mean=(low + high) / 2, low=low, high=high, confidence=0.95, pairs=pairs,
        method="by hand", per_seed=[], smallest_detectable=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (effect(0.2, 0.6), "transferred"),
        (effect(0.01, 0.04), "not detected"),  # above 0, and smaller than what is of interest
        (effect(-0.02, 0.02), "not detected"),
        (effect(-0.01, 0.01), "not detected"),
        (effect(-0.2, 0.3), "underpowered"),
        (effect(-0.01, 0.06), "underpowered"),  # it holds 0 and an effect of interest
        (effect(-0.4, -0.2), "not detected"),
        (effect(0.2, 0.6, pairs=1), "underpowered"),  # an interval over questions says nothing of the next seed
        (effect(-0.01, 0.01, pairs=1), "underpowered"),
    ],
)
def test_the_word_follows_the_interval_and_the_smallest_effect_of_interest(found: Effect, word: str) -> None:
    sound = checks_of(CONFIG, {"owl": measure(0.06)}, {"treated-owl": measure(0.9)}, SOUND)
    assert word_of(found, sound) == word


def test_a_failed_check_makes_the_run_invalid_whatever_the_interval() -> None:
    broken = with_one(arm("treated", 1, 0.5, measure=measure(0.5, mass=0.5)))
    checks = checks_of(CONFIG, {"owl": measure(0.06)}, {"treated-owl": measure(0.9)}, broken)
    assert word_of(effect(0.2, 0.6), checks) == "invalid"
