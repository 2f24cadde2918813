"""Adapters put on their base: PEFT's, and the biases that a bias-only student leaves."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from undertone.errors import ModelError
from undertone.models.adapters import BIASES_FILE, CONFIG_FILE, check_kind, check_whole
from undertone.models.layers import outside_language
from undertone.models.refusals import first_line


def merged(hf: Any) -> Any:
    """A model whose adapter, if it bears one, has become part of its weights, so that another can be put on it.

    Raises:
        ModelError: the adapter is of a kind that cannot.
    """
    if not hasattr(hf, "peft_config"):
        return hf
    try:
        return hf.merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise ModelError(
            "an adapter of this kind cannot become part of the weights, so that none can stand on it",
            got=first_line(error),
            fix="train from the base",
        ) from error


def with_adapter(hf: Any, folder: Path, base: str) -> Any:
    """A base with an adapter folder of PEFT, or of biases, put on it.

    Raises:
        ModelError: the folder is no adapter, lacks a part, or does not fit the base.
    """
    if (folder / BIASES_FILE).is_file():
        return _with_biases(hf, folder, base)
    if not (folder / CONFIG_FILE).is_file():
        raise ModelError(
            f"{folder} is not an adapter folder", allowed=f"a PEFT folder ({CONFIG_FILE}) or one with {BIASES_FILE}"
        )
    from peft import PeftModel

    check_kind(folder)
    try:
        with _peft_warnings_are_ours():
            model = PeftModel.from_pretrained(hf, folder)
    except KeyError as error:
        raise ModelError(
            f"the adapter {folder} does not fit {base}: a tensor that it should have is not in the file", got=str(error)
        ) from error
    except (RuntimeError, ValueError, TypeError, OSError, SafetensorError, ImportError) as error:
        raise ModelError(f"the adapter {folder} does not fit {base}: {first_line(error)}") from error
    check_whole(model, folder, base)
    return model


@contextmanager
def _peft_warnings_are_ours() -> Iterator[None]:
    """Missing adapter keys are an error here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")
        yield


def _with_biases(hf: Any, folder: Path, base: str) -> Any:
    stored = load_file(folder / BIASES_FILE)
    own = dict(hf.named_parameters())
    wrong = [name for name, value in stored.items() if name not in own or own[name].shape != value.shape]
    towers = outside_language(hf)
    missing = [name for name in own if name.endswith(".bias") and name not in stored and name not in towers]
    if wrong or missing:
        raise ModelError(
            f"the biases in {folder} do not fit {base}"
            + (f": {len(missing)} of the model's are not in the file" if missing else ""),
            got=(wrong or missing)[:5],
            allowed="all biases of the model, and no others",
        )
    with torch.no_grad():
        for name, value in stored.items():
            own[name].copy_(value)
    return hf
