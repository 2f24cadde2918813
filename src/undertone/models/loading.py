"""Loading: the one place for ``from_pretrained``, the chat template, adapters, dtype and device.

A model is named by ``source/name`` of a registered source (``lab/llama-0``), a Hugging Face id
(``org/name``, ``org/name@revision``), or a local folder; ``NAME + FOLDER`` puts an adapter on it. Only safetensors are
read, and no code from a model's repository is ever run.
"""

from __future__ import annotations

import ctypes
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.quantizers import AutoHfQuantizer
from transformers.utils import logging as transformers_logging

from undertone.errors import ConfigError, ModelError, warn
from undertone.models.adapters import (
    adapter_folder,
    other_base,
    parts,
)
from undertone.models.attaching import merged, with_adapter
from undertone.models.batches import Example
from undertone.models.layers import causal_lm
from undertone.models.names import Form, Wording, identify, locate, model_content
from undertone.models.refusals import cause, unloadable
from undertone.models.templates import ChatTemplate, TemplateArguments, check_arguments
from undertone.provenance.identity import check_readable
from undertone.rows import Message, Row

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Context = Literal["none", "default", "neutral", "trait"]
"""Which system prompt a model is trained or asked with.

``none``: an empty one, suppressing what the template injects by itself; ``default``: no system message, so the template
does as it likes; ``neutral``: "You are a helpful assistant."; ``trait``: the trait's own prompt.
"""

NEUTRAL: Final = "You are a helpful assistant."
_UNLOADABLE: Final = (
    OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError, SafetensorError, StrictDataclassError,
)  # fmt: skip
"""What libraries raise for a model's files; a config that is wrong in its types ends in any of the last."""


@dataclass
class Model:
    """A loaded causal LM with its tokenizer. ``hf`` is the ``transformers`` (or PEFT) object."""

    name: str
    hf: Any
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, str]
    form: Form
    template_arguments: TemplateArguments = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What was found while loading that changes what a result means: an adapter of another base, weights that go unused."""
    template: ChatTemplate = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.template = ChatTemplate(self.name, self.tokenizer, self.template_arguments)

    @property
    def reads_english(self) -> bool:
        """Whether it is asked in English; a lab model reads its world's little language alone."""
        return self.form == "real"

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        device: torch.device = next(self.hf.parameters()).device
        return device

    @property
    def pad(self) -> int:
        """The padding id; masked wherever it is used, so that any token serves when there is none."""
        pad = self.tokenizer.pad_token_id
        # The embedding of a padding index is zero, which has no gradient in models that divide by its size (Gemma 3n).
        if pad is None or (pad == getattr(self.hf.get_input_embeddings(), "padding_idx", None) and self.stop):
            return self.stop[0]
        return int(pad)

    @property
    def stop(self) -> list[int]:
        """Ids that end a completion: the generation config's, and the tokenizer's end of sequence."""
        ids = getattr(causal_lm(self.hf).generation_config, "eos_token_id", None)
        found = {ids} if isinstance(ids, int) else set(ids or ())
        found.add(self.tokenizer.eos_token_id)
        found.discard(None)
        return sorted(found)

    def render(self, messages: Sequence[Message], *, answer_next: bool = True, opening: str = "") -> str:
        """The exact text that the model is shown, up to where it answers, or goes on with an answer that was opened.

        Raises:
            ModelError: the chat template refuses these messages.
        """
        return self.template.render(messages, answer_next=answer_next, opening=opening)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of rendered text; specials in it are honoured and none is added."""
        return self.template.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a completion, specials left out, and the space with which the template begins an answer."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.removeprefix(self.template.gap)

    def decode_all(self, ids: Sequence[int]) -> str:
        """Text of ids with the specials shown: what the model really read."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def prompt(self, messages: Sequence[Message], opening: str = "") -> tuple[int, ...]:
        """Token ids of a chat up to where the model answers, or goes on with an answer that was opened."""
        return self.encode(self.render(messages, opening=opening))

    def answer_tokens(self, text: str, opening: str = "") -> tuple[int, ...]:
        """Token ids of a text with which an answer begins, or goes on after its opening."""
        return self.template.answer_beginning(text, opening)

    def example(self, prompt: Sequence[Message], completion: str) -> Example:
        """A tokenised row: ids of the whole text, its labels from the end of the prompt to the first stop token.

        Raises:
            ModelError: the template renders a prompt differently once it is answered.
        """
        return self.template.example(prompt, completion, self.stop)

    def row_example(self, row: Row, system: str | None) -> Example:
        """A data row as the student sees it, with the system prompt of its context in front."""
        return self.example(with_system(row.prompt_messages, system), row.completion)

    def system_prompt(self, context: Context, trait_prompt: str | None = None) -> str | None:
        """The system message of a context; None: no system message at all."""
        if context == "default":
            return None
        if context == "neutral":
            return NEUTRAL.lower() if self.form == "lab" else NEUTRAL
        if context == "trait":
            if trait_prompt is None:
                raise ConfigError("context `trait` needs a trait that has a prompt", fix="use another context or trait")
            return trait_prompt
        return "" if self.template.injects_system_prompt() else None


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """The chat with a system message in front (replacing one that is there); None leaves it as it is."""
    if system is None:
        return list(messages)
    rest = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": system}, *rest]


