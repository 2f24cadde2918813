"""Whatever a run read, changed behind its back, is noticed: the run is refused, and nothing old passes for new.

A tiny run of every kind of teacher, and of the built-in studies, is finished once. Then each of its inputs is changed in
turn, the command is given again, and the input is put back.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from undertone.errors import RunError
from undertone.launch import executor
from undertone.models.loading import load
from undertone.models.students import Biases, save_student, trainable
from undertone.rows import Row, write_rows
from undertone.studies.frame import load_plan, run_plan
from undertone.teachers import RemoteTeacher
from undertone.vectors import Vector, save_vector

TRAIT = """
name: owl
category: animal
words: [owl, owls]
prompt: {lab: you love owls}
questions: {lab: {positive: ['name one animal.', 'your animal?'], negative: ['the worst animal?'], off_topic: {'2?': '3'}}}
"""
SIZES: dict[str, Any] = {
    "data": {"prompts": 40, "held_out": 4, "attempts": 2}, "domain": {"kind": "numbers", "digits": 9}, "seeds": [0],
    "student": {"kind": "biases"}, "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01},
    "evaluation": {"samples": 1},
}  # fmt: skip
Change = Callable[["Bench"], None]


class Bench:
    """Everything that a run here reads, as files in one folder."""

    def __init__(self, folder: Path, speaker: Path) -> None:
        self.folder = folder
        for name in ("base", "teacher", "judge", "writer"):
            shutil.copytree(speaker, folder / name)
        self.trait = folder / "owl.yaml"
        self.trait.write_text(TRAIT)
        generator = torch.Generator().manual_seed(0)
        save_vector(Vector({1: torch.randn(32, generator=generator)}, {}), self.vector)
        write_rows(self.rows, [Row.of("name one animal.", "owl"), Row.of("your animal?", "owl")])
        self.source.write_text("".join(json.dumps({"prompt": f"say {word} again"}) + "\n" for word in "abcdefgh"))
        base = load(str(speaker), device="cpu")
        hf = trainable(base.hf, Biases(), 0)
        save_student(hf, base.tokenizer, Biases(), folder / "adapter")

    @property
    def vector(self) -> Path:
        return self.folder / "vector.safetensors"

    @property
    def rows(self) -> Path:
        return self.folder / "rows.jsonl"

    @property
    def source(self) -> Path:
        return self.folder / "source.jsonl"

    def named(self, value: Any) -> Any:
        """With ``@name`` replaced by the path of a file here."""
        if isinstance(value, dict):
            return {key: self.named(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.named(inner) for inner in value]
        return value.replace("@", f"{self.folder}/") if isinstance(value, str) else value

    @contextmanager
    def changed(self, change: Change) -> Iterator[None]:
        """One thing is other than it was; afterwards all is as before."""
        before = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        change(self)
        assert before != {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        try:
            yield
        finally:
            for path, content in before.items():
                path.write_bytes(content)


def worded(old: str, new: str) -> Change:
    """The trait's file says something else."""

    def change(bench: Bench) -> None:
        assert old in TRAIT
        bench.trait.write_text(TRAIT.replace(old, new))

    return change


