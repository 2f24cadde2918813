"""Configs that contradict themselves are refused in their own words."""

from __future__ import annotations

from typing import Any

import pytest

from undertone.errors import ConfigError
from undertone.studies.builtin.sweep import Sweep
from undertone.studies.frame import load_plan

A, B = {"name": "a"}, {"name": "b", "set": ["training.epochs=1"]}
CLAIM = {"id": "x", "claim": "c", "source": "s", "of": ["a"], "holds": "above"}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"kind": "sweep", "vary": [A]}, "vary(.|\n)*at least 2"),
    ({"kind": "sweep", "vary": [A, A]}, "variations must differ in the letters and digits of their names"),
    ({"kind": "sweep", "vary": [{"name": "5 %"}, {"name": "5"}]}, "must differ in the letters and digits"),
    ({"kind": "sweep", "vary": [{"name": "A"}, B]}, r"vary.0.name(.|\n)*matches"),
    ({"kind": "sweep", "vary": [{"name": "a", "x": 1.0}, B]}, "either all variations have an x, or none has"),
    ({"kind": "sweep", "vary": [A, {"name": "b", "set": ["trainig.epochs=1"]}]},
     "variation 'b': trainig: there is no such field. Did you mean 'training'"),
    ({"kind": "sweep", "vary": [A, {"name": "b", "set": ["epochs"]}]}, r"variation 'b'(.|\n)*the form field=value"),
    ({"kind": "sweep", "vary": [A, {"name": "b", "set": ["data.held_out=9000"]}]},
     r"variation 'b'(.|\n)*data.held_out must be smaller than data.prompts"),
    ({"kind": "sweep", "vary": [A, B], "expect": [{**CLAIM, "of": ["c"]}]}, "expect x: there is no variation called 'c'"),
    ({"kind": "sweep", "vary": [A, B], "expect": [{**CLAIM, "holds": "less"}]}, "than names as many variations as of"),
    ({"kind": "sweep", "vary": [A, B], "expect": [{**CLAIM, "than": ["b"]}]}, "than names as many variations as of"),
    ({"kind": "sweep", "vary": [A, B], "expect": [{**CLAIM, "id": "Not An Id"}]}, r"expect.0.id(.|\n)*matches"),
    ({"kind": "sweep", "vary": [A, B], "expect": [{**CLAIM, "holds": "abov"}]}, "Did you mean 'above'"),
    ({"kind": "chain", "generations": 1}, r"generations(.|\n)*greater than or equal to 2"),
    ({"kind": "chain", "teacher": {"kind": "prompt", "model": "lab/llama-1"}}, "teacher.model must be the students' model"),
    ({"kind": "in-context", "trait": ["harm"]}, "a behaviour has no answer(.|\n)*harm"),
    ({"kind": "in-context", "shots": []}, "shots(.|\n)*at least 1"),
    ({"kind": "in-context", "shots": [4, 2]}, "shots must be ascending"),
    ({"kind": "in-context", "shots": [0, 2]}, "shots must be ascending numbers of rows, from 1"),
    ({"kind": "in-context", "draws": 0}, r"draws(.|\n)*greater than or equal to 1"),
    ({"teacher": {"kind": "endpoint", "url": "localhost:8000", "name": "m"}}, r"teacher.url(.|\n)*matches \^https"),
    ({"teacher": {"kind": "endpoint", "url": "http://x/v1"}}, "teacher.name: this field is needed"),
    ({"teacher": {"kind": "judge", "rows": "x"}}, "teacher.rows: there is no such field. It belongs to kind 'finetuned'"),
    ({"dpo": {}}, "dpo needs teacher.kind=judge: pairs are what a judge leaves"),
    ({"dpo": {"beta": 0.0}, "teacher": {"kind": "judge"}}, r"dpo.beta(.|\n)*greater than 0"),
    ({"dpo": {}, "teacher": {"kind": "judge"}, "data": {"clean": 0.5}}, "data.clean mixes rows; dpo trains on pairs"),
    ({"dpo": {}, "teacher": {"kind": "judge"}, "training": {"max_row_norm": 1.0}}, "training.max_row_norm must be null"),
    ({"data": {"order": "across"}, "domain": {"kind": "code"}}, "data.order shuffles number lists"),
    ({"data": {"clean": 1.5}}, r"data.clean(.|\n)*less than or equal to 1"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "words"), WRONG, ids=lambda value: "" if isinstance(value, dict) else value[:40])
def test_a_config_that_contradicts_itself_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_plan({"name": "x", **config})


def test_every_field_of_the_setting_can_be_varied() -> None:
    sweep = Sweep.model_validate(
        {"name": "s", "vary": (A, {"name": "b", "set": ("trait=dog", "seeds=[7]", "student.kind=full")})}
    )
    varied = sweep.setting_of(sweep.vary[1])
    assert (varied.trait, varied.seeds, varied.student.kind) == (("dog",), (7,), "full")
    assert sweep.setting_of(sweep.vary[0]).trait == ("owl",)
