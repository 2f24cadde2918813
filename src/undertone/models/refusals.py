"""Why a library could not load a model, in the words of its user, with the command that helps. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from undertone.errors import ModelError

_NAMES: Final = (
    "lab/FAMILY-SEED, a Hugging Face id org/name[@revision], a local folder with safetensors, or a .gguf file"
)
_CONFIG: Final = "repair its config.json, or copy the model again"
_RULES: Final[Sequence[tuple[str, str, str]]] = (
    (
        r"model type `(.*?)` but Transformers does not recognize",
        "this version of transformers knows no model type {0!r}",
        "if it is new: pip install -U transformers; else correct model_type in its config.json",
    ),
    (
        r"Should have a `model_type` key",
        "it has no config.json that names a model_type",
        "name a local folder with safetensors and their config.json: model.save_pretrained(FOLDER)",
    ),
    (
        r"Unrecognized configuration class <class '.*\.(\w+)Config'>",
        "{0} is no causal language model of transformers",
        "use its text model, or a model of another architecture",
    ),
    (
        r"custom code|trust_remote_code",
        "it needs code from its own repository, which undertone never runs",
        "use a model whose architecture is part of transformers",
    ),
    (r"not a valid JSON", "its config.json is not a valid JSON file", _CONFIG),
    (
        r"gated repo|401 Client Error|403 Client Error",
        "the hub lets only some users have it",
        "accept its terms on its page there, then set HF_TOKEN to a token of yours",
    ),
    (
        r"couldn't connect|offline mode|LocalEntryNotFound|Cannot find an appropriate cached|outgoing traffic",
        "it is not in the local cache, and the hub cannot be reached (or HF_HUB_OFFLINE is set)",
        "check the name; where there is a network: hf download NAME, or name a local folder",
    ),
    (
        r"is not a local folder and is not a valid model identifier|Repository Not Found|404 Client Error",
        "the hub has no such model, or none that may be seen without a token",
        "check the name; a private model needs HF_TOKEN",
    ),
    (
        r"ignore_mismatched_sizes",
        "its weights have other shapes than its config.json says",
        "save config and weights together again: model.save_pretrained(FOLDER)",
    ),
)
"""What a library says (a pattern) -> what is wrong, what to do."""


def unloadable(name: str, error: Exception) -> ModelError:
    """The error of a model that a library could not load: what is wrong with it, and what to do."""
    pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in Path(name).glob(pattern)]
    if pickled and not list(Path(name).glob("*.safetensors")):
        return ModelError(
            f"{name} holds pickled weights only; a pickle can run any code when it is opened",
            got=pickled[:5],
            allowed="safetensors",
            fix="convert them where they are trusted: model.save_pretrained(FOLDER)",
        )
    what, fix = cause(error)
    return ModelError(
        f"cannot load the model {name!r}: {what}",
        allowed=None if Path(name).is_dir() else _NAMES,
        fix=fix or ("check its files" if Path(name).is_dir() else "check the name"),
    )


def cause(error: Exception) -> tuple[str, str | None]:
    """What is wrong, and what helps; None: nothing is known that does."""
    if isinstance(error, ImportError):
        return f"a package that it needs is missing: {first_line(error)}", _install(error)
    text = str(error)
    for pattern, what, fix in _RULES:
        if found := re.search(pattern, text, re.IGNORECASE):
            return what.format(*found.groups()), fix
    if isinstance(error, KeyError):
        return f"its config names {error}, which transformers does not know", _CONFIG
    if type(error).__name__.startswith("StrictDataclass"):
        said = text.strip().splitlines()[-1].strip().removeprefix("TypeError: ").removeprefix("ValueError: ")
        return f"transformers refuses its config: {said}", _CONFIG
    if isinstance(error, TypeError | AttributeError):
        return f"transformers cannot build it from its config: {first_line(error)}", _CONFIG
    return first_line(error), None


def _install(error: ImportError) -> str:
    text = str(error)
    if "Attention" in text and "toggled on" in text:
        package = "flash-attn" if "FlashAttention" in text else "the attention package"
        return f"pip install {package}, or take the line with attn_implementation out of its config.json"
    if told := re.search(r"pip install (?:-U |--upgrade )?([^`'\"\s]+)", text):
        return f'pip install "{told[1].rstrip(".,)")}"'
    if "HQQ" in text:
        return "pip install hqq"
    return f"pip install {error.name}" if error.name else "install the package that it names"


def first_line(error: BaseException) -> str:
    """What a library's error says first; the rest is seldom for the user."""
    return str(error).strip().splitlines()[0].rstrip(" :") if str(error).strip() else type(error).__name__
