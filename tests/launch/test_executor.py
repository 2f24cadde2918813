"""The executor: what is computed, what is reused, and what is said of stages that no longer fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pytest

from undertone.errors import RunError
from undertone.launch.executor import Call, Executor
from undertone.launch.workers import workers
from undertone.provenance.configs import Config
from undertone.provenance.identity import Uncounted
from undertone.provenance.runs import Run, Stage
from undertone.provenance.stage_functions import stage

COMPUTED: list[str] = []
"""What was computed, in this process, since the test began."""


@stage("write")
def write(folder: Path, device: str, *, text: str, note: str = "", speed: Annotated[int, Uncounted()] = 1) -> Any:
    """Writes its text; the note changes the identity and nothing that comes out."""
    del note, speed
    COMPUTED.append(text)
    (folder / "text.txt").write_text(text)
    return {"text": text, "device": device}


@stage("copy")
def copy(folder: Path, device: str, *, of: Stage, times: int = 1) -> Any:
    """Writes what another stage wrote, some times over."""
    del device
    text = (of.path / "text.txt").read_text() * times
    COMPUTED.append(f"copy of {text}")
    (folder / "text.txt").write_text(text)
    return {"length": len(text)}


@stage("add file")
def read_file(folder: Path, device: str, *, file: Path) -> Any:
    """Writes what is in a file, without spaces."""
    del device
    COMPUTED.append(f"file {file.name}")
    (folder / "text.txt").write_text(file.read_text().strip())


@stage("summarise")
def summarise(folder: Path, device: str, *, text: str) -> Any:
    """Leaves no file: all that comes out is its summary."""
    del folder, device
    COMPUTED.append(f"summary of {text}")
    return {"text": text}


@stage("fail")
def fail(folder: Path, device: str) -> None:
    """Fails."""
    raise ZeroDivisionError


class Plan(Config):
    seeds: int = 1


@pytest.fixture(autouse=True)
def _computed() -> None:
    COMPUTED.clear()


@contextmanager
def opened(folder: Path, *, recompute: bool = False, jobs: int = 1) -> Iterator[Executor]:
    with (
        Run.open(folder, Plan(), command="undertone run x", recompute=recompute) as run,
        workers(jobs) as pool,
        Executor.open(run, pool, "cpu", "x") as executor,
    ):
        yield executor


def text(one: Stage) -> str:
    return (one.path / "text.txt").read_text()


# -- computed once --------------------------------------------------------------------------------


def test_a_stage_is_computed_with_its_arguments_and_device_and_then_reused(tmp_path: Path) -> None:
    with opened(tmp_path) as executor:
        first = executor.stage(write, "a/one", text="x")
    with opened(tmp_path) as executor:
        again = executor.stage(write, "a/one", text="x", speed=7)  # what counts for nothing may differ
    assert COMPUTED == ["x"]
    assert (first.reused, again.reused) == (False, True)
    assert first.path == tmp_path / "stages/a/one"
    assert again.summary == {"text": "x", "device": "cpu"}


def test_stages_come_in_the_order_of_the_calls_whether_they_were_there_or_not(tmp_path: Path) -> None:
    with opened(tmp_path) as executor:
        executor.stage(write, "1", text="1")
        stages = executor.each([Call(write, str(n), {"text": str(n)}) for n in (2, 1, 3, 0)])
        assert [text(one) for one in stages] == ["2", "1", "3", "0"]
        assert COMPUTED == ["1", "2", "3", "0"]
        assert set(executor.stages) == {"0", "1", "2", "3"}


def test_equal_stages_of_one_call_are_computed_once(tmp_path: Path) -> None:
    with opened(tmp_path) as executor:
        one, two, other = executor.each([
            Call(write, "a", {"text": "x"}), Call(write, "b", {"text": "x"}), Call(write, "c", {"text": "y"}),
        ])  # fmt: skip
    assert COMPUTED == ["x", "y"]
    assert (one.name, two.name, other.name) == ("a", "a", "c")
    assert not (tmp_path / "stages" / "b").exists()


def test_equal_stages_at_other_places_are_computed_once_also_across_resumes(tmp_path: Path) -> None:
    with opened(tmp_path) as executor:
        first = executor.within("one").stage(write, "a", text="x")
        assert executor.within("two").stage(write, "a", text="x").path == first.path
    with opened(tmp_path) as executor:
        assert executor.within("three").stage(write, "b", text="x").path == first.path
        assert set(executor.stages) == {"one/a"}
    assert COMPUTED == ["x"]


def test_what_rests_on_equal_stages_is_equal(tmp_path: Path) -> None:
    with opened(tmp_path) as executor:
        for variation in ("one", "two"):
            inner = executor.within(variation)
            inner.stage(copy, "b", of=inner.stage(write, "a", text="x"))
    assert COMPUTED == ["x", "copy of x"]


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), opened(tmp_path) as executor:
        executor.each([Call(write, "a", {"text": "x"}), Call(fail, "b", {})])
    with opened(tmp_path) as executor:
        executor.each([Call(write, "a", {"text": "x"}), Call(write, "b", {"text": "y"})])
    assert COMPUTED == ["x", "y"]


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves(tmp_path: Path) -> None:
    calls = [Call(write, f"a/{n}", {"text": str(n)}) for n in (0, 1, 2, 1, 0)]
    for jobs in (1, 2):
        with opened(tmp_path / str(jobs), jobs=jobs) as executor:
            executor.each(calls)
            executor.each([Call(copy, f"b/{n}", {"of": executor.stages[f"a/{n}"]}) for n in (0, 1, 2)])
    one, two = (
        {
            path.relative_to(tmp_path / jobs).as_posix(): path.read_text()
            for path in sorted((tmp_path / jobs).rglob("text.txt"))
        }
        for jobs in ("1", "2")
    )
    assert one == two
    assert len(one) == 6


def test_the_inputs_of_a_stage_are_kept_by_name(tmp_path: Path) -> None:
    with opened(tmp_path) as executor:
        one = executor.within("deep").stage(write, "a", text="x")
        two = executor.stage(copy, "b", of=one)
        assert one.read_json("stage.json")["inputs"] == []
        assert two.read_json("stage.json")["inputs"] == ["deep/a"]
        assert executor.run.dependents(["deep/a"]) == ["b"]


# -- what no longer fits ----------------------------------------------------------------------------


def chain(executor: Executor, file: Path, other: str = "x") -> dict[str, Stage]:
    """A file is read, copied, copied again; beside it a stage that has nothing to do with it."""
    read = executor.stage(read_file, "read", file=file)
    beside = executor.stage(write, "beside", text=other)
    first = executor.stage(copy, "first", of=read)
    second = executor.stage(copy, "second", of=first)
    return {"read": read, "beside": beside, "first": first, "second": second}


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Path, Path]:
    """A finished run, and the file that it read."""
    (tmp_path / "in.txt").write_text("before")
    with opened(tmp_path / "run") as executor:
        chain(executor, tmp_path / "in.txt")
    COMPUTED.clear()
    return tmp_path / "run", tmp_path / "in.txt"


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("stages/**/*")}


def test_a_changed_input_is_refused_with_all_that_rests_on_it_and_nothing_is_touched(
    finished: tuple[Path, Path],
) -> None:
    folder, file = finished
    file.write_text("after")
    before = files(folder)
    with pytest.raises(RunError) as error, opened(folder) as executor:
        chain(executor, file)
    message = str(error.value)
    assert "3 finished stages in" in message
    assert 'read\n        arguments.file: "sha256' in message
    for name in ("first", "second"):
        assert f"{name}\n        rests on those" in message
    assert "beside" not in message
    assert "do: undertone run x --recompute computes these again and keeps the others" in message
    assert COMPUTED == []
    assert files(folder) == before


def test_all_stages_that_no_longer_fit_are_in_one_error(finished: tuple[Path, Path]) -> None:
    folder, file = finished
    file.write_text("after")
    with pytest.raises(RunError, match="4 finished stages") as error, opened(folder) as executor:
        chain(executor, file, other="y")
    assert 'beside\n        arguments.text: "x" → "y"' in str(error.value)
    assert "read\n" in str(error.value)
    assert COMPUTED == []


def test_nothing_is_computed_while_something_is_stale(finished: tuple[Path, Path]) -> None:
    folder, file = finished
    file.write_text("after")

    def grown(executor: Executor) -> None:
        chain(executor, file)
        executor.stage(write, "new", text="new")

    with pytest.raises(RunError, match="3 finished stages"), opened(folder) as executor:
        grown(executor)
    assert COMPUTED == []
    assert not list(folder.rglob("new*"))


def test_recompute_computes_what_is_stale_and_what_rests_on_it_and_nothing_else(finished: tuple[Path, Path]) -> None:
    folder, file = finished
    file.write_text("after")
    with opened(folder, recompute=True) as executor:
        stages = chain(executor, file)
    assert COMPUTED == ["file in.txt", "copy of after", "copy of after"]
    assert stages["beside"].reused
    assert text(stages["second"]) == "after"
    COMPUTED.clear()
    with opened(folder) as executor:  # and then all is as it should be
        assert all(one.reused for one in chain(executor, file).values())
    assert COMPUTED == []


def test_a_stage_whose_input_came_out_equal_is_reused(finished: tuple[Path, Path]) -> None:
    folder, file = finished
    file.write_text("before  \n")  # another file, from which the stage makes the same
    with opened(folder, recompute=True) as executor:
        stages = chain(executor, file)
    assert COMPUTED == ["file in.txt"]
    assert [name for name, one in stages.items() if one.reused] == ["beside", "first", "second"]


def test_a_stage_without_files_comes_out_equal_only_if_its_summary_does(tmp_path: Path) -> None:
    with opened(tmp_path) as executor:
        one, two = (executor.stage(summarise, name, text=name) for name in ("one", "two"))
    assert one.output_digest != two.output_digest


def test_a_stage_that_was_lost_and_comes_out_equal_leaves_the_later_ones_as_they_are(
    finished: tuple[Path, Path],
) -> None:
    folder, file = finished
    with opened(folder) as executor:
        executor.run.discard("read")
    with opened(folder) as executor:
        assert chain(executor, file)["second"].reused
    assert COMPUTED == ["file in.txt"]


def test_another_version_of_a_stage_is_refused(finished: tuple[Path, Path]) -> None:
    folder, _ = finished
    newer = type(write)(write.name, 2, write.function)
    with (
        pytest.raises(RunError, match=r"1 finished stage in(.|\n)*beside\n +version: 1 → 2"),
        opened(folder) as executor,
    ):
        executor.stage(newer, "beside", text="x")
    assert COMPUTED == []


def test_a_corrupt_stage_is_refused_by_its_file(finished: tuple[Path, Path]) -> None:
    folder, file = finished
    (folder / "stages/first/text.txt").write_text("beFore")
    with pytest.raises(RunError, match=r"first is corrupt\n  got: text.txt has changed"), opened(folder) as executor:
        chain(executor, file)
    assert COMPUTED == []
