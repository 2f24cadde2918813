from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from undertone.errors import ConfigError
from undertone.provenance.configs import Config, load
from undertone.provenance.plain_data import read_yaml, to_yaml


class Prompt(Config):
    kind: Literal["prompt"] = "prompt"
    text: str = "You love owls."


class Vector(Config):
    kind: Literal["vector"] = "vector"
    vector: str
    strength: float = Field(default=1.0, gt=0)
    positions: Literal["all", "last"] = "all"


class Dtype(Enum):
    FLOAT = "float32"
    HALF = "bfloat16"


class Train(Config):
    lr: float = 1e-3
    steps: int = 10
    dtype: Dtype = Dtype.FLOAT
    betas: tuple[float, float] = (0.9, 0.999)


class Arm(Config):
    name: str
    weight: float = 1.0
    teacher: Annotated[Prompt | Vector, Field(discriminator="kind")] = Prompt()


class Experiment(Config):
    seed: int = 0
    out: Path = Path("runs")
    teacher: Annotated[Prompt | Vector, Field(discriminator="kind")] = Prompt()
    train: Train = Train(lr=0.5)
    arms: tuple[Arm, ...] = (Arm(name="treated"), Arm(name="control", weight=2.0))
    domain: Literal["numbers", "code"] = "numbers"
    cap: int | None = None
    amount: int | str = 3
    labels: dict[str, int] = Field(default={"a": 1})
    scale: float = 1.0

    @model_validator(mode="after")
    def _possible(self) -> Experiment:
        if self.domain == "code" and self.cap == 1:
            raise ConfigError("code needs a larger cap", got=self.cap, allowed="2 or more", fix="set cap=2")
        if self.domain == "code" and self.cap == 2:
            raise ValueError("2 is too few for code")
        return self


def build(source: Any = (), *overrides: str) -> Experiment:
    return load(Experiment, dict(source), overrides)


# --- what is read -------------------------------------------------------------------------------


def test_an_empty_config_is_all_defaults() -> None:
    assert build() == Experiment()


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("seed=3", "seed", 3),
        ("seed=1e3", "seed", 1000),
        ("train.lr=1e-3", "train.lr", 0.001),
        ("train.lr=2E5", "train.lr", 200_000.0),
        ("train.lr=3", "train.lr", 3.0),
        ("train.lr=.5", "train.lr", 0.5),
        ("train.dtype=bfloat16", "train.dtype", Dtype.HALF),
        ("train.betas=[0.5, 0.6]", "train.betas", (0.5, 0.6)),
        ("train.betas.1=0.7", "train.betas", (0.9, 0.7)),
        ("arms.1.weight=9", "arms.1.weight", 9.0),
        ("arms.1.name=x", "arms.1.weight", 2.0),
        ("out=some/folder", "out", Path("some/folder")),
        ("cap=null", "cap", None),
        ("teacher.text=no", "teacher.text", "no"),
        ("teacher.text=2024-05-06", "teacher.text", "2024-05-06"),
        ("teacher.text='1e3'", "teacher.text", "1e3"),
        ("teacher.text=''", "teacher.text", ""),
        ("teacher.text=a=b", "teacher.text", "a=b"),
        ("labels={b: 2}", "labels", {"b": 2}),
        ("labels.a=5", "labels", {"a": 5}),
        ("amount=many", "amount", "many"),
    ],
)
def test_an_override_sets_one_field_and_leaves_the_others(override: str, path: str, expected: object) -> None:
    value: Any = build((), override)
    for part in path.split("."):
        value = value[int(part)] if part.isdecimal() else getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)


def test_what_is_written_in_part_keeps_the_default_of_its_field_not_of_its_class() -> None:
    expected = Train(lr=0.5, steps=5)
    assert build({"train": {"steps": 5}}).train == expected
    assert build((), "train.steps=5").train == expected
    assert build((), "train={steps: 5}").train == expected


