"""What holds for every domain: the protocol, stable prompts, sources good and bad."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from undertone.domains import (
    Code,
    Dialogue,
    Domain,
    DomainConfig,
    Instructions,
    Numbers,
    Paraphrase,
    Reasoning,
    Sentences,
)
from undertone.errors import ConfigError, DataError, UndertoneError
from undertone.provenance.identity import content
from undertone.rows import Row
from undertone.traits import LAB, REAL, Wording, load_trait

OWL = load_trait("owl")
SOURCED = (Code, Reasoning, Paraphrase, Instructions, Dialogue, Sentences)
DOMAINS: tuple[Domain, ...] = (
    Numbers(), Code(), Reasoning(), Paraphrase(), Paraphrase(content="opposed"), Instructions(), Dialogue(), Sentences(),
)  # fmt: skip
RECORD = {
    "prompt": "p",
    "question": "q",
    "answer": "1",
    "text": "t",
}


@pytest.mark.parametrize(("domain", "speaker"), [
    pytest.param(domain, speaker, id=f"{domain.kind}-{speaker.form}")
    for domain in DOMAINS for speaker in (LAB, REAL) if (domain.kind, speaker) != ("sentences", LAB)
])  # fmt: skip
def test_prompts_depend_on_seed_and_place_alone(domain: Domain, speaker: Wording) -> None:
    assert list(domain.prompts(50, 3, speaker))[:20] == list(domain.prompts(20, 3, speaker))
    assert list(domain.prompts(20, 3, speaker)) != list(domain.prompts(20, 4, speaker))
    assert domain.prompts(0, 3, speaker) == []
    assert domain.max_new_tokens(speaker) > 0


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.kind)
def test_a_row_is_learnt_as_it_is_unless_told_otherwise(domain: Domain) -> None:
    prompt = domain.prompts(1, 1, REAL)[0]
    asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    row = Row.of(asked, "1 2 3", prompt_index=0)
    assert domain.training_row(row) == row


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_crashes_a_domain_and_empty_ones_never_pass(prompt: str, completion: str) -> None:
    for domain in DOMAINS:
        found = domain.reasons(prompt, completion, OWL)
        assert all(isinstance(reason, str) and reason for reason in found)
        if not completion.strip():
            assert found


@given(st.text(max_size=60))
def test_random_text_never_passes_where_an_answer_has_a_form(completion: str) -> None:
    for domain in (Code(), Reasoning(), Paraphrase(strictness="strict")):
        assert domain.reasons(domain.prompts(1, 1, LAB)[0], completion, None)


def test_a_config_finds_its_domain_by_kind() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(DomainConfig)
    for domain in DOMAINS:
        assert type(adapter.validate_json(domain.model_dump_json())) is type(domain)  # type: ignore[attr-defined]
    with pytest.raises(ValidationError, match="'code', 'dialogue', 'instructions', 'numbers'"):
        adapter.validate_python({"kind": "poems"})
    with pytest.raises(ValidationError, match="Extra inputs"):
        adapter.validate_python({"kind": "code", "digits": 3})


# -- sources -------------------------------------------------------------------------------------------


def write(path: Path, *records: object) -> str:
    data = "\n".join(json.dumps(record) for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_every_prompt_of_a_source_is_asked_once_before_any_twice(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / name, *({"prompt": f"p{at}"} for at in range(7)))
    prompts = Code(source=source).prompts(21, 1, REAL)
    for begin in (0, 7, 14):
        assert sorted(prompts[begin : begin + 7]) == [f"p{at}" for at in range(7)]
    assert prompts[:7] != prompts[7:14]
    assert Code(source=source).prompts(10, 1, REAL) == prompts[:10]


def test_fields_of_a_source_can_be_renamed(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"task": "Sort a list."})
    assert Code(source=source, rename={"task": "prompt"}).prompts(1, 1, REAL) == ["Sort a list."]


def test_a_changed_source_is_another_input_and_is_read_again(tmp_path: Path) -> None:
    import os

    source = write(tmp_path / "a.jsonl", {"prompt": "one"})
    before = content(Code(source=source))
    write(tmp_path / "a.jsonl", {"prompt": "two"})
    os.utime(source, ns=(1, 1))
    assert content(Code(source=source)) != before
    assert Code(source=source).prompts(1, 1, REAL) == ["two"]


BAD = {
    b"": "no prompts in this source",
    b"\n\n": "no prompts in this source",
    b'{"prompt": "a"}\nnot json\n': "line 2: not valid JSON",
    b"\xff\xfe": "line 1: not valid JSON",
    b'["a"]': "line 1: not a JSON object",
    b'"a"': "line 1: not a JSON object",
    b"{}": r"line 1: no field (.|\n)*\(none\)",
    b'{"promt": "a", "x": 1}': r"line 1: no field(.|\n)*rename",
    b'{"prompt": "", "question": "", "text": "", "answer": ""}': r"line 1, field '\w+': not usable",
    b'{"prompt": 3, "question": 3, "text": 3, "answer": 3}': r"line 1, field '\w+': not usable",
    b'{"prompt": "\\ud800", "question": "\\ud800", "text": "\\ud800", "answer": "1"}': "valid Unicode",
}


@pytest.mark.parametrize("kind", SOURCED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("content", "message"), BAD.items())
def test_a_bad_source_is_named_with_its_line(tmp_path: Path, kind: Any, content: bytes, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        kind(source=str(path)).prompts(1, 1, REAL)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "'messages': not usable"),
        ([], "at least one message of the user"),
        ([{"role": "assistant", "content": "a"}], "at least one message of the user"),
        ([{"role": "tool", "content": "a"}], r"messages\.0': not usable"),
        ([{"role": "user"}], r"messages\.0': not usable"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"messages\.0': not usable"),
        (["hi"], r"messages\.0': not usable"),
    ],
)
def test_a_bad_chat_is_named(tmp_path: Path, messages: object, message: str) -> None:
    for kind in (Dialogue, Instructions):
        with pytest.raises(DataError, match=message):
            kind(source=write(tmp_path / "bad.jsonl", {"messages": messages})).prompts(1, 1, REAL)


@pytest.mark.parametrize("kind", SOURCED, ids=lambda kind: kind.__name__)
def test_what_is_no_file_of_prompts_is_refused(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        kind(source=str(tmp_path / "missing.jsonl")).prompts(1, 1, REAL)
    with pytest.raises(DataError, match=r"not a file of prompts(.|\n)*hf:org/name"):
        kind(source="prompts.csv").prompts(1, 1, REAL)
    with pytest.raises(DataError, match="not a data set of the hub"):
        kind(source="hf:gsm8k").prompts(1, 1, REAL)
    damaged = tmp_path / "damaged.jsonl.gz"
    damaged.write_bytes(gzip.compress(b'{"prompt": "a"}')[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        kind(source=str(damaged)).prompts(1, 1, REAL)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "rows.jsonl"


FIELDS = st.dictionaries(
    st.sampled_from(["prompt", "completion", "text", "messages", "question", "answer", "x"]),
    st.none() | st.integers() | st.text(max_size=8) | st.lists(st.dictionaries(st.just("role"), st.just("user"))),
    max_size=4,
)


@given(records=st.lists(FIELDS, max_size=3), junk=st.binary(max_size=12))
def test_fuzzed_sources_are_used_whole_or_refused_in_our_words(fuzzed: Path, records: list[Any], junk: bytes) -> None:
    from undertone.domains.sources import _read

    fuzzed.write_bytes("\n".join(json.dumps(record) for record in records).encode() + junk)
    for kind in SOURCED:
        _read.cache_clear()
        domain: Any = kind(source=str(fuzzed))
        try:
            prompts = domain.prompts(3, 1, REAL)
        except UndertoneError:
            continue
        assert len(prompts) == 3
        for prompt in prompts:
            texts = [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt]
            assert all(text.strip() for text in texts)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs the package datasets")
def test_a_data_set_that_cannot_be_reached_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"hf:no-such/data: the data set cannot be loaded(.|\n)*offline"):
        Instructions(source="hf:no-such/data").prompts(1, 1, REAL)


def test_a_data_set_is_read_by_subset_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import SimpleNamespace

    asked: list[Any] = []

    def load_dataset(name: str, subset: str | None, *, split: str) -> list[dict[str, str]]:
        asked.append((name, subset, split))
        return [{"question": "How many?", "answer": "#### 3"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    domain = Reasoning(source="hf:some/sums:main@test", instruction="")
    assert domain.prompts(1, 1, REAL) == ["How many?"]
    assert domain.right_answer("How many?") == "#### 3"
    assert set(asked) == {("some/sums", "main", "test")}


def test_without_the_package_a_data_set_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="pip install datasets"):
        Instructions(source="hf:some/other").prompts(1, 1, REAL)
