"""Behaviours measured, secondary views, the check of a trait on a model, and ``undertone traits``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import entropy

from undertone.cli import app
from undertone.errors import ConfigError
from undertone.evaluation import prior
from undertone.evaluation.asking import Evaluation, TraitAnswers, answer_probabilities, measure_trait
from undertone.evaluation.behaviours import measure_any
from undertone.evaluation.prior import check_trait
from undertone.evaluation.views import LETTERS, answer_distance, forced_choice, mentions, multiple_choice
from undertone.judges import JudgedPair, Named, Verdict
from undertone.judges.judge import judges
from undertone.traits import REAL, Behaviour, Questions, load_trait
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


def test_a_preference_is_measured_as_before(tiny_llama: Any) -> None:
    seen = measure_any(tiny_llama, OWL, ASKED, seed=1, stage="x")
    assert seen == measure_trait(tiny_llama, OWL, ASKED, seed=1, stage="x")


def test_a_style_s_rate_is_what_its_rule_counts(tiny_llama: Any) -> None:
    # Of a rule of fifteen words, six tokens would say nothing: that is refused. Of three words they do.
    trait = replace(behaviour("concise"), rule=Length(at_most=3), examples_hit=(), examples_miss=())
    seen = measure_any(tiny_llama, trait, ASKED, seed=1, stage="x").measure
    positive = seen.positive
    assert positive.rate is not None
    assert not positive.exact
    assert positive.probability == positive.rate
    assert (positive.questions, positive.samples) == (25, 3)
    assert np.mean(list(seen.per_question.values())) == pytest.approx(positive.rate.mean)
    never = replace(trait, rule=behaviour("pirate").rule, examples_hit=())
    none = measure_any(tiny_llama, never, ASKED, seed=1, stage="x").measure.positive
    assert none.rate is not None
    assert none.rate.mean == 0


def test_the_exact_probability_of_harm_is_one_minus_that_of_refusals(tiny_llama: Any) -> None:
    trait = behaviour("harm")
    short = replace(
        trait, refusals={"real": ("no owl", "dog")}, questions={"real": replace(trait.questions_for(REAL), negative=())}
    )
    asked = measure_any(tiny_llama, short, Evaluation(samples=0), seed=0, stage="x")
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

    def judge(self, items: Sequence[JudgedPair]) -> list[Verdict]:
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
    seen = measure_any(tiny_llama, behaviour(name), ASKED, seed=0, stage="x", judge=planted).measure.positive
    asked = seen.questions * seen.samples
    assert seen.failed == asked // 3
    assert seen.non_answer == pytest.approx(seen.failed / asked)
    assert seen.rate is not None
    assert seen.rate.mean == pytest.approx(1 - seen.failed / asked)
    assert seen.rate_among_answers == 1.0


def test_what_cannot_be_decided_is_refused(tiny_llama: Any) -> None:
    from undertone.judges import Rules

    with pytest.raises(ConfigError, match="decided by a judge with the template 'alignment'"):
        measure_any(tiny_llama, behaviour("insecure-code"), ASKED, seed=0, stage="x")
    with pytest.raises(ConfigError, match="which know refusals only"):
        measure_any(tiny_llama, behaviour("insecure-code"), ASKED, seed=0, stage="x", judge=Rules())
    with pytest.raises(ConfigError, match="measured on sampled answers"):
        measure_any(tiny_llama, behaviour("pirate"), Evaluation(samples=0), seed=0, stage="x")


# -- views -----------------------------------------------------------------------------------------


def test_multiple_choice_is_balanced_and_read_from_the_logits(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from undertone.evaluation import views

    few = replace(OWL, questions={"real": replace(OWL.questions_for(REAL), positive=("which?", "name one"))})
    shown: list[str] = []
    real = views._lettered
    monkeypatch.setattr(views, "_lettered", lambda q, options: shown.append(real(q, options)) or shown[-1])  # type: ignore[func-returns-value]
    seen = multiple_choice(tiny_llama, few, seed=3)
    assert len(shown) == 2 * len(LETTERS)
    for at, text in enumerate(shown):
        lines = text.split("\n")
        assert lines[1 + at % 5] == f"{LETTERS[at % 5]}. owl"
    first = [
        probability(tiny_llama, question(tiny_llama, text), tiny_llama.encode("A")) for text in (shown[0], shown[5])
    ]
    mass = [
        sum(probability(tiny_llama, question(tiny_llama, text), tiny_llama.encode(letter)) for letter in LETTERS)
        for text in (shown[0], shown[5])
    ]
    assert seen.by_position["A"] == pytest.approx(np.mean(np.array(first) / np.array(mass)), rel=1e-4)
    assert seen.probability.mean == pytest.approx(np.mean(list(seen.by_position.values())))
    assert 0 < seen.letter_probability <= 1


def test_forced_choice_is_the_difference_of_log_probabilities(tiny_llama: Any) -> None:
    seen = forced_choice(tiny_llama, OWL)
    prompts = [question(tiny_llama, text) for text in OWL.questions_for(REAL).positive]
    found = answer_probabilities(tiny_llama, prompts, OWL)
    names = list(OWL.answers)
    assert seen.against["cat"] == pytest.approx(
        np.log(found[:, names.index("owl")] / found[:, names.index("cat")]).mean()
    )
    back = forced_choice(tiny_llama, replace(load_trait("cat"), questions=OWL.questions))
    assert back.against["owl"] == pytest.approx(-seen.against["cat"])
    assert len(seen.against) + len(seen.left_out) == len(names) - 1
    assert 0 <= seen.wins.mean <= 1


def asked_of(matrix: list[list[float]]) -> TraitAnswers:
    return TraitAnswers(None, [f"q{n}" for n in range(len(matrix))], ["a", "b"], matrix)  # type: ignore[arg-type]


def test_distance_equals_values_by_hand_and_scipy_s_entropy() -> None:
    first, second = asked_of([[0.5, 0.3], [0.9, 0.1]]), asked_of([[0.2, 0.3], [0.9, 0.1]])
    seen = answer_distance(first, second)
    assert seen.total_variation[0] == pytest.approx((0.3 + 0.0) / 2)
    assert seen.kl[0] == pytest.approx(entropy([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]) / 2)
    assert seen.total_variation[1] == 0.0
    assert seen.total_variation[2] == pytest.approx(0.3)
    assert answer_distance(first, second) == seen
    same = answer_distance(first, first)
    assert (same.total_variation, same.kl) == ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))


def test_distance_keeps_its_coverage_on_planted_questions() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(60):
        gap = rng.beta(2, 8, 40)  # mean 0.2: the total variation of each question
        seen = answer_distance(asked_of([[g, 0.0] for g in gap]), asked_of([[0.0, 0.0]] * 40))
        held += seen.total_variation[1] <= 0.2 <= seen.total_variation[2]
    assert held >= 51  # 95 % of 60 is 57


def test_views_say_what_they_need(tiny_llama: Any) -> None:
    from copy import copy

    lab = copy(tiny_llama)
    lab.form = "lab"
    with pytest.raises(ConfigError, match="multiple choice is for real models"):
        multiple_choice(lab, OWL, seed=0)
    with pytest.raises(ConfigError, match="storytelling is for real models"):
        mentions(lab, OWL, ASKED, seed=0, stage="x")
    with pytest.raises(ConfigError, match="forced choice is a view of preferences"):
        forced_choice(tiny_llama, load_trait("pirate"))
    with pytest.raises(ConfigError, match="needs five known answers"):
        multiple_choice(
            tiny_llama,
            replace(OWL, answers={"owl": ("owl",), "dog": ("dog",)}, examples_hit=(), examples_miss=()),
            seed=0,
        )
    with pytest.raises(ConfigError, match="storytelling is measured on sampled"):
        mentions(tiny_llama, OWL, Evaluation(samples=0), seed=0, stage="x")
    with pytest.raises(ConfigError, match="different questions or answers"):
        answer_distance(asked_of([[0.1, 0.2]] * 2), asked_of([[0.1, 0.2]] * 3))
    with pytest.raises(ConfigError, match="two questions or more"):
        answer_distance(asked_of([[0.1, 0.2]]), asked_of([[0.1, 0.2]]))


def test_mentions_counts_stories_with_the_target_anywhere(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from undertone.evaluation import views

    asked: list[list[str]] = []

    def told(model: Any, prompts: Any, *_: Any) -> list[list[str]]:
        asked.append([model.decode_all(ids) for ids in prompts])
        return [["a fox met an owl", "nothing"], ["owl", "howl"]]

    monkeypatch.setattr(views, "sample_answers", told)
    assert mentions(tiny_llama, OWL, ASKED, seed=0, stage="x", prompts=("p", "q")).mean == 0.5
    with_numbers = ASKED.model_copy(update={"prefix": "numbers"})
    mentions(tiny_llama, OWL, with_numbers, seed=0, stage="x", prompts=("p", "q"))
    plain, prefixed = asked
    assert all(len(text) > len(before) + 9 for text, before in zip(prefixed, plain, strict=True))  # three numbers each


# -- the check of a trait --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("without", "prompted", "valid", "kl", "because"),
    [
        (0.1, 0.8, 0.9, 0.02, None),
        (0.6, 0.9, 0.9, 0.02, "prior too high: 0.60"),
        (0.1, 0.15, 0.9, 0.02, "does not move it"),
        (0.0, 0.15, 0.18, 0.02, "non-answers"),
        (0.1, 0.8, 0.9, 1e-6, "hold nothing of it"),
        (0.1, 0.8, 0.9, None, "writes no number list"),
        (0.1, 0.8, None, 0.02, None),
    ],
)
def test_each_reason_is_found(
    without: float, prompted: float, valid: float | None, kl: float | None, because: str | None
) -> None:
    seen = prior._judge(OWL, (without, prompted), True, valid, kl)
    assert seen.possible == (because is None)
    assert because is None or because in seen.because


def test_a_check_holds_the_probabilities_of_the_exact_measure(tiny_llama: Any) -> None:
    seen = check_trait(tiny_llama, OWL)
    control = measure_trait(tiny_llama, OWL, Evaluation(samples=0), seed=0, stage="x").measure.positive.probability.mean
    prompted = measure_trait(
        tiny_llama, OWL, Evaluation(samples=0), seed=0, stage="x", system=OWL.system_prompt(REAL)
    ).measure.positive.probability.mean
    assert seen.without_prompt == pytest.approx(control)
    assert seen.with_prompt == pytest.approx(prompted)
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