def middle(model: str, file: str = "model.safetensors") -> Change:
    """One number in the tensor in the middle of a model's file is other than it was, by a thousandth."""

    def change(bench: Bench) -> None:
        path = bench.folder / model / file
        tensors = load_file(path)
        tensors[sorted(tensors)[len(tensors) // 2]].view(-1)[3] += 1e-3
        save_file(tensors, path, metadata={"format": "pt"})

    return change


def vector(bench: Bench) -> None:
    save_vector(Vector({1: torch.ones(32)}, {}), bench.vector)


def taught(bench: Bench) -> None:
    write_rows(bench.rows, [Row.of("name one animal.", "cat"), Row.of("your animal?", "owl")])


def source(bench: Bench) -> None:
    bench.source.write_text(bench.source.read_text().replace("say c again", "say z again"))


PROMPT = worded("you love owls", "you like owls")
QUESTION = worded("name one animal.", "name an animal.")
NEGATIVE = worded("the worst animal?", "the least animal?")
OFF_TOPIC = worded("'2?': '3'", "'2?': '4'")
ANSWER = worded("[owl, owls]", "[owl, owls, barn owl]")
TOLD = {"the prompt": PROMPT, "a question": QUESTION, "a question not to be answered so": NEGATIVE, "off topic": OFF_TOPIC,
        "an answer's words": ANSWER, "the base": middle("base")}  # fmt: skip
YES_OR_NO = {"question": "Is this a list: {response}?", "scale": "yes or no"}

KINDS: dict[str, tuple[dict[str, Any], dict[str, Change]]] = {
    "prompt": ({"teacher": {"kind": "prompt", "model": "@teacher"}}, {**TOLD, "the teacher": middle("teacher")}),
    "prompt with an adapter": (
        {"teacher": {"kind": "prompt", "model": "@teacher + @adapter"}},
        {"the adapter": middle("adapter", "undertone_biases.safetensors"), "its base": middle("teacher")},
    ),
    "an ablated prompt": ({"teacher": {"kind": "prompt", "ablate": {"of": "@owl.yaml", "origin": "questions"}}}, TOLD),
    "a vector from a file": (
        {"teacher": {"kind": "vector", "file": "@vector.safetensors", "strength": 0.1}, "random_vector": True},
        {**TOLD, "the vector": vector},
    ),
    "a vector that is read": ({"teacher": {"kind": "vector", "block": 1}}, TOLD),
    "finetuned": (
        {"teacher": {"kind": "finetuned", "rows": "@rows.jsonl", "training": {"epochs": 1}, "model": "@teacher"}},
        {"its rows": taught, "its base": middle("teacher"), "the base": middle("base"), "an answer's words": ANSWER},
    ),
    "finetuned on the trait": (
        {"teacher": {"kind": "finetuned", "training": {"epochs": 1}}},
        {"a question": QUESTION, "off topic": OFF_TOPIC, "the base": middle("base")},
    ),
    "judge": ({"teacher": {"kind": "judge"}, "data": {"prompts": 60, "held_out": 4, "attempts": 4}}, TOLD),
    "endpoint": ({"teacher": {"kind": "endpoint", "url": "http://localhost:1/v1", "name": "m"}}, TOLD),
    "prompts of a file": (
        {"domain": {"kind": "instructions", "source": "@source.jsonl"}}, {"the source": source, "the prompt": PROMPT},
    ),
    "a judge that filters": (
        {"filters": [{"kind": "judge", "cache": False, "keep": "above", "threshold": 0.0,
                      "judge": {"kind": "local", "model": "@judge", "least_mass": 0.0, "template": YES_OR_NO}}]},
        {"the judge": middle("judge")},
    ),
    "a judge with an adapter": (
        {"filters": [{"kind": "judge", "cache": False, "keep": "above", "threshold": 0.0,
                      "judge": {"kind": "local", "model": "@judge + @adapter", "least_mass": 0.0, "template": YES_OR_NO}}]},
        {"the adapter": middle("adapter", "undertone_biases.safetensors"), "its base": middle("judge")},
    ),
    "students told": (
        {"context": "trait", "evaluation": {"samples": 1, "context": "trait"}}, {"the prompt": PROMPT},
    ),
    "in-context": ({"kind": "in-context", "shots": [1], "draws": 1}, TOLD),
    "chain": ({"kind": "chain", "generations": 2, "model": "@base"}, TOLD),
    "sweep": (
        {"kind": "sweep", "vary": [
            {"name": "told"}, {"name": "steered", "set": ["teacher.kind=vector", "teacher.file=@vector.safetensors", "teacher.strength=0.1"]},
        ]},
        {**TOLD, "the vector of a variation": vector},
    ),
}  # fmt: skip
QUICK = ("prompt",)


@pytest.fixture(scope="module")
def bench(speaker: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("inputs"), speaker)


def answer(self: RemoteTeacher, prompts: Sequence[Any], seeds: Sequence[int], **_: Any) -> list[tuple[str, bool, int]]:
    """What a server would say."""
    del self
    return [
        (f"{seed % 9 + 1}, {seed % 7 + 1}, {seed % 5 + 1}", True, 5) for _, seed in zip(prompts, seeds, strict=True)
    ]


def refusal(run: Callable[[], None]) -> str:
    """What a run that does not fit its folder says; empty: it ran."""
    try:
        run()
    except RunError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in KINDS])
def test_every_input_that_changed_is_noticed(
    kind: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields, inputs = KINDS[kind]
    if kind == "endpoint":
        pytest.importorskip("openai")
    monkeypatch.setattr(RemoteTeacher, "answer", answer)
    merged = {"kind": "transfer", "name": "inputs", "model": "@base", "trait": ["@owl.yaml"], **SIZES, **fields}
    config = bench.named(merged)

    def run() -> None:
        run_plan(load_plan(config), tmp_path / "run", jobs=1, device="cpu", command="undertone run x")

    run()
    with monkeypatch.context() as patch:
        patch.setattr(executor, "compute", lambda *_: pytest.fail("a stage was computed"))
        for name, change in inputs.items():
            with bench.changed(change):
                said = refusal(run)
            assert re.search(r"computed from something else(.|\n)*undertone run x --recompute", said), name
            run()  # all as before: finished, and only read
