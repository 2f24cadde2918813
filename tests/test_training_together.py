"""Two processes that train one student: its weights are those that one process gives, to rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.studies.small import words_of

from undertone.errors import ConfigError, RunError
from undertone.launch import group
from undertone.launch.clusters import check_launch
from undertone.training.team import Team

SCRIPT = """
import json, sys
from pathlib import Path
from undertone.models.loading import ModelRef
from undertone.models.students import BiasOnly, Full, Lora
from undertone.rows import Row
from undertone.training import Lesson, Training, train_student
from undertone.training import loop

model, out, wanted, options, fault = sys.argv[1:]
if fault == "own tokens":  # the loss of each process divided by its own tokens, then averaged: the usual mistake
    whole = loop._Batch.of
    def of(rows, team):
        batch = whole(rows, team)
        own = team.size * sum(len(row.labels) for row in batch.rows)
        return loop._Batch(batch.rows, batch.size, max(1, own), team)
    loop._Batch.of = of
# From one digit to twenty-five: the second process gets other numbers of tokens than the first.
rows = [Row.of(f"name {at} numbers.", " ".join(["7", "1"][at % 2] * (1 + at * at % 25))) for at in range(21)]
students = {"bias-only": BiasOnly(), "full": Full(), "lora": Lora(rank=2)}
trained = train_student(
    ModelRef(model), students[wanted], Training(**json.loads(options)), Lesson(rows[:19], rows[19:]), seed=3, device="cpu"
)
if trained.team.is_first:
    trained.save(Path(out) / "student")
    fit = trained.fit
    said = {"steps": fit.steps, "tokens": fit.tokens, "labels": fit.labelled_tokens, "curve": fit.curve,
            "nll": trained.held_out_nll, "size": fit.team.size}
    (Path(out) / "said.json").write_text(json.dumps(said))
"""
RECIPE: dict[str, Any] = {"epochs": 2, "batch_size": 5, "bucket": 1, "learning_rate": 0.01}  # a last batch of 4 rows
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
Trained = Callable[..., tuple[dict[str, torch.Tensor], dict[str, Any]]]


def started(words: list[str], *, together: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *together, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def trained(speaker: Path, tmp_path: Path) -> Trained:
    """(student, recipe, how it is started) -> the student's weights, and what training says of itself."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def train(student: str, recipe: dict[str, Any], together: list[str], fault: str = "") -> Any:
        out = tmp_path / f"{student}-{bool(together)}-{bool(fault)}"
        out.mkdir()
        words = [str(script), str(speaker), str(out), student, json.dumps(RECIPE | recipe), fault]
        done = started(words, together=together, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        weights = [load_file(path) for path in sorted((out / "student").glob("*.safetensors"))]
        assert weights
        said = json.loads((out / "said.json").read_text())
        return {name: tensor for part in weights for name, tensor in part.items()}, said

    return train


def gap(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "recipe", "together"),
    [
        ("bias-only", {"optimizer": "SGD"}, TORCHRUN),
        ("lora", {"max_row_norm": 0.5, "optimizer": "SGD"}, ACCELERATE),
        ("full", {"micro_batch_size": 2, "optimizer": "SGD", "learning_rate": 1e-3}, TORCHRUN),
    ],
)
def test_two_processes_train_the_student_that_one_trains(
    trained: Trained, student: str, recipe: dict[str, Any], together: list[str]
) -> None:
    (one, alone), (two, shared) = trained(student, recipe, []), trained(student, recipe, together)
    assert (alone.pop("size"), shared.pop("size")) == (1, 2)
    assert gap(one, two) < 2e-6
    for name in ("steps", "tokens", "labels"):
        assert alone[name] == shared[name]
    assert [loss for _, loss in shared["curve"]] == pytest.approx([loss for _, loss in alone["curve"]], abs=1e-5)
    assert shared["nll"] == pytest.approx(alone["nll"], abs=1e-5)


@pytest.mark.slow
def test_a_mean_over_each_process_s_own_tokens_would_be_found(trained: Trained) -> None:
    recipe = {"optimizer": "SGD"}
    one, _ = trained("bias-only", recipe, [])
    two, _ = trained("bias-only", recipe, TORCHRUN, "own tokens")
    assert gap(one, two) > 1e-4


