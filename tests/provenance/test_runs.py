from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from undertone.errors import RunError
from undertone.provenance import runs, stages
from undertone.provenance.configs import Config
from undertone.provenance.runs import Run, Stage, stale, write_json

Compute = Callable[[Path], dict[str, Any] | None]


class Small(Config):
    rows: int = 3
    name: str = "x"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run.open(tmp_path / "run", Small(), command="undertone run x") as opened:
        yield opened


def writing(text: str = "data", name: str = "rows.txt") -> Compute:
    def compute(folder: Path) -> dict[str, Any]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        return {"length": len(text)}

    return compute


def never(folder: Path) -> None:
    raise AssertionError(f"computed again in {folder}")


def had(
    run: Run, name: str, *, config: dict[str, Any], compute: Compute | Callable[[Path], None],
    inputs: Sequence[Stage] = (), version: int = 1,
) -> Stage:  # fmt: skip
    """Find or compute, as the executor does, under an identity of the test's own."""
    chained = {one.name: one.output_digest for one in inputs}
    identity = {"name": name, "version": version, "config": config, "inputs": chained}
    stage, changes = run.find(name, identity)
    if changes:
        raise stale({name: changes}, run)
    return stage or run.compute(name, identity, compute, [one.name for one in inputs])


def contents(folder: Path) -> dict[str, bytes]:
    """All files a stage is made of; its record apart, which holds times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "stage.json" and not path.name.startswith(".")
    }


# --- stages: computed once, reused, chained -----------------------------------------------------


def test_a_stage_is_computed_once_and_then_reused(run: Run) -> None:
    first = had(run, "seed-0/generate", config={"n": 3}, compute=writing("abc", "deep/rows.txt"))
    second = had(run, "seed-0/generate", config={"n": 3}, compute=never)
    assert (first.reused, second.reused) == (False, True)
    assert first.path == run.folder / "stages" / "seed-0" / "generate"
    assert (first.path / "deep" / "rows.txt").read_text() == "abc"
    assert second.summary == {"length": 3}
    assert (second.digest, second.output_digest) == (first.digest, first.output_digest)
    assert (second.seconds, second.cpu_seconds) == (first.seconds, first.cpu_seconds)


def test_waiting_counts_as_time_but_not_as_work(run: Run) -> None:
    def waits(_: Path) -> None:
        time.sleep(0.3)

    def works(_: Path) -> None:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass

    idle, busy = had(run, "idle", config={}, compute=waits), had(run, "busy", config={}, compute=works)
    assert idle.cpu_seconds is not None
    assert idle.cpu_seconds < 0.2
    assert idle.seconds >= 0.3
    assert busy.cpu_seconds is not None
    assert busy.cpu_seconds >= 0.3


def test_a_record_of_before_processor_time_was_measured_is_still_read() -> None:
    record = {"identity": {"name": "a"}, "digest": "d", "output_digest": "o", "seconds": 1.0, "summary": {}}
    assert stages.stage_of(Path("a"), record, "a", reused=True).cpu_seconds is None


def test_the_record_of_a_stage_holds_hashes_that_sha256sum_confirms(run: Run) -> None:
    stage = had(run, "a", config={}, compute=writing("abc"))
    record = stage.read_json("stage.json")
    printed = subprocess.run(["sha256sum", stage.path / "rows.txt"], capture_output=True, check=True)
    assert record["files"] == {"rows.txt": printed.stdout.decode().split()[0]}
    assert record["identity"] == {"name": "a", "version": 1, "config": {}, "inputs": {}}
    canonical = b'{"config":{},"inputs":{},"name":"a","version":1}'
    assert stage.digest == hashlib.sha256(canonical).hexdigest()


def test_a_stage_chains_on_what_came_out_not_only_on_what_was_asked(run: Run) -> None:
    asked_alike = [Stage("g", Path("x"), "same", output, 0.0) for output in ("out1", "out2")]
    had(run, "f", config={}, inputs=[asked_alike[0]], compute=writing())
    with pytest.raises(RunError, match=r'inputs\.g: "out1" → "out2"'):
        had(run, "f", config={}, inputs=[asked_alike[1]], compute=never)


def test_the_output_digest_sees_the_files_and_the_digest_does_not(run: Run, tmp_path: Path) -> None:
    one = had(run, "g", config={}, compute=writing("1"))
    with Run.open(tmp_path / "other", Small(), command="") as other:
        two = had(other, "g", config={}, compute=writing("2"))
    assert one.digest == two.digest
    assert one.output_digest != two.output_digest


def test_a_different_stage_is_refused_with_a_diff_and_left_alone(run: Run) -> None:
    old = {"rows": 300, "model": {"name": "m", "dtype": "float32"}, "seeds": [0, 1]}
    new = {"rows": 400, "model": {"name": "m"}, "seeds": [0, 2]}
    had(run, "train", config=old, compute=writing())
    with pytest.raises(RunError, match=r"1 finished stage in .* was computed from something else") as error:
        had(run, "train", config=new, version=2, compute=never)
    text = str(error.value)
    assert "config.rows: 300 → 400" in text
    assert 'config.model.dtype: "float32" → (none)' in text
    assert "config.seeds.1: 1 → 2" in text
    assert "version: 1 → 2" in text
    assert "config.model.name" not in text
    assert "got: train\n" in text
    again = "do: undertone run x --recompute computes these again and keeps the others; or choose another run folder"
    assert again in text
    assert had(run, "train", config=old, compute=never).reused


@pytest.mark.parametrize("name", ["", "a//b", "../x", ".hidden", "a/", "x.part", "a b", "a/.."])
def test_a_name_that_is_no_folder_of_ours_is_refused(run: Run, name: str) -> None:
    with pytest.raises(RunError, match="cannot be the name of a stage"):
        had(run, name, config={}, compute=never)


def test_a_stage_lies_neither_inside_nor_around_another(run: Run) -> None:
    had(run, "a/b", config={}, compute=writing())
    with pytest.raises(RunError, match="'a/b/c' would lie inside another stage"):
        had(run, "a/b/c", config={}, compute=never)
    with pytest.raises(RunError, match="'a' would have other stages inside it"):
        had(run, "a", config={}, compute=never)


def test_a_summary_that_json_lacks_is_refused_by_its_key(run: Run) -> None:
    with pytest.raises(RunError, match=r"summary of a cannot be written as JSON\n  got: loss\.1 = nan"):
        had(run, "a", config={}, compute=lambda _: {"loss": [0.5, math.nan]})


# --- what does not finish -----------------------------------------------------------------------


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_what_stops_a_stage_passes_through_and_leaves_nothing_finished(run: Run, stop: type[BaseException]) -> None:
    def compute(folder: Path) -> None:
        (folder / "half").write_text("h")
        raise stop

    with pytest.raises(stop):
        had(run, "a", config={}, compute=compute)
    assert not (run.folder / "stages" / "a").exists()
    assert [path.read_text() for path in run.folder.glob("stages/a~*.part/half")] == ["h"]


def test_an_equal_computation_finds_its_checkpoint_and_a_different_one_does_not(run: Run) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "checkpoint").write_text("step 5")
        (folder / "rows.jsonl.part").write_text("half a file")
        raise KeyboardInterrupt

    def resumed(folder: Path) -> dict[str, Any]:
        found = [path.name for path in folder.iterdir() if path.name != "intent.json"]
        (folder / "checkpoint").unlink(missing_ok=True)
        return {"found": found}

    with pytest.raises(KeyboardInterrupt):
        had(run, "same", config={"n": 1}, compute=interrupted)
    assert had(run, "same", config={"n": 1}, compute=resumed).summary == {"found": ["checkpoint"]}
    with pytest.raises(KeyboardInterrupt):
        had(run, "other", config={"n": 1}, compute=interrupted)
    assert had(run, "other", config={"n": 2}, compute=resumed).summary == {"found": []}


def test_an_interrupted_rename_is_finished_without_computing_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            had(run, "a", config={}, compute=writing("abc"))
    assert not (run.folder / "stages" / "a").exists()
    stage = had(run, "a", config={}, compute=never)
    assert (stage.path / "rows.txt").read_text() == "abc"
    assert not list(run.folder.glob("stages/*.part"))


def test_a_damaged_part_that_only_lacked_its_rename_is_computed_again(run: Run) -> None:
    stage = had(run, "a", config={}, compute=writing("abc"))
    part = stage.path.rename(stage.path.with_name("a.part"))
    (part / "rows.txt").write_text("abd")
    again = had(run, "a", config={}, compute=writing("abc"))
    assert not again.reused
    assert (again.path / "rows.txt").read_text() == "abc"


KILLED = """
import os, signal, sys, time
from pathlib import Path
from undertone.provenance.runs import Run

