"""Loading: the one place for ``from_pretrained``, the chat template, adapters, dtype and device.

A model is named by ``source/name`` of a registered source (``lab/llama-0``), a Hugging Face id
(``org/name``, ``org/name@revision``), or a local folder; ``NAME + FOLDER`` puts an adapter on it. Only safetensors are
read, and no code from a model's repository is ever run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from undertone.errors import ConfigError, ModelError
from undertone.models.batches import Example
from undertone.models.layers import causal_lm
from undertone.registry import Registry
from undertone.rows import Message, Row

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Context = Literal["none", "default", "neutral", "trait"]
"""Which system prompt a model is trained or asked with.

``none``: an empty one, suppressing what the template injects by itself; ``default``: no system message, so the template
does as it likes; ``neutral``: "You are a helpful assistant."; ``trait``: the trait's own prompt.
"""

NEUTRAL: Final = "You are a helpful assistant."
BIASES_FILE: Final = "undertone_biases.safetensors"
_FULL_HASH_BYTES: Final = 256 * 2**20
_PROBE: Final = "zqx probe"
_UNLOADABLE: Final = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)

sources: Registry[Callable[[str], Path]] = Registry("model source", "undertone.models")
"""``source/name`` -> a local folder; a package adds one by the entry point group ``undertone.models``."""


@dataclass
class Model:
    """A loaded causal LM with its tokenizer. ``hf`` is the ``transformers`` (or PEFT) object."""

    name: str
    hf: Any
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, str]
    form: Literal["lab", "real"]
    _rendered: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)

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
        return int(pad if pad is not None else self.stop[0])

    @property
    def stop(self) -> list[int]:
        """Ids that end a completion: the generation config's, and the tokenizer's end of sequence."""
        ids = getattr(causal_lm(self.hf).generation_config, "eos_token_id", None)
        found = {ids} if isinstance(ids, int) else set(ids or ())
        found.add(self.tokenizer.eos_token_id)
        found.discard(None)
        return sorted(found)

    def render(self, messages: Sequence[Message], *, answer_next: bool = True) -> str:
        """The exact text that the model is shown.

        Raises:
            ModelError: there is no chat template, or it refuses these messages.
        """
        if not self.tokenizer.chat_template:
            raise ModelError(
                f"{self.name} has no chat template",
                fix="use a chat (instruct) model, or give its tokenizer a template",
            )
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=answer_next,
            )
        except Exception as error:
            raise ModelError(
                f"the chat template of {self.name} refuses these messages: {error}",
                got=[message["role"] for message in messages],
                fix="if it has no system role: contexts none or default, and a teacher that is steered",
            ) from error
        return text

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of rendered text; specials in it are honoured and none is added."""
        if text not in self._rendered:
            if len(self._rendered) > 50_000:
                self._rendered.clear()
            self._rendered[text] = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._rendered[text]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a completion, specials left out."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def decode_all(self, ids: Sequence[int]) -> str:
        """Text of ids with the specials shown: what the model really read."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of a chat up to where the model answers."""
        return self.encode(self.render(messages))

    def example(self, prompt: Sequence[Message], completion: str) -> Example:
        """A tokenised row. Prompt and completion are tokenised apart, as they meet in generation.

        Raises:
            ModelError: the template renders a prompt differently once it is answered.
        """
        before = self.render(prompt)
        whole = self.render([*prompt, {"role": "assistant", "content": completion}], answer_next=False)
        if not whole.startswith(before):
            raise ModelError(
                f"the chat template of {self.name} renders a prompt differently once it is answered",
                got=whole[: len(before)],
                allowed=before,
                fix="a student cannot be trained on what it is later asked; give the tokenizer another template",
            )
        ids = self.encode(before)
        return Example((*ids, *self._up_to_stop(self.encode(whole[len(before) :]))), len(ids))

    def _up_to_stop(self, completion: tuple[int, ...]) -> tuple[int, ...]:
        """Without what a template writes after the token that ends an answer: generation never gets there."""
        ends = [at for at, token in enumerate(completion) if token in self.stop]
        return completion[: ends[-1] + 1] if ends else completion

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
        return "" if self.injects_system_prompt() else None

    def injects_system_prompt(self) -> bool:
        """Whether the template adds a system prompt of its own when it is given none."""
        plain = self.render([{"role": "user", "content": _PROBE}])
        try:
            empty = self.render([{"role": "system", "content": ""}, {"role": "user", "content": _PROBE}])
        except ModelError:
            return False
        return len(plain) > len(empty)


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """The chat with a system message in front (replacing one that is there); None leaves it as it is."""
    if system is None:
        return list(messages)
    rest = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": system}, *rest]


