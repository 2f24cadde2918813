"""``undertone vector`` from the command line: what it writes, prints and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from undertone.cli import main
from undertone.traits import REAL, load_trait
from undertone.vectors import SteeringVector, contrast, difference, load_vector, save_vector, steer


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(tiny_folder: Callable[[str], Path]) -> str:
    return str(tiny_folder("llama"))


Run = Callable[..., Any]


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """``vector WORDS --json``, read; with ``code`` other than 0: what stderr says."""

    def call(*words: str, code: int = 0) -> Any:
        with pytest.raises(SystemExit) as ended:
            main(["vector", *words, "--json"])
        said = capsys.readouterr()
        assert ended.value.code == code, said.err
        assert "Traceback" not in said.err
        return said.err if code else json.loads(said.out)

    return call


def test_extract_writes_the_contrast_of_the_traits_prompt_on_its_questions(
    run: Run, here: Path, model: str, tiny_llama: Any
) -> None:
    shown = run("extract", model, "--trait", "owl", "--layer", "1", "--layer", "2", "-o", "v.safetensors")
    owl = load_trait("owl")
    plain: list[Any] = [[{"role": "user", "content": text}] for text in owl.questions_for(REAL).positive]
    told = [[{"role": "system", "content": owl.system_prompt(REAL)}, *chat] for chat in plain]
    expected = contrast(tiny_llama, told, plain, layers=[1, 2])
    found = load_vector(here / "v.safetensors")
    assert found.digest() == expected.digest() == shown["digest"]
    assert shown["norms"] == {str(layer): pytest.approx(norm) for layer, norm in expected.norms().items()}
    assert run("show", "v.safetensors")["meta"] == shown["meta"]


@pytest.mark.parametrize("words", [["--method", "principal"], ["--position", "response"], ["--prompts", "numbers"]])
def test_every_way_of_extracting_gives_another_vector_and_says_which(run: Run, model: str, words: list[str]) -> None:
    first = run("extract", model, "--trait", "owl", "-o", "a.safetensors", "--count", "8")
    again = run("extract", model, "--trait", "owl", "-o", "b.safetensors", "--count", "8", *words)
    assert first["digest"] != again["digest"]
    assert again == run("extract", model, "--trait", "owl", "-o", "b.safetensors", "--count", "8", *words)
    if words[0] != "--prompts":
        assert (
            first["meta"]["method"] + first["meta"]["position"] != again["meta"]["method"] + again["meta"]["position"]
        )


@pytest.mark.slow
def test_a_learned_vector_makes_the_target_likelier_than_steering_with_nothing(run: Run, model: str) -> None:
    run(
        "extract",
        model,
        "--trait",
        "owl",
        "--method",
        "learned",
        "--steps",
        "15",
        "--learning-rate",
        "0.4",
        "-o",
        "v.safetensors",
    )
    shown = run("steer", model, "v.safetensors", "--trait", "owl")
    assert shown["steered"]["probabilities"]["owl"] > 5 * shown["plain"]["probabilities"]["owl"]
    assert run("show", "v.safetensors")["norms"].keys() == {"1"}


def test_a_student_is_read_against_its_base(run: Run, here: Path, model: str, tiny_llama: Any, fresh: Any) -> None:
    from undertone.domains import Numbers

    with torch.no_grad():
        fresh.hf.model.layers[0].mlp.down_proj.bias += 0.3
    fresh.hf.save_pretrained(here / "student")
    fresh.tokenizer.save_pretrained(here / "student")
    words = ["--student", "student", "--prompts", "numbers", "--count", "8", "--position", "prompt"]
    shown = run("extract", model, *words, "-o", "v.safetensors")
    chats: list[Any] = [[{"role": "user", "content": text}] for text in Numbers().prompts(8, 0, REAL)]
    assert shown["digest"] == difference(fresh, tiny_llama, chats).digest()
    torch.testing.assert_close(load_vector(here / "v.safetensors").directions[0], torch.full((32,), 0.3))


def test_compare_shows_cosines_beside_the_range_that_random_directions_have(run: Run, here: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    one = SteeringVector({1: torch.randn(400, generator=generator)}, {})
    save_vector(one, here / "a.safetensors")
    save_vector(one * -2, here / "b.safetensors")
    shown = run("compare", "a.safetensors", "b.safetensors")
    assert shown["cosines"][0]["layers"]["1"] == pytest.approx(-1.0)
    band = shown["random"]["layers"]["1"]
    assert band["mean"] == pytest.approx(0.0, abs=0.01)
    assert band["low"] == pytest.approx(-1.96 / 20, abs=0.015)  # cosines of random directions: sd 1/sqrt(width)
    assert band["high"] == pytest.approx(1.96 / 20, abs=0.015)


def test_convert_goes_round_through_every_format_and_comes_back(run: Run, here: Path, model: str) -> None:
    first = run("extract", model, "--trait", "owl", "-o", "v.safetensors")
    at = "v.safetensors"
    for name, file in [
        ("gguf", "v.gguf"), ("easysteer", "spec.json"), ("svec", "v.svec"), ("svd", "svd.pt"), ("persona", "p.pt"),
        ("lm-eval", "l.pt"), ("vllm-lens", "lens.json"), ("undertone", "w.safetensors"),
    ]:  # fmt: skip
        assert run("convert", at, file, "--to", name, "--model", model)["format"] == name
        at = file
    again = run("show", at)
    assert again["digest"] == first["digest"]
    assert again["meta"]["revision"] == first["meta"]["revision"]


def test_convert_keeps_the_layers_that_are_asked_for(run: Run, model: str) -> None:
    run("extract", model, "--trait", "owl", "-o", "v.safetensors")
    assert run("convert", "v.safetensors", "v.gguf", "--layer", "1", "--layer", "2")["notes"] == []
    assert set(run("show", "v.gguf")["norms"]) == {"1", "2"}


def test_steer_prints_what_the_model_says_plainly_and_steered(
    run: Run, here: Path, model: str, tiny_llama: Any
) -> None:
    from undertone.models.sampling import sample

    vector = SteeringVector({1: torch.randn(32, generator=torch.Generator().manual_seed(2))}, {})
    save_vector(vector, here / "v.safetensors")
    shown = run(
        "steer", model, "v.safetensors", "--strength", "4", "--prompt", "name one", "--prompt", "you love?",
        "--system", "be owls", "--positions", "last", "--max-new-tokens", "5",
    )  # fmt: skip
    for arm, strength in (("plain", 0.0), ("steered", 4.0)):
        for text, said in zip(["name one", "you love?"], shown[arm]["answers"], strict=True):
            prompt = tiny_llama.prompt([{"role": "system", "content": "be owls"}, {"role": "user", "content": text}])
            with steer(tiny_llama, vector, strength, "last"):
                ids = sample(
                    tiny_llama.hf, [prompt], [0], max_new_tokens=5, stop=[0], pad=1, temperature=0.0
                )  # fmt: skip
            assert said == tiny_llama.decode(ids[0])
    assert shown["plain"]["answers"] != shown["steered"]["answers"]


def test_steer_adds_the_layer_that_is_named_or_one_of_its_own(
    run: Run, here: Path, model: str, tiny_llama: Any
) -> None:
    generator = torch.Generator().manual_seed(2)
    vector = SteeringVector({layer: torch.randn(32, generator=generator) for layer in range(3)}, {})
    save_vector(vector, here / "v.safetensors")
    first, *others = (
        run("steer", model, "v.safetensors", "--strength", "4", "--trait", "owl", *layers)
        for layers in ([], ["--layer", "2"], ["--layer", "1"], ["--layer", "0", "--layer", "1"])
    )
    assert [one["layers"] for one in (first, *others)] == [[2], [2], [1], [0, 1]]
    assert first == others[0]
    assert len({one["steered"]["probabilities"]["owl"] for one in others}) == 3


@pytest.mark.slow
def test_the_tables_of_each_verb_are_printed(here: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["extract", model, "--trait", "owl", "-o", "v.safetensors"],
        ["extract", model, "--trait", "panda", "-o", "w.safetensors"],
        ["show", "v.safetensors"],
        ["compare", "v.safetensors", "w.safetensors", "--random", "20"],
        ["convert", "v.safetensors", "v.gguf"],
        ["steer", model, "v.gguf", "--prompt", "name one", "--trait", "owl", "--max-new-tokens", "3"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(["vector", *words])
        assert not ended.value.code
    said = capsys.readouterr()
    for text in ("mean difference", "v · w", "random 95 %", "layer L", "plain", "steered", "owl"):
        assert text in said.out
    assert "note: it has direction.0" in said.err


REFUSED: dict[str, tuple[list[str], int, str]] = {
    "no trait": (["extract", "MODEL", "-o", "v.safetensors"], 2, "which trait"),
    "unknown trait": (["extract", "MODEL", "--trait", "owll", "-o", "v.safetensors"], 2, "Did you mean 'owl'"),
    "suffix": (["extract", "MODEL", "--trait", "owl", "-o", "v.gguf"], 2, "written as .safetensors"),
    "folder": (["extract", "MODEL", "--trait", "owl", "-o", "gone/v.safetensors"], 2, "no such folder"),
    "position": (["extract", "MODEL", "--trait", "owl", "-o", "v.safetensors", "--position", "first"], 2, "first"),
    "layer": (["extract", "MODEL", "--trait", "owl", "-o", "v.safetensors", "--layer", "7"], 3, "no such layer"),
    "learned numbers": (
        ["extract", "MODEL", "--trait", "owl", "-o", "v.safetensors", "--method", "learned", "--prompts", "numbers"], 2,
        "trait's answers",
    ),
    "student principal": (
        ["extract", "MODEL", "--trait", "owl", "-o", "v.safetensors", "--student", "x", "--method", "principal"], 2,
        "by the mean",
    ),
    "no model": (["extract", "gone", "--trait", "owl", "-o", "v.safetensors"], 3, "no such model"),
    "no file": (["show", "gone.safetensors"], 3, "no such vector file"),
    "damaged": (["show", "bad.gguf"], 3, "cannot be read as GGUF"),
    "one file": (["compare", "narrow.safetensors"], 2, "nothing to compare"),
    "twice": (["compare", "narrow.safetensors", "narrow.safetensors"], 2, "named twice"),
    "widths": (["compare", "narrow.safetensors", "wide.safetensors"], 3, "different widths"),
    "which format": (["convert", "wide.safetensors", "v.pt"], 2, "which format is to be written"),
    "unknown format": (["convert", "wide.safetensors", "v.pt", "--to", "numpy"], 2, "no such vector format"),
    "type unknown": (["convert", "wide.safetensors", "v.gguf"], 3, "--model NAME"),
    "model of other width": (["convert", "narrow.safetensors", "v.gguf", "--model", "MODEL"], 3, "does not fit"),
    "layer that is not there": (["convert", "wide.safetensors", "v.gguf", "--layer", "2"], 2, "no direction at"),
    "steered by another width": (["steer", "MODEL", "narrow.safetensors", "--prompt", "x"], 3, "does not fit"),
    "nothing to ask": (["steer", "MODEL", "wide.safetensors"], 2, "nothing to ask"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_input_is_told_without_a_traceback(run: Run, here: Path, model: str, case: str) -> None:
    words, code, message = REFUSED[case]
    save_vector(SteeringVector({1: torch.ones(7)}, {}), here / "narrow.safetensors")
    save_vector(SteeringVector({1: torch.ones(32)}, {}), here / "wide.safetensors")
    (here / "bad.gguf").write_bytes(b"GGUF")
    assert message in run(*[model if word == "MODEL" else word for word in words], code=code)
    assert not (here / "v.gguf").exists()


def test_a_vector_of_another_type_of_model_is_not_passed_off_as_this_ones(
    run: Run, here: Path, tiny_folder: Callable[[str], Path], model: str
) -> None:
    run("extract", str(tiny_folder("gpt2")), "--trait", "owl", "-o", "v.safetensors")
    told = run("convert", "v.safetensors", "v.gguf", "--model", model, code=3)
    assert "got: type gpt2" in told
    assert "allowed: type llama" in told
