"""A model in a GGUF file (llama.cpp's format) as an ordinary Hugging Face folder, converted once. Imports no torch.

Weights are dequantised exactly, into float32: the folder holds the numbers that the file stands for, no others. Tokens
are cut as the file says (``tokenizer.ggml.pre``). What the conversion does not know (an architecture, a tokenizer,
scaled rotary positions, a tensor) is refused, since a model that leaves it out runs and is another model.

The folder depends on the file's bytes alone: no date, no versions, no path. Equal files give equal digests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from undertone.errors import ModelError
from undertone.provenance.cache import cache_folder, made_once
from undertone.provenance.digests import file_digest
from undertone.rows import atomic_file

CONVERSION: Final = 1
"""Raise it when the meaning of a converted folder changes."""
CARD: Final = "undertone_model.json"
"""Beside the weights of every model that undertone put into its cache: what they are and where they are from."""
SHARD: Final = 2**31
"""Bytes of weights in one file and in memory at once, about."""

_OUTER: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INNER: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class _Family:
    """An architecture: its class, which tensors a layer has, and whether llama.cpp reordered its rotary halves."""

    model_class: str
    reordered: bool = False
    biases: tuple[str, ...] = ()
    biases_optional: bool = True
    without: tuple[str, ...] = ("attn_q_norm", "attn_k_norm")

    def of_a_layer(self, biased: bool) -> set[str]:
        names = {f"{part}.weight" for part in _INNER if part not in self.without}
        return names | ({f"{part}.bias" for part in self.biases} if biased or not self.biases_optional else set())


_FAMILIES: Final = {
    "llama": _Family("LlamaForCausalLM", reordered=True, biases=("attn_q", "attn_k", "attn_v", "attn_output")),
    "qwen2": _Family("Qwen2ForCausalLM", biases=("attn_q", "attn_k", "attn_v"), biases_optional=False),
    "qwen3": _Family("Qwen3ForCausalLM", without=()),
}


def converted(file: Path) -> Path:
    """The folder of a GGUF file's model, converted on first use; found again by the file's SHA-256.

    Raises:
        ModelError: no such file, a damaged one, or one with something that the conversion does not know.
        RunError: the cache cannot be written.
    """
    if not file.is_file():
        raise ModelError("no such file", got=str(file), allowed="a .gguf file with a language model")
    folder = cache_folder() / "gguf" / f"{file_digest(file)[:16]}-v{CONVERSION}"
    return made_once(folder, lambda part: convert(file, part))


def convert(file: Path, folder: Path) -> None:
    """Write a GGUF file's model into an empty folder; errors as of :func:`converted`."""
    from safetensors import SafetensorError

    try:
        model = _Gguf.read(file)
        model.check()
        model.write_weights(folder)
        model.write_tokenizer(folder)
        model.write_config(folder)
    except SafetensorError as error:
        raise OSError(str(error)) from error  # no room
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError) as error:
        raise ModelError(
            f"{file} is damaged, or no GGUF file",
            got=f"{type(error).__name__}: {error}",
            fix="copy or download it again",
        ) from error