def test_another_kind_starts_afresh() -> None:
    prompted = {"teacher": {"kind": "prompt", "text": "old"}}
    expected = Vector(vector="v", strength=2.0)
    in_any_order = ["teacher.vector=v", "teacher.kind=vector", "teacher.strength=2"]
    assert build(prompted, *in_any_order).teacher == expected
    assert build(prompted, *reversed(in_any_order)).teacher == expected
    assert build(prompted, "teacher.strength=2", "teacher={kind: vector, vector: v}").teacher == expected
    assert build((), *in_any_order).teacher == expected
    assert build({"teacher": {"kind": "vector", "vector": "v", "strength": 2}}).teacher == expected
    assert build((), "arms.0.teacher.kind=vector", "arms.0.teacher.vector=v").arms[0].teacher == Vector(vector="v")


def test_the_same_kind_keeps_its_other_fields() -> None:
    steered = {"teacher": {"kind": "vector", "vector": "v", "strength": 3}}
    assert build(steered, "teacher.kind=vector").teacher == Vector(vector="v", strength=3.0)


def test_the_last_of_two_equal_overrides_wins() -> None:
    assert build((), "seed=1", "seed=2").seed == 2


def test_the_source_is_not_changed_by_overrides() -> None:
    source = {"train": {"steps": 5}}
    build(source, "train.steps=6")
    assert source == {"train": {"steps": 5}}


def test_a_file_may_extend_a_preset_and_switch_its_kind(tmp_path: Path) -> None:
    base, middle, top = (tmp_path / f"{name}.yaml" for name in ("base", "middle", "top"))
    base.write_text("seed: 4\ntrain: {lr: 1e-4}\nteacher: {kind: prompt, text: x}\n")
    middle.write_text("extends: base\ntrain: {steps: 7}\n")
    top.write_text("extends: middle\nteacher: {kind: vector, vector: v}\n")
    presets = {"base": base, "middle": middle}
    config = load(Experiment, top, ["seed=5"], presets)
    assert (config.seed, config.train, config.teacher) == (
        5,
        Train(lr=1e-4, steps=7),
        Vector(vector="v"),
    )
    assert load(Experiment, "middle", (), presets).train.steps == 7


def test_json_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"seed": 2, "train": {"lr": 1e-05}}))
    assert load(Experiment, str(path)).train.lr == 1e-5


def test_plain_python_values_are_taken_from_a_mapping() -> None:
    assert build({"out": Path("p"), "train": Train(steps=3)}).train.steps == 3


# --- identity -----------------------------------------------------------------------------------


def test_the_digest_is_that_of_the_values_not_of_how_they_were_written() -> None:
    assert build().digest() == build({"seed": 0}).digest() == build((), "scale=1").digest()
    assert build().digest() != build((), "seed=1").digest()
    assert len(build().digest()) == 16


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        build().seed = 3  # type: ignore[misc]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "no",
        "1e-3",
        "1e3",
        "null",
        "~",
        "",
        "2024-01-01",
        "0x1F",
        "1_000",
        "=",
        "<<",
        "- a",
        "a: b",
        "\x85",
        "010",
        "1:30",
        ".inf",
        "*a",
        "true",
    ]
)


@given(
    texts,
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**70), 2**70),
    st.dictionaries(texts, st.integers(), max_size=3),
)
def test_the_yaml_of_a_config_gives_it_back(text: str, number: float, seed: int, labels: dict[str, int]) -> None:
    config = Experiment(teacher=Prompt(text=text), scale=number, seed=seed, labels=labels, amount=text)
    assert load(Experiment, read_yaml(config.to_yaml(), "x")) == config
    assert load(Experiment, read_yaml(config.to_yaml(), "x")).digest() == config.digest()


@given(texts)
def test_other_yaml_readers_agree_on_our_strings(text: str) -> None:
    assert yaml.safe_load(to_yaml({"a": text})) == {"a": text}


def test_a_text_of_several_lines_stays_readable() -> None:
    assert Prompt(text="You love owls.\nAlways.").to_yaml().endswith("|-\n  You love owls.\n  Always.\n")


