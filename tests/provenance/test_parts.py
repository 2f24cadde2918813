"""Machines that share a run folder: one stage, one content, whoever dies, sleeps or comes back."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from undertone.errors import RunError
from undertone.provenance import parts, runs, stages
from undertone.provenance.configs import Config
from undertone.provenance.runs import Run, Stage

IDENTITY = {"name": "a"}


class Small(Config):
    rows: int = 3


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run.open(tmp_path / "run", Small(), command="undertone run x") as opened:
        yield opened


def writing(text: str) -> Callable[[Path], dict[str, Any]]:
    def compute(folder: Path) -> dict[str, Any]:
        found = sorted(path.name for path in folder.iterdir() if path.name != "intent.json")
        for path in folder.glob("checkpoint*"):
            path.unlink()
        (folder / "text.txt").write_text(text)
        return {"found": found}

    return compute


def left_by(run: Run, owner: str, *, idle: float = 0.0) -> Path:
    """The folder of a process that was computing the stage ``a`` and has been silent for some seconds."""
    part = run.folder / "stages" / f"a~{owner}.part"
    part.mkdir(parents=True)
    (part / "checkpoint").write_text("step 5")
    (part / "intent.json").write_text('{"name": "a"}')
    then = time.time() - idle
    for path in (part / "intent.json", part):
        os.utime(path, (then, then))
    return part


def computed(run: Run, text: str = "x") -> Stage:
    return run.compute("a", IDENTITY, writing(text))


def folders(run: Run) -> list[str]:
    return sorted(path.name for path in (run.folder / "stages").iterdir())


@pytest.mark.parametrize("owner", [f"{parts.this_machine()}-1", "another.12345678-7", ""])
def test_what_a_dead_process_left_is_taken_over_with_its_checkpoint(run: Run, owner: str) -> None:
    part = left_by(run, owner, idle=parts.LOST_AFTER + 10)
    if not owner:
        part.rename(part.with_name("a.part"))  # as folders were called before they had owners
    assert computed(run).summary == {"found": ["checkpoint"]}
    assert folders(run) == ["a"]


def test_a_process_of_this_machine_is_dead_if_its_lock_is_free_however_fresh_its_folder(run: Run) -> None:
    left_by(run, f"{parts.this_machine()}-1")
    assert computed(run).summary == {"found": ["checkpoint"]}


def test_a_process_of_another_machine_that_lives_is_waited_for_and_its_stage_is_taken(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_LOOK", 0.02)
    part = left_by(run, "another.12345678-7")
    other = Run.attach(run.folder)

    def ends() -> None:
        time.sleep(0.1)
        writing("theirs")(part)
        stages.seal(part, IDENTITY, {"seconds": 1.0, "cpu_seconds": 1.0}, {"by": "other"}, [])
        part.rename(other.folder / "stages" / "a")

    thread = threading.Thread(target=ends)
    thread.start()
    stage = computed(run, "ours")
    thread.join()
    assert (stage.reused, stage.summary) == (True, {"by": "other"})
    assert (stage.path / "text.txt").read_text() == "theirs"


def test_waiting_for_another_machine_has_an_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_STAGE_WAIT_SECONDS", 0.1)
    part = left_by(run, "another.12345678-7")
    with pytest.raises(RunError, match=r"'a' is being computed by a process of another machine\n  got: .*another") as e:
        computed(run)
    assert "do: wait for that process or stop it" in str(e.value)
    assert (part / "checkpoint").read_text() == "step 5"


def test_of_two_that_finish_one_stage_stands_and_both_are_told_of_it(run: Run) -> None:
    """Locks that do not reach across machines: the second computes beside the first, from a folder of its own."""

    def overtaken(folder: Path) -> dict[str, Any]:
        theirs = folder.with_name("a~another.12345678-7.part")
        theirs.mkdir()
        (theirs / "text.txt").write_text("theirs")
        stages.seal(theirs, IDENTITY, {"seconds": 1.0, "cpu_seconds": 1.0}, {}, [])
        theirs.rename(folder.with_name("a"))
        (folder / "text.txt").write_text("ours")
        return {}

    stage = run.compute("a", IDENTITY, overtaken)
    assert stage.reused
    assert (stage.path / "text.txt").read_text() == "theirs"
    assert folders(run) == ["a"]


def test_who_comes_back_after_another_took_over_fails_and_changes_nothing(run: Run) -> None:
    def sleeps(folder: Path) -> dict[str, Any]:
        folder.rename(folder.with_name("a~another.12345678-7.part"))
        (folder / "text.txt").write_text("too late")
        return {}

    with pytest.raises(RunError, match=r"the stage 'a' was taken over by another process(.|\n)*do: this process was"):
        run.compute("a", IDENTITY, sleeps)
    assert folders(run) == ["a~another.12345678-7.part"]


def test_a_process_at_work_gives_signs_of_life_and_stops_with_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "BEAT", 0.01)
    file = tmp_path / "intent.json"
    file.touch()
    os.utime(file, (0, 0))
    before = threading.active_count()

    def work() -> None:
        until = time.monotonic() + 5
        with parts.signs_of_life(file):
            while file.stat().st_mtime == 0 and time.monotonic() < until:
                time.sleep(0.01)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert file.stat().st_mtime > 0
    assert threading.active_count() == before
