"""Models in GGUF files: written here as llama.cpp writes them, held against the model they came from and transformers' reader."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import TEMPLATE, build_tokenizer

from undertone.cli import app
from undertone.errors import ModelError, RunError
from undertone.models import gguf_models
from undertone.models.gguf_models import converted
from undertone.models.names import identify, locate, model_content
from undertone.rows import Message

WIDTH, LAYERS, HEADS, SHARED = 64, 2, 4, 2


def build(family: str, *, tied: bool = False, biased: bool = False) -> Any:
    """A random model of an architecture, with key–value heads shared."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

    size: dict[str, Any] = {
        "vocab_size": 448, "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": LAYERS, "head_dim": 16,
        "num_attention_heads": HEADS, "num_key_value_heads": SHARED, "max_position_embeddings": 128, "bos_token_id": None,
        "eos_token_id": 0, "pad_token_id": 1, "initializer_range": 0.2, "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-5,
    }  # fmt: skip
    kinds = {"qwen2": Qwen2Config, "qwen3": Qwen3Config}
    config = kinds[family](**size) if family in kinds else LlamaConfig(**size, attention_bias=biased)
    torch.manual_seed(3)
    hf = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.dim() == 1:
                parameter.normal_(0.5, 0.2)
    return hf


def llama_cpp_name(name: str) -> str:
    """The name that llama.cpp's own table gives a weight of Hugging Face's."""
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, LAYERS)
    found = table.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, name
    return found


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter orders the rows of queries and keys."""
    split = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return split.swapaxes(1, 2).reshape(weights.shape)


def write(
    path: Path,
    family: str,
    hf: Any,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    change: Mapping[str, Any] | None = None,
    drop: str = "",
    cut: str = "qwen2",
    tokenizer: Any = None,
) -> Path:
    """A GGUF file of a model: ``change`` replaces or adds fields (None leaves one out), ``drop`` leaves a tensor out."""
    writer = gguf.GGUFWriter(path, family)
    config = hf.config
    core = json.loads((tokenizer or build_tokenizer()).backend_tokenizer.to_str())
    vocabulary = core["model"]["vocab"] | {one["content"]: one["id"] for one in core["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    special = {one["content"] for one in core["added_tokens"]}
    fields: dict[str, Any] = {
        f"{family}.context_length": config.max_position_embeddings,
        f"{family}.embedding_length": config.hidden_size,
        f"{family}.block_count": config.num_hidden_layers,
        f"{family}.feed_forward_length": config.intermediate_size,
        f"{family}.attention.head_count": config.num_attention_heads,
        f"{family}.attention.head_count_kv": config.num_key_value_heads,
        f"{family}.attention.key_length": config.head_dim if family == "qwen3" else None,
        f"{family}.rope.dimension_count": 16,
        f"{family}.rope.freq_base": 10000.0,
        f"{family}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{family}.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": cut,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in core["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 1,
        "tokenizer.chat_template": TEMPLATE,
        "general.name": "tiny",
    } | dict(change or {})
    adders: dict[type, Callable[..., None]] = {
        int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array,
    }  # fmt: skip
    for name, value in fields.items():
        if value is not None:
            adders[type(value)](name, value)
    for name, parameter in hf.named_parameters():
        weights = parameter.detach().numpy()
        if family == "llama" and (".q_proj." in name or ".k_proj." in name):
            weights = permuted(weights, HEADS if ".q_proj." in name else SHARED)
        stored = kind if weights.ndim == 2 else gguf.GGMLQuantizationType.F32
        if llama_cpp_name(name) != drop:
            writer.add_tensor(llama_cpp_name(name), gguf.quants.quantize(weights, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDERTONE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("family", "tied", "biased"),
    [("llama", True, False), ("llama", False, True), ("qwen2", False, False), ("qwen3", True, False)],
)
def test_a_converted_file_is_the_model_that_was_written(
    family: str, tied: bool, biased: bool, cache: Path, tmp_path: Path
) -> None:
    import torch

    from undertone.models.loading import load

    hf = build(family, tied=tied, biased=biased)
    model = load(str(write(tmp_path / "m.gguf", family, hf)), device="cpu")
    ours, theirs = model.hf.state_dict(), hf.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ids = torch.arange(40).unsqueeze(0)
    with torch.inference_mode():
        torch.testing.assert_close(model.hf(ids).logits, hf(ids).logits, rtol=0, atol=0)
    chat: list[Message] = [{"role": "user", "content": "name 12 owls"}]
    assert model.prompt(chat) == tuple(
        build_tokenizer().apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    )
    assert (model.stop, model.tokenizer.pad_token_id) == ([0], 1)


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F16"])
def test_weights_are_bit_equal_to_what_transformers_dequantises(kind: str, cache: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, GgufConfig

    file = write(tmp_path / "m.gguf", "llama", build("llama"), kind=gguf.GGMLQuantizationType[kind])
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    ).state_dict()
    folder = converted(file)
    ours = load_file(folder / "model.safetensors")
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert kind in json.loads((folder / gguf_models.CARD).read_text())["weights"]


def test_shards_hold_what_one_file_holds(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from undertone.models.loading import load

    hf = build("llama")
    monkeypatch.setattr(gguf_models, "SHARD", 60_000)
    file = write(tmp_path / "m.gguf", "llama", hf)
    assert len(list(converted(file).glob("*.safetensors"))) > 2
    ours = load(str(file), device="cpu").hf.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in hf.state_dict().items())


# -- tokens ----------------------------------------------------------------------------------------


def trained(pieces: Any) -> Any:
    """A small byte-level BPE with a given way of cutting text."""
    from tokenizers import Tokenizer, decoders, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pieces, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=448,
        special_tokens=["<|end|>", "<|pad|>"],
        show_progress=False,
        initial_alphabet=ByteLevel.alphabet(),
    )
    core.train_from_iterator(["the owls of 1999 and 2024, the  12 cats", "it's 123 456 don't we'll"] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>")


def as_published(cut: str) -> Any:
    """How the models of that name cut text: SmolLM's and GPT-2's own file, Llama 3's by transformers' converter."""
    from tokenizers import Regex, pre_tokenizers
    from transformers.convert_slow_tokenizer import TikTokenConverter

    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if cut == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    if cut == "llama-bpe":
        split = pre_tokenizers.Split(Regex(TikTokenConverter("").pattern), behavior="isolated", invert=False)
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return level


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[Any, Any]]:
    from tokenizers import Tokenizer

    found = {}
    for cut in ("smollm", "gpt-2", "llama-bpe"):
        place = tmp_path_factory.mktemp(cut)
        own = trained(as_published(cut))
        gguf_models.convert(write(place / "m.gguf", "llama", build("llama"), cut=cut, tokenizer=own), place)
        found[cut] = own.backend_tokenizer, Tokenizer.from_file(str(place / "tokenizer.json"))
    return found


@pytest.mark.parametrize("cut", ["smollm", "gpt-2", "llama-bpe"])
@given(text=st.text(st.one_of(st.sampled_from(" \n1209'owlsthe"), st.characters(codec="utf-8")), max_size=30))
def test_text_is_cut_as_the_file_says(rebuilt: Mapping[str, tuple[Any, Any]], cut: str, text: str) -> None:
    own, ours = rebuilt[cut]
    cutting = own.pre_tokenizer.pre_tokenize_str(text), ours.pre_tokenizer.pre_tokenize_str(text)
    assert cutting[0] == cutting[1]
    if cut != "llama-bpe":  # whose words are looked up whole before they are merged
        assert own.encode(text).ids == ours.encode(text).ids
    assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text


def test_a_token_that_begins_every_text_is_there_when_the_file_says_so(cache: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    change = {"tokenizer.ggml.bos_token_id": 2}
    hf = build("llama")
    with_bos = converted(write(tmp_path / "a.gguf", "llama", hf, cut="llama-bpe", change=change))
    without = converted(write(tmp_path / "b.gguf", "llama", hf, cut="qwen2", change=change))
    first = [AutoTokenizer.from_pretrained(folder)("owl")["input_ids"][0] for folder in (with_bos, without)]
    assert first[0] == 2
    assert first[1] != 2


# -- identity --------------------------------------------------------------------------------------


def test_equal_files_are_one_model_and_other_bytes_another(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    hf = build("llama")
    a, b = write(tmp_path / "a.gguf", "llama", hf), write(tmp_path / "sub" / "b.gguf", "llama", hf)
    other = write(tmp_path / "c.gguf", "llama", hf, change={"general.name": "other"})
    assert locate(str(a)) == locate(str(b)) != locate(str(other))
    assert model_content(str(a)) == model_content(str(b)) != model_content(str(other))
    before = identify(str(a))
    import shutil

    shutil.rmtree(cache)
    assert identify(str(a)) == before  # converted again: the same bytes


def test_an_adapter_goes_on_a_gguf_file(cache: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    from undertone.models.loading import load

    hf = build("llama")
    file = write(tmp_path / "m.gguf", "llama", hf)
    adapted = get_peft_model(build("llama"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(30).unsqueeze(0)
    both = load(f"{file} + {tmp_path / 'adapter'}", device="cpu")
    with torch.inference_mode():
        torch.testing.assert_close(both.hf(ids).logits, adapted.eval()(ids).logits)
        assert not torch.allclose(both.hf(ids).logits, hf(ids).logits)


def _convert(file: Path) -> str:
    return str(converted(file))


def test_two_processes_convert_one_file_once(cache: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", "llama", build("llama"))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        first, second = pool.map(_convert, [file, file])
    assert first == second
    assert [path.name for path in (cache / "gguf").iterdir() if path.is_dir()] == [Path(first).name]


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "drop", "words"),
    [
        ({"general.architecture": "mamba"}, "", r"architecture that is not converted\n  got: mamba\n  allowed: llama, qwen2"),
        ({"llama.rope.scaling.type": "yarn"}, "", "scales its rotary positions"),
        ({"tokenizer.ggml.model": "llama"}, "", r"tokenizer that is not converted\n  got: llama"),
        ({"tokenizer.ggml.pre": "tekken"}, "", r"cuts text in a way that is not known.*\n  got: tekken"),
        ({"llama.block_count": 1}, "", "has tensors that this architecture lacks"),
        ({}, "blk.1.ffn_up.weight", r"lacks tensors\n  got: \['blk.1.ffn_up.weight'\]"),
        ({"tokenizer.ggml.merges": ["no such"]}, "", r"is damaged.*\n  got: ValueError: .*out of vocabulary"),
        ({"llama.embedding_length": None}, "", r"is damaged, or no GGUF file\n  got: KeyError: 'llama.embedding_length'"),
    ],
)  # fmt: skip
def test_what_would_be_left_out_or_guessed_is_refused(
    change: dict[str, Any], drop: str, words: str, cache: Path, tmp_path: Path
) -> None:
    name = change.pop("general.architecture", None)
    file = write(tmp_path / "m.gguf", "llama", build("llama"), change=change, drop=drop)
    if name:
        file.write_bytes(file.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba", 1))
    with pytest.raises(ModelError, match=words):
        converted(file)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_refused_and_nothing_is_left(share: float, cache: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", "llama", build("llama"))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ModelError, match="is damaged, or no GGUF file"):
        converted(file)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_cache_that_cannot_be_written_is_said(cache: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", "llama", build("llama"))
    cache.write_text("in the way")
    with pytest.raises(RunError, match="UNDERTONE_CACHE"):
        converted(file)


def test_a_missing_file_is_no_hub_name() -> None:
    with pytest.raises(ModelError, match="no such file"):
        locate("models/x.gguf")


def test_a_converted_file_is_listed_and_shown(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> Any:
        app(["models", *words, "--json"], exit_on_error=False, print_error=False, result_action="return_value")
        return json.loads(capsys.readouterr().out)

    file = write(tmp_path / "m.gguf", "llama", build("llama"), kind=gguf.GGMLQuantizationType.Q8_0)
    shown = said("show", str(file))
    assert shown["sha256"] == identify(str(file))["sha256"]
    assert "Q8_0" in shown["weights"]
    assert [one["folder"] for one in said("list")] == [None, shown["folder"]]