# --- what is refused ----------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], list[str], str]] = [
    (
        {"trian": {}},
        [],
        r"trian: there is no such field\. Did you mean 'train'\?\n  got: trian\n  allowed: amount, arms, cap",
    ),
    (
        {},
        ["train.step=1"],
        r"train\.step: there is no such field\. Did you mean 'steps'\?\n.*\n  allowed: betas, dtype, lr, steps",
    ),
    ({}, ["lr=1"], r"lr: there is no such field\. Did you mean 'train\.lr'\?"),
    (
        {},
        ["teacher.strength=1"],
        r"teacher\.strength: there is no such field\. It belongs to kind 'vector'",
    ),
    (
        {"teacher": {"kind": "vector", "vector": "v", "stength": 1}},
        [],
        r"^teacher\.stength: there is no such field\. Did you mean 'strength'",
    ),
    (
        {"teacher": {"kind": "vector", "vector": "v", "strength": "x"}},
        [],
        r"^teacher\.strength: not a valid value\.\n  got: \"x\"\n  allowed: a number",
    ),
    (
        {},
        ["teacher.kind=vector", "teacher.vector=v", "teacher.strength=-1"],
        r"^teacher\.strength: not a valid value.*\n.*\n  allowed: greater than 0",
    ),
    (
        {},
        ["teacher.kind=vector"],
        r"^teacher\.vector: this field is needed\n.*\n  do: add teacher\.vector=…",
    ),
    (
        {},
        ["teacher.kind=vectr"],
        r"^teacher\.kind: there is no such kind\. Did you mean 'vector'\?\n  got: vectr\n  allowed: prompt, vector",
    ),
    (
        {"arms": [{"name": "a", "teacher": {"kind": "vector", "vector": "v", "positions": "first"}}]},
        [],
        r"^arms\.0\.teacher\.positions: not a valid value.*\n.*first.*\n  allowed: 'all' or 'last'",
    ),
    (
        {"arms": [{"name": "a", "teacher": {"text": "v"}}, {"weight": 1}]},
        [],
        r"^arms\.1\.name: this field is needed",
    ),
    (
        {"teacher": 3},
        [],
        r"^teacher: not a valid value\.\n  got: 3\n  allowed: a mapping of fields",
    ),
    (
        {"train": [1]},
        [],
        r"^train: not a valid value\.\n  got: \[1\]\n  allowed: a mapping of fields",
    ),
    (
        {"seed": "3"},
        [],
        r"^seed: not a valid value\.\n  got: \"3\"\n  allowed: a whole number\n  do: remove the quotes",
    ),
    ({"seed": True}, [], r"^seed: not a valid value\.\n  got: true\n  allowed: a whole number"),
    ({"seed": 1.5}, [], r"^seed: not a valid value\.\n  got: 1\.5"),
    (
        {},
        ["teacher.text=12"],
        r"^teacher\.text: not a valid value\.\n  got: 12\n  allowed: a text\n  do: put the value in quotes",
    ),
    (
        {"domain": "number"},
        [],
        r"^domain: not a valid value\. Did you mean 'numbers'\?\n.*\n  allowed: 'numbers' or 'code'",
    ),
    (
        {},
        ["train.dtype=float16"],
        r"^train\.dtype: not a valid value.*\n.*\n  allowed: 'float32' or 'bfloat16'",
    ),
    (
        {},
        ["amount=[1]"],
        r"^amount: not a valid value\.\n  got: \[1\]\n  allowed: a whole number or a text",
    ),
    ({}, ["cap=x"], r"^cap: not a valid value\.\n  got: \"x\"\n  allowed: a whole number"),
    ({}, ["labels.a=x"], r"^labels\.a: not a valid value"),
    (
        {"seed": "x", "cap": "y"},
        [],
        r"^2 things are wrong with the config\nseed: .*\n.*\n.*\ncap: ",
    ),
    (
        {},
        ["domain=code", "cap=1"],
        r"^code needs a larger cap\n  got: 1\n  allowed: 2 or more\n  do: set cap=2",
    ),
    ({}, ["domain=code", "cap=2"], r"^the config contradicts itself: 2 is too few for code"),
    ({"scale": float("nan")}, [], r"a value that is not plain data"),
    ({"seed": object()}, [], r"a value that is not plain data"),
    ({}, ["seed"], r"an override has the form field=value\n  got: seed"),
    ({}, ["=3"], r"an override has the form field=value"),
    ({}, ["train..lr=3"], r"an override has the form field=value"),
    ({}, ["seed="], r"^seed: the override gives no value\n.*\n  do: write seed=null"),
    ({}, ["seed=[1,"], r"the override 'seed=\[1,', line 1: not valid YAML"),
    (
        {"seed": 1},
        ["seed.x=1"],
        r"^seed\.x: seed is a single value, with no fields inside\n  got: seed = 1",
    ),
    (
        {},
        ["arms.2.name=x"],
        r"^arms\.2\.name: arms is a list of 2, counted from 0\n  got: 2\n  allowed: 0, 1",
    ),
    ({}, ["arms.first.name=x"], r"^arms\.first\.name: arms is a list of 2"),
    ({"extends": "base"}, [], r"^the config: extends names no preset\.\n  got: base"),
]