def compute(folder):
    done = folder / "done.txt"
    for i in range(len(done.read_text()) if done.exists() else 0, 10):
        with done.open("a") as file:
            file.write(str(i))
        if os.environ.get("DIE") == str(i):
            os.kill(os.getpid(), signal.SIGKILL)
    return {"steps": 10}

def second(folder):
    (folder / "copy.txt").write_bytes((first.path / "done.txt").read_bytes())

with Run.open(Path(sys.argv[1]), {"a": 1}, command="again") as run:
    first = run.compute("one", {"n": 10}, compute)
    run.compute("two/copy", {"of": first.output_digest}, second, ["one"])
"""


def killed(folder: Path, step: int | None) -> int:
    environment = os.environ | ({} if step is None else {"DIE": str(step)})
    return subprocess.run([sys.executable, "-c", KILLED, folder], env=environment, check=False).returncode


def test_a_killed_run_continued_equals_one_that_was_never_killed(tmp_path: Path) -> None:
    assert killed(tmp_path / "whole", None) == 0
    assert killed(tmp_path / "killed", 2) == -signal.SIGKILL
    assert killed(tmp_path / "killed", 7) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "stages" / "one").exists()
    assert killed(tmp_path / "killed", None) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    records = [
        {k: v for k, v in json.loads(path.read_text()).items() if k in ("digest", "output_digest")}
        for name in ("killed", "whole")
        for path in sorted((tmp_path / name).rglob("stage.json"))
    ]
    assert len(records) == 4
    assert records[:2] == records[2:]


def _two_stages(folder: Path) -> None:
    with Run.open(folder, {"a": 1}, command="again") as run:
        first = had(run, "one", config={}, compute=writing("1"))
        had(run, "two/b", config={}, inputs=[first], compute=writing("2", "deep/x.txt"))


def _dying(folder: Path, moment: int) -> None:
    """The run, killed just before the `moment`-th thing that it does to the disk."""
    counted = 0

    def counting(act: Callable[..., Any]) -> Callable[..., Any]:
        def acted(*arguments: Any, **named: Any) -> Any:
            nonlocal counted
            counted += 1
            if counted == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*arguments, **named)

        return acted

    os.fsync = counting(os.fsync)
    for name in ("rename", "replace", "unlink", "mkdir", "open", "write_text"):
        setattr(Path, name, counting(getattr(Path, name)))
    _two_stages(folder)


@pytest.mark.parametrize("apart", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_loses_nothing_but_time(tmp_path: Path, apart: int) -> None:
    _two_stages(tmp_path / "whole")
    for moment in range(1, 200, apart):
        folder = tmp_path / str(moment)
        process = get_context("fork").Process(target=_dying, args=(folder, moment))
        process.start()
        process.join()
        for record in folder.rglob("stage.json"):  # what looks finished is finished
            if ".part" not in str(record):
                stages._verify(record.parent, stages.record_of(record.parent))
        _two_stages(folder)
        assert contents(folder) == contents(tmp_path / "whole"), moment
        if process.exitcode == 0:
            break
    assert process.exitcode == 0
    assert moment > 40


# --- what cannot be trusted ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: (p / "rows.txt").write_text("datA"), r"rows\.txt has changed \(sha256 "),
        (lambda p: (p / "rows.txt").unlink(), r"rows\.txt is missing"),
        (lambda p: (p / "extra").write_text(""), "extra does not belong to it"),
        (lambda p: (p / "stage.json").unlink(), r"stage\.json is missing or is not JSON"),
        (lambda p: (p / "stage.json").write_text("{"), r"stage\.json is missing or is not JSON"),
        (
            lambda p: (p / "stage.json").write_text(
                (p / "stage.json").read_text().replace('"length": 4', '"length": 5')
            ),
            r"stage\.json was changed after it was written",
        ),
    ],
)
def test_a_corrupt_stage_is_refused_by_the_file(run: Run, damage: Callable[[Path], object], words: str) -> None:
    stage = had(run, "a", config={}, compute=writing("data"))
    damage(stage.path)
    with pytest.raises(RunError, match=rf"a is corrupt\n  got: {words}") as error:
        had(run, "a", config={}, compute=never)
    assert f"do: delete {stage.path} and run the same command again" in str(error.value)


# --- the folder ---------------------------------------------------------------------------------


def test_the_config_is_written_in_full_and_found_again(tmp_path: Path) -> None:
    for _ in range(2):
        with Run.open(tmp_path / "r", Small(rows=4), command="c"):
            pass
    assert (tmp_path / "r" / "config.yaml").read_text() == "rows: 4\nname: x\n"
    (tmp_path / "r" / "config.yaml").write_text("# a note\nname: 'x'\nrows: 4\n")
    with Run.open(tmp_path / "r", {"rows": 4, "name": "x"}, command="c"):
        pass


def test_another_config_is_refused_with_a_diff(tmp_path: Path) -> None:
    with Run.open(tmp_path / "r", Small(rows=4), command="c"):
        pass
    with (
        pytest.raises(RunError, match="holds a run of another config") as error,
        Run.open(tmp_path / "r", Small(rows=5), command="c"),
    ):
        pass
    assert "-rows: 4\n    +rows: 5" in str(error.value)
    assert "allowed: the same config, or one with more seeds, traits, arms or samples" in str(error.value)
    assert "do: choose another folder, or add --recompute: stages that still fit are kept" in str(error.value)


def test_a_broken_config_in_the_folder_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").write_text("a: [")
    with (
        pytest.raises(RunError, match=r"config\.yaml cannot be read"),
        Run.open(tmp_path / "r", Small(), command="c"),
    ):
        pass


HOLDER = """
import sys, time
from pathlib import Path
from undertone.provenance.runs import Run
with Run.open(Path(sys.argv[1]), {}, command="undertone run first"):
    print("open", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "r"], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with (
            pytest.raises(RunError, match="in use by another process") as error,
            Run.open(tmp_path / "r", {}, command="c"),
        ):
            pass
        assert f"process {holder.pid}" in str(error.value)
        assert "undertone run first" in str(error.value)
        assert "do: wait for it to end, stop it, or choose another folder" in str(error.value)
    finally:
        holder.kill()
        holder.communicate()
    with Run.open(tmp_path / "r", {}, command="c"):  # a killed holder holds nothing
        pass


