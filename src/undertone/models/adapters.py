"""Adapters as they lie on disk: where one is, what it is, which base it was made for, and whether all of it is there.

Imports no torch before a loaded model is checked: names of models are resolved here, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from undertone.errors import ModelError
from undertone.provenance.digests import folder_digest

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
BIASES_FILE: Final = "undertone_biases.safetensors"
RECORD_FILE: Final = "undertone.json"
"""Beside a student's weights: its kind, and the digest of the base that it was trained from."""

_READS_TOKENS: Final = {
    "PROMPT_TUNING": "it puts vectors in front of the tokens",
    "MULTITASK_PROMPT_TUNING": "it puts vectors in front of the tokens",
    "P_TUNING": "it puts vectors in front of the tokens",
    "PREFIX_TUNING": "it fills the cache before the tokens",
    "CARTRIDGE": "it fills the cache before the tokens",
    "CPT": "it puts vectors in front of the tokens",
    "ADAPTION_PROMPT": "it puts vectors into attention",
    "XLORA": "it mixes adapters by what is read",
    "POLY": "it mixes adapters by task",
}
"""PEFT kinds that are no change of weights: what a row's tokens and cache are is no longer what undertone counts."""


def adapter_folder(name: str) -> Path:
    """The folder of an adapter: one on this machine, or ``org/name[@revision]`` on the hub, fetched or from its cache.

    Raises:
        ModelError: there is none of that name.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise ModelError(f"{name} is not an adapter folder: it is not there", allowed=_KINDS)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, BIASES_FILE, RECORD_FILE],
            )
        )
    except (OSError, ValueError, HFValidationError) as error:
        raise ModelError(
            f"{name} is not an adapter folder, and no adapter of that name could be fetched from the hub",
            got=str(error).strip().partition("\n")[0],
            allowed=_KINDS,
            fix="check the name; offline, download the adapter first",
        ) from error


_KINDS: Final = f"a PEFT folder ({CONFIG_FILE}), one with {BIASES_FILE}, or org/name[@revision] on the hub"


def adapter_identity(name: str) -> str:
    """What an adapter is: the digest of its folder, or the commit of one on the hub."""
    folder = adapter_folder(name)
    return folder_digest(folder) if Path(name).is_dir() else folder.name


def adapter_config(folder: Path) -> dict[str, Any]:
    """A PEFT adapter's config.

    Raises:
        ModelError: it is damaged.
    """
    try:
        found = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / CONFIG_FILE} cannot be read", got=str(error)) from error
    if not isinstance(found, dict):
        raise ModelError(
            f"{folder / CONFIG_FILE} cannot be read", got=f"JSON {type(found).__name__}", allowed="an object"
        )
    return found


def parts(name: str) -> tuple[str, list[str]]:
    """A model's name as (base, adapters); an adapter folder that is named alone has its base from its own config.

    Raises:
        ModelError: such a folder that does not say its base.
    """
    base, *adapters = [part.strip() for part in name.split(" + ")]
    folder = Path(base)
    if (folder / "config.json").is_file():
        return base, adapters
    if (folder / BIASES_FILE).is_file():
        raise ModelError(
            f"{base} holds the biases of a student, which do not say whose", fix=f"name the base: `BASE + {base}`"
        )
    if not (folder / CONFIG_FILE).is_file():
        return base, adapters
    own = adapter_config(folder).get("base_model_name_or_path")
    if not isinstance(own, str) or not own:
        raise ModelError(f"the adapter {base} does not say which base it is for", fix=f"name the base: `BASE + {base}`")
    return own, [base, *adapters]


def made_for(folder: Path) -> dict[str, str]:
    """The base that an adapter was made for, as far as it says: ``name`` (PEFT), ``sha256`` or ``revision`` (undertone)."""
    found: dict[str, str] = {}
    if (folder / CONFIG_FILE).is_file():
        name = adapter_config(folder).get("base_model_name_or_path")
        found |= {"name": name} if isinstance(name, str) and name else {}
    record = folder / RECORD_FILE
    if record.is_file():
        try:
            base = dict(json.loads(record.read_text(encoding="utf-8"))["base"])
        except (ValueError, TypeError, KeyError):  # an older one, which does not say it
            base = {}
        found |= {key: str(base[key]) for key in ("sha256", "revision") if key in base}
    return found


def other_base(folder: Path, base: str, identity: Mapping[str, str]) -> str | None:
    """What is known against the base being the one that the adapter was made for; None: nothing.

    Shapes that fit do not make it the same model: an adapter on another base is another student.

    Args:
        folder: of the adapter.
        base: the name of the model that it is put on.
        identity: of that model, as ``names.identify`` gives it.
    """
    said = made_for(folder)
    for key in ("sha256", "revision"):
        if key in said and key in identity:
            return (
                None
                if said[key] == identity[key]
                else f"it was made for one of {key} {said[key][:12]}, not {identity[key][:12]}"
            )
    name = said.get("name")
    if name is None or name == base or _known_as(name) == _known_as(base):
        return None
    if Path(name).is_dir() and "sha256" in identity:
        same = folder_digest(Path(name)) == identity["sha256"]
        return None if same else f"it was made for {name}, whose files are others"
    return f"it says that it was made for {name}"


def _known_as(name: str) -> str:
    """What people call a model, whoever's copy it is: ``Qwen2.5-7B`` for a hub id, a folder or a snapshot in the hub's cache."""
    cached = [part for part in Path(name).parts if part.startswith("models--")]
    return (cached[0].rpartition("--")[2] if cached else name.partition("@")[0].rstrip("/").rpartition("/")[2]).lower()


def check_kind(folder: Path) -> None:
    """Refuse an adapter that is no change of weights, or whose weights are not there.

    Raises:
        ModelError: it is one.
    """
    config = adapter_config(folder)
    kind = str(config.get("peft_type"))
    why = _READS_TOKENS.get(kind)
    if config.get("alora_invocation_tokens"):
        why = "it acts from certain tokens on"
    if why:
        raise ModelError(
            f"the adapter {folder} is of the kind {kind}, which undertone does not run: {why}",
            allowed="adapters that change weights: LORA (DoRA, rsLoRA …), IA3, OFT, BOFT, VERA, LOHA, LOKR …",
            fix="train a LoRA adapter on the same rows",
        )
    if not (folder / WEIGHTS_FILE).is_file():
        raise ModelError(
            f"the adapter {folder} has no {WEIGHTS_FILE}",
            got=sorted(path.name for path in folder.iterdir())[:8],
            fix="save it with safe_serialization=True; a pickle can run any code when it is opened",
        )


def check_whole(model: Any, folder: Path, base: str) -> None:
    """PEFT loads what it can and leaves the rest, in the file or in the model, without an error.

    Every tensor of the file must be in the model, and everything that the adapter's kind saves must have been in the file:
    adapted weights, biases, whole modules (``modules_to_save``).

    Raises:
        ModelError: one is not.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    stored = load_file(folder / WEIGHTS_FILE)
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    here = {**model.state_dict(), **wanted}  # embeddings may be saved beside the adapted weights
    lost = sorted(name for name in stored if name not in here or not _same(stored[name], here[name]))
    missing = sorted(set(wanted) - set(stored))
    if lost or missing:
        raise ModelError(
            f"the adapter {folder} does not fit {base}: "
            + " and ".join(
                [f"{len(lost)} of its tensors have no place in the model"] * bool(lost)
                + [f"{len(missing)} that it should have are not in the file"] * bool(missing)
            ),
            got=(missing + lost)[:5],
            allowed="the same adapted weights in the file and in the model",
        )


def _same(stored: Any, own: Any) -> bool:
    import torch

    return stored.shape == own.shape and torch.equal(stored.to(own.device, own.dtype), own)