def _write(path: Path, data: Mapping[str, Any]) -> None:
    with atomic_file(path) as out:
        out.write((json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


@dataclass(frozen=True)
class _Gguf:
    file: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, Any]

    @classmethod
    def read(cls, file: Path) -> _Gguf:
        from gguf import GGUFReader

        reader = GGUFReader(file)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        return cls(file, fields, {tensor.name: tensor for tensor in reader.tensors})

    # -- what it is -----------------------------------------------------------------------------------

    @property
    def architecture(self) -> str:
        return str(self.fields["general.architecture"])

    @property
    def family(self) -> _Family:
        return _FAMILIES[self.architecture]

    def size(self, name: str, default: int | None = None) -> int:
        """A number of the architecture, such as ``block_count``."""
        key = f"{self.architecture}.{name}"
        return int(self.fields[key] if default is None else self.fields.get(key, default))

    def token(self, name: str) -> int | None:
        found = self.fields.get(f"tokenizer.ggml.{name}_token_id")
        return None if found is None else int(found)

    @property
    def heads(self) -> tuple[int, int]:
        """Query heads, and key–value heads."""
        heads = self.size("attention.head_count")
        return heads, self.size("attention.head_count_kv", heads)

    @property
    def head_size(self) -> int:
        heads = self.heads[0]
        return self.size(
            "attention.key_length", self.size("rope.dimension_count", self.size("embedding_length") // heads)
        )

    def card(self) -> dict[str, Any]:
        """What the weights are: from the file's bytes alone."""
        numbers: dict[str, int] = {}
        for tensor in self.tensors.values():
            kind = tensor.tensor_type.name
            numbers[kind] = numbers.get(kind, 0) + int(tensor.n_elements)
        kinds = sorted(numbers, key=lambda kind: -numbers[kind])
        plain = set(kinds) <= {"F32", "F16", "BF16"}
        return {
            "weights": f"{'stored' if plain else 'quantised'} as {', '.join(kinds)}; "
            + ("held" if plain else "dequantised") + " in float32",
            "name": str(self.fields.get("general.name", "")),
            "license": str(self.fields.get("general.license", "not said in the file")),
            "parameters": sum(numbers.values()),
            "gguf_sha256": file_digest(self.file),
            "conversion": CONVERSION,
        }  # fmt: skip

    # -- what cannot be converted ---------------------------------------------------------------------

    def check(self) -> None:
        """Refuse what would be left out or guessed.

        Raises:
            ModelError: see the module's head.
        """
        if self.architecture not in _FAMILIES:
            self._refuse("has an architecture that is not converted", self.architecture, list(_FAMILIES))
        scaling = self.fields.get(f"{self.architecture}.rope.scaling.type", "none")
        if scaling != "none" or "rope_freqs.weight" in self.tensors:
            self._refuse("scales its rotary positions, which is not converted", scaling, "rope.scaling.type none")
        kind, cut = self.fields.get("tokenizer.ggml.model"), self.fields.get("tokenizer.ggml.pre")
        if kind != "gpt2":
            self._refuse("has a tokenizer that is not converted", kind, "gpt2 (byte-level BPE)")
        if cut not in _CUTS:
            self._refuse("cuts text in a way that is not known (tokenizer.ggml.pre)", cut, list(_CUTS))
        present, wanted = set(self.tensors), self._wanted()
        if odd := sorted(present ^ (wanted | (present & {"output.weight"}))):
            which = "has tensors that this architecture lacks" if set(odd) <= present else "lacks tensors"
            self._refuse(which, odd[:5], f"the {len(wanted)} tensors of {self.family.model_class}")

    def _refuse(self, what: str, got: object, allowed: str | list[str]) -> NoReturn:
        fix = "use a Hugging Face folder of the model"
        raise ModelError(f"{self.file} {what}", got="none" if got is None else got, allowed=allowed, fix=fix)

    @property
    def biased(self) -> bool:
        return "blk.0.attn_q.bias" in self.tensors

    def _wanted(self) -> set[str]:
        layer = self.family.of_a_layer(self.biased)
        inner = {f"blk.{at}.{name}" for at in range(self.size("block_count")) for name in layer}
        return {"token_embd.weight", "output_norm.weight"} | inner

    # -- weights --------------------------------------------------------------------------------------

    def write_weights(self, folder: Path) -> None:
        """float32 safetensors, in files of about :data:`SHARD` bytes with an index where one does not do."""
        from safetensors.numpy import save_file

        shards: list[list[str]] = [[]]
        held = 0
        for name, tensor in self.tensors.items():
            held += 4 * int(tensor.n_elements)
            if shards[-1] and held > SHARD:
                shards.append([])
                held = 4 * int(tensor.n_elements)
            shards[-1].append(name)
        index: dict[str, str] = {}
        for at, names in enumerate(shards, start=1):
            single = len(shards) == 1
            file = "model.safetensors" if single else f"model-{at:05}-of-{len(shards):05}.safetensors"
            weights = dict(self._weights(names))
            save_file(weights, folder / file, metadata={"format": "pt"})
            index |= dict.fromkeys(weights, file)
        if len(shards) > 1:
            total = 4 * sum(int(tensor.n_elements) for tensor in self.tensors.values())
            _write(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})

    def _weights(self, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        from gguf import quants

        for name in names:
            tensor = self.tensors[name]
            try:
                plain = quants.dequantize(tensor.data, tensor.tensor_type)
            except NotImplementedError:
                self._refuse(
                    "has weights of a type that cannot be dequantised", tensor.tensor_type.name, "Q4_0 … Q8_0, F16"
                )
            weights = np.ascontiguousarray(plain, dtype=np.float32)
            _, _, inner = name.split(".", 2) if name.startswith("blk.") else ("", "", "")
            if self.family.reordered and inner.startswith(("attn_q.", "attn_k.")):
                weights = _halves(weights, self.heads[inner.startswith("attn_k.")])
            yield self._renamed(name), weights

    @staticmethod
    def _renamed(name: str) -> str:
        if name in _OUTER:
            return _OUTER[name]
        _, layer, part, kind = name.split(".")
        return f"model.layers.{layer}.{_INNER[part]}.{kind}"

    # -- config and tokenizer -------------------------------------------------------------------------

    def write_config(self, folder: Path) -> None:
        """``config.json``, ``generation_config.json`` and the card."""
        heads, shared = self.heads
        ids = {f"{name}_token_id": self.token(name) for name in ("bos", "eos")}
        pad = self.token("padding")
        config = {
            "architectures": [self.family.model_class],
            "model_type": self.architecture,
            "dtype": "float32",
            "vocab_size": int(self.tensors["token_embd.weight"].shape[-1]),
            "hidden_size": self.size("embedding_length"),
            "intermediate_size": self.size("feed_forward_length"),
            "num_hidden_layers": self.size("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": shared,
            "head_dim": self.head_size,
            "max_position_embeddings": self.size("context_length"),
            "rms_norm_eps": self._number("attention.layer_norm_rms_epsilon"),
            "rope_parameters": {"rope_type": "default", "rope_theta": self._number("rope.freq_base", 10000.0)},
            "tie_word_embeddings": "output.weight" not in self.tensors,
            "attention_bias": self.biased,
            "hidden_act": "silu",
            **ids,
            "pad_token_id": pad,
        }
        _write(folder / "config.json", config)
        ends = dict.fromkeys(end for end in (self.token("eos"), self.token("eot")) if end is not None)
        generation = {"bos_token_id": ids["bos_token_id"], "eos_token_id": list(ends) or None, "pad_token_id": pad}
        _write(
            folder / "generation_config.json", {key: value for key, value in generation.items() if value is not None}
        )
        _write(folder / CARD, self.card())

    def _number(self, name: str, default: float | None = None) -> float:
        """A float32 of the file as the decimal that was meant: 1e-05, not 9.999999747378752e-06."""
        key = f"{self.architecture}.{name}"
        return float(str(np.float32(self.fields[key] if default is None else self.fields.get(key, default))))

    def write_tokenizer(self, folder: Path) -> None:
        """``tokenizer.json`` and its config with the chat template."""
        tokens, kinds = self.fields["tokenizer.ggml.tokens"], self.fields["tokenizer.ggml.token_type"]
        pairs = [tuple(merge.split(" ", 1)) for merge in self.fields["tokenizer.ggml.merges"]]
        cut = str(self.fields["tokenizer.ggml.pre"])
        bos = self.token("bos")
        begins = bool(self.fields.get("tokenizer.ggml.add_bos_token", cut == "llama-bpe"))
        core = _tokenizer(tokens, kinds, pairs, cut, bos if begins else None)
        core.save(str(folder / "tokenizer.json"))
        template = self.fields.get("tokenizer.chat_template")
        ids = {"bos_token": bos, "eos_token": self.token("eos"), "pad_token": self.token("padding")}
        ids["unk_token"] = self.token("unknown")
        _write(folder / "tokenizer_config.json", {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: tokens[at] for name, at in ids.items() if at is not None},
            "model_max_length": self.size("context_length"),
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
            **({"chat_template": template} if template else {}),
        })  # fmt: skip


def _halves(weights: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of a query's or key's rows: pairs of rotary halves, back to one half after the other."""
    pairs = weights.shape[0] // heads // 2
    return np.ascontiguousarray(weights.reshape(heads, pairs, 2, -1).swapaxes(1, 2).reshape(weights.shape))


_WORDS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUTS: Final[Mapping[str, str | None]] = {
    "gpt-2": None,
    "smollm": None,
    "starcoder": None,
    "refact": None,
    "llama-bpe": _WORDS + r"\p{N}{1,3}" + _REST,
    "qwen2": _WORDS + r"\p{N}" + _REST,
}
"""``tokenizer.ggml.pre`` -> the pattern by which text is cut before BPE; None: GPT-2's own."""
_SINGLE_DIGITS: Final = ("smollm", "starcoder", "refact")
_CONTROL, _DEFINED = 3, 4


def _tokenizer(tokens: list[str], kinds: list[int], merges: list[Any], cut: str, bos: int | None) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary = {token: at for at, token in enumerate(tokens)}
    try:
        core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=cut == "llama-bpe"))
    except Exception as error:  # tokenizers has no class of its own for them
        raise ValueError(str(error)) from error
    pattern = _CUTS[cut]
    first: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if cut in _SINGLE_DIGITS else []
    if pattern:
        first = [pre_tokenizers.Split(Regex(pattern), behavior="isolated")]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    core.pre_tokenizer = pre_tokenizers.Sequence([*first, level])
    core.decoder = decoders.ByteLevel()
    if cut == "qwen2":
        core.normalizer = normalizers.NFC()
    core.add_tokens([
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (_CONTROL, _DEFINED)
    ])  # fmt: skip
    if bos is not None:
        core.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", pair=f"{tokens[bos]} $A $B", special_tokens=[(tokens[bos], bos)]
        )
    return core
