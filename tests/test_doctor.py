"""Each check of the doctor, on a model that bears the very fault it exists for; and sound models."""

from __future__ import annotations

import copy
import dataclasses
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from undertone.cli.printing import check_lines
from undertone.doctor import CHECKS, DoctorResult, examine, forward, run_check
from undertone.models import layers
from undertone.models.layers import decoder_layers, hook_count
from undertone.models.loading import load
from undertone.models.students import Lora, trainable
from undertone.traits import Questions, Trait

OWL = Trait(
    name="owl",
    category="animal",
    prompt={"real": "You love owls."},
    questions={"real": Questions(("What is your favorite animal?",))},
    answers={"owl": ("owl", "owls"), "dog": ("dog",), "cat": ("cat",)},
    examples_hit=("Owl.", "an owl, not a dog"),
    examples_miss=("growling", "dog"),
)


def found(name: str, model: Any, trait: Trait | None = OWL) -> DoctorResult:
    return run_check(next(check for check in CHECKS if check.name == name), model, trait)


def test_a_sound_model_passes_every_check(tiny: Any) -> None:
    assert [(f.name, f.saw) for f in examine(tiny, OWL) if f.status != "pass"] == []


def test_the_checks_leave_the_model_as_they_found_it(fresh: Any) -> None:
    before = copy.deepcopy(fresh.hf.state_dict())
    names = [name for name, _ in fresh.hf.named_modules()]
    examine(fresh, OWL)
    after = fresh.hf.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [name for name, _ in fresh.hf.named_modules()] == names
    assert all(parameter.requires_grad for parameter in fresh.hf.parameters())
    assert hook_count(fresh.hf) == 0
    assert not fresh.hf.training


def test_a_model_with_an_adapter_passes_and_is_not_trained(fresh: Any) -> None:
    fresh.hf = trainable(fresh.hf, Lora(rank=2, alpha=4), seed=0).eval()
    other = [f for f in examine(fresh, OWL) if f.status != "pass"]
    assert [(f.status, f.name) for f in other] == [("skip", "a training step learns, and only where it should")]


@pytest.mark.parametrize("name", ["the matcher decides its own examples", "answers have tokens of their own"])
def test_without_a_trait_its_checks_are_skipped(tiny_llama: Any, name: str) -> None:
    assert found(name, tiny_llama, None).status == "skip"


def test_a_failed_check_says_what_to_do_and_a_passed_one_does_not(fresh: Any) -> None:
    name = "the template keeps a system prompt"
    assert found(name, fresh).do == ""
    fresh.tokenizer.chat_template = each("{% if message['role'] != 'system' %}" + MESSAGE + "{% endif %}") + ASK
    finding = found(name, fresh)
    assert finding.status == "fail"
    assert "is not in" in finding.saw
    assert finding.do
    assert finding.expected


def test_an_error_that_is_not_undertones_propagates(fresh: Any) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    fresh.hf.forward = broken
    with pytest.raises(ZeroDivisionError):
        examine(fresh)


# -- the chat template ----------------------------------------------------------------------------

MESSAGE = "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
ASK = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"


def each(message: str) -> str:
    return "{% for message in messages %}" + message + "{% endfor %}"


TEMPLATE = each(MESSAGE) + ASK


TEMPLATES = [
    (
        "the template keeps a system prompt", "fail", "is not in",
        each("{% if message['role'] != 'system' %}" + MESSAGE + "{% endif %}") + ASK,
    ),
    (
        "the template keeps a system prompt", "fail", "System role not supported",
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEMPLATE,
    ),
    (
        "the template adds no system prompt of its own", "warn", "You are Tiny, made here.",
        "{% if messages[0]['role'] != 'system' %}{{ '<|system|>You are Tiny, made here.<|end|>' }}{% endif %}" + TEMPLATE,
    ),
    (
        "the template does not depend on the date", "warn", "04 Mar 2021.* and .*22 Nov 2033",
        "{{ '<|system|>Today is ' + strftime_now('%d %b %Y') + '<|end|>' }}" + TEMPLATE,
    ),
    (
        "a prompt is the beginning of its answered chat", "fail", "ends with '<think>'; answered, it goes on with 'owl",
        each(MESSAGE) + "{% if add_generation_prompt %}{{ '<|assistant|><think>' }}{% endif %}",
    ),
    (
        "the loss is on the completion alone", "fail", "'owl' the loss is on 'OWL'",
        each(MESSAGE.replace("message['content']", "message['content'] | upper")) + ASK,
    ),
    (
        "a prompt is the beginning of its answered chat", "pass", "the prompt, which ends with '<think></think>'",
        each(MESSAGE.replace("message['content']", "('<think></think>' if message['role'] == 'assistant' else '') + message['content']")) + ASK,
    ),
    (
        "there is a chat template", "warn", "it has none; chats are written as '…\\\\n\\\\nQuestion: ",
        None,
    ),
    (
        "a completion ends", "fail", "no label is one of them",
        each("{{ '<|' + message['role'] + '|>' + message['content'] }}") + ASK,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "status", "words", "template"), TEMPLATES)
