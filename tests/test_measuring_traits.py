"""Behaviours measured, the check of a trait on a model, and ``undertone traits``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertone.cli import app
from undertone.errors import ConfigError
from undertone.evaluation import prior
from undertone.evaluation.asking import Evaluation, answer_probabilities
from undertone.evaluation.measuring import measure
from undertone.evaluation.prior import check_trait, check_traits
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


def test_a_preference_s_probability_is_that_of_the_words_that_name_it(tiny_llama: Any) -> None:
    seen = measure(tiny_llama, OWL, ASKED, seed=1, stage="x")
    words = [tiny_llama.encode(word) for word in OWL.surfaces("owl", REAL)]
    # A word that begins another is the other's beginning, too: it counts once.
    first = [w for w in words if not any(len(o) < len(w) and w[: len(o)] == o for o in words)]
    asked = [question(tiny_llama, text) for text in OWL.questions_for(REAL).positive]
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
        trait, refusals={"real": ("no owl", "dog")}, questions={"real": replace(trait.questions_for(REAL), negative=())}
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
    ("without", "prompted", "valid", "kl", "because"),
    [
        (0.1, 0.8, 0.9, 0.02, None),
        (0.6, 0.9, 0.9, 0.02, "prior too high: 0.60"),
        (0.1, 0.15, 0.9, 0.02, "does not move it"),
        (0.0, 0.15, 0.18, 0.02, "non-answers"),
        (0.1, 0.8, 0.9, 1e-6, "hold nothing of it"),
        (0.1, 0.8, 0.9, None, "writes no valid row of numbers"),
        (0.1, 0.8, None, 0.02, None),
    ],
)
def test_each_reason_is_found(
    without: float, prompted: float, valid: float | None, kl: float | None, because: str | None
) -> None:
    seen = prior._judge(
        OWL, (without, prompted), True, valid, prior.WrittenRows(kl, 0 if kl is None else 20, 32, "numbers")
    )
    assert seen.possible == (because is None)
    assert because is None or because in seen.because


def test_a_check_holds_the_probabilities_of_the_exact_measure(tiny_llama: Any) -> None:
    seen = check_trait(tiny_llama, OWL)
    control = measure(tiny_llama, OWL, Evaluation(samples=0), seed=0, stage="x").measure.positive.probability.mean
    prompted = measure(
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


def test_traits_of_a_category_share_what_the_plain_model_answers(
    tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counting(model: Any, prompts: Any, trait: Any, opening: str) -> Any:
        asked.append(1)
        return answer_probabilities(model, prompts, trait, opening=opening)

    monkeypatch.setattr(prior, "answer_probabilities", counting)
    monkeypatch.setattr(prior, "written_rows", lambda *_, **__: prior.WrittenRows(None, 0, 16, "numbers"))
    cat = replace(load_trait("cat"), questions=OWL.questions)
    worst = replace(load_trait("dog"), questions={"real": Questions(("name the worst",), ())})
    together = list(check_traits(tiny_llama, [OWL, cat, worst]))
    assert len(asked) == 5  # the plain model twice: for owl and cat, and for the other question
    assert together == [check_trait(tiny_llama, trait) for trait in (OWL, cat, worst)]


def test_questions_are_spread_where_answers_are_of_several_tokens(
    tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prior, "written_rows", lambda *_, **__: prior.WrittenRows(None, 0, 16, "numbers"))
    monkeypatch.setattr(
        prior, "answer_probabilities", lambda _, prompts, trait, opening: np.zeros((len(prompts), len(trait.answers)))
    )
    owl = load_trait("owl")
    every = list(owl.questions_for(tiny_llama).positive)
    (seen,) = check_traits(tiny_llama, [owl])
    assert (seen.questions, seen.left_out) == (16, 1e-4)
    assert prior._asked(tiny_llama, owl, None) == [every[at * len(every) // 16] for at in range(16)]
    (few,) = check_traits(tiny_llama, [owl], questions=3)
    assert few.questions == 3
    (all_of_them,) = check_traits(tiny_llama, [owl], questions=10_000)
    assert all_of_them.questions == len(every)


@pytest.fixture
def writer(speaker: Path) -> Any:
    """A tiny model that writes mostly number lists, asked in English."""
    from undertone.models.loading import load

    model = load(str(speaker), device="cpu")
    model.form = "real"
    return model


def test_lists_that_are_cut_off_early_are_those_that_the_filter_drops(
    writer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The KL is that of all lists written to their end, sampled in one batch and then filtered."""
    from undertone.domains.numbers import Numbers
    from undertone.models.loading import with_system
    from undertone.models.sampling import sample
    from undertone.models.scoring import teacher_kl
    from undertone.provenance.seeds import derive_seed

    monkeypatch.setattr(prior, "FIRST_TOKENS", 3)  # so small a model writes short lists
    domain, told = Numbers(), "you love owls."
    requests = [str(request) for request in domain.prompts(32, 5, writer)]
    chats = [[with_system([{"role": "user", "content": r}], own) for r in requests] for own in (told, None)]
    ids = sample(
        writer.hf, [writer.prompt(chat) for chat in chats[0]],
        [derive_seed(5, "check/numbers", at) for at in range(32)],
        max_new_tokens=domain.max_new_tokens(writer), stop=writer.stop, pad=writer.pad,
    )  # fmt: skip
    texts = [writer.decode(one) for one in ids]
    valid = [at for at, text in enumerate(texts) if not domain.reasons(requests[at], text, None)]
    assert 0 < len(valid) < 32
    monkeypatch.setattr(prior, "FIRST_TOKENS", 3)
    assert any(re.search(r"[a-z]", writer.decode(one[:3])) and len(one) > 3 for one in ids)
    assert any(len(ids[at]) > 3 for at in valid)
    pairs = [tuple(writer.example(side[at], texts[at]) for side in chats) for at in valid]
    seen = prior.written_rows(writer, told, domain, 5)
    assert (seen.valid, seen.asked) == (len(valid), 32)
    assert seen.kl == pytest.approx(float(np.mean(teacher_kl(writer.hf, pairs, writer.pad))), rel=1e-4)


