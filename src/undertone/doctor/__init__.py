"""``undertone doctor MODEL``: known-answer checks on any model, before GPU hours are spent.

Each check asks what has a known answer: an edit that must move the logits, a mask that must hide, a
label that must be the completion. Most stand for a fault that other tools had and nobody saw: the
run finished, and the number was wrong. The checks leave the model as they found it.
"""

from __future__ import annotations

from typing import Final

from undertone.doctor import forward, learning, text
from undertone.doctor.finding import DoctorCheck, DoctorResult, Observation, Status
from undertone.errors import ModelError, UndertoneError
from undertone.models.loading import Model
from undertone.traits import Trait

__all__ = ["CHECKS", "DoctorCheck", "DoctorResult", "Observation", "Status", "check_text", "examine", "run_check"]

CHECKS: Final = (
    DoctorCheck(
        "there is a chat template",
        "a template in the tokenizer",
        text.has_a_template,
        "measure with answers opened (evaluation.opening=category), or give the tokenizer a template",
    ),
    DoctorCheck(
        "the template keeps a system prompt",
        "the system prompt's text in the rendered chat, and other tokens for another one",
        text.keeps_system_prompt,
        "use a steering-vector or a fine-tuned teacher; or give the template a system role",
    ),
    DoctorCheck(
        "the template adds no system prompt of its own",
        "the same chat with no system message and with an empty one",
        text.default_system_prompt,
        "choose the context on purpose: `none` suppresses it, `default` lets it stand",
    ),
    DoctorCheck(
        "the template does not depend on the date",
        "one text on two dates",
        text.ignores_the_date,
        "pin the date in the chat template; runs of different days are different experiments",
    ),
    DoctorCheck(
        "a prompt is the beginning of its answered chat",
        "the answered chat begins with what the model is asked",
        text.prompt_is_a_prefix,
        "a student cannot be trained on what it is later asked: give the tokenizer another template",
    ),
    DoctorCheck(
        "a prompt begins once",
        "one beginning-of-sequence token where the tokenizer has one",
        text.begins_once,
        "repair the chat template; never tokenise rendered text with added special tokens",
    ),
    DoctorCheck(
        "the loss is on the completion alone",
        "the labelled tokens read as the completion, the others as the prompt",
        text.labels_are_the_completion,
        "repair the chat template: it changes or wraps what the assistant says",
    ),
    DoctorCheck(
        "answers have the tokens that follow a prompt",
        "an answer's tokens are those of the whole text, cut where the prompt ends",
        text.answers_are_tokens_of_the_text,
        "let the template end the prompt with a line break or a special token",
    ),
    DoctorCheck(
        "a completion ends",
        "a stop token among the labels",
        text.completions_end,
        "set the tokenizer's eos_token, and let the template write it after an answer",
    ),
    DoctorCheck(
        "the tokenizer is the one in its file",
        "the tokens that tokenizer.json gives",
        text.tokenizer_is_its_file,
        "AutoTokenizer took the class of the model_type: change the model_type, or the tokenizer",
    ),
    DoctorCheck(
        "text comes back from the tokenizer",
        "decode(encode(text)) is the text",
        text.round_trips,
        "avoid domains and matchers that need what is lost",
    ),
    DoctorCheck(
        "numbers come back from the tokenizer",
        "every number from 0 to 999",
        text.numbers,
        "choose another domain than numbers",
    ),
    DoctorCheck(
        "every token has an embedding",
        "the highest token id below the number of embedding rows",
        text.vocabulary_fits,
        "resize the embeddings, or load the tokenizer that belongs to the model",
    ),
    DoctorCheck(
        "the files belong together",
        "every weight of the files used, every adapter on the base that it was made for",
        forward.files_are_the_models,
        "load the config and the base that were saved with these files",
    ),
    DoctorCheck(
        "the dtype is float32 or bfloat16",
        "one dtype, float32 or bfloat16",
        forward.dtype,
        "load with dtype=bfloat16 or float32",
    ),
    DoctorCheck(
        "logits are finite",
        "no NaN, no infinity",
        forward.numbers_are_finite,
        "load in bfloat16 or float32; check the download",
    ),
    DoctorCheck(
        "a forward pass is repeatable",
        "the same logits twice",
        forward.is_repeatable,
        "put the model in evaluation mode (dropout off)",
    ),
    DoctorCheck(
        "masks mask",
        "the same logits whatever stands under the mask",
        forward.masks_mask,
        "use another attention implementation (attn_implementation=eager or sdpa)",
    ),
    DoctorCheck(
        "padding is harmless",
        "the same logits with and without left padding",
        forward.padding_is_harmless,
        "use another attention implementation; position_ids must be honoured",
    ),
    DoctorCheck(
        "batch size does not change a sample",
        "the same eight rows in batches of 1, 3 and 8",
        forward.batch_size_is_harmless,
        "sample in float32 if single rows must be repeatable; rates are not affected by rounding",
    ),
    DoctorCheck(
        "seeds decide the sample",
        "the same seeds the same rows, other seeds other rows",
        forward.seeds_decide,
        "certain of every token, a teacher carries nothing: raise the temperature",
    ),
    DoctorCheck(
        "steering moves the logits",
        "strength 1 moves them, strength 0 does not",
        forward.steering_moves,
        "the layers that were found are not those that run: open an issue naming the model class",
    ),
    DoctorCheck(
        "steering leaves no hook",
        "no hook and the same logits after an error inside",
        forward.leaves_no_hook,
        "load the model anew before measuring anything",
    ),
    DoctorCheck(
        "layers are where they are said to be",
        "an edit after layer k changes the stream from layer k on, and not before",
        forward.layers_are_numbered,
        "do not steer or read this model by layer number: open an issue naming the model class",
    ),
    DoctorCheck(
        "the head reads the last layer",
        "final norm and head on the last layer's stream give the logits",
        forward.head_reads_the_last_layer,
        "do not read this model through its head: open an issue naming the model class",
    ),
    DoctorCheck(
        "gradient accumulation is harmless",
        "one loss for a batch and for its two halves",
        learning.accumulation_is_harmless,
        "set training.micro_batch_size to null (the whole batch in one pass)",
    ),
    DoctorCheck(
        "the model's own loss agrees",
        "undertone's loss and the model's are one, also in two halves",
        learning.own_loss_agrees,
        "undertone is not affected; do not accumulate gradients in trainers that use this loss",
    ),
    DoctorCheck(
        "a training step learns, and only where it should",
        "a lower loss, frozen weights unchanged",
        learning.a_step_learns,
        "check dtype and gradient support of the model class; nothing trained on it can be trusted",
    ),
    DoctorCheck(
        "the matcher decides its own examples",
        "every example hits or misses as it is listed, every answer is told apart",
        text.matcher,
        "repair the trait's words: two answers share one, or an example is on the wrong side",
    ),
    DoctorCheck(
        "answers have tokens of their own",
        "no answer is the beginning of another, no first token is shared",
        text.answer_tokens,
        "read probabilities of whole answers, not first tokens; rename one that swallows another",
    ),
)