def load(name: str, *, dtype: Dtype = "auto", device: str = "auto") -> Model:
    """Load a model by name.

    Args:
        name: see the module's head.
        dtype: auto is float32 on a CPU and bfloat16 on a GPU.
        device: auto is the first GPU if there is one.

    Raises:
        ModelError: nothing of that name, no safetensors, or an adapter that does not fit.
    """
    target = target_device(device)
    kind = ("float32" if target.type == "cpu" else "bfloat16") if dtype == "auto" else dtype
    base, *adapters = [part.strip() for part in name.split(" + ")]
    place, options = _place(base)
    config, tokenizer = _described(base, place, options)
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
        raise _unloadable(base, error) from error
    if found["missing_keys"]:  # transformers draws them at random, with a warning
        raise ModelError(
            f"the files of {base} lack weights of the model",
            got=sorted(found["missing_keys"])[:5],
            fix="save the whole model (an adapter is named as `BASE + FOLDER`)",
        )
    hf = hf.to(target).eval()
    identity = identify(name)
    for adapter in adapters:
        hf = _with_adapter(hf, Path(adapter), base)
    return Model(name=name, hf=hf.eval(), tokenizer=tokenizer, identity=identity, form=_form(config))


def outline(name: str) -> Model:
    """The model without its weights (on torch's meta device) and without adapters.

    It can be rendered for, prepared for training and asked for its shape, so that what does not fit shows in seconds.

    Raises:
        ModelError: nothing of that name, or no causal LM.
    """
    base = name.split(" + ", maxsplit=1)[0].strip()
    place, options = _place(base)
    config, tokenizer = _described(base, place, options)
    try:
        with torch.device("meta"):
            hf = AutoModelForCausalLM.from_config(config)
    except _UNLOADABLE as error:
        raise _unloadable(base, error) from error
    return Model(name=base, hf=hf.eval(), tokenizer=tokenizer, identity={"name": base}, form=_form(config))


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
        raise _unloadable(base, error) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
    except _UNLOADABLE as error:
        raise ModelError(
            f"cannot load the tokenizer of {base!r}: {first_line(error)}",
            fix="put the tokenizer's files beside the weights: tokenizer.save_pretrained(FOLDER)",
        ) from error
    tokenizer.padding_side = "left"
    return config, tokenizer


def _form(config: Any) -> Literal["lab", "real"]:
    return "lab" if getattr(config, "undertone_lab", None) else "real"


def identify(name: str) -> dict[str, str]:
    """What a model is, without loading its weights: name, revision, digests of local folders."""
    base, *adapters = [part.strip() for part in name.split(" + ")]
    place, revision = locate(base)
    identity = {"name": base}
    if Path(place).is_dir():
        identity["sha256"] = folder_digest(Path(place))
    else:
        identity["revision"] = _hub_commit(place, revision)
    for adapter in adapters:
        identity[f"adapter {Path(adapter).name}"] = folder_digest(Path(adapter))
    return identity


