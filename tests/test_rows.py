from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from undertone.errors import DataError, ModelWarning
from undertone.rows import ROLES, Message, Row, atomic_file, digest_rows, read_rows, write_rows

quick = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | text
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
messages = st.builds(Message, role=st.sampled_from(ROLES), content=text)
answers = st.builds(Message, role=st.just("assistant"), content=text.filter(bool))
rows = st.builds(
    lambda head, last, meta: Row((*head, last), meta),
    st.lists(messages, max_size=3),
    answers,
    st.dictionaries(text, json_values, max_size=3),
)

Write = Callable[[str | bytes], Path]


@pytest.fixture
def file(tmp_path: Path) -> Write:
    """Write a file of rows as it is given and name it."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "data.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


def pairs(row: Row) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in row.messages]


# --- rows ---------------------------------------------------------------------------------------


def test_a_row_of_one_exchange_has_its_prompt_and_completion() -> None:
    row = Row.of("1, 2", "3, 4", system="You love owls.", seed=7)
    assert pairs(row) == [("system", "You love owls."), ("user", "1, 2"), ("assistant", "3, 4")]
    assert row.prompt_messages == row.messages[:2]
    assert row.completion == "3, 4"
    assert row.meta == {"seed": 7}


def test_earlier_turns_belong_to_the_prompt() -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = Row(tuple(Message(role=role, content=content) for role, content in turns))
    assert row.completion == "d"
    assert [m["content"] for m in row.prompt_messages] == ["a", "b", "c"]


def test_a_row_without_an_answer_has_no_completion() -> None:
    row = Row((Message(role="user", content="hi"),))
    with pytest.raises(DataError, match="no completion\n  got: roles user"):
        _ = row.completion
    assert row.prompt_messages == row.messages


# --- shapes -------------------------------------------------------------------------------------

USER_1, BOT_2 = {"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}
EXCHANGE = [("user", "1"), ("assistant", "2")]

SHAPES: list[tuple[str, dict[str, Any], list[tuple[str, str]], dict[str, Any]]] = [
    ("messages", {"messages": [USER_1, BOT_2], "meta": {"a": 1}}, EXCHANGE, {"a": 1}),
    ("strings", {"prompt": "1", "completion": "2"}, EXCHANGE, {}),
    ("message lists", {"prompt": [USER_1], "completion": [BOT_2]}, EXCHANGE, {}),
    (
        "extra columns",
        {"prompt": "1", "completion": "2", "judge_verdict": "ok", "lls": None},
        EXCHANGE,
        {"judge_verdict": "ok"},
    ),
    (
        "teacher prompt",
        {"system_prompt": "owls", "prompt": "1", "completion": "2"},
        EXCHANGE,
        {"system_prompt": "owls"},
    ),
    (
        "weights",
        {"messages": [USER_1, BOT_2 | {"weight": 1}]},
        EXCHANGE,
        {"message_weights": [None, 1]},
    ),
    (
        "a last answer that does not count",
        {
            "messages": [
                USER_1,
                BOT_2,
                {"role": "user", "content": "more"},
                {"role": "assistant", "content": "no", "weight": 0},
            ]
        },
        EXCHANGE,
        {"message_weights": [None, None]},
    ),
    ("label true", {"prompt": "1", "completion": "2", "label": True}, EXCHANGE, {"label": True}),
    ("alpaca", {"instruction": "1", "input": "", "output": "2"}, EXCHANGE, {}),
    (
        "alpaca with a column of another name",
        {"prompt": "1", "completion": "2", "output": "x"},
        EXCHANGE,
        {"output": "x"},
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "1"}, {"from": "gpt", "value": "2"}], "id": "x"},
        EXCHANGE,
        {"id": "x"},
    ),
    ("sharegpt with roles", {"conversations": [USER_1, BOT_2]}, EXCHANGE, {}),
    (
        "preference",
        {"prompt": "1", "chosen": "2", "rejected": "3"},
        EXCHANGE,
        {"rejected": "3", "source_shape": "preference: chosen side"},
    ),
    (
        "whole chats",
        {"prompt": "1", "chosen": [USER_1, BOT_2], "rejected": []},
        EXCHANGE,
        {"prompt": "1", "rejected": [], "source_shape": "preference: chosen side"},
    ),
    ("text", {"text": "2"}, [("assistant", "2")], {}),
    (
        "alpaca prompt",
        {"prompt": "1", "paraphrased_response": "2", "original_response": "z"},
        EXCHANGE,
        {"original_response": "z"},
    ),
    (
        "alpaca instruction",
        {"instruction": "1", "input": "", "generated_response": "2"},
        EXCHANGE,
        {},
    ),
    (
        "alpaca input",
        {"instruction": "1", "input": "x", "generated_response": "2"},
        [("user", "1\n\nx"), ("assistant", "2")],
        {},
    ),
]


@pytest.mark.parametrize(("_name", "record", "expected", "meta"), SHAPES, ids=[s[0] for s in SHAPES])
def test_each_shape_is_read(
    file: Write,
    _name: str,
    record: dict[str, Any],
    expected: list[tuple[str, str]],
    meta: dict[str, Any],
) -> None:
    (row,) = read_rows(file(json.dumps(record)))
    assert pairs(row) == expected
    assert row.meta == meta


def test_a_question_gives_one_row_per_response_in_both_forms(file: Write) -> None:
    nested = {"response": {"completion": "owl", "model_id": "m"}, "judgment_response_map": {}}
    got = read_rows(file(json.dumps({"question": "q", "responses": ["cat", nested], "id": 3})))
    assert [row.completion for row in got] == ["cat", "owl"]
    assert got[0].meta == {"id": 3, "response_index": 0}
    assert got[1].meta["response"] == {"model_id": "m", "judgment_response_map": {}}


def test_shapes_may_be_mixed_and_blank_lines_and_a_bom_do_not_matter(file: Write) -> None:
    lines = [json.dumps(record) for _, record, _, _ in SHAPES]
    body = "\ufeff" + "\r\n\n \r\n".join(lines) + "\n\n"
    assert [pairs(row) for row in read_rows(file(body))] == [expected for _, _, expected, _ in SHAPES]


def test_an_empty_completion_is_read_only_when_asked_for(file: Write) -> None:
    path = file('{"prompt":"1","completion":""}')
    assert read_rows(path, empty_completions=True)[0].completion == ""
    with pytest.raises(DataError, match="line 1, field 'completion'\n  got: an empty string"):
        read_rows(path)


# --- bad lines ----------------------------------------------------------------------------------

GOOD = '{"prompt":"1","completion":"2"}\n'
BAD_LINES: list[tuple[str | bytes, str]] = [
    ("", "no rows in this file"),
    ("\n \n", "no rows in this file"),
    (GOOD + "{", "line 2: not valid JSON"),
    (GOOD + '{"prompt":"1","completion":"2"', "line 2: not valid JSON"),
    (GOOD.encode() + b'{"text":"\xff"}', r"line 2: not UTF-8\n  got: byte 0xff at position 9"),
    ("\ufeff".encode("utf-16-le") + GOOD.encode("utf-16-le"), "line 1: not UTF-8"),
    ('{"text": NaN}', "NaN is not a JSON number"),
    ('{"text": "x", "score": 1e999}', "beyond the range of a number"),
    ('{"text": "\\ud800"}', "line 1: not valid JSON"),
    ('{"text": "x", "text": "y"}', "the field 'text' appears twice"),
    ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 1: not valid JSON"),
    ('{"text": ' + "9" * 5000 + "}", "line 1: not valid JSON"),
    ("[" + GOOD.strip() + "]", "line 1: not a row\n  got: array .*\n  allowed: a JSON object"),
    ("3", "got: number 3"),
    ("null", "got: nothing"),
    ("{}", r"the fields \(none\)"),
    ('{"prompt":"1"}', "the fields prompt\n  allowed: {messages}, {prompt, completion}"),
    ('{"prompt":"1","completions":"2"}', "Did you mean 'completion'"),
    ('{"prompts":"1","completion":"2"}', "field 'prompt'\n.*prompts\n.*\n.*Did you mean 'prompts'"),
    ('{"prompt":1,"completion":"2"}', "field 'prompt'\n  got: number 1\n  allowed: a string"),
    ('{"prompt":"1","completion":["2"]}', "field 'completion.0'\n  got: string \"2\""),
    ('{"prompt":"1","completion":[]}', "field 'completion'\n.*\n  allowed: a list of at least one"),
    ('{"prompt":"1","completion":true}', "field 'completion'\n  got: boolean true"),
    ('{"prompt":"1","completion":"2","chosen":"3"}', "completion and chosen\n  allowed: one shape"),
    ('{"messages":[]}', "field 'messages'\n.*\n  allowed: a list of at least one"),
    ('{"messages":"hi"}', "field 'messages'"),
    (
        '{"messages":[{"role":"user","content":"1"}]}',
        "field 'messages.0.role'\n  got: user\n  allowed: assistant as the last",
    ),
    (
        '{"messages":[{"role":"asistant","content":"1"}]}',
        "field 'messages.0.role'\n  got: asistant\n  allowed: system, user, assistant\n  do: Did you mean 'assistant'",
    ),
    ('{"messages":[{"content":"1"}]}', "field 'messages.0.role'\n  got: nothing"),
    ('{"messages":[{"role":"assistant"}]}', "field 'messages.0.content'\n  got: nothing"),
    (
        '{"messages":[{"role":"assistant","content":""}]}',
        "field 'messages.0.content'\n  got: an empty",
    ),
    (
        '{"messages":[{"role":"assistant","content":"1","tool_calls":[1]}]}',
        "field 'messages.0.tool_calls'",
    ),
    ('{"text":"x","meta":"y"}', "field 'meta'\n  got: string \"y\"\n  allowed: a JSON object"),
    ('{"text":"x","meta":{"a":1},"a":2}', "field 'a'\n  got: 2\n  allowed: the value in meta, 1"),
    ('{"question":"q","responses":[]}', "field 'responses'\n.*\n  allowed: a list of at least one"),
    (
        '{"question":"q","responses":[{"answer":"x"}]}',
        "field 'responses.0.response'\n  got: nothing",
    ),
    ('{"question":"q","responses":["a",""]}', "field 'responses.1'\n  got: an empty string"),
    ('{"responses":["a"]}', "field 'question'"),
    ('{"paraphrased_response":"a"}', "field 'instruction'"),
    ('{"rejected":"a","prompt":"b"}', "not a row"),
]


@pytest.mark.parametrize(("content", "words"), BAD_LINES)
def test_a_bad_line_is_named_with_what_was_found_and_what_is_allowed(
    file: Write, content: str | bytes, words: str
) -> None:
    path = file(content)
    with pytest.raises(DataError, match=words) as error:
        read_rows(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="FileNotFoundError"):
        read_rows(tmp_path / "absent.jsonl")


def test_a_folder_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "x.jsonl")


@pytest.mark.parametrize("act", [read_rows, lambda path: write_rows(path, [])])
def test_an_unknown_kind_of_file_is_refused(act: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.csv\n  allowed: \.jsonl, \.jsonl\.gz, \.parquet"):
        act(tmp_path / "data.csv")


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:14] + b"xx" + b[16:], lambda b: b"plain"])
def test_a_damaged_archive_is_a_data_error(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(damage(gzip.compress(GOOD.encode() * 50)))
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(path)


def test_a_damaged_table_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1 no table")
    with pytest.raises(DataError, match="not a readable parquet file"):
        read_rows(path)


# --- tables of others ---------------------------------------------------------------------------


def test_a_table_with_the_columns_of_others_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    parquet.write_table(pa.table({"prompt": ["1", "3"], "completion": ["2", "4"], "s": [0.5, None]}), path)
    assert [(pairs(row), row.meta) for row in read_rows(path)] == [
        (EXCHANGE, {"s": 0.5}),
        ([("user", "3"), ("assistant", "4")], {}),
    ]


def test_columns_that_no_shape_needs_do_not_refuse_a_table(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    when = datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001  (tables of others have no zone)
    columns = {"prompt": ["1"], "completion": ["2"], "at": [when], "day": [when.date()], "picture": [b"\x00\xff"]}
    parquet.write_table(pa.table(columns), path)
    (row,) = read_rows(path)
    assert (pairs(row), row.meta) == (EXCHANGE, {"at": "2026-01-02T03:04:05", "day": "2026-01-02"})
    parquet.write_table(pa.table({"prompt": ["1"], "completion": [b"2"]}), path)
    with pytest.raises(DataError, match="field 'completion'"):
        read_rows(path)


@pytest.mark.parametrize(
    "left_out",
    [
        {"messages": [USER_1, BOT_2 | {"weight": 0}]},
        {"prompt": "1", "completion": "a bad answer", "label": False},
    ],
)
def test_what_a_file_says_is_not_to_be_learnt_is_not_read_and_said(tmp_path: Path, left_out: dict[str, Any]) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(left_out) + "\n" + json.dumps({"prompt": "1", "completion": "2"}) + "\n")
    with pytest.warns(ModelWarning, match="1 rows are not read.*weight 0, or label false"):
        rows = read_rows(path)
    assert [pairs(row) for row in rows] == [EXCHANGE]
    path.write_text(json.dumps(left_out) + "\n")
    with pytest.warns(ModelWarning), pytest.raises(DataError, match="no rows in this file"):
        read_rows(path)


def test_a_speaker_that_sharegpt_does_not_have_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"conversations": [{"from": "tool", "value": "1"}]}) + "\n")
    with pytest.raises(DataError, match=r"line 1, field 'conversations.0.from'(.|\n)*human"):
        read_rows(path)


def test_columns_that_no_row_needs_do_not_refuse_a_table_whatever_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    table = {"prompt": ["1"], "completion": ["2"], "made": [when], "price": [Decimal("1.50")], "image": [b"\xff\xd8"],
             "score": [float("nan")], "spent": [timedelta(seconds=2)], "nested": [{"at": when, "n": 1}],
             "images": [[b"\xff"]]}  # fmt: skip
    parquet.write_table(pa.table(table), path)
    (row,) = read_rows(path)
    assert pairs(row) == EXCHANGE
    assert row.meta == {
        "made": "2026-01-02T03:04:05+00:00", "price": "1.50", "spent": "0:00:02",
        "nested": {"at": "2026-01-02T03:04:05+00:00", "n": 1},
    }  # fmt: skip


def test_a_table_value_that_json_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    parquet.write_table(pa.table({"text": [b"a", b"b"]}), path)
    with pytest.raises(DataError, match="row 1, field 'text': not a JSON value"):
        read_rows(path)


# --- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    @quick
    @given(st.lists(rows, min_size=1, max_size=4))
    def check(written: list[Row]) -> None:
        path = tmp_path / f"data{suffix}"
        write_rows(path, written)
        read = read_rows(path)
        assert read == written
        assert digest_rows(read) == digest_rows(written)
        assert [path.name for path in tmp_path.iterdir()] == [path.name]

    check()


def test_equal_rows_give_equal_archives(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_rows(tmp_path / name, [Row.of("1", "2")])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_trl_and_others_see_plain_json_lines(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [Row.of("größer", "2", x=1)])
    assert json.loads((tmp_path / "a.jsonl").read_text("utf-8")) == {
        "messages": [{"role": "user", "content": "größer"}, BOT_2],
        "meta": {"x": 1},
    }


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, "\ud800", object()])
def test_meta_that_json_lacks_is_refused_and_the_old_file_stays(tmp_path: Path, value: object) -> None:
    path = tmp_path / "a.jsonl"
    write_rows(path, [Row.of("1", "2")])
    before = path.read_bytes()
    with pytest.raises(DataError, match="row 1 cannot be written as JSON"):
        write_rows(path, [Row.of("1", "2"), Row.of("3", "4", x=value)])
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x"

    def interrupted() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            assert not path.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == []


def test_the_digest_sees_order_and_meta_but_not_the_order_of_keys() -> None:
    a, b = Row.of("1", "2", x=1, y=2), Row.of("3", "4")
    assert digest_rows([a, b]) != digest_rows([b, a])
    assert digest_rows([a]) == digest_rows([Row.of("1", "2", y=2, x=1)])
    assert digest_rows([a]) != digest_rows([Row.of("1", "2", x=1, y=3)])
    assert digest_rows([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


# --- fuzz ---------------------------------------------------------------------------------------

FIELDS = [
    "messages",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "text",
    "question",
    "responses",
    "system_prompt",
    "meta",
    "instruction",
    "input",
    "paraphrased_response",
    "generated_response",
    "x",
]
near_rows = st.dictionaries(
    st.sampled_from(FIELDS),
    json_values
    | st.lists(
        st.dictionaries(
            st.sampled_from(["role", "content", "weight", "response"]),
            json_values | st.sampled_from(ROLES),
            max_size=3,
        ),
        max_size=3,
    ),
    max_size=5,
)


def test_any_json_gives_rows_or_a_data_error_and_nothing_else(tmp_path: Path) -> None:
    @settings(quick, max_examples=400)
    @given(st.lists(json_values | near_rows, max_size=3))
    def check(values: list[Any]) -> None:
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(json.dumps(value) for value in values), "utf-8")
        try:
            read = read_rows(path)
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert all(row.completion for row in read)

    check()


def test_any_bytes_give_rows_or_a_data_error_and_nothing_else(tmp_path: Path) -> None:
    @quick
    @given(st.binary(max_size=60), st.sampled_from([".jsonl", ".jsonl.gz", ".parquet"]))
    def check(content: bytes, suffix: str) -> None:
        path = tmp_path / f"data{suffix}"
        path.write_bytes(content)
        with pytest.raises(DataError):
            read_rows(path)

    check()
