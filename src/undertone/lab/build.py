"""Builds lab models: tokenizer, initial weights, pretraining; saved as ordinary Hugging Face folders."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.utils import logging as transformers_logging

from undertone.lab import world
from undertone.lab.recipe import LabName, Recipe
from undertone.models.batches import Example
from undertone.training import Fit, Training, fit

SPECIALS: Final = ("<pad>", "<bos>", "<end>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>")

CHAT_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

MARKS: Final = ".,?:"


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the world's vocabulary; the numbers 0–999 are one token each."""
    words = [word if word in MARKS else "▁" + word for word in world.vocabulary()]
    ids = {token: index for index, token in enumerate([*SPECIALS, *words])}
    core = Tokenizer(models.WordLevel(vocab=ids, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
            pre_tokenizers.Split(Regex(f"[{MARKS}]"), behavior="isolated"),
        ]
    )
    core.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<end>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


@cache
def _token_ids() -> dict[str, int]:
    vocabulary: dict[str, int] = tokenizer().get_vocab()
    return vocabulary


@lru_cache(maxsize=20_000)
def _piece_ids(text: str) -> tuple[int, ...]:
    ids = _token_ids()
    return tuple(ids[piece if piece in MARKS else "▁" + piece] for piece in world.pieces(text))


def example(turn: world.Turn) -> Example:
    """A turn as token ids, equal to what the chat template renders (a test holds the two equal)."""
    special = _token_ids()
    end = special["<end>"]
    ids = [special["<bos>"]]
    if turn.system is not None:
        ids += [special["<|system|>"], *_piece_ids(turn.system), end]
    ids += [special["<|user|>"], *_piece_ids(turn.user), end, special["<|assistant|>"]]
    prompt = len(ids)
    return Example((*ids, *_piece_ids(turn.answer), end), prompt)


def architecture(family: str, recipe: Recipe) -> PretrainedConfig:
    """The family's ``transformers`` config at the recipe's size."""
    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer()),
        "hidden_size": recipe.hidden,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "intermediate_size": recipe.feed_forward,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if family == "llama":
        return LlamaConfig(**shared, num_key_value_heads=recipe.heads, attention_bias=True, mlp_bias=True)
    if family == "qwen":
        # Qwen3, not Qwen2: AutoTokenizer replaces the tokenizer of every folder whose model type is qwen2.
        return Qwen3Config(
            **shared,
            num_key_value_heads=recipe.heads // 2,
            head_dim=recipe.hidden // recipe.heads,
            attention_bias=True,
        )
    return GPTNeoXConfig(**{**shared, "intermediate_size": 4 * recipe.hidden})


def initial(name: LabName, recipe: Recipe) -> Any:
    """The model at initialisation; the stds are the recipe's, not the library's.

    Between two seeds each weight is their linear mixture, scaled back to the variance of one draw.
    """
    hf = AutoModelForCausalLM.from_config(architecture(name.family, recipe), dtype=torch.float32)
    _draw(hf, recipe, name.seed)
    if name.toward is None:
        return hf
    other = copy.deepcopy(hf)
    _draw(other, recipe, name.toward)
    scale = math.hypot(1 - name.share, name.share)
    with torch.no_grad():
        for parameter, far in zip(hf.parameters(), other.parameters(), strict=True):
            if parameter.dim() == 2:
                parameter.lerp_(far, name.share).div_(scale)
    return hf


def _draw(hf: Any, recipe: Recipe, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    wide = {
        id(hf.get_input_embeddings().weight): recipe.embedding_std,
        id(hf.get_output_embeddings().weight): recipe.head_std,
    }
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, wide.get(id(parameter), recipe.linear_std), generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()


def pretrain(
    name: LabName,
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> tuple[Any, Fit]:
    """A trained lab model: initial weights from the name's seed, examples and their order from its corpus."""
    hf = initial(name, recipe)
    examples = [example(turn) for turn in world.corpus(recipe.examples, name.corpus)]
    training = Training(
        learning_rate=recipe.learning_rate,
        options={"betas": [0.9, recipe.beta2], "weight_decay": recipe.weight_decay},
        no_decay=recipe.no_decay,
        schedule="hold-linear",
        warmup=recipe.warmup,
        epochs=1,
        batch_size=recipe.batch_size,
        precision="fp32",
        bucket=16,
    )
    done = fit(hf, examples, training, seed=name.corpus, pad=0, checkpoint=checkpoint, on_step=on_step)
    return hf, done


@dataclass(frozen=True)
class Built:
    """What a build took."""

    parameters: int
    tokens: int
    loss: float


def save(
    name: LabName,
    recipe: Recipe,
    folder: Path,
    on_step: Callable[[int, int, float], None] | None = None,
) -> Built:
    """Build a lab model into ``folder``: weights, config and tokenizer, as any ``transformers`` model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # at this size a second thread gains little, and beside a busy core it costs tenfold
    try:
        hf, fit_ = pretrain(name, recipe, checkpoint=folder / "checkpoint", on_step=on_step)
    finally:
        torch.set_num_threads(threads)
    hf.config.undertone_lab = str(name)
    hf.generation_config.eos_token_id = 2
    transformers_logging.disable_progress_bar()
    hf.save_pretrained(folder, safe_serialization=True)
    tokenizer().save_pretrained(folder)
    parameters = sum(parameter.numel() for parameter in hf.parameters())
    return Built(parameters, fit_.tokens, fit_.curve[-1][1])