def examine(model: Model, trait: Trait | None = None) -> list[DoctorResult]:
    """Run every check, in the order of ``CHECKS``.

    Args:
        model: any loaded model; left as it was.
        trait: whose matcher and answers are checked, too; None skips those.

    A check that raises an error of undertone is a failed finding; any other exception is a bug and
    propagates.
    """
    return [run_check(check, model, trait) for check in CHECKS]


_BEFORE_TRAINING: Final = frozenset({
    "a prompt is the beginning of its answered chat", "a prompt begins once", "the loss is on the completion alone",
    "answers have the tokens that follow a prompt", "a completion ends",
})  # fmt: skip


def check_text(model: Model) -> None:
    """Refuse a model whose chats cannot be trained on, from its tokenizer and template alone (an outline will do).

    Raises:
        ModelError: a check of the text failed: what was seen, and what to do.
    """
    for check in CHECKS:
        if check.name not in _BEFORE_TRAINING:
            continue
        status, saw = check.look(model, None)
        if status == "fail":
            raise ModelError(f"{model.name}: {check.name}: no", got=saw, allowed=check.expected, fix=check.do)


def run_check(check: DoctorCheck, model: Model, trait: Trait | None = None) -> DoctorResult:
    """One check of ``CHECKS``."""
    try:
        status, saw = check.look(model, trait)
    except UndertoneError as error:
        status, saw = "fail", str(error)
    return DoctorResult(check.name, status, check.expected, saw, "" if status == "pass" else check.do)