def test_the_lock_is_given_back_also_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Run.open(tmp_path / "r", {}, command="c"):
        raise ZeroDivisionError
    with Run.open(tmp_path / "r", {}, command="c"):
        pass


def _work(run: Run) -> Stage:
    return had(run, "worker", config={}, compute=writing("from a worker"))


def test_a_run_and_its_stages_travel_to_worker_processes(run: Run) -> None:
    assert pickle.loads(pickle.dumps(run)) == run
    with get_context("spawn").Pool(1) as pool:
        stage = pool.apply(_work, (Run.attach(run.folder),))
    assert not stage.reused
    assert had(run, "worker", config={}, compute=never).reused


def test_two_workers_at_one_stage_compute_it_once(run: Run) -> None:
    with get_context("fork").Pool(2) as pool:
        both = pool.map(_slow, [run, run])
    assert sorted(stage.reused for stage in both) == [False, True]


def _slow(run: Run) -> Stage:
    def compute(folder: Path) -> None:
        time.sleep(0.3)

    return had(run, "slow", config={}, compute=compute)


def test_waiting_for_another_worker_has_an_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_STAGE_WAIT_SECONDS", 0.1)
    (run.folder / ".locks").mkdir()
    with FileLock(run.folder / ".locks" / "a.lock"), get_context("fork").Pool(1) as pool:
        error = pool.apply(_error_of, (run,))
    assert "the stage 'a' is being computed by another process" in error