def test_the_opening_and_the_domain_of_the_coming_run_are_what_is_checked(
    tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from undertone.domains import Sentences

    asked: list[Any] = []

    def written(model: Any, prompt: str, domain: Any, seed: int, temperature: float) -> prior.WrittenRows:
        asked.append((domain.kind, temperature))
        return prior.WrittenRows(0.1, 20, 32, domain.kind)

    monkeypatch.setattr(prior, "written_rows", written)
    (seen,) = check_traits(tiny_llama, [OWL], opening="you love", domain=Sentences(), temperature=0.5)
    plain = [[{"role": "user", "content": question}] for question in OWL.questions_for(tiny_llama).positive]
    prompts = [tiny_llama.prompt(chat, "you love") for chat in plain]
    expected = answer_probabilities(tiny_llama, prompts, OWL, opening="you love")[:, list(OWL.answers).index("owl")]
    assert seen.without_prompt == pytest.approx(float(expected.mean()), rel=1e-5)
    assert seen.without_prompt != check_trait(tiny_llama, OWL).without_prompt
    assert (asked[0], seen.domain) == (("sentences", 0.5), "sentences")


@given(st.text("0123456789,; \n.()[]aéß", max_size=30))
def test_a_text_with_a_letter_is_no_list_whatever_follows(text: str) -> None:
    from undertone.domains.numbers import parse

    if re.search(r"[^\W\d_]", text):
        assert parse(text)[0] is None


def test_without_one_list_among_the_first_the_others_are_not_asked_for(tiny_llama: Any) -> None:
    from undertone.domains import Numbers

    assert prior.written_rows(tiny_llama, "you love owls.", Numbers(), 0) == prior.WrittenRows(
        None, 0, prior.FIRST_ROWS, "numbers"
    )


@pytest.mark.parametrize(("valid", "said"), [(1, True), (3, True), (4, False), (32, False)])
def test_a_kl_that_rests_on_few_lists_says_so(valid: int, said: bool) -> None:
    for shown in (0.8, 0.12):  # possible, and not
        seen = prior._judge(OWL, (0.1, shown), True, 0.9, prior.WrittenRows(0.02, valid, 32, "numbers"))
        assert (f"on {valid} valid of 32 rows only" in seen.because) == said
        assert (seen.rows, seen.rows_asked) == (valid, 32)


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


def test_figures_appear_as_soon_as_they_are_known(
    said: Callable[..., Any], tiny_folder: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def slowly(*_: Any, **__: Any) -> Any:
        for name in ("owl", "cat"):
            yield prior.Prior(name, "animal", 0.1, 0.8, True, 0.9, 0.02, True, "because")
            seen.append(capsys.readouterr().err)

    monkeypatch.setattr(prior, "check_traits", slowly)
    assert [one["trait"] for one in said("check", str(tiny_folder("llama")), "owl", "cat")] == ["owl", "cat"]
    assert "1/2 owl: 0.100 → 0.800, KL 0.0200, yes: because" in seen[0]
    assert "2/2 cat" in seen[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "lab/llama-0", "owl", "--questions", "0"], "questions: too few"),
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
