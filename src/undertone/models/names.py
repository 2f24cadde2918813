"""Names of models: what they point at, and what a model is without loading it. Imports no torch.

A field of the type :data:`ModelName` counts by the model's bytes, not by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from undertone.errors import ModelError, nearest
from undertone.models.adapters import adapter_identity, parts
from undertone.models.fetching import KNOWN, place_of
from undertone.models.gguf_models import converted
from undertone.models.refusals import unloadable
from undertone.provenance.digests import folder_digest
from undertone.provenance.identity import ContentOf
from undertone.registry import Registry

Form = Literal["lab", "real"]
"""Which wording: the lab world's little language, or English as real models are asked."""


@dataclass(frozen=True)
class Wording:
    """Which wording a model understands: it stands for the model where prompts and questions are chosen."""

    form: Form


sources: Registry[Callable[[str], Path]] = Registry("model source", "undertone.models")
"""``source/name`` -> a local folder; a package adds one by the entry point group ``undertone.models``."""


def identify(name: str) -> dict[str, str]:
    """What a model is, without loading its weights: name, revision, digests of local folders."""
    base, adapters = parts(name)
    place, revision = locate(base)
    identity = {"name": base}
    if Path(place).is_dir():
        identity["sha256"] = folder_digest(Path(place))
    else:
        identity["revision"] = _hub_commit(place, revision)
    for at, adapter in enumerate(adapters):
        key = f"adapter {Path(adapter).name}"
        identity[f"{key} ({at + 1})" if key in identity else key] = adapter_identity(adapter)
    return identity


def _hub_commit(repository: str, revision: str | None) -> str:
    """The commit that a hub name stands for now, so that a moved branch is another model."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(repository, revision=revision or "main", trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, StrictDataclassError) as error:
        raise unloadable(repository, error) from error
    return str(getattr(config, "_commit_hash", None) or revision or "unknown")


def locate(name: str) -> tuple[str, str | None]:
    """Where a model name points: (folder or hub id, revision). Builds a lab model, or converts a GGUF file, on first use."""
    if name and Path(name).is_dir():
        return name, None
    if name in KNOWN:
        return str(place_of(name)), None
    if name.endswith(".gguf"):
        return str(converted(Path(name).expanduser())), None
    prefix, slash, rest = name.partition("/")
    if slash and prefix in sources.names():
        return str(sources.get(prefix)(rest)), None
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise ModelError(
            f"no such model.{nearest(name, KNOWN)}",
            got=name,
            allowed=f"lab/FAMILY-SEED (like lab/llama-0), {', '.join(KNOWN)}, a Hugging Face id org/name[@revision], "
            "a local folder, or a .gguf file",
        )
    return repository, revision or None


def model_content(name: str) -> dict[str, Any]:
    """What a model is, as part of an identity: the digests of its files; of a hub model its commit."""
    known = identify(name)
    return {key: value for key, value in known.items() if key != "name" or "sha256" not in known}


ModelName = Annotated[str, ContentOf(model_content)]
"""``lab/llama-0``, ``smollm2``, ``org/name[@revision]``, a folder, a .gguf file; any of them ``+ ADAPTER FOLDER``."""
