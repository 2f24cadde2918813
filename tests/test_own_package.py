"""The example package, installed: a domain, a study and a preset of someone else's, found by entry points."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "examples" / "own_package"
Undertone = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def undertone(tmp_path: Path) -> Undertone:
    """The command line, in an environment with the package as an installer leaves it: its modules and its metadata."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = tmp_path / "site" / "undertone_steps-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    path = os.pathsep.join([str(tmp_path / "site"), str(PACKAGE), os.environ.get("PYTHONPATH", "")])

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "undertone", *words], env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return call


def test_its_domain_and_preset_are_listed_and_its_config_is_checked(undertone: Undertone) -> None:
    assert "steps" in json.loads(undertone("domains", "--json").stdout)
    assert "certainty" in json.loads(undertone("run", "--presets", "--json").stdout)
    shown = undertone("domains", "show", "steps", "--count", "1")
    assert shown.returncode == 0, shown.stderr
    assert "how do i" in shown.stdout
    wrong = undertone("run", "certainty", "domain.colour=red", "--config")
    assert wrong.returncode == 2
    assert "domain.colour" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.slow
def test_its_study_runs_reports_and_is_reused(undertone: Undertone, tmp_path: Path) -> None:
    words = [
        "run",
        "certainty",
        "data={prompts: 60, held_out: 4}",
        "training.batch_size=16",
        "--out",
        "out",
        "--jobs",
        "1",
    ]
    first = undertone(*words)
    assert first.returncode == 0, first.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    (finding,) = results["findings"]
    assert finding["id"] == "students-are-surer"
    assert (finding["n"], finding["unit"]) == (2, "nats")
    assert finding["claim"] in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "stages" / "entropy" / "base" / "stage.json").is_file()
    again = undertone(*words)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "out" / "results.json").read_text())["findings"] == results["findings"]