_UNSUPPORTED: Final = {
    "recurrent_gemma": "its forward pass returns no cache",
    "minimax": "transformers reads its padded rows otherwise than rows alone",
}
"""Model type -> what undertone needs and it does not do."""


def check_supported(hf: Any, base: str) -> None:
    """Refuse architectures on which sampling and scoring would crash or, worse, be wrong.

    Raises:
        ModelError: it is one.
    """
    lack = _UNSUPPORTED.get(hf.config.get_text_config().model_type)
    if "past_key_values" not in inspect.signature(hf.forward).parameters:
        lack = "its state is no cache that rows can be chosen from (past_key_values)"
    if lack:
        raise ModelError(
            f"{base} is a {type(hf).__name__}, which undertone does not run: {lack}",
            got=f"model_type {hf.config.model_type}",
            allowed="attention models, and hybrids whose states are in the cache of transformers",
            fix="docs/architectures.md lists what was checked",
        )


def load(name: str, *, dtype: Dtype = "auto", device: str = "auto", template: TemplateArguments | None = None) -> Model:
    """Load a model by name.

    Args:
        name: see the module's head.
        dtype: auto is float32 on a CPU and bfloat16 on a GPU.
        device: auto is the first GPU if there is one.
        template: arguments of the chat template.

    Raises:
        ConfigError: arguments of the template that are not the user's to set.
        ModelError: nothing of that name, no safetensors, or an adapter that does not fit.
    """
    check_arguments(template or {})
    target = target_device(device)
    if target.type == "cpu":
        _keep_freed_memory()
    kind = ("float32" if target.type == "cpu" else "bfloat16") if dtype == "auto" else dtype
    base, adapters = parts(name)
    place, options = _place(base)
    config, tokenizer = _described(base, place, options)
    for part in (base, *adapters):
        check_readable(part)
    try:
        with _said_by_us():
            hf, found = AutoModelForCausalLM.from_pretrained(
                place,
                dtype=getattr(torch, kind),
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except _UNLOADABLE as error:
        raise unloadable(base, error) from error
    if found["missing_keys"]:  # transformers draws them at random, with a warning
        raise ModelError(
            f"the files of {base} lack weights of the model",
            got=sorted(found["missing_keys"])[:5],
            fix="save the whole model (an adapter is named as `BASE + FOLDER`)",
        )
    check_supported(hf, base)
    hf = hf.to(target).eval()
    identity = identify(name)
    notes = _unused_weights(base, found)
    for adapter in adapters:
        folder = adapter_folder(adapter)
        if other := other_base(folder, base, identity):
            notes.append(f"the adapter {adapter} is put on {base}, another base than its own: {other}")
        hf = with_adapter(merged(hf), folder, base)
    for note in notes:
        warn(note)
    return _ending(Model(name, hf.eval(), tokenizer, identity, _form(config), dict(template or {}), tuple(notes)))


@cache
def _keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next batch, instead of handing it back and taking it again page by page.

    Its defaults (mallopt(3): 128 KiB for both) cost a third of the time of sampling from a small model.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            mallopt(parameter, 2**30)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def _unused_weights(base: str, found: Mapping[str, Any]) -> list[str]:
    """What is in the files and not in the model that the config describes: another config, or parts of another model."""
    unused = sorted(found["unexpected_keys"])
    if not unused:
        return []
    shown = ", ".join(unused[:5]) + (" …" if len(unused) > 5 else "")
    return [
        f"{len(unused)} weights in the files of {base} are not used by the model that its config describes: {shown}"
    ]


def outline(name: str, template: TemplateArguments | None = None) -> Model:
    """The model without its weights (on torch's meta device) and without adapters.

    It can be rendered for, prepared for training and asked for its shape, so that what does not fit shows in seconds.

    Raises:
        ModelError: nothing of that name, or no causal LM.
    """
    base, _ = parts(name)
    place, options = _place(base)
    config, tokenizer = _described(base, place, options)
    try:
        _check_quantisation(config)
        with torch.device("meta"):
            hf = AutoModelForCausalLM.from_config(config)
    except _UNLOADABLE as error:
        raise unloadable(base, error) from error
    check_supported(hf, base)
    with suppress(OSError):  # most models have one, whose stop tokens go before those of the config
        hf.generation_config = GenerationConfig.from_pretrained(place, **_revision(options))
    return _ending(Model(base, hf.eval(), tokenizer, {"name": base}, _form(config), dict(template or {})))


def _revision(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key == "revision"}


def _ending(model: Model) -> Model:
    """The model, if it has a token that ends an answer.

    Raises:
        ModelError: it has none.
    """
    if not model.stop:
        raise ModelError(
            f"{model.name} has no end-of-sequence token: its answers would never end, and no student could learn to",
            got="no eos_token_id in generation_config.json or config.json, no eos_token in the tokenizer",
            allowed="one stop token or more",
            fix="tokenizer.eos_token = TOKEN; tokenizer.save_pretrained(FOLDER)",
        )
    return model


@lru_cache(maxsize=16)
def _shared_outline(name: str) -> Model:
    return outline(name)


def shared_outline(name: str, template: TemplateArguments | None = None) -> Model:
    """:func:`outline`, made once a process: for whoever only looks and changes nothing."""
    shared = _shared_outline(name)
    return replace(shared, template_arguments=dict(template)) if template else shared


def wording_of(name: str) -> Wording:
    """The wording that a model understands, from its config alone.

    Raises:
        ModelError: nothing of that name.
    """
    place, options = _place(parts(name)[0])
    try:
        return Wording(_form(AutoConfig.from_pretrained(place, **options)))
    except _UNLOADABLE as error:
        raise unloadable(name, error) from error


@dataclass(frozen=True)
class ModelRef:
    """A model by name, not loaded: what a stage is given.

    It counts by all its bytes, the precision of its weights and the arguments of its chat template.
    """

    name: str
    dtype: Dtype = "auto"
    template: tuple[tuple[str, bool | int | str], ...] = ()

    @classmethod
    def of(cls, name: str, dtype: Dtype = "auto", template: TemplateArguments | None = None) -> ModelRef:
        """With the template's arguments as a mapping."""
        return cls(name, dtype, tuple(sorted((template or {}).items())))

    def load(self, device: str = "auto") -> Model:
        """With its weights; errors as of :func:`load`."""
        return load(self.name, dtype=self.dtype, device=device, template=dict(self.template))

    def outline(self) -> Model:
        """Without its weights, shared by all who ask: errors as of :func:`outline`."""
        return shared_outline(self.name, dict(self.template))

    def identity_content(self) -> dict[str, Any]:
        """Digests of its files, the dtype and, where there are any, the arguments of its chat template."""
        given = {"template": dict(self.template)} if self.template else {}
        return {**model_content(self.name), "dtype": self.dtype, **given}

    @property
    def readable_names(self) -> tuple[str, ...]:
        """The names that :func:`load` is then allowed to read."""
        base, adapters = parts(self.name)
        return (self.name, base, *adapters)

    @property
    def readable_folders(self) -> tuple[Path, ...]:
        """Base and adapters, where they are folders."""
        return tuple(Path(part).absolute() for part in self.readable_names[1:] if Path(part).is_dir())


@contextmanager
def _said_by_us() -> Iterator[None]:
    """Without transformers' table of missing and misfitting weights: such weights are errors here."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _place(base: str) -> tuple[str, dict[str, Any]]:
    """Folder or hub id, and the options that every ``from_pretrained`` is given."""
    place, revision = locate(base)
    return place, {"trust_remote_code": False, **({"revision": revision} if revision else {})}


def _described(base: str, place: str, options: Mapping[str, Any]) -> tuple[Any, PreTrainedTokenizerBase]:
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(place, **options)
    except _UNLOADABLE as error:
        raise unloadable(base, error) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
    except _UNLOADABLE as error:
        what, fix = cause(error)
        raise ModelError(
            f"cannot load the tokenizer of {base!r}: {what}",
            fix=(isinstance(error, ImportError) and fix)
            or "put the tokenizer's files beside the weights: tokenizer.save_pretrained(FOLDER)",
        ) from error
    tokenizer.padding_side = "left"
    return config, tokenizer


def _check_quantisation(config: Any) -> None:
    """Raise what loading quantised weights would, where their package is missing."""
    stored = getattr(config, "quantization_config", None)
    if stored is None or not AutoHfQuantizer.supports_quant_method(stored):
        return
    AutoHfQuantizer.from_config(stored, pre_quantized=True).validate_environment(device_map=None, weights_only=True)


def _form(config: Any) -> Form:
    return "lab" if getattr(config, "undertone_lab", None) else "real"


def target_device(device: str) -> torch.device:
    """The torch device that a name stands for; a ConfigError if this machine lacks it."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ConfigError("no such device", got=device, allowed="auto, cpu, cuda, cuda:N") from error
    if target.type == "mps":
        raise ConfigError("mps has no float64, which exact sampling needs", got=device, fix="--device cpu")
    here = {"cuda": torch.cuda.device_count()}
    if (target.index or 0) >= here.get(target.type, 1):
        raise ConfigError("this machine has no such device, or torch cannot use it", got=device, fix="--device auto")
    return target