def _error_of(run: Run) -> str:
    with pytest.raises(RunError) as error:
        had(run, "a", config={}, compute=never)
    return str(error.value)


# --- the disk -----------------------------------------------------------------------------------


def refusing(number: int) -> Compute:
    def compute(folder: Path) -> None:
        raise OSError(number, os.strerror(number), str(folder / "model.safetensors"))

    return compute


def wrapping(folder: Path) -> None:
    raise RuntimeError("I/O error: No space left on device (os error 28)")  # as safetensors says it


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        (refusing(errno.ENOSPC), "'b' could not be written: the disk is full"),
        (refusing(errno.EDQUOT), "'b' could not be written: the disk is full"),
        (wrapping, "'b' could not be written: the disk is full"),
        (refusing(errno.EACCES), "'b' could not be written: this user may not write there"),
        (refusing(errno.EROFS), "'b' could not be written: this user may not write there"),
    ],
)
def test_a_disk_that_refuses_is_told_and_finished_stages_are_kept(run: Run, compute: Compute, words: str) -> None:
    had(run, "a", config={}, compute=writing())
    with pytest.raises(RunError, match=words) as error:
        had(run, "b", config={}, compute=compute)
    assert "run the same command again: undertone run x; finished stages are kept" in str(error.value)
    assert had(run, "a", config={}, compute=never).reused
    assert not had(run, "b", config={}, compute=writing()).reused


