"""Other tools' vector files, both ways. One table; each row says what a layer number means there.

Layer numbers here are those of ``models.layers``: 0 is the output of the first layer, and the embedding has none. A
file that has a slot for the embedding loses it when read (``meta["notes"]`` says so) and gets zeros there when written.
What a reader cannot turn into "add this direction after this layer" is refused, never approximated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from undertone.errors import ConfigError, DataError, nearest
from undertone.vectors.formats import control_vectors, json_files, torch_files
from undertone.vectors.vector import SteeringVector, load_vector, save_vector


@dataclass(frozen=True)
class Format:
    """A kind of file: ``read`` gives a vector, ``write`` what the user should know about the file."""

    name: str
    suffix: str
    layer: str
    """What the file's layer number L means in layer numbers."""
    read: Callable[[Path], SteeringVector]
    write: Callable[[SteeringVector, Path], list[str]]


def _save(vector: SteeringVector, path: Path) -> list[str]:
    save_vector(vector, path)
    return []


FORMATS = {
    kind.name: kind
    for kind in (
        Format("undertone", ".safetensors", "layer L", load_vector, _save),
        Format("gguf", ".gguf", "layer L", control_vectors.read_gguf, control_vectors.write_gguf),
        Format("easysteer", ".json", "layer L", control_vectors.read_easysteer, control_vectors.write_easysteer),
        Format("svd", ".pt", "slot L is layer L - 1", torch_files.read_svd, torch_files.write_svd),
        Format("persona", ".pt", "slot L is layer L - 1", torch_files.read_persona, torch_files.write_persona),
        Format("lm-eval", ".pt", "layers.L is layer L", torch_files.read_lm_eval, torch_files.write_lm_eval),
        Format("svec", ".svec", "layer L", json_files.read_svec, json_files.write_svec),
        Format("vllm-lens", ".json", "layer L", json_files.read_vllm_lens, json_files.write_vllm_lens),
    )
}
"""Name -> format."""


def read(path: Path, name: str | None = None) -> SteeringVector:
    """The vector in a file of any of these formats.

    Args:
        path: the file.
        name: its format; None: told from suffix and content.

    Raises:
        ConfigError: no such format. DataError: the file is not of the format, damaged, or cannot be read as a vector.
    """
    if not path.is_file():
        raise DataError("no such vector file", got=str(path))
    kind = lookup(name or guess(path))
    vector = kind.read(path)
    if kind.name == "undertone":
        return vector
    source = {"source_format": kind.name, "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return SteeringVector(vector.directions, {**vector.meta, **source})


def write(vector: SteeringVector, path: Path, name: str) -> list[str]:
    """Write the file of another tool; what its user should know about it.

    Raises:
        ConfigError: no such format. DataError: the format needs what the vector's header does not say, or the file cannot be
            written.
    """
    kind = lookup(name)
    if not path.parent.is_dir():
        raise ConfigError("no such folder to write to", got=str(path.parent))
    try:
        return kind.write(vector, path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} cannot be written", got=str(error), fix="name a file in a folder that exists"
        ) from error


def lookup(name: str) -> Format:
    """The format of a name; a ConfigError if there is none."""
    if name not in FORMATS:
        raise ConfigError(f"no such vector format.{nearest(name, FORMATS)}", got=name, allowed=list(FORMATS))
    return FORMATS[name]


def guess(path: Path) -> str:
    """The format of a file by its suffix, and where several share one, by what is in it."""
    suffix = path.suffix.lower()
    if suffix in (".pt", ".pth"):
        return torch_files.kind(path)
    if suffix == ".json":
        return json_files.kind(path)
    for kind in FORMATS.values():
        if kind.suffix == suffix:
            return kind.name
    raise DataError(
        f"{path}: which vector format is this?",
        got=path.suffix or "no suffix",
        allowed=", ".join(f"{kind.suffix} ({kind.name})" for kind in FORMATS.values()),
        fix="undertone vector convert FILE OUT.safetensors --from FORMAT, for a file of another name",
    )
