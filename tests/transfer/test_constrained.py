"""Constrained teachers in an experiment: who is held to what, what is recorded, what is refused before it begins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from undertone.domains import Numbers, grammars_of
from undertone.errors import ConfigError
from undertone.filters import apply_rules
from undertone.models import constraints
from undertone.models.loading import ModelRef, load
from undertone.provenance.identity import content
from undertone.rows import read_rows
from undertone.teachers import Contrast, EndpointTeacher, RemoteTeacher, Teacher, TeacherSpec, VectorSource, generate
from undertone.traits import load_trait
from undertone.transfer.config import load_experiment
from undertone.transfer.generate import Sampling, attempted, choose_strength
from undertone.transfer.pipeline import preflight, run_experiment

pytest.importorskip("llguidance")

LEAK = load_trait("owl").for_matching()
FEW = Numbers(count=3, digits=2)


def rows_of(model: Any, indices: list[int], *, constrained: bool = True, **settings: Any) -> list[Any]:
    prompts = FEW.prompts(24, 0, model)
    sampling = Sampling(24, settings.pop("attempts", 1), 1.0, 5, "s", constrained=constrained)
    return attempted(
        Teacher(model, "none", **settings),
        [(at, prompts[at]) for at in indices],
        FEW,
        LEAK,
        sampling,
        8,
        lambda _: None,
    )


def test_a_model_that_writes_no_list_writes_nothing_else_when_it_is_held_to_one(tiny_llama: Any) -> None:
    free, held = (rows_of(tiny_llama, list(range(24)), constrained=held) for held in (False, True))
    assert len(apply_rules(free, FEW, LEAK).kept) == 0
    assert len(apply_rules(held, FEW, LEAK).kept) == 24
    assert len({row.completion for row in held}) > 20


def test_a_constrained_row_is_the_same_whichever_rows_were_written_before(tiny_llama: Any) -> None:
    """As when a run is interrupted, or sharded, or an attempt is made at some prompts alone."""
    whole = rows_of(tiny_llama, list(range(24)))
    assert rows_of(tiny_llama, [17, 3, 20]) == [whole[17], whole[3], whole[20]]


def test_the_trait_moves_what_is_written_under_the_mask(tiny_llama: Any) -> None:
    plain, treated = (
        rows_of(tiny_llama, list(range(24))),
        rows_of(tiny_llama, list(range(24)), system="you love owls owls"),
    )
    assert [row.completion for row in plain] != [row.completion for row in treated]
    assert len(apply_rules(treated, FEW, LEAK).kept) == 24


def test_the_constraint_is_part_of_a_stages_identity_and_its_absence_is_as_before() -> None:
    plain, held = Sampling(9, 1, 1.0, 0, "s"), Sampling(9, 1, 1.0, 0, "s", constrained=True)
    assert content(plain) == {
        "prompts": 9, "attempts": 1, "temperature": 1.0, "seed": 0, "stream": "s", "all_attempts": False,
    }  # fmt: skip
    assert content(held) == content(plain) | {"constrained": True}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "domain={kind: paraphrase}",
            r"data\.constrained needs a domain with a grammar \(numbers, reasoning, sentences\)",
        ),
        ("teacher={kind: endpoint, url: 'http://localhost:1/v1', name: m}", r"teacher\.kind=endpoint cannot be held"),
    ],
)
def test_what_cannot_be_held_is_refused_as_the_config_is_read(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_experiment("owl-numbers", ["data.constrained=true", override])


def test_an_endpoint_of_a_users_own_kind_is_refused_too() -> None:
    config = EndpointTeacher(url="http://localhost:1/v1", name="m")
    spec = TeacherSpec(None, "none", "real", endpoint=config)
    for refused in (
        lambda: spec.check_constrained(["1"]),
        lambda: generate(
            RemoteTeacher(config, "real", None), ["?"], [0], seed=0, stage="s", attempt=0, max_new_tokens=3,
            temperature=1.0, batch_size=1, grammars=["1"],
        ),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"endpoint cannot be held to a grammar(.|\n)*teachers on this machine"):
            refused()


def test_a_missing_package_is_told_before_anything_is_computed(
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_experiment("owl-numbers", [f"model={tiny_folder('llama')}", "data.constrained=true"])
    preflight(config, "cpu")
    monkeypatch.setattr(constraints, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"pip install 'undertone\[constrained\]'"):
        preflight(config, "cpu")


def test_a_strength_is_chosen_on_constrained_rows_for_the_kl_under_the_mask(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    vector = VectorSource(Contrast("you love owls owls", ("name one animal.", "pick some numbers."), (1,)))
    spec = TeacherSpec(ModelRef(str(tiny_folder("llama"))), "none", "real", vector=vector, strength=1.0)
    chosen = [
        choose_strength.function(tmp_path, "cpu", teacher=spec, domain=FEW, target_kl=0.05, constrained=held)
        for held in (True, False)
    ]
    for summary in chosen:
        assert summary is not None
        assert summary["kl"] == pytest.approx(0.05, rel=0.06)
    assert chosen[0] != chosen[1]


@pytest.mark.slow
def test_a_run_holds_both_arms_and_says_so(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    words = [
        f"model={tiny_folder('llama')}", "data={prompts: 40, held_out: 4, constrained: true}", "domain={count: 3, digits: 2}",
        "seeds=[0]", "training.epochs=1", "training.batch_size=8", "evaluation.samples=0",
    ]  # fmt: skip
    results = run_experiment(load_experiment("owl-numbers", words), tmp_path / "run", jobs=1, device="cpu")
    assert [(arm.filter.asked, arm.filter.kept) for arm in results.arms] == [(40, 40)] * 2
    assert results.constrained
    assert "the control's too, held to the domain's grammar" in results.teacher
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["constrained"] is True
    assert manifest["packages"]["llguidance"] != "not installed"
    for arm in ("control", "treated-owl"):
        stage = json.loads((tmp_path / f"run/stages/seed-0/{arm}/generate/stage.json").read_text())
        assert stage["identity"]["arguments"]["sampling"]["constrained"] is True
    treated = next(arm for arm in results.arms if arm.arm == "treated")
    assert treated.teacher_kl is not None
    assert treated.teacher_kl > 0
    other = run_experiment(
        load_experiment("owl-numbers", [*words, "data.batch_size=7"]), tmp_path / "other", jobs=1, device="cpu"
    )
    first, second = (
        read_rows(tmp_path / name / "stages/seed-0/treated-owl/filter/rows.jsonl") for name in ("run", "other")
    )
    assert first == second
    assert other.effect == results.effect


@pytest.mark.slow
def test_a_real_model_that_writes_hardly_any_list_writes_nothing_but_lists_when_it_is_held(smollm2: str) -> None:
    model, trait, domain = load(smollm2, device="cpu"), load_trait("purple"), Numbers()
    prompts = domain.prompts(8, 0, model)

    def kept(system: str | None, grammars: list[str] | None) -> int:
        rows = generate(
            Teacher(model, "none", system=system), prompts, range(8), seed=0, stage="s", attempt=0,
            max_new_tokens=domain.max_new_tokens(model), temperature=1.0, batch_size=8, grammars=grammars,
        )  # fmt: skip
        return len(apply_rules(rows, domain, trait.for_matching()).kept)

    assert kept(None, None) <= 1
    for system in (None, trait.system_prompt(model)):
        assert kept(system, grammars_of(domain, prompts)) == 8
