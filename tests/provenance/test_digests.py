"""Every byte of a file counts, also in the middle of a large one; large files are read once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from undertone.provenance import digests
from undertone.provenance.digests import file_digest, folder_digest


@pytest.fixture(autouse=True)
def _own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of files above 100 bytes are remembered, in a file of the test's own."""
    monkeypatch.setenv("UNDERTONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "REMEMBERED", 100)
    digests._memory.cache_clear()


def test_the_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    for size in (0, 99, 100, 5000):
        (tmp_path / "x").write_bytes((bytes(range(256)) * 20)[:size])
        assert file_digest(tmp_path / "x") == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()


@pytest.mark.parametrize("size", [50, 10_000])
def test_one_changed_byte_in_the_middle_is_another_file(tmp_path: Path, size: int) -> None:
    weights = bytearray(size)
    (tmp_path / "model.safetensors").write_bytes(weights)
    before = folder_digest(tmp_path / "."), file_digest(tmp_path / "model.safetensors")
    weights[size // 2] = 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    after = folder_digest(tmp_path / "."), file_digest(tmp_path / "model.safetensors")
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_a_large_file_is_read_once_also_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "large").write_bytes(bytes(1000))
    first = file_digest(tmp_path / "large")

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(digests, "_read", refuse)
    assert file_digest(tmp_path / "large") == first
    digests._memory.cache_clear()  # as a new process begins
    assert file_digest(tmp_path / "large") == first


def test_names_count_and_a_damaged_memory_only_costs_time(tmp_path: Path) -> None:
    for folder, name in (("a", "x"), ("b", "y"), ("c", "x")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(bytes(1000))
    found = [folder_digest(tmp_path / folder) for folder in "abc"]
    assert found[0] == found[2] != found[1]
    (tmp_path / "cache" / "digests.json").write_text("{")
    digests._memory.cache_clear()
    assert folder_digest(tmp_path / "a") == found[0]
