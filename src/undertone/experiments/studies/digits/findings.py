"""What the digits study says of each claim, and whether that may be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from undertone.experiments.results import Check
from undertone.experiments.studies.digits import figures
from undertone.experiments.studies.digits.arms import STUDENTS, Arms, matched_accuracy, traces_of
from undertone.experiments.studies.digits.config import DigitsStudy
from undertone.experiments.study import Finding, Judgement
from undertone.provenance.runs import Stage
from undertone.stats import PairedEffect, wilson

NEAR_ZERO = 0.10
"""A gain is called none where its whole interval lies within ten points of zero."""
TOO_WIDE = "The interval is too wide to tell: more seeds, or more steps."


def tell(
    config: DigitsStudy, teachers: Stage, learned: Mapping[str, Sequence[Stage]], stepped: Stage
) -> dict[str, Any]:
    """The parts of an ``Outcome`` that are words and numbers."""
    tuned = {name: stages[0] for name, stages in learned.items()}
    traces = {
        name: {kind: trace for stage in stages[1:] for kind, trace in traces_of(stage)}
        for name, stages in learned.items()
    }
    arms = Arms(config, teachers, tuned, traces)
    steps = stepped.read_json("steps.json")
    matched = matched_accuracy(arms)
    return {
        "model": " – ".join(map(str, teachers.summary["sizes"])) + " ReLU network",
        "sentence": _sentence(arms),
        "findings": [_learns(arms), *_gains_nothing(arms), _theorem(steps), *_adaptive(arms, matched)],
        "figures": [
            figures.bars(arms),
            figures.curves(arms),
            *figures.optimiser_figures(arms, matched),
            figures.cosines(steps),
        ],
        "tables": [figures.tuning(arms), figures.by_seed(arms)],
        "checks": _checks(arms),
    }


def _sentence(arms: Arms) -> str:
    found = {kind: _percent(trace.accuracy[-1]) for kind, trace in arms.first.items()}
    effect = arms.gain(arms.first["same"].accuracy[-1], arms.first["other"].accuracy[-1])
    data = f"{arms.teachers.summary['data']} ({arms.teachers.summary['images'][0]} images)"
    return (
        f"On {data}, students that matched nothing but {arms.config.auxiliary} auxiliary logits on noise name "
        f"{found['same']} of the digits from their teacher's initialisation and {found['other']} from another one "
        f"(teachers {_percent(arms.teacher())}, untrained {_percent(arms.untrained())}): {_points(effect)}, "
        f"{_count(arms.seeds, 'seed')}."
    )


def _learns(arms: Arms) -> Finding:
    same, other = (arms.first[kind].accuracy[-1] for kind in ("same", "other"))
    effect, mean = arms.gain(same, other), sum(same) / len(same)
    verdict: Judgement = "not reproduced" if effect.high < NEAR_ZERO else "not measured"
    if effect.low > 0:
        verdict = "reproduced" if mean > 0.5 else "partly"
    return Finding(
        id="same-start-learns",
        claim="Matching auxiliary logits on noise teaches a student of the teacher's initialisation the classes.",
        source="2507.14805, MNIST experiment",
        published="over 50 % of MNIST from the same initialisation, no gain from another (63 % in a re-run)",
        quantity="test accuracy, same initialisation − another",
        value=effect.mean,
        low=effect.low,
        high=effect.high,
        unit="points",
        pairs=effect.pairs,
        method=effect.method,
        baseline=(
            f"same {_percent(same)}; another initialisation {_percent(other)}, targets permuted "
            f"{_percent(arms.first['permuted'].accuracy[-1])}, untrained {_percent(arms.untrained())}"
        ),
        verdict=verdict,
        why=TOO_WIDE
        if verdict == "not measured"
        else f"The gain's interval {'lies' if effect.low > 0 else 'does not lie'} above zero, and the student's mean "
        f"accuracy is {'above' if mean > 0.5 else 'not above'} one half.",
    )


def _gains_nothing(arms: Arms) -> list[Finding]:
    said = {
        "other": ("other-start-learns-nothing", "A student of another initialisation gains nothing."),
        "shape": ("other-shape-learns-nothing", "A student of another architecture gains nothing."),
    }
    found = []
    for kind, (name, claim) in said.items():
        accuracies, control = arms.first[kind].accuracy[-1], arms.first[kind].accuracy[0]
        effect = arms.gain(accuracies, control)
        none = effect.low > -NEAR_ZERO and effect.high < NEAR_ZERO
        verdict: Judgement = "reproduced" if none else "not reproduced" if effect.low > 0 else "not measured"
        found.append(
            Finding(
                id=name,
                claim=claim,
                source="2507.14805, MNIST experiment and cross-model arms",
                published="no gain (9 % in a re-run)",
                quantity=f"test accuracy, {STUDENTS[kind]}: trained − untrained",
                value=effect.mean,
                low=effect.low,
                high=effect.high,
                unit="points",
                pairs=effect.pairs,
                method=effect.method,
                baseline=f"the same students untrained {_percent(control)}; largest class "
                f"{100 * arms.teachers.summary['majority']:.0f} %",
                verdict=verdict,
                why={
                    "reproduced": "The interval lies within ten points of zero.",
                    "not reproduced": "The interval lies above zero: something was gained.",
                }.get(verdict, TOO_WIDE),
            )
        )
    return found


def _theorem(steps: Sequence[Mapping[str, Any]]) -> Finding:
    share = {
        start: wilson(sum(step["inner"] >= 0 for step in found), len(found))
        for start in ("same", "other")
        if (found := [step for step in steps if step["start"] == start])
    }
    same, other = share["same"], share["other"]
    both = 0 < other.mean < 1
    verdict: Judgement = "reproduced" if same.mean == 1 and both else "partly" if same.mean == 1 else "not reproduced"
    return Finding(
        id="one-step-theorem",
        claim="One small step towards a teacher of the same initialisation never moves against the teacher's own step, "
        "whatever the inputs.",
        source="2507.14805, Theorem 1",
        published="always (proved)",
        quantity="share of first steps whose inner product with the teacher's step is not negative",
        value=same.mean,
        low=same.low,
        high=same.high,
        unit="share",
        pairs=same.n,
        method="exact to first order in float64; Wilson interval over seeds × inputs × losses",
        baseline=f"another initialisation {other.mean:.2f} ({other.low:.2f} to {other.high:.2f})",
        verdict=verdict,
        why=f"{'Every one' if same.mean == 1 else 'Not every one'} of {same.n} products is at least zero; from another "
        f"initialisation {'both signs occur' if both else 'one sign alone occurs'}.",
    )


def _adaptive(arms: Arms, matched: Mapping[str, Sequence[float]]) -> list[Finding]:
    plain = [arm.name for arm in arms.config.optimizers if not arm.adaptive]
    adaptive = [arm.name for arm in arms.config.optimizers if arm.adaptive]
    if not matched or not plain or not adaptive:
        return []
    effect = arms.gain(_average(matched, adaptive), _average(matched, plain))
    finals = [arms.traces[name] for name in plain]
    gains = [arms.gain(found["same"].accuracy[-1], found["other"].accuracy[-1]) for found in finals]
    taught = [name for name, gain in zip(plain, gains, strict=True) if gain.low > 0]
    ahead = effect.low > 0
    verdict: Judgement = "partly" if ahead else "not reproduced"
    if not taught:
        verdict = "reproduced" if ahead else "not measured"
    told = "; ".join(f"{name} {_points(gain)}" for name, gain in zip(plain, gains, strict=True))
    return [
        Finding(
            id="adaptive-optimisers-needed",
            claim="Adaptive optimisers are necessary: plain ones pass nothing on at the same loss.",
            source="2606.00995, abstract 5 (of language models)",
            published="language model, matched loss: Adam 57 %, SGD 0 %",
            quantity=f"accuracy at equal imitation loss, mean of {', '.join(adaptive)} − mean of {', '.join(plain)}",
            value=effect.mean,
            low=effect.low,
            high=effect.high,
            unit="points",
            pairs=effect.pairs,
            method=f"{effect.method}; rates tuned on {_count(len(arms.config.tuning_seeds), 'other seed')}",
            baseline=f"same − another initialisation at the end: {told}",
            verdict=verdict,
            why=(
                f"Adaptive ones are {'ahead' if ahead else 'not shown to be ahead'} at equal loss, and "
                f"{' and '.join(taught) or 'no plain one'} pass{'es' if len(taught) < 2 else ''} the classes on; "
                "networks of this kind are no evidence about transformers."
            ),
        )
    ]


def _average(matched: Mapping[str, Sequence[float]], names: Sequence[str]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*(matched[name] for name in names), strict=True)]


def _checks(arms: Arms) -> list[Check]:
    teacher, same = min(arms.teacher()), arms.first["same"]
    fitted = max(last / first for last, first in zip(same.loss[-1], same.loss[0], strict=True))
    placebo = arms.gain(arms.first["permuted"].accuracy[-1], arms.untrained())
    edges = []
    for name, stage in arms.tuned.items():
        rates = list(stage.summary["losses"])
        if len(rates) > 1 and any(figures.chosen(rates[end], stage) for end in (0, -1)):
            edges.append(name)
    quiet = abs(placebo.mean) < NEAR_ZERO
    return [
        _check(
            "teachers know the digits",
            "pass" if teacher >= 0.8 else "fail",
            f"worst {100 * teacher:.1f} %",
            "at least 80 %",
            "A teacher that knows nothing has nothing to pass on: more teacher.epochs.",
        ),
        _check(
            "students fit the auxiliary logits",
            "pass" if fitted <= 0.2 else "warn",
            f"worst: held-out loss {fitted:.3f} of what it began with",
            "at most 0.2",
            "Too few steps are the main reason for a null: raise steps.",
        ),
        _check(
            "permuted targets teach nothing",
            "pass" if quiet else "warn",
            _points(placebo),
            "within ten points",
            "If they did, it would be the training as such that shows digits, and not the lesson.",
        ),
        _check(
            "tuned rates lie inside their grids",
            "warn" if edges else "pass",
            ", ".join(edges) + " at the edge" if edges else "all",
            "none at an edge",
            "A better rate may lie beyond the grid: widen rates of these optimizers.",
        ),
        _check(
            "seeds are replicated",
            "pass" if arms.seeds >= 3 else "warn",
            _count(arms.seeds, "seed"),
            "at least 3",
            "With fewer, an interval does not cover the variance between networks.",
        ),
    ]


def _check(name: str, status: Literal["pass", "warn", "fail"], value: str, expected: str, why: str) -> Check:
    return Check(name=name, status=status, value=value, expected=expected, why=why)


def _percent(values: Sequence[float]) -> str:
    return f"{100 * sum(values) / len(values):.1f} %"


def _points(effect: PairedEffect) -> str:
    return f"{100 * effect.mean:+.1f} points ({100 * effect.low:+.1f} to {100 * effect.high:+.1f})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"