def _hub_commit(repository: str, revision: str | None) -> str:
    """The commit that a hub name stands for now, so that a moved branch is another model."""
    try:
        config = AutoConfig.from_pretrained(repository, revision=revision or "main", trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(repository, error) from error
    return str(getattr(config, "_commit_hash", None) or revision or "unknown")


def _unloadable(name: str, error: Exception) -> ModelError:
    pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in Path(name).glob(pattern)]
    if pickled and not list(Path(name).glob("*.safetensors")):
        return ModelError(
            f"{name} holds pickled weights only; a pickle can run any code when it is opened",
            got=pickled[:5],
            allowed="safetensors",
            fix="convert them where they are trusted: model.save_pretrained(FOLDER)",
        )
    if "ignore_mismatched_sizes" in str(error):
        return ModelError(
            f"cannot load the model {name!r}: its weights have other shapes than its config.json says",
            fix="save config and weights together again: model.save_pretrained(FOLDER)",
        )
    return ModelError(
        f"cannot load the model {name!r}: {first_line(error)}",
        allowed="lab/FAMILY-SEED, a Hugging Face id org/name[@revision], or a local folder with safetensors",
        fix="check the name; gated models need HF_TOKEN; offline, download the model first",
    )


def locate(name: str) -> tuple[str, str | None]:
    """Where a model name points: (folder or hub id, revision). Builds a lab model on first use."""
    if name and Path(name).is_dir():
        return name, None
    prefix, slash, rest = name.partition("/")
    if slash and prefix in sources.names():
        return str(sources.get(prefix)(rest)), None
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise ModelError(
            "no such model",
            got=name,
            allowed="lab/FAMILY-SEED (like lab/llama-0), a Hugging Face id org/name[@revision], or a local folder",
        )
    return repository, revision or None


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a model folder; of files above 256 MiB, both ends and the size."""
    digest = hashlib.sha256()
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _FULL_HASH_BYTES:
                digest.update(file.read())
            else:
                digest.update(file.read(16 * 2**20))
                file.seek(-16 * 2**20, 2)
                digest.update(file.read())
    return digest.hexdigest()


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


def first_line(error: BaseException) -> str:
    """What a library's error says first; the rest is seldom for the user."""
    return str(error).strip().splitlines()[0].rstrip(" :") if str(error).strip() else type(error).__name__


# -- adapters: a student put back on its base --------------------------------------------------------


def _with_adapter(hf: Any, folder: Path, base: str) -> Any:
    if (folder / BIASES_FILE).is_file():
        return _with_biases(hf, folder, base)
    if (folder / "adapter_config.json").is_file():
        from peft import PeftModel

        try:
            model = PeftModel.from_pretrained(hf, folder)
        except (RuntimeError, ValueError, OSError, SafetensorError) as error:
            raise ModelError(f"the adapter {folder} does not fit {base}: {first_line(error)}") from error
        _check_adapter(model, folder, base)
        return model
    raise ModelError(
        f"{folder} is not an adapter folder",
        allowed=f"a PEFT folder (adapter_config.json) or one with {BIASES_FILE}",
    )


def _check_adapter(model: Any, folder: Path, base: str) -> None:
    """PEFT loads what it can and leaves the rest, in the file or in the model, without an error."""
    from peft import get_peft_model_state_dict

    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise ModelError(f"the adapter {folder} has no adapter_model.safetensors")
    with safe_open(path, framework="pt") as file:
        stored = set(file.keys())
    odd = stored ^ set(get_peft_model_state_dict(model, save_embedding_layers=False))
    odd = {name for name in odd if ".lora_" in name}  # embeddings may be saved beside them
    if odd:
        raise ModelError(
            f"the adapter {folder} does not fit {base}",
            got=sorted(odd)[:5],
            allowed="the same adapted weights in the file and in the model",
        )


def _with_biases(hf: Any, folder: Path, base: str) -> Any:
    stored = load_file(folder / BIASES_FILE)
    own = dict(hf.named_parameters())
    wrong = [name for name, value in stored.items() if name not in own or own[name].shape != value.shape]
    if wrong:
        raise ModelError(f"the biases in {folder} do not fit {base}", got=wrong[:5])
    with torch.no_grad():
        for name, value in stored.items():
            own[name].copy_(value)
    return hf