@pytest.mark.parametrize(("source", "overrides", "words"), WRONG)
def test_a_wrong_config_is_told_by_the_path_the_user_would_type(
    source: dict[str, Any], overrides: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        build(source, *overrides)


FILES = [
    ("seed: 1\nseed: 2\n", "line 2: not valid YAML\n  got: the key 'seed' appears twice"),
    ("train:\n  lr: 1\n  lr: 2\n", "line 3: not valid YAML\n  got: the key 'lr' appears twice"),
    ("seed: [1\n", "line 2: not valid YAML"),
    ("- 1\n", "not a config\n  got: \\[1\\]\n  allowed: a mapping"),
    ("a: &x [*x]\n", "not plain data|not valid YAML|no such field"),
    ("? [1]\n: 2\n", "a key must be a plain word"),
    ("seed: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
]


@pytest.mark.parametrize(("content", "words"), FILES)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=words):
        load(Experiment, path)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"seed: \xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(Experiment, path)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("# nothing yet\n")
    assert load(Experiment, path) == Experiment()


def test_a_source_that_is_not_there_is_told_by_what_it_seems_to_be(tmp_path: Path) -> None:
    presets = {"owl-numbers": tmp_path / "owl.yaml"}
    with pytest.raises(
        ConfigError,
        match=r"no preset and no file is called 'owl-number'\. Did you mean 'owl-numbers'",
    ):
        load(Experiment, "owl-number", (), presets)
    with pytest.raises(ConfigError, match="there is no config file"):
        load(Experiment, tmp_path / "absent.yaml", (), presets)
    with pytest.raises(ConfigError, match=r"is a folder, not a config\n.*\n.*\n  do: name the file: .*config\.yaml"):
        load(Experiment, tmp_path, (), presets)


def test_presets_in_a_circle_are_refused(tmp_path: Path) -> None:
    for name, base in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {base}\n")
    presets = {name: tmp_path / f"{name}.yaml" for name in "ab"}
    with pytest.raises(ConfigError, match="presets extend each other in a circle"):
        load(Experiment, "a", (), presets)


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | texts
    | st.sampled_from(["prompt", "vector"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "text", "vector", "name", "teacher", "lr"]) | texts,
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
paths = st.lists(
    st.sampled_from([*Experiment.model_fields, "kind", "text", "0", "1", "x", "lr", "name"]),
    min_size=1,
    max_size=4,
).map(".".join)


@given(
    st.dictionaries(st.sampled_from([*Experiment.model_fields, "x"]), json_like, max_size=4),
    st.lists(
        st.tuples(paths, texts | st.sampled_from(["1", "[]", "{}", "{kind: vector}", "null"])),
        max_size=4,
    ),
)
def test_anything_gives_a_config_or_a_config_error_and_nothing_else(
    source: dict[str, Any], overrides: list[tuple[str, str]]
) -> None:
    try:
        config = build(source, *(f"{path}={value}" for path, value in overrides))
    except ConfigError as error:
        assert str(error)  # noqa: PT017
    else:
        assert load(Experiment, read_yaml(config.to_yaml(), "x")) == config
