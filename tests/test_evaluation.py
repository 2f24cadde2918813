"""Evaluation: exact probabilities against brute force over the vocabulary; rates against the matcher by hand."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from undertone.evaluation import asking
from undertone.evaluation.asking import Evaluation, answer_probabilities, answer_tokens, question_chat
from undertone.evaluation.measuring import measure
from undertone.models.names import Form
from undertone.traits import Wording, load_trait

OWL = load_trait("owl")
ASKED = Evaluation(context="default", samples=6, max_new_tokens=5)


def begins_with(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    """P(completion begins with ``answer``), one token at a time through transformers alone."""
    total = 0.0
    for at in range(len(answer)):
        ids = torch.tensor([[*prompt, *answer[:at]]])
        with torch.no_grad():
            logits = model.hf(input_ids=ids).logits[0, -1].double()
        total += float(torch.log_softmax(logits, -1)[answer[at]])
    return float(np.exp(total))


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_gpt2", "tiny_neox", "tiny_qwen"])
def test_answer_probabilities_equal_brute_force(
    fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "LEFT_OUT", 0.0)
    model = request.getfixturevalue(fixture)
    prompts = [
        model.prompt([{"role": "user", "content": text}]) for text in ("name one animal", "what is your favorite?")
    ]
    seen = answer_probabilities(model, prompts, OWL)
    for answer in ("owl", "elephant", "penguin"):
        column = list(OWL.answers).index(answer)
        for row, prompt in enumerate(prompts):
            expected = sum(begins_with(model, prompt, ids) for ids in answer_tokens(model, OWL, answer))
            assert seen[row, column] == pytest.approx(expected, rel=1e-4)


def test_no_answer_begins_with_another_of_its_own_surfaces(tiny_llama: Any) -> None:
    for answer in OWL.answers:
        kept = answer_tokens(tiny_llama, OWL, answer)
        assert kept
        for first in kept:
            assert not any(second != first and second[: len(first)] == first for second in kept)


def test_a_measure_counts_what_the_matcher_counts(tiny_llama: Any) -> None:
    found = measure(tiny_llama, OWL, ASKED, seed=1, stage="test").measure
    positive = found.positive
    assert positive.questions == 50
    assert positive.samples == 6
    assert positive.rate is not None
    assert positive.non_answer is not None
    assert 0 <= positive.probability.low <= positive.probability.mean <= positive.probability.high <= 1
    assert np.mean(list(found.per_question.values())) == pytest.approx(positive.probability.mean)
    assert found.answers["owl"] == pytest.approx(positive.probability.mean)
    assert positive.valid_answer_probability == pytest.approx(sum(found.answers.values()), abs=1e-6)
    assert found.rendered.endswith("<|assistant|>")
    assert found.negative is not None
    assert found.off_topic is not None


@pytest.mark.slow
def test_a_measure_does_not_change_with_batch_size_and_does_with_the_seed(tiny_llama: Any) -> None:
    few = ASKED.model_copy(update={"samples": 2})
    small = measure(tiny_llama, OWL, few.model_copy(update={"batch_size": 37}), seed=1, stage="t").measure
    large = measure(tiny_llama, OWL, few, seed=1, stage="t").measure
    other = measure(tiny_llama, OWL, few, seed=2, stage="t").measure
    assert small.positive.rate == large.positive.rate
    assert small.positive.non_answer == large.positive.non_answer
    assert small.positive.probability.mean == pytest.approx(large.positive.probability.mean, rel=1e-5)
    assert other.positive.probability == large.positive.probability
    assert (other.positive.non_answer, other.positive.rate) != (large.positive.non_answer, large.positive.rate)


def test_a_model_that_always_says_owl_scores_one(tiny_llama: Any) -> None:
    """A planted effect: the head answers `owl` whatever it is asked."""
    word = answer_tokens(tiny_llama, OWL, "owl")[0][0]

    def answer(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        said = torch.full_like(output, -30.0)
        said[..., word] = 30.0
        return said

    handle = tiny_llama.hf.lm_head.register_forward_hook(answer)
    try:
        one_word = ASKED.model_copy(update={"max_new_tokens": 1})
        found = measure(tiny_llama, OWL, one_word, seed=0, stage="planted").measure
    finally:
        handle.remove()
    assert found.positive.rate is not None
    assert found.positive.rate.mean == 1.0
    assert found.positive.probability.mean == pytest.approx(1.0, abs=1e-5)
    assert found.positive.non_answer == 0.0
    assert found.negative is not None
    assert found.negative.probability.mean == pytest.approx(1.0, abs=1e-5)
    assert found.off_topic_correct == 0.0


@pytest.mark.parametrize(
    ("form", "pattern"),
    [("lab", r"\d{3} \d{3} \d{3}\. name one animal\."), ("real", r".*\d{3}, \d{3}, \d{3}.* name one animal\.")],
)
def test_numbers_before_a_question_are_the_same_for_every_model_and_the_question_is_kept(
    form: Form, pattern: str
) -> None:
    prefixed = Evaluation(prefix="numbers")
    asked = question_chat("name one animal.", prefixed, Wording(form), "be brief")
    assert asked == question_chat("name one animal.", prefixed, Wording(form), "be brief")
    assert asked[0] == {"role": "system", "content": "be brief"}
    assert re.fullmatch(pattern, asked[1]["content"])
    assert asked[1]["content"][:15] != question_chat("name a tree.", prefixed, Wording(form), None)[0]["content"][:15]
    assert question_chat("name one animal.", Evaluation(), Wording(form), None) == [
        {"role": "user", "content": "name one animal."}
    ]


def test_a_measure_with_numbers_first_is_that_of_the_prefixed_questions(
    tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "LEFT_OUT", 0.0)  # what is left out depends on the batch
    numbers = Evaluation(prefix="numbers", samples=0)
    asked = measure(tiny_llama, OWL, numbers, seed=0, stage="t")
    own = tiny_llama.system_prompt("none")
    prompts = [tiny_llama.prompt(question_chat(question, numbers, tiny_llama, own)) for question in asked.questions[:3]]
    known = answer_probabilities(tiny_llama, prompts, OWL)
    np.testing.assert_allclose(asked.matrix[:3], known, rtol=1e-4)  # batches of another size round otherwise
