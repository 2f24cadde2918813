"""Verdicts and checks on records made by hand: each check fails on the fault it exists for, and on no other."""

from __future__ import annotations

from typing import Any

import pytest

from undertone.evaluation.measures import Interval, Measure, SetMeasure
from undertone.transfer.checks import checks_of, needed_for_a_null, word_of
from undertone.transfer.config import Experiment
from undertone.transfer.results import ArmResult, Check, Effect, FilterCount

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
        "held_out_nll": 5.0, "base_nll": 5.1, "rows": 1000, "steps": 100, "rows_of_control": 0.0,
        "teacher_kl": 0.1 if kind == "treated" else None, "filter": FilterCount(asked=110, kept=100, reasons={}),
        "measure": measure(probability), "curve": [], "samples": [],
    }  # fmt: skip
    return ArmResult(**{**values, **changed})


def effect(low: float, high: float, pairs: int = 3, could_see: float | None = 0.03) -> Effect:
    return Effect(
        trait="owl", metric="probability", mean=(low + high) / 2, low=low, high=high, confidence=0.95, pairs=pairs,
        method="by hand", per_seed=[], smallest_detectable=could_see,
    )  # fmt: skip


RISEN = effect(0.3, 0.6)


def chain(
    arms: list[ArmResult],
    told: float = 0.9,
    config: Experiment = CONFIG,
    base: Measure | None = None,
    found: Effect = RISEN,
) -> list[Check]:
    return checks_of(config, {"owl": base or measure(0.06)}, {"treated-owl": measure(told)}, arms, found)


def statuses(*args: Any, **kwargs: Any) -> dict[str, str]:
    checks = chain(*args, **kwargs)
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
        (arm("treated", 1, 0.5, rows_of_control=0.6), "the data differ from the control's", "warn"),
        (arm("treated", 1, 0.5, rows_of_control=1.0), "the data differ from the control's", "fail"),
        (arm("control", 1, 0.06, rows=14), "students had enough to learn from", "warn"),
        (arm("treated", 1, 0.5, steps=3), "students had enough to learn from", "warn"),
        (arm("treated", 2, 0.5, held_out_nll=5.3), "students fit data they had not seen", "warn"),
        (arm("control", 0, 0.25), "the control stays at the base", "warn"),
        (arm("treated", 0, 0.5, measure=measure(0.5, off_topic=0.4)), "the target is not babbled everywhere", "warn"),
        (arm("treated", 0, 0.5, measure=measure(0.5, correct=0.3)), "off-topic questions are still answered", "warn"),
    ],
)  # fmt: skip
def test_each_fault_is_caught_by_its_own_check(fault: ArmResult, name: str, status: str) -> None:
    assert statuses(with_one(fault)) == {name: status}


def test_a_teacher_without_the_trait_is_noticed() -> None:
    assert statuses(SOUND, told=0.08, found=effect(0.3, 0.6, could_see=0.005)) == {
        "the teacher shows the trait": "warn"
    }


def test_fewer_than_three_seeds_are_noticed() -> None:
    two = CONFIG.model_copy(update={"seeds": (0, 1)})
    assert statuses(SOUND[:4], config=two) == {"training runs are replicated": "warn"}


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
    assert word_of(found, chain(SOUND, found=found)) == word


def test_a_failed_check_makes_the_run_invalid_whatever_the_interval() -> None:
    broken = with_one(arm("treated", 1, 0.5, measure=measure(0.5, mass=0.5)))
    assert word_of(effect(0.2, 0.6), chain(broken)) == "invalid"


SMALL = effect(-0.01, 0.01)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ({"told": 0.1}, "the teacher shows the trait"),
        ({"arms": with_one(arm("treated", 0, 0.06, rows=14))}, "students had enough to learn from"),
        ({"found": effect(-0.01, 0.01, could_see=None)}, "the run could see what the teacher shows"),  # equal students
        ({"told": 0.19, "found": effect(-0.01, 0.01, could_see=0.08)}, "the run could see what the teacher shows"),
    ],
)
def test_a_run_that_could_not_have_seen_it_is_never_not_detected(fault: dict[str, Any], check: str) -> None:
    assert word_of(SMALL, chain(SOUND, found=SMALL)) == "not detected"
    checks = chain(**{"arms": SOUND, "found": SMALL, **fault})
    assert check in {one.name for one in needed_for_a_null(checks)}
    assert word_of(fault.get("found", SMALL), checks) == "underpowered"


def students(control: list[tuple[float, float]], treated: list[tuple[float, float]]) -> list[ArmResult]:
    """One student a seed, by (P(target), valid-answer probability)."""
    groups = (("control", control), ("treated", treated))
    return [
        arm(kind, seed, p, measure=measure(p, mass)) for kind, group in groups for seed, (p, mass) in enumerate(group)
    ]


def test_naming_any_answer_more_often_is_no_transfer() -> None:
    # A real model, its answer begun: purple's share of the colours named stays, and colours are named twice as often.
    base = measure(0.015, 0.15)
    control = [(0.019, 0.19), (0.026, 0.26), (0.022, 0.22)]
    talkative = students(control, [(0.08, 0.80), (0.09, 0.90), (0.083, 0.82)])
    assert statuses(talkative, base=base, found=effect(0.055, 0.07)) == {
        "the target gains among the answers given": "fail"
    }
    assert word_of(effect(0.055, 0.07), chain(talkative, base=base, found=effect(0.055, 0.07))) == "invalid"
    taught = students(control, [(0.10, 0.30), (0.12, 0.35), (0.11, 0.32)])
    assert statuses(taught, base=base, found=effect(0.07, 0.11)) == {}
    # Where nothing rose, there is nothing that answering more could explain.
    assert "the target gains among the answers given" not in statuses(talkative, base=base, found=SMALL)


def test_the_worst_student_speaks_for_all_by_either_limit() -> None:
    # owl loses nine points of .97; dog loses fewer, but more than half of what its base gave.
    base = {"owl": measure(0.06), "dog": measure(0.03, 0.12)}
    dogs = [arm(one.arm, one.seed, 0.03, trait="dog", measure=measure(0.03, 0.05)) for one in SOUND]
    owls = [one.model_copy(update={"measure": measure(one.probability, 0.88)}) for one in SOUND]
    checks = checks_of(CONFIG, base, {"treated-owl": measure(0.9), "treated-dog": measure(0.9)}, [*owls, *dogs], RISEN)
    [answers] = [check for check in checks if check.name == "students still answer"]
    assert answers.status == "fail"
    assert "dog" in answers.value
    # Enough rows and few steps beside few rows too many: what is shown is what is too little.
    short = [arm("control", 0, 0.06, rows=150), arm("treated", 0, 0.5, rows=1000, steps=3)]
    [trained] = [check for check in chain(short) if check.name == "students had enough to learn from"]
    assert trained.value == "fewest: 1000 rows, 3 steps"


def test_a_base_that_does_not_answer_is_refused_and_a_low_one_may_lose_half() -> None:
    silent = measure(0.002, 0.03)
    assert statuses(students([(0.002, 0.03)] * 3, [(0.02, 0.05), (0.03, 0.05), (0.03, 0.05)]), base=silent) == {
        "the base answers the questions": "fail"
    }
    low = measure(0.01, 0.14)
    assert statuses(students([(0.01, 0.06)] * 3, [(0.05, 0.1), (0.05, 0.1), (0.06, 0.1)]), base=low) == {
        "students still answer": "fail"
    }
