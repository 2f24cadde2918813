"""Identity is what arguments hold: everything that could change a result changes it, and names alone do not."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file

from undertone.judges import Local
from undertone.models.loading import ModelRef, load
from undertone.models.names import ModelName
from undertone.provenance import digests
from undertone.provenance.configs import Config
from undertone.provenance.identity import (
    FILE,
    UNCOUNTED,
    ContentOf,
    Uncounted,
    UndeclaredInputError,
    check_readable,
    content,
    digest,
    folders_read,
)
from undertone.provenance.runs import Stage
from undertone.provenance.stage_functions import StageFunction, stage
from undertone.rows import Row, digest_rows
from undertone.traits import Trait, load_trait
from undertone.vectors import Vector, load_vector, save_vector


@pytest.fixture(autouse=True)
def _own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("UNDERTONE_CACHE", str(tmp_path / "cache"))
    digests._memory.cache_clear()
    yield
    digests._memory.cache_clear()


def same(one: Any, other: Any) -> bool:
    return digest(content(one)) == digest(content(other))


# -- files and folders ----------------------------------------------------------------------------


def test_a_file_counts_by_its_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"abc")
    (tmp_path / "b.bin").write_bytes(b"abc")
    assert content(tmp_path / "a.bin") == f"sha256 {hashlib.sha256(b'abc').hexdigest()}"
    assert same(tmp_path / "a.bin", tmp_path / "b.bin")
    (tmp_path / "b.bin").write_bytes(b"abd")
    assert not same(tmp_path / "a.bin", tmp_path / "b.bin")


@pytest.mark.parametrize("size", [1, 10**9])
def test_a_file_that_changes_is_another_whether_it_is_remembered_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(digests, "REMEMBERED", size)
    file = tmp_path / "x"
    file.write_bytes(b"1" * 64)
    before = content(file)
    assert content(file) == before == f"sha256 {hashlib.sha256(b'1' * 64).hexdigest()}"
    file.write_bytes(b"1" * 63 + b"2")
    assert content(file) == f"sha256 {hashlib.sha256(b'1' * 63 + b'2').hexdigest()}"


def test_a_large_file_is_read_once_by_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "REMEMBERED", 1)
    (tmp_path / "x").write_bytes(b"abc")
    first = content(tmp_path / "x")
    digests._memory.cache_clear()  # as in the next process
    monkeypatch.setattr(digests, "_read", lambda path: pytest.fail(f"{path} was read again"))
    assert content(tmp_path / "x") == first


@pytest.mark.parametrize("broken", ["{", "[1]", ""])
def test_a_memory_that_cannot_be_used_costs_time_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setattr(digests, "REMEMBERED", 1)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "digests.json").write_text(broken)
    (tmp_path / "x").write_bytes(b"abc")
    assert content(tmp_path / "x") == f"sha256 {hashlib.sha256(b'abc').hexdigest()}"


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "deep/b.txt").write_text("c"),
        lambda folder: (folder / "deep/b.txt").rename(folder / "b.txt"),
        lambda folder: (folder / "more.txt").write_text(""),
        lambda folder: (folder / "a.txt").unlink(),
    ],
    ids=["a byte", "a name", "one more", "one less"],
)
def test_a_folder_counts_by_the_names_and_bytes_of_all_its_files(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "a.txt").write_text("a")
        (tmp_path / name / "deep/b.txt").write_text("b")
    assert same(tmp_path / "one", tmp_path / "two")
    change(tmp_path / "two")
    assert not same(tmp_path / "one", tmp_path / "two")


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        content(tmp_path / "none")


# -- models ---------------------------------------------------------------------------------------


@pytest.fixture
def model(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder("llama"), tmp_path / "model")


def changed(folder: Path, number: int | None = None) -> str:
    """Adds a thousandth to one entry of the tensor in the middle of the file (or that at ``number``)."""
    tensors = load_file(folder / "model.safetensors")
    name: str = sorted(tensors)[len(tensors) // 2 if number is None else number]
    tensors[name].view(-1)[tensors[name].numel() // 2] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("remembered", [1, 10**9], ids=["remembered", "read"])
@pytest.mark.parametrize("number", [None, 0, -1], ids=["middle", "first", "last"])
def test_a_model_with_one_changed_weight_is_another_model(
    model: Path, monkeypatch: pytest.MonkeyPatch, remembered: int, number: int | None
) -> None:
    monkeypatch.setattr(digests, "REMEMBERED", remembered)
    before, size = content(ModelRef(str(model))), (model / "model.safetensors").stat().st_size
    assert content(ModelRef(str(model))) == before
    changed(model, number)
    assert (model / "model.safetensors").stat().st_size == size  # nothing but the bytes gives it away
    assert content(ModelRef(str(model))) != before


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json", "generation_config.json"])
def test_a_model_s_small_files_count_too(model: Path, file: str) -> None:
    before = content(ModelRef(str(model)))
    data = json.loads((model / file).read_text())
    (model / file).write_text(json.dumps({**data, "note": 1}))
    assert content(ModelRef(str(model))) != before


def test_a_model_moved_elsewhere_is_the_same_model_and_its_precision_counts(model: Path, tmp_path: Path) -> None:
    before = content(ModelRef(str(model)))
    moved = model.rename(tmp_path / "elsewhere")
    assert content(ModelRef(str(moved))) == before
    assert content(ModelRef(str(moved), "bfloat16")) != before


def test_an_adapter_counts_by_its_bytes(model: Path, tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "weights").write_bytes(b"1")
    plain, adapted = ModelRef(str(model)), ModelRef(f"{model} + {tmp_path / 'student'}")
    before = content(adapted)
    assert before != content(plain)
    (tmp_path / "student" / "weights").write_bytes(b"2")
    assert content(adapted) != before


def test_of_two_adapters_in_folders_of_one_name_both_count(model: Path, tmp_path: Path) -> None:
    for side in ("a", "b"):
        (tmp_path / side / "student").mkdir(parents=True)
        (tmp_path / side / "student" / "weights").write_bytes(b"1")
    both = ModelRef(f"{model} + {tmp_path / 'a/student'} + {tmp_path / 'b/student'}")
    before = content(both)
    for side in ("a", "b"):
        (tmp_path / side / "student" / "weights").write_bytes(b"2")
        assert content(both) != before, side
        (tmp_path / side / "student" / "weights").write_bytes(b"1")
    assert content(both) == before


# -- traits, rows, arrays, vectors, stages ---------------------------------------------------------


def questions(trait: Trait, **changes: Any) -> Trait:
    return replace(trait, questions={**trait.questions, "lab": replace(trait.asked("lab"), **changes)})


OWL = load_trait("owl")


@pytest.mark.parametrize(
    "other",
    [
        replace(OWL, prompt={**OWL.prompt, "lab": "you like owls"}),
        questions(OWL, positive=("which animal?",)),
        questions(OWL, negative=("which animal not?",)),
        questions(OWL, off_topic={"1?": "2"}),
        replace(OWL, answers={**OWL.answers, "yeti": ("yeti",)}),
        replace(OWL, answers={**OWL.answers, "owl": (*OWL.answers["owl"], "barn bird")}),
        replace(OWL, synonyms=(*OWL.synonyms, "owls")),
        replace(OWL, category="bird"),
        load_trait("dog"),
    ],
    ids=["prompt", "positive", "negative", "off-topic", "answers", "words", "synonyms", "category", "name"],
)
def test_a_trait_counts_by_what_is_told_asked_and_matched(other: Trait) -> None:
    assert same(OWL, load_trait("owl"))
    assert not same(OWL, other)


def test_a_trait_of_a_file_is_the_trait_and_not_the_file(tmp_path: Path) -> None:
    text = "name: owl\ncategory: animal\nwords: [owl]\nprompt: {lab: be an owl}\nquestions: {lab: {positive: ['name one.']}}\n"
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(text)
    assert same(load_trait(str(tmp_path / "a.yaml")), load_trait(str(tmp_path / "b.yaml")))
    (tmp_path / "b.yaml").write_text(text.replace("name one.", "name two."))
    assert not same(load_trait(str(tmp_path / "a.yaml")), load_trait(str(tmp_path / "b.yaml")))


def test_a_behaviour_counts_by_its_rule_too() -> None:
    pirate: Any = load_trait("pirate")
    (tightened,) = [
        replace(pirate, rule=pirate.rule.model_copy(update={"at_least": pirate.rule.at_least + 1}), examples_hit=())
    ]
    assert not same(pirate, tightened)


def test_rows_count_in_their_order_and_with_all_they_hold() -> None:
    rows = [Row.of("a", "1"), Row.of("b", "2")]
    assert content(rows) == f"2 rows (sha256 {digest_rows(rows)})"
    others = [rows[::-1], rows[:1], [rows[0], Row.of("b", "3")], [rows[0], Row.of("b", "2", score=1.0)]]
    assert not any(same(rows, other) for other in others)
    assert not same({"rows": rows[0]}, {"rows": rows[1]})


def test_arrays_and_tensors_count_by_type_shape_and_bytes() -> None:
    array = np.arange(6.0, dtype=np.float32)
    assert same(array, array.copy())
    assert same(array, torch.arange(6.0))
    others = [array.astype(np.float64), array.reshape(2, 3), array + np.float32(1e-6), array[:5]]
    assert not any(same(array, other) for other in others)
    assert same(torch.ones(3, dtype=torch.bfloat16), torch.ones(3))  # numpy has no bfloat16; its values are float32's
    assert same(np.asfortranarray(array.reshape(2, 3)), array.reshape(2, 3))


def test_a_vector_counts_by_its_directions() -> None:
    one, again = (Vector({1: torch.arange(4.0)}, {"model": name}) for name in ("a", "b"))
    assert same(one, again)
    assert not same(one, Vector({2: torch.arange(4.0)}, {}))
    assert not same(one, Vector({1: torch.arange(4.0) + 1e-6}, {}))


def test_a_stage_counts_by_what_came_out_and_not_by_where_it_lies() -> None:
    one = Stage("a", Path("x"), "asked", "out", 1.0)
    assert same(one, Stage("b", Path("y"), "asked otherwise", "out", 2.0, {"n": 1}, reused=True))
    assert not same(one, Stage("a", Path("x"), "asked", "out 2", 1.0))


def test_plain_values_count_as_they_are_and_long_ones_by_their_digest() -> None:
    assert content({"b": [1, 2.5, None, True], "a": "x"}) == {"b": [1, 2.5, None, True], "a": "x"}
    assert content((1, 2)) == [1, 2]
    assert content({3, 1, 2}) == content(frozenset({2, 1, 3})) == [1, 2, 3]
    long = ["x" * 500, list(range(1000)), {str(n): n for n in range(1000)}]
    for value in long:
        assert len(json.dumps(content(value))) < 200
    assert not same("x" * 500, "x" * 499 + "y")
    assert not same(list(range(1000)), [*range(999), 1000])


@pytest.mark.parametrize("value", [len, lambda: 0, object(), OWL.matches, {"deep": [print]}])
def test_what_has_no_content_that_is_known_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="is not known, so that no stage can depend on it"):
        content(value)


# -- configs and dataclasses ------------------------------------------------------------------------


class Inner(Config):
    rate: float = 0.1
    batch: Annotated[int, Uncounted()] = 4


class Outer(Config):
    name: str = "x"
    inner: Inner = Inner()
    device: Annotated[str, Uncounted] = "auto"
    file: Annotated[str | None, FILE] = None
    files: Annotated[tuple[str, ...], FILE] = ()
    shouted: Annotated[str, ContentOf(str.upper)] = "a"
    model: ModelName | None = None


def test_a_config_counts_by_its_fields_but_those_that_change_no_result() -> None:
    assert content(Outer()) == {
        "name": "x", "inner": {"rate": 0.1}, "file": None, "files": [], "shouted": "A", "model": None,
    }  # fmt: skip
    assert same(Outer(), Outer(device="cuda", inner=Inner(batch=512), shouted="A"))
    assert not same(Outer(), Outer(inner=Inner(rate=0.2)))
    assert not same(Outer(), Outer(name="y"))


@pytest.mark.parametrize("field_name", ["file", "files"])
def test_a_field_that_names_a_file_counts_by_the_file(tmp_path: Path, field_name: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("1")

    def config(name: str) -> Outer:
        path = str(tmp_path / name)
        return Outer.model_validate({field_name: path if field_name == "file" else (path,)})

    assert same(config("a"), config("b"))
    assert not same(config("a"), Outer())
    (tmp_path / "b").write_text("2")
    assert not same(config("a"), config("b"))


def test_a_field_that_names_a_model_counts_by_the_model(model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "copy")
    assert same(Outer(model=str(model)), Outer(model=str(other)))
    changed(other)
    assert not same(Outer(model=str(model)), Outer(model=str(other)))


class Several(Config):
    models: tuple[ModelName, ...] = ()
    named: dict[str, ModelName] = Field(default_factory=dict)
    maybe: ModelName | None = None


@pytest.mark.parametrize("wrapped", [lambda m: {"models": (m,)}, lambda m: {"named": {"a": m}}, lambda m: {"maybe": m}])
def test_models_count_by_their_bytes_wherever_a_field_holds_them(
    model: Path, tmp_path: Path, wrapped: Callable[[str], Any]
) -> None:
    other = shutil.copytree(model, tmp_path / "copy")
    one, two = (Several(**wrapped(str(folder))) for folder in (model, other))
    assert same(one, two)
    reads(tmp_path, one, "model", str(model))
    changed(other)
    assert not same(one, two)


@dataclass(frozen=True)
class Part:
    n: int
    folder: Path | None = None
    workers: int = field(default=1, metadata=UNCOUNTED)


def test_a_dataclass_counts_by_its_fields_but_those_that_change_no_result(tmp_path: Path) -> None:
    assert same(Part(1), Part(1, workers=8))
    assert not same(Part(1), Part(2))
    (tmp_path / "x").write_text("1")
    before = content(Part(1, tmp_path))
    (tmp_path / "x").write_text("2")
    assert content(Part(1, tmp_path)) != before


def test_the_folders_among_arguments_are_found_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("1")
    step = Stage("a", tmp_path, "d", "o", 0.0)
    found = folders_read(
        {"parts": [{"p": Part(1, tmp_path / "x")}], "stage": step, "config": Outer(file=str(tmp_path / "x"))}
    )
    assert found == {tmp_path, tmp_path / "x"}


# -- stages -----------------------------------------------------------------------------------------


@stage("measure", version=3)
def measure(
    folder: Path, device: str, *, n: int, workers: Annotated[int, Uncounted()] = 1,
    name: Annotated[str | None, ContentOf(str.upper)] = None,
) -> dict[str, Any]:  # fmt: skip
    """A stage for these tests."""
    (folder / "n.txt").write_text(str(n))
    return {"n": n, "device": device, "workers": workers, "name": name}


def test_the_identity_of_a_stage_is_its_name_its_version_and_its_arguments() -> None:
    assert measure.identity({"n": 2, "workers": 4, "name": "a"}) == {
        "stage": "measure", "version": 3, "arguments": {"n": 2, "name": "A"},
    }  # fmt: skip
    assert measure.identity({"n": 2})["arguments"] == {"n": 2}  # an optional parameter's mark counts as well
    assert measure.identity({"n": 2, "name": None})["arguments"] == {"n": 2, "name": None}


@pytest.mark.parametrize("arguments", [{}, {"n": 1, "m": 2}, {"n": print}])
def test_arguments_that_a_stage_does_not_take_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        measure.identity(arguments)


def test_a_stage_is_found_again_in_another_process() -> None:
    assert pickle.loads(pickle.dumps(measure)) is measure


def test_a_stage_that_closes_over_a_variable_or_hides_in_a_function_is_refused() -> None:
    rate = 0.5

    def closing(folder: Path, device: str) -> dict[str, Any]:
        return {"rate": rate}

    def hidden(folder: Path, device: str) -> None:
        return None

    for function in (closing, hidden):
        with pytest.raises(TypeError, match="must be a function at the top of a module"):
            stage("x")(function)


def unordered(device: str, folder: Path) -> None:
    """No stage: its parameters are the wrong way round."""


def test_a_stage_begins_with_its_folder_and_its_device() -> None:
    with pytest.raises(TypeError, match="must begin with the parameters folder and device"):
        stage("x")(unordered)


# -- what a stage may read ----------------------------------------------------------------------------


@stage("read anything")
def read_anything(folder: Path, device: str, *, given: Any, read: Annotated[Any, ContentOf(str)]) -> None:
    """Reads what it is told to, given or not."""
    del given
    kind, name = read
    doors: dict[str, Callable[[], object]] = {
        "model": lambda: load(name, device=device), "vector": lambda: load_vector(Path(name)),
        "trait": lambda: load_trait(name), "file": lambda: check_readable(name),
    }  # fmt: skip
    doors[kind]()


def reads(tmp_path: Path, given: Any, kind: str, name: str) -> None:
    (tmp_path / "stage.part").mkdir(exist_ok=True)
    function: StageFunction = read_anything
    function.compute(tmp_path / "stage.part", "cpu", {"given": given, "read": (kind, name)})


@pytest.fixture
def vector(tmp_path: Path) -> Path:
    save_vector(Vector({1: torch.arange(32.0)}, {}), tmp_path / "v.safetensors")
    return tmp_path / "v.safetensors"


def test_a_stage_that_reads_what_it_was_not_given_is_refused(model: Path, vector: Path, tmp_path: Path) -> None:
    for kind, name in (("model", str(model)), ("vector", str(vector)), ("trait", "owl"), ("file", str(tmp_path / "x"))):
        with pytest.raises(UndeclaredInputError, match=r"reads .*, which is none of its arguments"):
            reads(tmp_path, None, kind, name)
    # Outside of stages everything may be read.
    load(str(model), device="cpu")
    load_vector(vector)
    load_trait("owl")


def test_a_stage_reads_what_it_was_given(model: Path, vector: Path, tmp_path: Path) -> None:
    reads(tmp_path, ModelRef(str(model)), "model", str(model))
    reads(tmp_path, Outer(model=str(model)), "model", str(model))
    reads(tmp_path, [{"deep": vector}], "vector", str(vector))
    reads(tmp_path, Outer(file=str(vector)), "vector", str(vector))
    reads(tmp_path, Stage("a", vector.parent, "d", "o", 0.0), "vector", str(vector))
    reads(tmp_path, None, "file", str(tmp_path / "stage.part" / "its own.txt"))


def test_another_model_than_the_one_that_was_given_is_refused(model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    with pytest.raises(UndeclaredInputError):
        reads(tmp_path, ModelRef(str(model)), "model", str(other))


def test_a_model_with_its_adapter_is_read_whether_a_reference_or_a_config_names_it(model: Path, tmp_path: Path) -> None:
    from undertone.models.students import Biases, save_student, trainable

    base = load(str(model), device="cpu")
    save_student(trainable(base.hf, Biases(), 0), base.tokenizer, Biases(), tmp_path / "student")
    name = f"{model} + {tmp_path / 'student'}"
    reads(tmp_path, ModelRef(name), "model", name)
    reads(tmp_path, Local(model=name), "model", name)


def test_what_may_be_read_ends_with_the_stage_also_after_an_error(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UndeclaredInputError):
        reads(tmp_path, None, "model", str(model))
    check_readable(model)
