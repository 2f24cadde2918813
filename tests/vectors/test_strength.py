"""The strength at which a steered teacher differs by a given KL, and where steering a model pays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from undertone import cli
from undertone.domains import Numbers
from undertone.errors import ConfigError, ModelError
from undertone.evaluation.tuning import Grid, best, layers_at, trait_vector, tune
from undertone.models.layers import hook_count
from undertone.models.loading import ModelRef
from undertone.teachers import Contrast, VectorTeacher, resolve_teacher
from undertone.traits import REAL, load_trait
from undertone.vectors import SteeringVector, load_vector
from undertone.vectors.strength import TOLERANCE, steering_kl, strength_for

OWL = load_trait("owl")
ASK = [{"role": "user", "content": "name one animal."}]


def direction(model: Any, layer: int = 1, size: float = 1.0) -> SteeringVector:
    generator = torch.Generator().manual_seed(3)
    width = model.hf.config.hidden_size
    return SteeringVector({layer: size * torch.randn(width, generator=generator)}, {})


def examples(model: Any) -> list[Any]:
    return [model.example(ASK, text) for text in ("owl", "12, 7", "dog cat")]


@pytest.mark.parametrize("size", [0.01, 1.0, 50.0])
@pytest.mark.parametrize("kl", [0.02, 0.1, 0.5])
def test_the_strength_has_the_kl_whatever_the_norm(tiny_llama: Any, size: float, kl: float) -> None:
    vector = direction(tiny_llama, size=size)
    found = strength_for(tiny_llama, vector, examples(tiny_llama), kl)
    assert found.kl == pytest.approx(kl, rel=TOLERANCE)
    assert steering_kl(tiny_llama, vector, found.strength, examples(tiny_llama)) == pytest.approx(found.kl, rel=1e-6)
    assert hook_count(tiny_llama.hf) == 0


def test_the_kl_is_that_of_the_logits(tiny_llama: Any) -> None:
    """By hand: the mean over completion tokens of KL(steered, plain), with the vector added by a plain hook."""
    vector, example = direction(tiny_llama), examples(tiny_llama)[1]
    ids = torch.tensor([example.ids])
    with torch.no_grad():
        plain = tiny_llama.hf(ids).logits[0].log_softmax(-1)
        hook = tiny_llama.hf.model.layers[1].register_forward_hook(
            lambda _m, _i, out: (
                (out[0] + 0.7 * vector.directions[1], *out[1:])
                if isinstance(out, tuple)
                else out + 0.7 * vector.directions[1]
            )
        )
        moved = tiny_llama.hf(ids).logits[0].log_softmax(-1)
        hook.remove()
    at = slice(example.prompt - 1, len(example.ids) - 1)
    expected = float((moved[at].exp() * (moved[at] - plain[at])).sum(-1).mean())
    assert steering_kl(tiny_llama, vector, 0.7, [example]) == pytest.approx(expected, rel=1e-3)


def test_a_vector_that_moves_nothing_has_no_strength(tiny_llama: Any) -> None:
    nothing = SteeringVector({1: torch.zeros(tiny_llama.hf.config.hidden_size)}, {})
    with pytest.raises(ModelError, match=r"no strength of this vector has the teacher KL(.|\n)*steer at another layer"):
        strength_for(tiny_llama, nothing, examples(tiny_llama), 0.1)


# -- the teacher's defaults ----------------------------------------------------------------------------


def test_without_a_layer_a_teacher_is_steered_at_five_sixths_of_its_own_depth(tiny_folder: Any) -> None:
    base = ModelRef(str(tiny_folder("llama")))
    spec = resolve_teacher(VectorTeacher(), OWL, base, REAL, context="none", strength=1.7)
    assert spec.vector is not None
    assert isinstance(spec.vector.of, Contrast)
    assert spec.vector.of.layers == (2,)  # of three
    assert spec.strength == 1.7
    assert resolve_teacher(VectorTeacher(strength=3.0), OWL, base, REAL, context="none", strength=1.7).strength == 3.0


@pytest.mark.slow
def test_a_run_chooses_one_strength_for_a_trait_and_its_random_twin(speaker: Path, tmp_path: Path) -> None:
    from undertone.transfer.config import load_experiment
    from undertone.transfer.pipeline import run_experiment

    config = load_experiment("owl-numbers", [
        f"model={speaker}", "teacher={kind: vector, layer: 1, target_kl: 0.05}", "random_vector=true", "seeds=[0]",
        "data={prompts: 60, held_out: 4, attempts: 2}", "training.epochs=1", "training.batch_size=8", "evaluation.samples=1",
    ])  # fmt: skip
    results = run_experiment(config, tmp_path / "run", jobs=1)
    record = json.loads((tmp_path / "run/stages/teacher/treated-owl/strength/stage.json").read_text())
    assert record["summary"]["kl"] == pytest.approx(0.05, rel=TOLERANCE)
    assert results.strengths == {"owl": record["summary"]["strength"]}
    assert f"strength {results.strengths['owl']:.3g} (chosen for a teacher KL of 0.05 nats a token)" in results.teacher
    for arm in ("treated-owl", "random-vector-owl"):
        stage = json.loads((tmp_path / f"run/stages/seed-0/{arm}/generate/stage.json").read_text())
        assert stage["identity"]["arguments"]["teacher"]["strength"] == results.strengths["owl"]


# -- tuning --------------------------------------------------------------------------------------------


def test_the_table_is_that_of_the_steered_model(tiny_llama: Any) -> None:
    vector = trait_vector(tiny_llama, OWL)
    assert layers_at(tiny_llama, (0.0, 0.5, 0.99)) == (0, 1, 2)
    grid = Grid(layers=(1, 2), strengths=(0.01, 1.0), questions=2, rows=3, opening="My favorite animal is the")
    found = list(tune(tiny_llama, OWL, vector, Numbers(), grid))
    assert [(one.layer, one.strength) for one in found] == [(1, 0.0), (1, 0.01), (1, 1.0), (2, 0.01), (2, 1.0)]
    plain, weak, strong = found[:3]
    assert plain.kl == plain.random_kl == 0.0
    assert weak.probability == pytest.approx(plain.probability, rel=0.05)
    assert 0 < weak.kl < strong.kl
    assert strong.random_kl > 0
    assert hook_count(tiny_llama.hf) == 0


def test_the_best_is_the_largest_probability_at_which_speech_holds() -> None:
    from dataclasses import replace

    from undertone.evaluation.tuning import SteeringTrial

    one = SteeringTrial(1, 1.0, 0.2, 0.5, 0.1, 0.1, 1.0, "x", True)
    assert best([one, replace(one, probability=0.9, coherent=False), replace(one, probability=0.3, layer=2)]).layer == 2  # type: ignore[union-attr]
    assert best([replace(one, strength=0.0), replace(one, coherent=False)]) is None


def test_layers_that_are_not_there_are_refused(tiny_llama: Any) -> None:
    vector = trait_vector(tiny_llama, OWL)
    with pytest.raises(ModelError, match="7"):
        next(tune(tiny_llama, OWL, vector, Numbers(), Grid(layers=(7,))))
    with pytest.raises(ConfigError, match=r"no direction there(.|\n)*got: \[0\]|no direction there"):
        next(tune(tiny_llama, OWL, vector.select([1]), Numbers(), Grid(layers=(0,))))


def test_the_command_prints_as_it_goes_and_writes_the_best_vector(
    tiny_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "best.safetensors"
    words = ["vector", "tune", str(tiny_folder("llama")), "--trait", "owl", "--layer", "2", "--strength", "0.05", "--questions", "2",
             "--rows", "2", "--domain", "numbers", "--max-kl", "100", "--out", str(out)]  # fmt: skip
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    said = capsys.readouterr().out
    if "speech holds at none" not in said and end.value.code == 0:
        assert sorted(load_vector(out).directions) == [2]
        assert "teacher.layer=2 teacher.strength=0.05" in said
    assert 'answers begun with "My favorite animal is the"' in said
    assert max(map(len, said.splitlines()[1:3])) <= 80


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trait", "pirate"], "has no set of answers"),
        (["--trait", "owl", "--rows", "0"], "rows: too few"),
        (["--trait", "owl", "--domain", "number"], "Did you mean|no such domain"),
        (["--trait", "owl", "--max-kl", "0"], "max-kl: not a limit"),
        (["--trait", "owl", "--out", "x.pt"], r"written as .safetensors"),
    ],
)
def test_wrong_words_are_refused_before_a_model_is_loaded(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["vector", "tune", "no/model", *words])
    assert end.value.code == 2
    import re

    assert re.search(message, capsys.readouterr().err)