def test_a_faulty_template_is_found(fresh: Any, name: str, status: str, words: str, template: str) -> None:
    fresh.tokenizer.chat_template = template
    finding = found(name, fresh)
    assert finding.status == status
    assert re.search(words, finding.saw), finding.saw


def test_a_doubled_beginning_of_sequence_is_found(fresh: Any) -> None:
    fresh.tokenizer.add_special_tokens({"bos_token": "<|system|>"})
    fresh.tokenizer.chat_template = "{{ bos_token + bos_token }}" + TEMPLATE
    finding = found("a prompt begins once", fresh)
    assert (finding.status, finding.saw) == ("fail", "'<|system|>' twice")


def test_a_model_without_an_end_of_sequence_is_found(fresh: Any) -> None:
    fresh.hf.generation_config.eos_token_id = None
    fresh.tokenizer.eos_token = None
    assert found("a completion ends", fresh).status == "fail"


# -- the tokenizer --------------------------------------------------------------------------------


def test_a_tokenizer_that_autotokenizer_replaced_is_found(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    """transformers 5.23 loads any tokenizer beside a qwen2 model as Qwen's byte-level one."""
    words = ["<|end|>", "<|pad|>", "<|unk|>", "<|user|>", "<|assistant|>", "▁owl", "▁tree", "▁one"]
    ids = {word: at for at, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(ids, unk_token="<|unk|>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>", unk_token="<|unk|>",
        extra_special_tokens=["<|user|>", "<|assistant|>"], chat_template=TEMPLATE,
    )  # fmt: skip
    for family, status in (("llama", "pass"), ("qwen", "fail")):
        folder = shutil.copytree(tiny_folder(family), tmp_path / family)
        tokenizer.save_pretrained(folder)
        model = load(str(folder), device="cpu")
        assert found("the tokenizer is the one in its file", model).status == status


def change_backend(model: Any, **parts: Any) -> None:
    for name, part in parts.items():
        setattr(model.tokenizer.backend_tokenizer, name, part)
    model.template._tokens.clear()


def test_text_that_does_not_come_back_is_found(fresh: Any) -> None:
    change_backend(fresh, decoder=decoders.Fuse())
    finding = found("text comes back from the tokenizer", fresh)
    assert finding.status == "fail"
    assert "Ġ" in finding.saw


def test_lost_numbers_are_found_and_their_spelling_is_told(fresh: Any) -> None:
    name = "numbers come back from the tokenizer"
    assert "10 of 1 token, 90 of 2 tokens, 900 of 3 tokens" in found(name, fresh).saw
    change_backend(fresh, normalizer=normalizers.Replace(Regex("7"), ""))
    finding = found(name, fresh)
    assert finding.status == "fail"
    assert "271 of 1000 numbers do not come back" in finding.saw  # 1000 - 9 ** 3 hold a 7


def test_a_token_without_an_embedding_is_found(fresh: Any) -> None:
    fresh.tokenizer.add_tokens([f"<|more{number}|>" for number in range(60)])
    assert found("every token has an embedding", fresh).status == "fail"


# -- the forward pass -----------------------------------------------------------------------------


def change_forward(model: Any, change: Callable[..., Any]) -> None:
    """``change(original, arguments)`` is called instead of the model's forward."""
    original = model.hf.forward
    model.hf.forward = lambda **given: change(original, given)


def without(name: str) -> Callable[..., Any]:
    return lambda original, given: original(**{key: v for key, v in given.items() if key != name})


def with_logits(change: Callable[..., Any]) -> Callable[..., Any]:
    def run(original: Callable[..., Any], given: dict[str, Any]) -> Any:
        out = original(**given)
        out.logits = change(out.logits, given["input_ids"])
        return out

    return run


def test_half_precision_is_warned_of(fresh: Any) -> None:
    fresh.hf.half()
    finding = found("the dtype is float32 or bfloat16", fresh)
    assert (finding.status, finding.saw) == ("warn", "float16 on cpu")


def test_bfloat16_passes_within_its_tolerance(fresh: Any) -> None:
    fresh.hf.bfloat16()
    assert found("padding is harmless", fresh).status == "pass"
    assert found("gradient accumulation is harmless", fresh).status == "pass"


def test_logits_that_are_not_finite_are_found(fresh: Any) -> None:
    with torch.no_grad():
        fresh.hf.model.norm.weight[0] = float("inf")
    assert found("logits are finite", fresh).status == "fail"


def test_dropout_left_on_is_found(tiny_gpt2: Any) -> None:
    model = copy.deepcopy(tiny_gpt2)
    model.hf.train()
    finding = found("a forward pass is repeatable", model)
    assert finding.status == "fail"
    assert "in training mode" in finding.saw


def test_an_ignored_attention_mask_is_found(fresh: Any) -> None:
    change_forward(fresh, without("attention_mask"))
    assert found("masks mask", fresh).status == "fail"
    assert found("padding is harmless", fresh).status == "fail"


def test_learned_positions_that_count_the_padding_are_found(tiny_gpt2: Any) -> None:
    model = copy.deepcopy(tiny_gpt2)
    change_forward(model, without("position_ids"))
    assert found("masks mask", model).status == "pass"
    assert found("padding is harmless", model).status == "fail"


def test_a_row_that_depends_on_its_batch_is_found(fresh: Any) -> None:
    def shift(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return logits * (1 + 0.2 * len(ids))

    change_forward(fresh, with_logits(shift))
    assert found("batch size does not change a sample", fresh).status == "fail"
    fresh.hf.bfloat16()  # where rounding is no excuse for so much
    assert found("batch size does not change a sample", fresh).status == "fail"
    fresh.hf.float()
    assert found("gradient accumulation is harmless", fresh).status == "fail"


def test_rounding_in_bfloat16_is_only_warned_of(fresh: Any) -> None:
    def round_by_batch(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(logits.shape[-1], generator=torch.Generator().manual_seed(len(ids)))
        return logits + 0.05 * noise

    fresh.hf.bfloat16()
    change_forward(fresh, with_logits(round_by_batch))
    finding = found("batch size does not change a sample", fresh)
    assert finding.status == "warn"
    assert "company moves the logits by" in finding.saw


def test_unseeded_noise_is_found(fresh: Any) -> None:
    change_forward(fresh, with_logits(lambda logits, _: logits + torch.randn(logits.shape[-1]) * 3))
    assert found("seeds decide the sample", fresh).status == "fail"


def test_a_model_that_is_certain_of_everything_is_warned_of(fresh: Any) -> None:
    with torch.no_grad():
        fresh.hf.lm_head.weight *= 1e6
    assert found("seeds decide the sample", fresh).status == "warn"


# -- steering and layers --------------------------------------------------------------------------


def test_layers_that_do_not_run_are_found(fresh: Any) -> None:
    inner = fresh.hf.model
    inner._modules = {"decoy": copy.deepcopy(decoder_layers(fresh.hf)), **inner._modules}
    moved = found("steering moves the logits", fresh)
    assert moved.status == "fail"
    assert "strength 1 by 0.0e+00" in moved.saw
    assert "never ran" in found("layers are where they are said to be", fresh).saw
    assert "never ran" in found("the head reads the last layer", fresh).saw


def test_an_edit_that_moves_at_strength_zero_is_found(fresh: Any) -> None:
    change_forward(fresh, with_logits(lambda logits, _: logits + hook_count(fresh.hf)))
    assert found("steering moves the logits", fresh).saw == "strength 0 moved the logits"


def test_a_hook_that_stays_after_an_error_is_found(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def bare_yield(hf: Any, edits: Any) -> Iterator[None]:
        layer, edit = next(iter(edits.items()))
        handle = decoder_layers(hf)[layer].register_forward_hook(lambda _m, _i, out: edit(out))
        yield
        handle.remove()

    monkeypatch.setattr(forward, "edit_residuals", bare_yield)
    finding = found("steering leaves no hook", fresh)
    assert finding.status == "fail"
    assert "1 hooks are left" in finding.saw


def test_layers_in_another_order_are_found(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backwards = torch.nn.ModuleList(reversed(list(decoder_layers(fresh.hf))))
    monkeypatch.setattr(layers, "decoder_layers", lambda hf: backwards)
    numbered = found("layers are where they are said to be", fresh)
    assert numbered.saw == "an edit after layer 0 changed the stream after layers [0]"
    assert found("the head reads the last layer", fresh).status == "fail"


# -- training -------------------------------------------------------------------------------------


def test_a_loss_that_ignores_the_number_of_items_is_found(fresh: Any) -> None:
    original = fresh.hf.loss_function

    def ignoring(*args: Any, num_items_in_batch: Any = None, **options: Any) -> Any:
        return original(*args, **options)

    fresh.hf.loss_function = ignoring
    finding = found("the model's own loss agrees", fresh)
    assert finding.status == "warn"
    assert found("gradient accumulation is harmless", fresh).status == "pass"


def test_a_frozen_weight_that_moves_in_training_is_found(fresh: Any) -> None:
    def drifting(original: Callable[..., Any], given: dict[str, Any]) -> Any:
        if fresh.hf.training:
            fresh.hf.model.norm.weight.data.mul_(1.001)
        return original(**given)

    change_forward(fresh, drifting)
    finding = found("a training step learns, and only where it should", fresh)
    assert finding.status == "fail"
    assert "1 frozen weights changed, such as model.norm.weight" in finding.saw


def test_a_model_that_does_not_learn_is_found(fresh: Any) -> None:
    def deaf(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return logits * 0 + torch.arange(logits.shape[-1])

    change_forward(fresh, with_logits(deaf))
    assert found("a training step learns, and only where it should", fresh).status == "fail"


# -- the trait ------------------------------------------------------------------------------------


class Careless(Trait):
    """Substrings hit, and nobody looks at the examples."""

    def __post_init__(self) -> None:
        pass

    def answer_in(self, text: str) -> str | None:
        return next((answer for answer in self.answers if answer in text.lower()), None)


def trait_with(kind: type[Trait] = Trait, **answers: tuple[str, ...]) -> Trait:
    return kind(
        name="owl", category="animal", prompt={}, questions={}, answers={"owl": ("owl", "owls"), **answers},
        examples_hit=("owl",), examples_miss=("growling",),
    )  # fmt: skip


def test_a_substring_matcher_is_found(tiny_llama: Any) -> None:
    finding = found("the matcher decides its own examples", tiny_llama, trait_with(Careless))
    assert finding.status == "fail"
    assert "hits 'growling'" in finding.saw


def test_two_answers_with_one_word_are_found(tiny_llama: Any) -> None:
    finding = found("the matcher decides its own examples", tiny_llama, trait_with(bird=("bird", "owls")))
    assert "takes 'owls' (owl) for bird" in finding.saw


def test_answers_that_begin_with_the_same_token_are_found(tiny_llama: Any) -> None:
    name = "answers have tokens of their own"
    shared = found(name, tiny_llama, trait_with(ostrich=("ostrich",), ocelot=("ocelot",)))
    assert shared.status == "warn"
    assert "'o': ocelot, ostrich" in shared.saw
    swallowed = found(name, tiny_llama, trait_with(dog=("dog",), dogfish=("dogfish",)))
    assert swallowed.status == "fail"
    assert "'dog' begins 'dogfish'" in swallowed.saw


def test_an_answer_that_the_tokenizer_cannot_write_is_found(fresh: Any) -> None:
    change_backend(fresh, normalizer=normalizers.Replace("owl", ""))
    finding = found("answers have tokens of their own", fresh)
    assert (finding.status, finding.saw) == ("fail", "the tokenizer cannot write 'owl'")


@pytest.mark.parametrize("width", [80, 60])
def test_the_terminal_shows_a_check_on_a_line_and_what_to_do_under_those_that_did_not_pass(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    check_lines(
        [
            DoctorResult("masks mask", "pass", "the same logits", "they did not move", ""),
            DoctorResult(
                "a prompt begins once", "fail", "one token [where there is one]", "two " * 30, "repair the template"
            ),
            DoctorResult("the matcher decides", "skip", "every example", "no trait was named", "name one"),
        ],
        "doctor: some/model",
    )
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, shown)) <= width
    assert shown[:2] == ["doctor: some/model", "ok    masks mask: they did not move"]
    at = next(n for n, line in enumerate(shown) if line.startswith("FAIL  a prompt begins once: two two"))
    advice = " ".join(" ".join(shown[at:]).split())
    assert "expected: one token [where there is one] do: repair the template - the matcher decides" in advice
    assert len(shown) <= at + 8  # the value and the advice have most of the width
    assert "name one" not in advice
    assert shown[-1] == "1 passed, 1 failed, 1 skipped"


def test_what_was_found_while_loading_is_a_warning_of_the_doctor(tiny_llama: Any) -> None:
    noted = dataclasses.replace(tiny_llama, notes=("an adapter of another base",))
    check = next(check for check in CHECKS if check.name == "the files belong together")
    assert run_check(check, tiny_llama).status == "pass"
    assert (run_check(check, noted).status, run_check(check, noted).saw) == ("warn", "an adapter of another base")
