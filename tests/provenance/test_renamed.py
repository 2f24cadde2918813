"""Names of older versions: read as today's wherever a config may be written, said once, refused beside their successor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field

from undertone.cli import app
from undertone.errors import ConfigError
from undertone.experiments.plans import load_plan
from undertone.provenance.configs import Config, load
from undertone.provenance.renamed import take_notes
from undertone.provenance.runs import Run


class Bias(Config):
    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"kind": {"biases": "bias-only"}}
    kind: Literal["bias-only"] = "bias-only"


class Steering(Config):
    renamed: ClassVar[Mapping[str, str]] = {"block": "layer"}
    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"origin": {"carrier": "domain"}}
    kind: Literal["vector"] = "vector"
    layer: int = 1
    origin: Literal["questions", "domain"] = "questions"


class Plan(Config):
    teacher: Annotated[Bias | Steering, Field(discriminator="kind")] = Bias()
    several: tuple[Steering, ...] = ()
    by_name: dict[str, Steering] = Field(default_factory=dict)
    optional: Steering | None = None


@pytest.fixture(autouse=True)
def _no_notes_of_others() -> None:
    take_notes()


WAYS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("a mapping", {"teacher": {"kind": "vector", "block": 2}}, ()),
    ("an override of a whole mapping", {}, ("teacher={kind: vector, block: 2}",)),
    ("an override of the field", {}, ("teacher.kind=vector", "teacher.block=2")),
    ("the field first", {}, ("teacher.block=2", "teacher.kind=vector")),
    ("part of a mapping over a config", {"teacher": {"kind": "vector"}}, ("teacher={block: 2}",)),
]


@pytest.mark.parametrize(("data", "overrides"), [way[1:] for way in WAYS], ids=[way[0] for way in WAYS])
def test_an_old_field_is_read_and_said_once(data: dict[str, Any], overrides: tuple[str, ...]) -> None:
    assert load(Plan, data, overrides).teacher == Steering(layer=2)
    assert take_notes() == ["teacher.block is now teacher.layer"]
    assert take_notes() == []


def test_old_fields_are_read_in_lists_mappings_and_optional_configs(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("several: [{block: 0}, {layer: 1}]\nby_name: {x: {block: 3}}\noptional: {block: 4}\n")
    plan = load(Plan, file, ["several.1.block=7"])
    assert [one.layer for one in plan.several] == [0, 7]
    assert plan.by_name["x"].layer == 3
    assert plan.optional == Steering(layer=4)
    assert take_notes() == [
        "several.0.block is now several.0.layer",
        "by_name.x.block is now by_name.x.layer",
        "optional.block is now optional.layer",
        "several.1.block is now several.1.layer",
    ]


def test_an_old_value_is_read_also_where_it_names_the_kind() -> None:
    assert load(Plan, {"teacher": {"kind": "vector", "origin": "carrier"}}).teacher == Steering(origin="domain")
    assert take_notes() == ["teacher.origin=carrier is now domain"]
    assert load(Plan, {"teacher": {"kind": "vector", "layer": 3}}, ["teacher.kind=biases"]).teacher == Bias()
    assert load(Plan, {"teacher": {"kind": "vector"}}, ["teacher.origin=carrier"]).teacher == Steering(origin="domain")


@pytest.mark.parametrize(
    ("data", "overrides"),
    [
        ({"teacher": {"kind": "vector", "block": 2, "layer": 2}}, ()),
        ({}, ("teacher={kind: vector, block: 2, layer: 3}",)),
        ({"teacher": {"kind": "vector"}}, ("teacher.block=2", "teacher.layer=3")),
    ],
)
def test_the_old_and_the_new_field_together_are_an_error(data: dict[str, Any], overrides: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.block: this field is now teacher\.layer, and both are given"):
        load(Plan, data, overrides)


def test_an_unknown_field_is_an_error_as_ever() -> None:
    with pytest.raises(ConfigError, match="there is no such field"):
        load(Plan, {"teacher": {"kind": "vector", "blok": 2}})
    with pytest.raises(ConfigError, match=r"teacher\.block: there is no such field"):
        load(Plan, {"teacher": {"kind": "bias-only", "block": 2}})


@pytest.mark.parametrize(
    ("source", "old", "new"),
    [
        ("owl-numbers", "student.kind=biases", "student.kind=bias-only"),
        ("owl-numbers", "teacher={kind: vector, block: 2}", "teacher={kind: vector, layer: 2}"),
        ("owl-numbers", "teacher={kind: vector, origin: carrier}", "teacher={kind: vector, origin: domain}"),
        (
            "owl-numbers",
            "teacher.ablate={origin: carrier, around: plain}",
            "teacher.ablate={origin: domain, around: control}",
        ),
        (
            "owl-numbers",
            "filters=[{kind: fidelity, model: m, block: 1}]",
            "filters=[{kind: fidelity, model: m, layer: 1}]",
        ),
        ("mechanism", "causality.block=1", "causality.layer=1"),
        ("mechanism", "distillation.block=1", "distillation.layer=1"),
        ("mechanism", "recovery.block=1", "recovery.layer=1"),
        ("tokens", "divergence.against=plain", "divergence.against=control"),
        ("harm-dose", "blocks=[1]", "layers=[1]"),
    ],
)
def test_configs_of_the_first_version_still_mean_the_same(source: str, old: str, new: str) -> None:
    assert load_plan(source, [old]).digest() == load_plan(source, [new]).digest()
    assert take_notes()


def test_a_run_folder_with_the_old_names_is_gone_on_with(tmp_path: Path) -> None:
    plan = Plan(teacher=Steering(layer=2))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(plan.to_yaml().replace("layer: 2", "block: 2"), encoding="utf-8")
    with Run.open(folder, plan, command="x"):
        pass


def test_the_command_line_says_each_old_name_once_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    app(["run", "student.kind=biases", "--config"], exit_on_error=False, result_action="return_value")
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["note: student.kind=biases is now bias-only"]
    assert "kind: bias-only" in captured.out
    app(["run", "student.kind=bias-only", "--config"], exit_on_error=False, result_action="return_value")
    assert capsys.readouterr().err == ""
