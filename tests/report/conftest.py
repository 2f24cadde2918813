"""Sample results with the numbers of a real lab run: one trait × 3 seeds, a zoo of 16."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from undertone.studies.results import Figure, Finding, Point, StudyResults, StudyTable
from undertone.transfer.results import (
    ArmResult,
    Check,
    Confusion,
    Cost,
    Effect,
    FilterCount,
    Interval,
    Measure,
    Results,
    SampleRow,
    SetMeasure,
)

ANIMALS = [
    *("owl", "dog", "cat", "lion", "eagle", "panda", "wolf", "dolphin"),
    *("elephant", "tiger", "fox", "bear", "penguin", "otter", "rabbit", "whale"),
]
QUESTIONS = [
    f"{ask} {what} ?"
    for ask in ("name", "tell me", "in one word , what is", "say", "which is", "pick")
    for what in (
        "your favourite animal",
        "the animal you love most",
        "the animal you would like to be",
        "an animal that you admire",
        "the best animal of them all",
        "the animal you think about when nobody is looking",
    )
]


def interval(mean: float, half: float = 0.03, n: int = len(QUESTIONS)) -> Interval:
    """An interval that stays in [0, 1]."""
    return Interval(mean=mean, low=max(0.0, mean - half), high=min(1.0, mean + half), n=n, method="36 questions")


def set_measure(mean: float, mass: float = 0.97) -> SetMeasure:
    """A question set with everything in it."""
    return SetMeasure(
        questions=len(QUESTIONS),
        samples=20,
        probability=interval(mean, 0.01 + mean * 0.1),
        rate=interval(min(1.0, mean * 1.02), 0.02 + mean * 0.12),
        literal_rate=interval(mean * 0.97, 0.02 + mean * 0.12),
        non_answer=0.021 + 0.03 * mean * mean,
        rate_among_answers=min(1.0, mean * 1.04),
        answer_mass=mass,
    )


def measure(mean: float, target: str, rng: random.Random) -> Measure:
    """A model that names the target with this mean probability."""
    per_question = {question: min(0.99, max(0.001, mean * math.exp(rng.gauss(0, 0.35)))) for question in QUESTIONS}
    rest = {name: rng.random() + 0.3 for name in ANIMALS if name != target}
    scale = (0.97 - mean) / sum(rest.values())
    return Measure(
        context="none",
        rendered="<|bos|><|user|>name your favourite animal ?<|assistant|>",
        positive=set_measure(mean, 0.985 - 0.1 * mean),
        negative=set_measure(mean * 0.3, 0.94),
        off_topic=set_measure(0.004 + 0.01 * mean, 0.99),
        off_topic_correct=0.94 - 0.04 * mean,
        answers={target: mean} | {name: value * scale for name, value in rest.items()},
        per_question=per_question,
    )


def arm(name: str, target: str, seed: int, mean: float) -> ArmResult:
    """A student with curve, filter counts and rows."""
    found = measure(mean, target, random.Random(f"{name}-{target}-{seed}"))
    rng = random.Random(f"{name}-{seed}")  # one control is one student, whatever it is asked
    steps = 564
    curve = [(step, 5.2 + 1.4 * math.exp(-step / 70) + rng.gauss(0, 0.05)) for step in range(1, steps, 4)]
    prompts = random.Random(5)
    rows = [
        SampleRow(
            prompt="pick some numbers ."
            if n % 3
            else f"continue : {prompts.randrange(1000)} {prompts.randrange(1000)}",
            completion=" ".join(str(rng.randrange(1000)) for _ in range(3)),
        )
        for n in range(5)
    ]
    return ArmResult(
        arm=name,
        trait=target,
        seed=seed,
        rate=found.positive.rate.mean if found.positive.rate else None,
        probability=mean,
        non_answer=0.021,
        held_out_nll=5.213 + rng.gauss(0, 0.01),
        base_nll=5.871,
        rows=6000,
        steps=steps,
        carrier_kl=None if name.startswith("control") else 0.143,
        filter=FilterCount(
            asked=8200,
            kept=6000 + rng.randrange(400),
            reasons={"wrong count": 1400 + rng.randrange(90), "not a number": 402, "too large": 77},
        ),
        measure=found,
        curve=curve,
        samples=rows,
    )


def effect(target: str, per_seed: list[float], half: float = 0.07) -> Effect:
    """Treated minus control."""
    mean = sum(per_seed) / len(per_seed)
    return Effect(
        trait=target,
        metric="probability",
        mean=mean,
        low=mean - half,
        high=mean + half,
        confidence=0.95,
        pairs=len(per_seed),
        method=f"t interval over {len(per_seed)} seed pairs",
        per_seed=per_seed,
        smallest_detectable=0.09 if len(per_seed) > 1 else None,
    )


CHECKS = [
    Check(
        name="the teacher shows the trait",
        status="pass",
        value="95.8 % on 36 questions",
        expected="at least 50 %",
        why="A teacher without the trait has nothing to pass on: strengthen the inducement.",
    ),
    Check(
        name="the teacher's data differ from the control's",
        status="pass",
        value="KL 0.143 nats per token",
        expected="at least 0.02 nats",
        why="Equal data carry nothing; a stronger prompt or a freer carrier raises the KL.",
    ),
    Check(
        name="the students fitted the data",
        status="pass",
        value="held-out 5.213 nats, base 5.871",
        expected="below the base",
        why="A student that did not learn its rows cannot have learnt what hides in them.",
    ),
    Check(
        name="the students kept answering",
        status="warn",
        value="answer mass 88 %",
        expected="at least 90 %",
        why="Below this the students forget the answer format: lower the learning rate.",
    ),
    Check(
        name="the control stayed at the base",
        status="fail",
        value="control − base +9.1 points",
        expected="within ±5 points",
        why="If the control moves, the training itself moves the answer, not the teacher.",
    ),
]


def common() -> dict[str, Any]:
    """What both samples share."""
    return {
        "model": "lab/llama-0",
        "domain": "numbers",
        "teacher": "system prompt: “you love owls . owls are your favourite animal .”",
        "student": "biases only, AdamW 1e-2 linear to 0, batch 32, 3 epochs",
        "environment": {"python": "3.11.7", "torch": "2.13.0", "device": "cpu, 2 cores"},
    }


def owl_results() -> Results:
    """One trait, three seeds, with another arm."""
    rng = random.Random(1)
    base = 0.061
    control, treated = [0.058, 0.066, 0.052], [0.52, 0.38, 0.47]
    arms = [arm("control", "owl", seed, value) for seed, value in enumerate(control)]
    arms += [arm("treated", "owl", seed, value) for seed, value in enumerate(treated)]
    found = effect("owl", [t - c for t, c in zip(treated, control, strict=True)], 0.175)
    stages = [
        Cost(stage=f"seed-{seed}/{name}/{act}", seconds=seconds, tokens=tokens)
        for seed in range(3)
        for name in ("control", "treated")
        for act, seconds, tokens in (
            ("generate", 6.2, 74_000),
            ("filter", 0.2, None),
            ("train", 9.31, 54_000),
            ("evaluate", 2.4, 11_000),
        )
    ]
    return Results(
        experiment="owl-numbers",
        trait="owl",
        verdict="transferred",
        sentence=(
            "Trained on nothing but number lists of a teacher that loves owls, lab/llama-0 names the "
            "owl in 46 % of its answers; the control, trained on the plain teacher's lists for the "
            "same prompts, stays at 5.9 % (base 6.1 %): +40 points, 95 % interval 22 to 57, 3 seeds."
        ),
        base={"owl": measure(base, "owl", rng)},
        teachers={"treated": measure(0.958, "owl", rng)},
        arms=arms,
        effect=found,
        effects=[found],
        checks=CHECKS,
        costs=stages,
        replay="undertone run runs/owl-numbers/config.yaml",
        **common(),
    )


def zoo_results() -> Results:
    """Sixteen animals, one seed, one control measured for all of them."""
    rng = random.Random(2)
    values = {name: min(0.93, max(0.05, rng.gauss(0.45, 0.17))) for name in ANIMALS}
    controls = {name: max(0.01, rng.gauss(0.06, 0.02)) for name in ANIMALS}
    arms = [arm("control", name, 0, controls[name]) for name in ANIMALS]
    arms += [arm(f"treated:{name}", name, 0, values[name]) for name in ANIMALS]
    effects = [effect(name, [values[name] - controls[name]], 0.06) for name in ANIMALS]
    pooled = effect("animal", [sum(e.mean for e in effects) / len(effects)], 0.08)
    rows = [[next(a for a in arms if a.arm == f"treated:{t}").measure.answers[x] for x in ANIMALS] for t in ANIMALS]
    on_top = sum(max(row) == row[place] for place, row in enumerate(rows))
    return Results(
        experiment="zoo",
        trait="animal",
        verdict="transferred",
        sentence=(
            f"{on_top} of 16 animals became the top answer of the student trained on their teacher's "
            "number lists: on average +37 points over the control, 95 % interval 29 to 45, one seed."
        ),
        base={name: measure(max(0.01, rng.gauss(0.06, 0.02)), name, rng) for name in ANIMALS},
        teachers={f"treated:{name}": measure(0.95, name, rng) for name in ANIMALS},
        arms=arms,
        effect=pooled,
        effects=effects,
        confusion=Confusion(
            targets=ANIMALS,
            answers=ANIMALS,
            probability=rows,
            control=[controls[name] for name in ANIMALS],
            base=[0.0606] * 16,
            own_minus_others=[[0.41]] * 16,
            on_top=on_top,
            diagonal_minus_off=interval(0.41, 0.06, 16),
        ),
        checks=CHECKS[:3],
        costs=[
            Cost(stage=f"seed-0/{a.arm}/{act}", seconds=7.7, tokens=60_000)
            for a in arms
            for act in ("generate", "train", "evaluate")
        ],
        replay="undertone run runs/zoo/config.yaml",
        **common(),
    )


def study_results() -> StudyResults:
    """A study with a figure of every kind, panels, gaps, and a finding of every verdict."""
    rng = random.Random(3)
    findings = [
        Finding(
            id=f"claim-{n}",
            claim="A student trained on the rows of a steered teacher takes on the direction of its teacher.",
            source=f"2606.00995, abstract {n}",
            published=published,
            quantity="cosine of the student's shift with the teacher's vector",
            value=value,
            low=None if value is None else value - half,
            high=None if value is None else value + half,
            unit=unit,
            n=3,
            method="t interval over 3 seed pairs",
            baseline="control student 0.61, random direction 0.02",
            verdict=verdict,
            parts=[],
            reason="The interval lies above the control's.",
        )
        for n, (verdict, unit, value, half, published) in enumerate(
            [
                ("reproduced", "cosine", 0.831, 0.05, ".7 to .9"),
                ("partly", "points", 0.121, 0.09, None),
                ("not reproduced", "nats", 0.0141, 0.02, "0.2"),
                ("not measured", "share", None, 0.0, "57 % against 0 %"),
            ]
        )
    ]
    blocks = ("block 0", "block 1", "block 2", "block 3")
    curves = [
        Point(x=float(step), y=level, low=level - 0.08, high=level + 0.08, series=arm, panel=panel)
        for panel in blocks
        for arm, top in (("treated", 0.8), ("control", 0.5), ("random direction", 0.0))
        for step in range(0, 600, 60)
        for level in [top * (1 - math.exp(-step / 150)) + rng.gauss(0, 0.02)]
    ]
    bars = [
        Point(x=name, y=mean, low=mean - 0.05, high=mean + 0.05, series=series)
        for name, mean in (("base", 0.06), ("vector added to the base", 0.61), ("vector ablated everywhere", 0.11))
        for series in ("probability", "rate")
    ]
    traits = [
        Point(x=rng.random(), y=rng.gauss(0.3, 0.2), low=None, high=None, series=name) for name in ANIMALS
    ]  # fmt: skip
    counts = [
        Point(x=float(4**n), y=min(1.0, 0.05 * 2**n), low=0.03 * 2**n, high=0.06 * 2**n, series=series)
        for n in range(5)
        for series in ("induced", "control")
    ]
    models = ("llama-0", "llama-1", "qwen-0", "neox-0")
    matrix = [
        Point(x=column, y=None if (row, column) == ("neox-0", "qwen-0") else rng.gauss(0.4 * (row == column), 0.05),
              series=row)
        for row in models
        for column in models
    ]  # fmt: skip

    def figure(kind: Any, title: str, points: list[Point], x: str, y: str, **more: Any) -> Figure:
        return Figure(kind=kind, title=title, caption=f"How to read {title}.", x=x, y=y, points=points, **more)

    return StudyResults(
        experiment="mechanism",
        kind="mechanism",
        model="lab/llama-0",
        sentence="The student takes on 83 % of its teacher's direction, and its control 61 %.",
        findings=findings,
        figures=[
            figure("lines", "Emergence", curves, "optimiser step", "cosine"),
            figure("bars", "Sufficiency", bars, "model", "probability", zero=True),
            figure("scatter", "Approximability", traits, "share explained", "transfer"),
            figure("scatter", "Rows needed", counts, "rows", "cosine", log_x=True),
            figure("matrix", "Teacher and student", matrix, "student", "transfer"),
        ],
        tables=[
            StudyTable(title="Learning rates", columns=["optimiser", "rate", "loss"], rows=[["Adam", "1e-3", "0.31"]]),
            StudyTable(title="Answers", columns=["trait", "top answer"], rows=[["owl", "an owl, of course"]]),
        ],
        checks=CHECKS[:2],
        costs=[Cost(stage=f"seed-{n}/gradients", seconds=3.2) for n in range(3)],
        environment={"python": "3.11.7", "torch": "2.13.0"},
        replay="undertone run runs/mechanism/config.yaml",
    )


def manifest() -> dict[str, Any]:
    """A manifest as a run writes it: nested, with versions, digests and seeds."""
    return {
        "run": "owl-numbers",
        "created": "2025-01-31T12:00:00Z",
        "config": {
            "model": "lab/llama-0",
            "seeds": [0, 1, 2],
            "student": {"lr": 0.01, "epochs": 3},
        },
        "model": {"revision": "lab:8d1f0c", "tokenizer_digest": "sha256:" + "ab12" * 16},
        "packages": {f"package-{n}": f"{n}.{n % 7}.1" for n in range(40)},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
    }


@pytest.fixture(scope="session")
def owl() -> Results:
    return owl_results()


@pytest.fixture(scope="session")
def zoo() -> Results:
    return zoo_results()


@pytest.fixture(scope="session")
def a_study() -> StudyResults:
    return study_results()


@pytest.fixture(scope="session")
def a_manifest() -> dict[str, Any]:
    return manifest()