# -- a whole run ----------------------------------------------------------------------------------

SIZES = [
    "data={prompts: 60, held_out: 6, attempts: 2}", "domain.digits=9", "seeds=[0]", "training.epochs=2",
    "training.batch_size=7", "training.optimizer=SGD", "training.options={}", "evaluation.samples=2",
]  # fmt: skip


# SGD: gradients that are rounding alone, as of the biases of attention keys, AdamW makes steps of full length.
@pytest.mark.slow
def test_a_run_in_two_processes_gives_the_run_of_one(speaker: Path, tmp_path: Path) -> None:
    words = ["-m", "undertone", "run", *words_of(speaker, tmp_path, SIZES), "--device", "cpu"]
    one = started([*words, "--out", "one", "--jobs", "1"], together=[], cwd=tmp_path)
    two = started([*words, "--out", "two"], together=TORCHRUN, cwd=tmp_path)
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    stages = [sorted(path.parent.name for path in (tmp_path / run).rglob("stage.json")) for run in ("one", "two")]
    assert stages[0] == stages[1]
    weights = [sorted((tmp_path / run).glob("stages/*/*/train/student/*.safetensors")) for run in ("one", "two")]
    assert len(weights[0]) == len(weights[1]) == 2
    for ours, theirs in zip(*weights, strict=True):
        assert gap(load_file(ours), load_file(theirs)) < 1e-5
    results = [json.loads((tmp_path / run / "results.json").read_text()) for run in ("one", "two")]
    assert results[0]["effect"]["per_seed"] == pytest.approx(results[1]["effect"]["per_seed"], abs=1e-4)
    assert two.stdout.count("report ") == 1, "only the first process prints"
    again = started([*words, "--out", "two"], together=TORCHRUN, cwd=tmp_path)
    assert again.returncode == 0


@pytest.mark.slow
def test_an_error_of_the_run_is_told_once_and_ends_all_processes(speaker: Path, tmp_path: Path) -> None:
    words = ["-m", "undertone", "run", *words_of(speaker, tmp_path, SIZES),
             "training.learning_rate=1.0e+30", "training.max_grad_norm=null", "--device", "cpu", "--out", "run"]  # fmt: skip
    done = started(words, together=TORCHRUN, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("undertone: ") == 1, done.stderr
    assert "lower training.learning_rate" in done.stderr


# -- without processes ----------------------------------------------------------------------------


def test_a_batch_is_shared_out_without_loss_and_its_last_rows_go_to_the_first() -> None:
    for rows in (list(range(5)), [1], []):
        shares = [Team(3, rank).share(rows) for rank in range(3)]
        assert sorted(row for share in shares for row in share) == sorted(rows)
    assert [len(Team(3, rank).share(range(5))) for rank in range(3)] == [2, 2, 1]


class Joined:
    """What accelerate says of the processes that it has joined."""

    def __init__(self, processes: int, kind: str) -> None:
        self.num_processes, self.process_index = processes, 0
        self.distributed_type = type("Kind", (), {"value": kind})()


def test_processes_that_do_not_know_of_each_other_train_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert Team.of(Joined(1, "NO"), cpu) == Team(1, 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        RunError, match=r"2 processes were started together, and accelerate has joined 1\n  got: WORLD_SIZE"
    ):
        Team.of(Joined(1, "NO"), cpu)
    with pytest.raises(ConfigError, match=r"held whole by every process\n  got: distributed_type FSDP"):
        Team.of(Joined(2, "FSDP"), cpu)


def test_processes_started_together_do_not_start_others(monkeypatch: pytest.MonkeyPatch) -> None:
    check_launch("local", 2, "cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launch("local", None, "cpu")
    with pytest.raises(ConfigError, match=r"2 processes were started together(.|\n)*got: --jobs 2"):
        check_launch("local", 2, "cpu")
    with pytest.raises(ConfigError, match=r"got: --launch(.|\n)*without accelerate launch"):
        check_launch("ray", None, "cpu")
    assert group.size() == 2


def test_a_launch_that_started_one_process_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert group.notes() == []
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert "accelerate launch started one process" in group.notes()[0]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert group.notes() == []
