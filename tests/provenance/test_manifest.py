from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from undertone.provenance import manifest as module
from undertone.provenance.configs import Config
from undertone.provenance.manifest import manifest, redacted


class Small(Config):
    seeds: tuple[int, ...] = (0, 1)
    rows: int = 3


def made(config: Config | dict[str, object] | None = None) -> dict[str, object]:
    return manifest(config or Small(), models={"base": {"name": "m"}}, data={"rows": "d"}, extra={"x": 1})


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.txt").write_text("one\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_versions_are_those_of_the_installed_packages_and_nothing_is_imported() -> None:
    packages = made()["packages"]
    assert isinstance(packages, dict)
    assert packages["torch"] == metadata.version("torch")
    assert packages["python"] == sys.version.split()[0]
    assert set(packages) >= {
        "undertone",
        "transformers",
        "peft",
        "accelerate",
        "tokenizers",
        "numpy",
    }
    code = "import undertone.provenance.manifest, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_manifest_is_json_and_keeps_what_it_was_given() -> None:
    record = json.loads(json.dumps(made()))
    assert record["models"] == {"base": {"name": "m"}}
    assert record["data"] == {"rows": "d"}
    assert record["x"] == 1
    assert record["config_digest"] == Small().digest()


def test_seeds_are_found_wherever_they_stand() -> None:
    config = {"seed": 3, "arms": [{"seeds": [1, 2]}, {"train": {"seed": 4}}]}
    assert made(config)["seeds"] == {"seed": 3, "arms.0.seeds": [1, 2], "arms.1.train.seed": 4}


def test_the_git_state_tells_a_clean_tree_from_a_changed_one(repository: Path) -> None:
    def state() -> dict[str, object]:
        record = made()["git"]
        assert isinstance(record, dict)
        found = record["working_folder"]
        assert isinstance(found, dict)
        return found

    clean = state()
    assert clean == {
        "commit": git(repository, "rev-parse", "HEAD"),
        "dirty": False,
        "diff_sha256": None,
    }
    (repository / "a.txt").write_text("two\n")
    two = state()
    (repository / "a.txt").write_text("three\n")
    three = state()
    assert (two["dirty"], three["dirty"]) == (True, True)
    assert len({clean["diff_sha256"], two["diff_sha256"], three["diff_sha256"]}) == 3


def test_the_absence_of_git_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    record = made()["git"]
    assert isinstance(record, dict)
    assert record["working_folder"]["commit"] is None
    assert "not a git repository" in record["working_folder"]["why"]
    monkeypatch.setenv("PATH", "")
    assert module._git(tmp_path, "status") is None


def test_a_repository_without_a_commit_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("")
    assert module._git_state(tmp_path)["commit"] is None
    assert module._git_state(tmp_path)["dirty"] is True


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--api-key=abc", "seed=1"], ["--api-key=(redacted)", "seed=1"]),
        (["--token", "abc", "x"], ["--token", "(redacted)", "x"]),
        (["--hf-token", "--json"], ["--hf-token", "--json"]),
        (["judge.api_key=abc"], ["judge.api_key=(redacted)"]),
        (["OPENAI_API_KEY=abc"], ["OPENAI_API_KEY=(redacted)"]),
        (["password:hunter2"], ["password:(redacted)"]),
        (["hf_abcdefghijklmnop"], ["(redacted)"]),
        (["x=sk-proj-abcdefghijkl"], ["x=(redacted)"]),
        (["url=https://me:pw@host/v1"], ["url=https://(redacted)@host/v1"]),
        (["model=Qwen/Qwen2.5-7B-Instruct"], ["model=Qwen/Qwen2.5-7B-Instruct"]),
        (["evaluation.max_tokens=8"], ["evaluation.max_tokens=8"]),
    ],
)
def test_what_looks_like_a_secret_is_not_recorded(arguments: list[str], shown: list[str]) -> None:
    assert redacted(arguments) == shown


def test_of_the_environment_only_what_changes_results_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secretsecretsecret")
    monkeypatch.setattr(sys, "argv", ["undertone", "--token", "hf_secretsecretsecret"])
    text = json.dumps(made())
    assert '"OMP_NUM_THREADS": "1"' in text
    assert "secretsecret" not in text


def test_extra_entries_do_not_replace_our_own() -> None:
    record = manifest(Small(), models={}, data={}, extra={"schema": "mine"})
    assert record["schema"] == "undertone.manifest/1"
