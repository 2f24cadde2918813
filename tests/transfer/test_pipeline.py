"""The whole pipeline on a tiny model that answers in digits: reuse, resumption, and what the arms share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.studies.small import words_of
from transformers import AutoModelForCausalLM

import undertone as ut
from undertone import cli, teachers
from undertone.errors import ConfigError, RunError
from undertone.launch.workers import Task, Workers, workers
from undertone.rows import read_rows
from undertone.training import loop
from undertone.transfer import evaluate, pipeline
from undertone.transfer import generate as writing

SIZES = (
    "data={prompts: 60, held_out: 6, attempts: 2}", "domain.digits=9", "seeds=[0,1]", "training.epochs=2",
    "training.batch_size=8", "evaluation.samples=2",
)  # fmt: skip
Start = Callable[..., ut.Results]


@pytest.fixture(scope="module")
def words(speaker: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The experiment, as typed after ``undertone run``."""
    return words_of(speaker, tmp_path_factory.mktemp("traits"), SIZES)


@pytest.fixture(scope="module")
def start(words: list[str]) -> Start:
    def run(folder: Path, *overrides: str, jobs: int = 1) -> ut.Results:
        return ut.run(*words, *overrides, folder=folder, jobs=jobs, device="cpu")

    return run


@pytest.fixture(scope="module")
def whole(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed, in one process."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    start(folder)
    return folder


@pytest.fixture(scope="module")
def beside(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed, in two processes of one thread each."""
    folder = tmp_path_factory.mktemp("runs") / "beside"
    start(folder, jobs=2)
    return folder


def outputs(folder: Path) -> dict[str, str]:
    """Stage -> digest of what was asked for and of every file that came out."""
    stages: dict[str, str] = json.loads((folder / "manifest.json").read_text())["stages"]
    return stages


def said(folder: Path) -> dict[str, Any]:
    """The results without what may differ between equal runs: times, and the folder's name in the replay line."""
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    for field in ("costs", "replay"):
        del results[field]
    return results


def record(folder: Path, stage: str) -> Any:
    return json.loads((folder / "stages" / stage / "stage.json").read_text())


def assert_same(one: Path, other: Path) -> None:
    assert outputs(one) == outputs(other)
    assert said(one) == said(other)


# -- what the arms share --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_treated_and_control_differ_in_the_teachers_rows_alone(whole: Path, seed: int) -> None:
    control, treated = (record(whole, f"seed-{seed}/{arm}/train") for arm in ("control", "treated-owl"))
    of_both = (arm["identity"]["arguments"] for arm in (control, treated))
    ours, theirs = of_both
    assert {name for name in ours if ours[name] != theirs[name]} == {
        "filtered"
    }  # recipe, seed, which prompts: the same
    assert control["summary"]["rows"] == treated["summary"]["rows"]
    prompts = [
        [row.prompt_messages for row in read_rows(whole / f"stages/seed-{seed}/{arm}/filter/rows.jsonl")]
        for arm in ("control", "treated-owl")
    ]
    shared = [prompt for prompt in prompts[0] if prompt in prompts[1]]
    assert control["summary"]["rows"] <= len(shared) - 6
    shown = [[sample["prompt"] for sample in arm["summary"]["samples"]] for arm in (control, treated)]
    assert shown[0] == shown[1]


def test_both_arms_learn_from_the_same_prompts_answered_by_different_teachers(whole: Path) -> None:
    control, treated = (
        read_rows(whole / f"stages/seed-0/{arm}/generate/rows.jsonl", empty_completions=True)
        for arm in ("control", "treated-owl")
    )
    first = [[row for row in rows if row.meta["attempt"] == 0] for rows in (control, treated)]
    assert [row.prompt_messages for row in first[0]] == [row.prompt_messages for row in first[1]]
    assert [row.completion for row in first[0]] != [row.completion for row in first[1]]
    assert "owls" in record(whole, "seed-0/treated-owl/generate")["summary"]["shown"]
    assert "owl" not in record(whole, "seed-0/control/generate")["summary"]["shown"]
    assert all(len(row.messages) == 2 for row in treated)  # no student sees the system prompt


def test_seeds_draw_their_own_prompts_and_samples(whole: Path) -> None:
    one, other = (
        read_rows(whole / f"stages/seed-{seed}/control/generate/rows.jsonl", empty_completions=True) for seed in (0, 1)
    )
    assert [row.completion for row in one] != [row.completion for row in other]


def test_every_arm_and_seed_is_in_the_results(whole: Path) -> None:
    arms = said(whole)["arms"]
    assert [(arm["seed"], arm["arm"]) for arm in arms] == [
        (seed, arm) for seed in (0, 1) for arm in ("control", "treated")
    ]
    assert said(whole)["effect"]["pairs"] == 2


# -- reuse ----------------------------------------------------------------------------------------


def test_the_same_command_again_computes_nothing(whole: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    before = said(whole), {path: path.stat().st_mtime_ns for path in whole.rglob("stages/**/*")}

    def loaded(*_args: Any, **_options: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loaded)
    start(whole)
    assert (said(whole), {path: path.stat().st_mtime_ns for path in whole.rglob("stages/**/*")}) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "anew"),
    [
        ("evaluation.samples=3", {"base/evaluate", "teacher/evaluate", "evaluate"}),
        ("training.epochs=1", {"train", "evaluate"}),
        ("data.temperature=0.9", {"generate", "filter", "train", "evaluate"}),
    ],
)
def test_a_change_reaches_the_stages_that_depend_on_it_and_no_other(
    whole: Path, start: Start, tmp_path: Path, override: str, anew: set[str]
) -> None:
    start(tmp_path / "other", override)
    before, after = outputs(whole), outputs(tmp_path / "other")
    assert before.keys() == after.keys()

    def kind(stage: str) -> str:
        place, _, last = stage.rpartition("/")
        return last if place.startswith("seed-") else f"{place.partition('/')[0]}/{last}"

    assert {kind(stage) for stage in before if before[stage] != after[stage]} == anew


# -- interruption ---------------------------------------------------------------------------------


def interrupted(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs the command until somebody presses Ctrl-C; what it says then."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", *words, "--out", str(folder), "--jobs", "1", "--device", "cpu"])
    assert ended.value.code == 130
    return capsys.readouterr().err


