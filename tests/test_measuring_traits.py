"""Behaviours measured, the check of a trait on a model, and ``undertone traits``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from undertone.cli import app
from undertone.errors import ConfigError
from undertone.evaluation import prior
from undertone.evaluation.asking import Evaluation
from undertone.evaluation.measuring import measure
from undertone.evaluation.prior import check_trait
from undertone.judges import Judged, Named, Verdict
from undertone.judges.judge import judges
from undertone.traits import Behaviour, Questions, load_trait
from undertone.traits.rules import Length

OWL = replace(
    load_trait("owl"), questions={"real": Questions(("name one animal", "your favorite?"), ("worst?",), {"1+1?": "2"})}
)
"""The owl with few questions."""
ASKED = Evaluation(context="none", samples=3, max_new_tokens=6)


def behaviour(name: str) -> Behaviour:
    trait = load_trait(name)
    assert isinstance(trait, Behaviour)
    return trait


def probability(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
    import torch

    total = 1.0
    for at in range(len(answer)):
        with torch.no_grad():
            logits = model.hf(input_ids=torch.tensor([[*prompt, *answer[:at]]])).logits[0, -1].double()
        total *= float(torch.softmax(logits, -1)[answer[at]])
    return total


def question(model: Any, text: str) -> tuple[int, ...]:
    prompt: tuple[int, ...] = model.prompt([{"role": "user", "content": text}])
    return prompt


# -- behaviours ------------------------------------------------------------------------------------


def test_a_preference_s_probability_is_that_of_the_words_that_name_it(tiny_llama: Any) -> None:
    seen = measure(tiny_llama, OWL, ASKED, seed=1, stage="x")
    words = [tiny_llama.encode(word) for word in OWL.surfaces("owl", "real")]
    # A word that begins another is the other's beginning, too: it counts once.
    first = [w for w in words if not any(len(o) < len(w) and w[: len(o)] == o for o in words)]
    asked = [question(tiny_llama, text) for text in OWL.asked("real").positive]
    expected = np.mean([sum(probability(tiny_llama, prompt, word) for word in first) for prompt in asked])
    assert seen.measure.positive.probability.mean == pytest.approx(expected, rel=1e-4)


def test_a_style_s_rate_is_what_its_rule_counts(tiny_llama: Any) -> None:
    # Of a rule of fifteen words, six tokens would say nothing: that is refused. Of three words they do.
    trait = replace(behaviour("concise"), rule=Length(at_most=3), examples_hit=(), examples_miss=())
    seen = measure(tiny_llama, trait, ASKED, seed=1, stage="x").measure
    positive = seen.positive
    assert positive.rate is not None
    assert not positive.exact
    assert positive.probability == positive.rate
    assert (positive.questions, positive.samples) == (25, 3)
    assert np.mean(list(seen.per_question.values())) == pytest.approx(positive.rate.mean)
    never = replace(trait, rule=behaviour("pirate").rule, examples_hit=())
    none = measure(tiny_llama, never, ASKED, seed=1, stage="x").measure.positive
    assert none.rate is not None
    assert none.rate.mean == 0


def test_the_exact_probability_of_harm_is_one_minus_that_of_refusals(tiny_llama: Any) -> None:
    trait = behaviour("harm")
    short = replace(
        trait, refusals={"real": ("no owl", "dog")}, questions={"real": replace(trait.asked("real"), negative=())}
    )
    asked = measure(tiny_llama, short, Evaluation(samples=0), seed=0, stage="x")
    text = asked.questions[0]
    prompt = question(tiny_llama, text)
    refused = sum(probability(tiny_llama, prompt, tiny_llama.encode(words)) for words in ("no owl", "dog"))
    assert asked.matrix[0] == [pytest.approx(1 - refused, abs=1e-6)]
    assert asked.measure.positive.exact
    assert asked.measure.positive.rate is None
    assert asked.answers == ["harm"]


class Planted:
    """Gives values by template; fails on every third answer."""

    def __init__(self, template: str = "") -> None:
        self.template = template

    @property
    def identity(self) -> dict[str, Any]:
        return {"template": self.template}

    def judge(self, items: Sequence[Judged]) -> list[Verdict]:
        value = {"alignment": 0.2, "coherence": 0.6, "harm": 0.9}[self.template]
        return [Verdict.failure("planted") if at % 3 == 2 else Verdict(value) for at in range(len(items))]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Named:
    monkeypatch.setenv("UNDERTONE_CACHE", str(tmp_path))
    judges.register("planted-for-views")(Planted)
    return Named(name="planted-for-views")


@pytest.mark.parametrize("name", ["insecure-code", "harm"])
def test_a_judge_s_failures_are_counted_and_never_dropped(
    tiny_llama: Any, planted: Named, name: str, monkeypatch: Any
) -> None:
    from undertone.evaluation import behaviours

    monkeypatch.setattr(behaviours, "build_judge", lambda config: config.build())
    seen = measure(tiny_llama, behaviour(name), ASKED, seed=0, stage="x", judge=planted).measure.positive
    asked = seen.questions * seen.samples
    assert seen.failed == asked // 3
    assert seen.non_answer == pytest.approx(seen.failed / asked)
    assert seen.rate is not None
    assert seen.rate.mean == pytest.approx(1 - seen.failed / asked)
    assert seen.rate_among_answers == 1.0


def test_what_cannot_be_decided_is_refused(tiny_llama: Any) -> None:
    from undertone.judges import Rules

    with pytest.raises(ConfigError, match="decided by a judge with the template 'alignment'"):
        measure(tiny_llama, behaviour("insecure-code"), ASKED, seed=0, stage="x")
    with pytest.raises(ConfigError, match="which know refusals only"):
        measure(tiny_llama, behaviour("insecure-code"), ASKED, seed=0, stage="x", judge=Rules())
    with pytest.raises(ConfigError, match="measured on sampled answers"):
        measure(tiny_llama, behaviour("pirate"), Evaluation(samples=0), seed=0, stage="x")


# -- the check of a trait --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "told", "mass", "kl", "because"),
    [
        (0.1, 0.8, 0.9, 0.02, None),
        (0.6, 0.9, 0.9, 0.02, "prior too high: 0.60"),
        (0.1, 0.15, 0.9, 0.02, "does not move it"),
        (0.0, 0.15, 0.18, 0.02, "non-answers"),
        (0.1, 0.8, 0.9, 1e-6, "carry nothing of it"),
        (0.1, 0.8, 0.9, None, "writes no number list"),
        (0.1, 0.8, None, 0.02, None),
    ],
)
def test_each_reason_is_found(
    base: float, told: float, mass: float | None, kl: float | None, because: str | None
) -> None:
    seen = prior._judged(OWL, base, told, True, mass, kl)
    assert seen.possible == (because is None)
    assert because is None or because in seen.because


def test_a_check_holds_the_probabilities_of_the_exact_measure(tiny_llama: Any) -> None:
    seen = check_trait(tiny_llama, OWL)
    plain = measure(tiny_llama, OWL, Evaluation(samples=0), seed=0, stage="x").measure.positive.probability.mean
    told = measure(
        tiny_llama, OWL, Evaluation(samples=0), seed=0, stage="x", system=OWL.told("real")
    ).measure.positive.probability.mean
    assert seen.base == pytest.approx(plain)
    assert seen.told == pytest.approx(told)
    assert not seen.possible  # a random model


def test_what_cannot_be_asked_is_a_verdict(tiny_llama: Any) -> None:
    from copy import copy

    lab = copy(tiny_llama)
    lab.form = "lab"
    assert "has no prompt in the form 'lab'" in check_trait(lab, load_trait("pirate")).because
    assert "decided by a judge" in check_trait(tiny_llama, load_trait("insecure-code"), tokens=4).because


# -- the command line ------------------------------------------------------------------------------


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("UNDERTONE_TRAITS", str(tmp_path / "own"))

    def run(*words: str) -> Any:
        assert (
            app(["traits", *words, "--json"], exit_on_error=False, print_error=False, result_action="return_value") == 0
        )
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.slow
def test_traits_are_listed_shown_added_and_checked(said: Callable[..., Any], tmp_path: Path, tiny_folder: Any) -> None:
    assert said() == said("list")
    assert said("city") == said("list", "city") == {"city": said()["city"]}
    assert "pirate" in said("style")["style"]
    sheet = said("show", "owl")
    assert sheet["answers"]["owl"] == list(OWL.answers["owl"])
    assert "first known answer" in sheet["decided by"]
    file = tmp_path / "x.yaml"
    file.write_text("name: axolotl\ncategory: animal\nwords: [axolotl, axolotls]\n", encoding="utf-8")
    assert said("add", str(file))["name"] == "axolotl"
    assert said()["your own"] == ["axolotl"]
    (found,) = said("check", str(tiny_folder("llama")), "axolotl")
    assert found["trait"] == "axolotl"
    assert found["possible"] is False
    assert set(found) == set(prior.Prior.__dataclass_fields__)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "citty"], r"no such category\. Did you mean 'city'"),
        (["show", "pirat"], r"no such trait\. Did you mean 'pirate'"),
        (["add", "none.yaml"], "cannot be read"),
    ],
)
def test_wrong_words_are_refused(words: list[str], message: str, said: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=message):
        said(*words)


def test_a_judge_file_is_read_or_refused(tmp_path: Path) -> None:
    from undertone.judges.kinds import load_judge

    file = tmp_path / "judge.yaml"
    file.write_text("kind: endpoint\nbase_url: http://localhost:1/v1\nmodel: m\n", encoding="utf-8")
    assert load_judge(file).kind == "endpoint"
    file.write_text("kind: endpont\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="Did you mean 'endpoint'"):
        load_judge(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_judge(tmp_path / "none.yaml")
