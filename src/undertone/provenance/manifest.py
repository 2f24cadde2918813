"""The manifest: who made a result, with what, from what. Never a secret.

Recorded: package versions (read from their metadata, nothing is imported), the git state of the
working folder and of undertone's own source, seeds, models with their revisions, data digests,
machine, command line (redacted), time, and the few environment variables that change results.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from undertone.provenance.configs import Config
from undertone.provenance.plain_data import canonical_json, plain

SCHEMA = "undertone.manifest/1"
PACKAGES = (
    "undertone",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "llguidance",
    "safetensors",
    "numpy",
)
ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "HF_HUB_OFFLINE",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PYTHONHASHSEED",
    "TOKENIZERS_PARALLELISM",
)
REDACTED = "(redacted)"
# "tokens" in the plural is a count, such as max_tokens.
_SECRET_NAME = r"[\w.-]*(?:keys?|token|password|passwd|secrets?|credentials?|authorization)"
_NAMED = re.compile(rf"^(-{{0,2}}{_SECRET_NAME})(=|:)(.+)$", re.IGNORECASE | re.DOTALL)
_FLAG = re.compile(rf"^-{{1,2}}{_SECRET_NAME}$", re.IGNORECASE)
_BARE = re.compile(r"\b(?:hf_|sk-|ghp_|gho_|github_pat_|xox[a-z]-|AKIA|eyJ)[\w.-]{8,}")
_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_GIT_SECONDS = 20.0


def manifest(
    config: Config | Mapping[str, Any],
    *,
    models: Mapping[str, Mapping[str, str]],
    data: Mapping[str, str],
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that says where a result comes from, as plain JSON data.

    Args:
        config: of the run; its digest and its seeds are recorded (its text is ``config.yaml``).
        models: role -> what is known: name, revision, digest ….
        data: name -> digest of rows, prompts, vectors.
        extra: further entries; they may not replace those made here.
    """
    values = plain(config.model_dump(mode="json", round_trip=True) if isinstance(config, Config) else config)
    made: dict[str, Any] = {
        "schema": SCHEMA,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": redacted(sys.argv),
        "config_digest": hashlib.sha256(canonical_json(values).encode()).hexdigest()[:16],
        "seeds": dict(_seeds(values, "")),
        "models": {role: dict(known) for role, known in models.items()},
        "data": dict(data),
        "packages": {"python": platform.python_version(), **dict(_versions())},
        "git": {"working_folder": _git_state(Path.cwd()), "undertone": _own_source()},
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
        },
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }
    return dict(extra or {}) | made


def redacted(arguments: Sequence[str]) -> list[str]:
    """A command line with whatever looks like a key, token or password replaced."""
    shown, hide_next = [], False
    for argument in arguments:
        if hide_next and not argument.startswith("-"):
            shown.append(REDACTED)
            hide_next = False
            continue
        hide_next = bool(_FLAG.match(argument))
        text = _NAMED.sub(rf"\1\2{REDACTED}", argument)
        text = _BARE.sub(REDACTED, text)
        shown.append(_IN_URL.sub(f"{REDACTED}@", text))
    return shown


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "not installed"


def _seeds(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every config entry called `seed` or `seeds`, by its dotted path."""
    if isinstance(value, dict):
        items = [(key, inner) for key, inner in value.items()]
    elif isinstance(value, list):
        items = [(str(i), inner) for i, inner in enumerate(value)]
    else:
        return
    for key, inner in items:
        path = f"{name}.{key}" if name else key
        if key in ("seed", "seeds"):
            yield path, inner
        else:
            yield from _seeds(inner, path)


def _own_source() -> dict[str, Any] | None:
    """The git state of undertone's checkout; None where it is installed as a package."""
    folder = Path(__file__).parent
    # A site-packages inside somebody's repository is not our checkout: we must be tracked in it.
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return _git_state(folder)


def _git_state(folder: Path) -> dict[str, Any]:
    """Commit, whether anything differs from it, and the digest of the difference.

    The difference of untracked files is told by their names alone.
    """
    inside = _git(folder, "rev-parse", "--show-toplevel")
    if inside is None:
        return {"commit": None, "why": "not a git repository, or git is not installed"}
    top = Path(inside.decode("utf-8", "surrogateescape").strip())
    commit = _git(top, "rev-parse", "--verify", "HEAD")
    status = _git(top, "status", "--porcelain")
    diff = _git(top, "diff", "HEAD", "--binary", "--no-ext-diff") if commit else b""
    if status is None or diff is None:
        return {"commit": None, "why": "git did not answer"}
    dirty = bool(status.strip())
    return {
        "commit": commit.decode().strip() if commit else None,
        "dirty": dirty,
        "diff_sha256": hashlib.sha256(status + diff).hexdigest() if dirty else None,
    }


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git prints, or None if it fails or is not there."""
    command = ("git", "--no-optional-locks", "-C", str(folder), *arguments)
    try:
        done = subprocess.run(command, capture_output=True, timeout=_GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