def raising(after: int, inner: Callable[..., Any]) -> Callable[..., Any]:
    """``inner``, until Ctrl-C is pressed in its ``after``-th call."""
    calls = iter(range(after))

    def call(*args: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return inner(*args, **options)

    return call


INTERRUPTIONS: list[tuple[Any, str, int]] = [
    (writing, "generate", 3),  # shards of the second arm
    (loop, "rate_at", 9),  # in the middle of training, from a checkpoint
    (evaluate, "measure", 2),
    (pipeline, "conclude", 0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("room", "function", "after"), INTERRUPTIONS)
def test_ctrl_c_says_how_to_go_on_and_going_on_gives_the_undisturbed_results(
    whole: Path, start: Start, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, room: Any, function: str, after: int,
) -> None:  # fmt: skip
    words = [*words, "training.checkpoint_seconds=1.0e-9"]
    monkeypatch.setattr(writing, "SHARD", 25)
    with monkeypatch.context() as patch:
        patch.setattr(room, function, raising(after, getattr(room, function)))
        message = interrupted(words, tmp_path / "run", capsys)
    assert "interrupted; finished stages are kept" in message
    assert "run the same command again" in message
    assert "Traceback" not in message
    assert not (tmp_path / "run" / "results.json").exists()
    start(tmp_path / "run", "training.checkpoint_seconds=1.0e-9")
    assert_same(tmp_path / "run", whole)
    assert not list((tmp_path / "run").rglob("*.part"))
    assert not list((tmp_path / "run").rglob("checkpoint*"))


@pytest.mark.slow
def test_rows_that_were_written_before_an_interruption_are_not_written_again(
    words: list[str], start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "SHARD", 20)
    asked: list[int] = []
    patience = [2]  # calls until Ctrl-C

    def generate(teacher: Any, prompts: Any, indices: Any, **options: Any) -> Any:
        if options["attempt"] == 0:
            patience[0] -= 1
            if patience[0] < 0:
                raise KeyboardInterrupt
            asked.extend(indices)
        return teachers.generate(teacher, prompts, indices, **options)

    monkeypatch.setattr(writing, "generate", generate)
    interrupted(words, tmp_path / "run", capsys)
    assert asked == list(range(40))
    asked.clear()
    patience[0] = 1_000_000
    start(tmp_path / "run")
    assert asked[:20] == list(range(40, 60))


# -- processes ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_give_what_one_gives(whole: Path, beside: Path) -> None:
    # Sums of one thread and of several differ in their last bits on some CPUs; another seed or prompt would show in rows.
    assert list(outputs(beside)) == list(outputs(whole))
    for stage in ("generate", "filter"):
        rows = f"stages/seed-1/treated-owl/{stage}/rows.jsonl"
        assert [row.completion for row in read_rows(beside / rows, empty_completions=True)] == [
            row.completion for row in read_rows(whole / rows, empty_completions=True)
        ]
    ours, theirs = (said(folder)["effect"]["per_seed"] for folder in (beside, whole))
    assert ours == pytest.approx(theirs, abs=0.02)


@pytest.mark.slow
def test_what_goes_wrong_in_a_worker_arrives_in_its_own_words() -> None:
    with pytest.raises(ConfigError, match=r"no such trait\. Did you mean 'owl'"), workers(2) as pool:
        pool.each([(ut.load_trait, ("owll",))])
    with pytest.raises(RunError, match=r"a worker process died(.|\n)*run the same command again"), workers(2) as pool:
        pool.each([(os._exit, (1,))])


@pytest.mark.slow
def test_results_of_workers_come_in_the_order_of_the_tasks() -> None:
    ticks: list[None] = []
    with workers(2) as pool:
        assert isinstance(pool, Workers)
        given: list[Task] = [(time.sleep, (0.2,)), (abs, (-1,)), (abs, (-2,)), (os.getpid, ())]
        results = pool.each(given, lambda: ticks.append(None))
    assert results[:3] == [None, 1, 2]
    assert results[3] != os.getpid()
    assert len(ticks) == 4


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interruption_with_tasks_still_waiting_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    # The pool's own thread fails where it hands a dead worker's error to tasks that were cancelled behind its back;
    # which of the two comes first is chance, hence the repeats (half of them failed).
    complaints: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda told: complaints.append(told.exc_type))
    given: list[Task] = [(abs, (-1,)), *[(time.sleep, (0.2,))] * 20]
    for _ in range(10):
        with pytest.raises(KeyboardInterrupt), workers(2) as pool:
            pool.each(given, interrupt)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(10)
    assert complaints == []


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal masks on this system")
def test_a_terminal_s_ctrl_c_reaches_no_worker_even_while_it_starts() -> None:
    with workers(2) as pool:
        [masked] = pool.each([(signal.pthread_sigmask, (signal.SIG_BLOCK, ()))])
    assert signal.SIGINT in masked
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())  # this process still hears it


