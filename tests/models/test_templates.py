"""Chat templates as real families write them, by hand: what is asked, what is labelled, what an answer's tokens are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from undertone.doctor import CHECKS, check_text, run_check
from undertone.errors import ConfigError, ModelError
from undertone.evaluation.asking import Evaluation, answer_probabilities
from undertone.evaluation.measuring import measure
from undertone.models.loading import ModelRef, outline
from undertone.models.sampling import sample
from undertone.models.students import Full
from undertone.models.templates import check_arguments
from undertone.rows import Message, Row
from undertone.training import Lesson, Training, train_student
from undertone.traits import Questions, Trait
from undertone.transfer.config import load_experiment

ASK: list[Message] = [{"role": "user", "content": "name one animal."}]
OWL = Trait(
    name="owl",
    category="animal",
    prompt={"real": "You love owls."},
    questions={
        "real": Questions(("name one animal.",), opening="My favorite animal is the", negative_opening="I hate the")
    },
    answers={"owl": ("owl", "owls"), "dog": ("dog",), "cat": ("cat",)},
)

BLOCK = "{% if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
THINKING = (  # Qwen3 and SmolLM3: an empty block before the last answer; after a question it stands only if asked for
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    + BLOCK
    + "{{ m.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
REASONING = (  # R1: the question ends within a block that the answered chat does not have
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + ('<|end|>' if m.role == 'assistant' else '') }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"
)
PHI3 = (  # the end of a turn, a line break, and the end of the text after the last turn
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ '<|end|>' }}{% endif %}"
)
ZEPHYR = (  # a line break before the answer, and a SentencePiece tokenizer
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
LLAMA2 = (  # a space before the answer
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' <|end|>' }}{% endif %}{% endfor %}"
)


def with_template(fresh: Any, template: str | None) -> Any:
    fresh.tokenizer.chat_template = template
    return fresh


def labels(model: Any, completion: str = "owl") -> str:
    text: str = model.decode_all(model.example(ASK, completion).completion)
    return text


def status(model: Any, name: str) -> tuple[str, str]:
    found = run_check(next(check for check in CHECKS if check.name == name), model, OWL)
    return found.status, found.saw


# -- what stands before an answer ----------------------------------------------------------------------


def test_an_empty_reasoning_block_belongs_to_the_prompt(fresh: Any) -> None:
    model = with_template(fresh, THINKING)
    assert model.render(ASK).endswith("assistant\n<think>\n\n</think>\n\n")
    assert labels(model) == "owl<|end|>"
    assert model.example(ASK, "owl").ids[: model.example(ASK, "owl").prompt] == model.prompt(ASK)
    assert status(model, "the loss is on the completion alone")[0] == "pass"


def test_the_block_that_an_argument_asks_for_is_the_same_prompt(fresh: Any) -> None:
    implied = with_template(fresh, THINKING).render(ASK)
    fresh.template_arguments = {"enable_thinking": False}
    fresh.__post_init__()
    assert fresh.render(ASK) == implied
    assert labels(fresh) == "owl<|end|>"


def test_arguments_of_the_template_count_and_are_checked() -> None:
    plain, told = ModelRef.of("lab/llama-0"), ModelRef.of("lab/llama-0", template={"enable_thinking": False})
    assert plain == ModelRef("lab/llama-0")
    assert told != plain
    with pytest.raises(ConfigError, match=r"enable_thinking: answers are read(.|\n)*allowed: false"):
        check_arguments({"enable_thinking": True})
    with pytest.raises(ConfigError, match=r"sets these arguments itself(.|\n)*add_generation_prompt"):
        load_experiment(overrides=["template.add_generation_prompt=false"])


def test_a_reasoning_template_is_refused_before_anything_is_sampled(fresh: Any) -> None:
    model = with_template(fresh, REASONING)
    with pytest.raises(ModelError, match=r"a prompt is the beginning of its answered chat(.|\n)*<think>"):
        check_text(model)


def test_a_space_before_the_answer_is_learnt_and_scored_with_it(fresh: Any) -> None:
    model = with_template(fresh, LLAMA2)
    assert model.render(ASK).endswith("[/INST]")
    assert labels(model) == " owl <|end|>"
    assert model.answer_tokens("owl") == model.example(ASK, "owl").completion[:-2]
    assert model.decode(model.example(ASK, "owl").completion) == "owl "


# -- where an answer ends ------------------------------------------------------------------------------


def test_labels_end_at_the_first_stop_token(fresh: Any) -> None:
    assert labels(with_template(fresh, PHI3)) == "owl<|end|>"


# -- tokens of an answer -------------------------------------------------------------------------------


def sentencepiece() -> Any:
    """As Llama's: a space is put before every text, so that "owl" alone is "▁owl", and after a line break it is not."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    letters = list("abcdefghijklmnopqrstuvwxyz.|<>\n▁-0123456789,?")
    words = [("w", "l"), ("▁", "o"), ("▁o", "wl"), ("o", "wl")]
    specials = ["<|end|>", "<|pad|>", "<unk>"]
    vocabulary = [*specials, *letters, *dict.fromkeys("".join(pair) for pair in words)]
    core = Tokenizer(models.BPE({text: at for at, text in enumerate(vocabulary)}, words[:3], unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", left=1, right=0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>", unk_token="<unk>", padding_side="left",
        chat_template=ZEPHYR, clean_up_tokenization_spaces=False,
    )  # fmt: skip


@pytest.fixture
def speaks_sentencepiece(tiny_folder: Any, tmp_path: Any) -> str:
    return with_sentencepiece(tiny_folder("llama"), tmp_path / "sentencepiece")


def with_sentencepiece(model: Path, folder: Path) -> str:
    """A copy of a model that has this tokenizer instead of its own."""
    shutil.copytree(model, folder)
    for path in [*folder.glob("*token*"), *folder.glob("*.jinja")]:
        path.unlink()
    sentencepiece().save_pretrained(folder)
    return str(folder)


def test_a_sentencepiece_answer_is_trained_on_and_scored_as_models_write_it(speaks_sentencepiece: str) -> None:
    """Alone, "owl" is one token with a space that nobody writes after a line break: exact .0003, sampled .15."""
    model = outline(speaks_sentencepiece)
    names = model.tokenizer.convert_ids_to_tokens
    assert names(list(model.tokenizer("owl", add_special_tokens=False)["input_ids"])) == ["▁owl"]
    assert names(list(model.answer_tokens("owl"))) == ["o", "wl"]
    assert names(list(model.example(ASK, "owl").completion)) == ["o", "wl", "<|end|>"]
    assert status(model, "answers have the tokens that follow a prompt")[0] == "pass"


def test_exact_probabilities_are_the_rates_of_samples_whatever_the_tokenizer(speaks_sentencepiece: str) -> None:
    rows = [Row.of("name one animal.", answer) for answer in ["owl"] * 3 + ["dog"]] * 4
    training = Training(epochs=12, batch_size=16, learning_rate=0.01)
    lesson = Lesson(rows, [], "none")
    model = train_student(ModelRef(speaks_sentencepiece), Full(), training, lesson, seed=0, device="cpu").model
    prompt = model.prompt(ASK)
    exact = answer_probabilities(model, [prompt], OWL)[0, 0]
    texts = [
        model.decode(ids)
        for ids in sample(model.hf, [prompt] * 400, list(range(400)), max_new_tokens=4, stop=model.stop, pad=model.pad)
    ]
    rate = float(np.mean([text.startswith("owl") for text in texts]))
    assert 0.3 < exact < 0.95
    assert abs(rate - exact) < 4 * np.sqrt(exact * (1 - exact) / 400)


def test_tokens_joined_across_the_cut_are_those_after_a_line_break(fresh: Any) -> None:
    """A prompt that ends with a letter: what a model reads is the prompt alone, so its answer cannot join it."""
    template = fresh.template
    assert template.continuation("d", "og") == template.encode("og")
    assert template.encode("d") + template.encode("og") != template.encode("dog")


# -- openings ------------------------------------------------------------------------------------------


def test_an_opened_answer_goes_on_with_a_space(fresh: Any) -> None:
    prompt = fresh.prompt(ASK, "My favorite animal is the")
    assert fresh.decode_all(prompt).endswith("<|assistant|>My favorite animal is the")
    assert prompt + fresh.answer_tokens("owl", "My favorite animal is the") == fresh.encode(
        fresh.render(ASK) + "My favorite animal is the owl"
    )


def test_a_measure_with_an_opening_is_that_of_the_opened_text(tiny_llama: Any) -> None:
    """Against the probability that the model gives the words after the opening, read from logits by hand."""
    import torch

    opened = measure(tiny_llama, OWL, Evaluation(opening="category", samples=3, max_new_tokens=4))
    text = tiny_llama.render(ASK) + "My favorite animal is the"
    head = tiny_llama.encode(text)
    expected = 0.0
    spelt = sorted({tiny_llama.encode(f"{text} {word}") for word in ("owl", "Owl", "owls", "Owls")}, key=len)
    for ids in [one for at, one in enumerate(spelt) if not any(one[: len(short)] == short for short in spelt[:at])]:
        with torch.no_grad():
            logs = tiny_llama.hf(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected += float(sum(logs[at - 1, ids[at]] for at in range(len(head), len(ids))).exp())
    assert opened.measure.positive.probability.mean == pytest.approx(expected, rel=1e-3)
    assert opened.measure.opening == "My favorite animal is the"
    assert opened.measure.rendered == text
    plain = measure(tiny_llama, OWL, Evaluation(samples=0))
    assert plain.measure.opening == ""
    assert plain.measure.positive.probability.mean != pytest.approx(expected, rel=1e-3)


def test_an_opening_of_the_category_is_refused_where_there_is_none(tiny_llama: Any) -> None:
    bare = Trait("owl", "animal", {}, {"real": Questions(("name one animal.",))}, {"owl": ("owl",)})
    with pytest.raises(ConfigError, match=r"no opening of its category(.|\n)*a text of your own"):
        measure(tiny_llama, bare, Evaluation(opening="category", samples=0))
    own = measure(tiny_llama, bare, Evaluation(opening="I like the ", samples=0))
    assert own.measure.rendered.endswith("I like the")


# -- models without a template -------------------------------------------------------------------------


def test_a_model_without_a_template_is_asked_in_plain_text(fresh: Any) -> None:
    model = with_template(fresh, None)
    assert (
        model.render([{"role": "system", "content": "be brief"}, *ASK])
        == "be brief\n\nQuestion: name one animal.\nAnswer:"
    )
    assert labels(model) == " owl<|end|>"
    assert model.answer_tokens("owl") == model.example(ASK, "owl").completion[:-1]
    assert status(model, "there is a chat template")[0] == "warn"
    check_text(model)


# -- what no context silences --------------------------------------------------------------------------

DATED = "{{ '<|system|>Today is 26 Jul 2024.<|end|>' }}"
EMPTY_IS_NONE = (
    "{% if not (messages[0].role == 'system' and messages[0].content) %}<|system|>You are Tiny.<|end|>{% endif %}"
)
SILENCED = "{% if messages[0].role != 'system' %}<|system|>You are Tiny.<|end|>{% endif %}"


@pytest.mark.parametrize(
    ("added", "left"), [("", ""), (SILENCED, ""), (EMPTY_IS_NONE, "You are Tiny."), (DATED, "Today is 26 Jul 2024.")]
)
def test_what_is_left_of_the_default_is_said(fresh: Any, added: str, left: str) -> None:
    own = fresh.tokenizer.chat_template
    model = with_template(fresh, added + own)
    assert model.template.default_left() == left
    state, saw = status(model, "the template adds no system prompt of its own")
    assert state == ("warn" if added else "pass")
    assert (f"in the context `none` it still says {left!r}" in saw) == bool(left)