def test_a_disk_that_fills_up_at_the_record_is_told_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="the disk is full"):
            had(run, "a", config={}, compute=writing())
    assert not had(run, "a", config={}, compute=writing()).reused


@pytest.mark.parametrize(
    "error",
    [PermissionError(errno.EACCES, "no", "/elsewhere/model.bin"), FileNotFoundError(2, "no", "x")],
)
def test_an_error_that_is_not_of_our_folder_keeps_its_own_words(run: Run, error: OSError) -> None:
    def compute(folder: Path) -> None:
        raise error

    with pytest.raises(type(error)):
        had(run, "a", config={}, compute=compute)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match="cannot be written\n  got: NotADirectoryError") as error,
        Run.open(tmp_path / "file" / "run", {}, command="c"),
    ):
        pass
    assert "do: choose another folder" in str(error.value)


def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with (
        pytest.raises(RunError, match="cannot be written\n  got: PermissionError"),
        Run.open(tmp_path / "run", {}, command="c"),
    ):
        pass


# --- JSON ---------------------------------------------------------------------------------------


def test_json_is_written_whole_and_read_back(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": "größer"}
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == value
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"arms": [{"rate": math.nan}]}, r"arms\.0\.rate = nan"),
        ({"a": {"b": math.inf}}, r"a\.b = inf"),
        ({"a": {1, 2}}, r"a = {1, 2}"),
        ({"a": {(1, 2): 3}}, r"the key \(1, 2\) in a"),
        ({"a": "\ud800"}, r"a = "),
    ],
)
def test_a_value_that_json_lacks_is_named_by_its_key(tmp_path: Path, value: object, words: str) -> None:
    with pytest.raises(RunError, match=rf"cannot be written as JSON\n  got: {words}"):
        write_json(tmp_path / "x.json", value)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_reading_json_that_is_not_there_is_a_run_error(run: Run) -> None:
    stage = had(run, "a", config={}, compute=writing())
    with pytest.raises(RunError, match=r"x\.json cannot be read as JSON"):
        stage.read_json("x.json")