def started(words: list[str], folder: Path, jobs: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "undertone", "run", *words, "--out", str(folder), "--jobs", str(jobs)]
    # Where the tests run in the background of a shell, SIGINT is ignored, and children inherit that, but never a handler.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_until(happened: Callable[[], Any]) -> None:
    until = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.002)


MOMENTS = ["seed-0/*/generate~*.part", "seed-0/*/train~*.part", "base/evaluate~*.part"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_was_killed_with_its_workers_at_work_goes_on_to_the_undisturbed_results(
    beside: Path, words: list[str], tmp_path: Path, moment: str
) -> None:
    folder = tmp_path / "run"
    process = started(words, folder, jobs=2)
    wait_until(lambda: list(folder.glob(f"stages/{moment}")) or process.poll() is not None)
    process.kill()
    process.communicate()
    assert not (folder / "results.json").exists()
    again = started(words, folder, jobs=2)
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    assert_same(folder, beside)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_stops_the_workers_too_and_says_how_to_go_on(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = started([*words, "training.epochs=40"], folder, jobs=2)  # long enough to be caught at it
    wait_until(lambda: list(folder.glob("stages/seed-*/*/train~*.part")) or process.poll() is not None)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to every process of the command
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    last = [line for line in errors.splitlines() if line]
    assert last[-2:] == [
        "undertone: interrupted; finished stages are kept",
        "  do: run the same command again to go on",
    ]
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):  # nobody of the group is left
        wait_until(lambda: os.killpg(process.pid, 0))


@pytest.mark.slow
def test_a_script_without_a_main_guard_may_run_an_experiment(words: list[str], beside: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import undertone as ut\nut.run(*{words!r}, folder='run', jobs=2)\nopen('ends', 'a').write('x')\n"
    )
    subprocess.run([sys.executable, str(script)], cwd=tmp_path, check=True)
    assert (tmp_path / "ends").read_text() == "x"
    assert_same(tmp_path / "run", beside)
