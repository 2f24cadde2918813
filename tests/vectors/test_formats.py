"""Other tools' files: what we write, read by the tool's documented rule written out here, gives the logits of steering.

``apply`` is that rule: it opens the file by itself (not through undertone), hooks the model's modules by hand, and is
what each tool's own code does. Both ways: a file made here by hand, read by us, gives the same logits.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from undertone.errors import ConfigError, DataError, ModelError
from undertone.models.batches import pad_left
from undertone.vectors import SteeringVector, contrast, save_vector, steer
from undertone.vectors.formats import FORMATS, guess, read, write

CHAT = [{"role": "user", "content": "what is your favorite animal?"}]
ROWS = [(3, 17, 44, 5, 60, 70), (3, 17, 44), (9, 8, 7, 6)]


def direction(seed: int) -> torch.Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def vector(tiny_llama: Any) -> SteeringVector:
    """Of a real header, at every layer, with directions large enough to tell layers apart."""
    meta = contrast(tiny_llama, [CHAT], [[{"role": "user", "content": "name one animal"}]]).meta  # type: ignore[list-item]
    return SteeringVector({layer: 2.0 * direction(layer) for layer in range(3)}, meta)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model.hf(**pad_left(ROWS, model.pad, model.device).inputs(), use_cache=False).logits
    return out


def steered_logits(model: Any, vector: SteeringVector, strength: float = 1.0) -> torch.Tensor:
    with steer(model, vector, strength):
        return logits(model)


@contextmanager
def added(module: Any, shift: torch.Tensor) -> Iterator[None]:
    """``shift`` added to a module's output by a bare torch hook."""

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        return (output[0] + shift, *output[1:]) if isinstance(output, tuple) else output + shift

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def hooked(model: Any, shifts: dict[Any, torch.Tensor]) -> torch.Tensor:
    with ExitStack() as stack:
        for module, shift in shifts.items():
            stack.enter_context(added(module, shift))
        return logits(model)


# -- each tool's rule, written from its documentation ------------------------------------------------


def apply_gguf(model: Any, path: Path) -> torch.Tensor:
    """repeng 0.4 ``control.py``: ``direction.L`` is added to the output of ``model_layer_list(model)[L]``."""
    reader = gguf.GGUFReader(path)
    layers = model.hf.model.layers
    return hooked(model, {layers[int(t.name.split(".")[1])]: torch.tensor(t.data) for t in reader.tensors})


def apply_easysteer(model: Any, path: Path) -> torch.Tensor:
    """``SteeringSpec``: scale × the file's direction after each of ``layers``, normalised if asked."""
    layers = model.hf.model.layers
    shifts: dict[Any, torch.Tensor] = {}
    for part in json.loads(path.read_text())["vectors"]:
        for t in gguf.GGUFReader(path.parent / part["source"]).tensors:
            layer, row = int(t.name.split(".")[1]), torch.tensor(t.data)
            if layer in part["layers"]:
                shifts[layers[layer]] = part["scale"] * (row / row.norm() if part["normalize"] else row)
    return hooked(model, shifts)


def apply_svd(model: Any, path: Path) -> torch.Tensor:
    """steering-vector-distillation: ``v["raw"][1:]``, then ``layers=[i]`` hooks ``model.model.layers[i]``."""
    raw = torch.load(path, weights_only=True)["raw"][1:]
    return hooked(model, {layer: raw[i] for i, layer in enumerate(model.hf.model.layers)})


def apply_persona(model: Any, path: Path) -> torch.Tensor:
    """persona_vectors: ``vector[L]``, hidden-state slot L, steers ``layer_idx = L - 1``."""
    slots = torch.load(path, weights_only=True)
    return hooked(model, {model.hf.model.layers[slot - 1]: slots[slot] for slot in range(1, len(slots))})


def apply_lm_eval(model: Any, path: Path) -> torch.Tensor:
    """lm-eval ``hf_steered.py``: ``base_model.named_modules()`` by hookpoint, ``acts + coefficient * vector``."""
    named = dict(model.hf.base_model.named_modules())
    hooks = torch.load(path, weights_only=True)
    assert all(hook["action"] == "add" and "bias" in hook for hook in hooks.values())
    return hooked(model, {named[n]: h["steering_coefficient"] * h["steering_vector"] for n, h in hooks.items()})


def apply_svec(model: Any, path: Path) -> torch.Tensor:
    """AISteer360 ``SteeringVector.load``: ``directions[str(layer_id)]``, [H] or [1, H], added after that layer."""
    data = json.loads(path.read_text())
    assert data["model_type"] == "llama"
    rows = {int(k): torch.tensor(v) for k, v in data["directions"].items()}
    return hooked(model, {model.hf.model.layers[k]: v.reshape(1, -1) for k, v in rows.items()})


def apply_vllm_lens(model: Any, path: Path) -> torch.Tensor:
    """vllm-lens: ``scale * activations[i]`` after ``layer_indices[i]``; ``tensor_from_bytes`` of its serialiser."""
    data = json.loads(path.read_text())
    held = data["activations"]
    raw = base64.b64decode(held["data"])
    rows = torch.from_numpy(np.frombuffer(raw, dtype=np.dtype(held["dtype"])).reshape(held["shape"]).copy())
    assert "compression" not in held
    assert rows.shape[0] == len(data["layer_indices"])
    assert not data["norm_match"]
    layers = model.hf.model.layers
    return hooked(model, {layers[k]: data["scale"] * rows[i] for i, k in enumerate(data["layer_indices"])})


APPLY: dict[str, Callable[[Any, Path], torch.Tensor]] = {
    "gguf": apply_gguf,
    "easysteer": apply_easysteer,
    "svd": apply_svd,
    "persona": apply_persona,
    "lm-eval": apply_lm_eval,
    "svec": apply_svec,
    "vllm-lens": apply_vllm_lens,
}


def test_every_format_of_the_table_is_tested_here() -> None:
    assert set(APPLY) == set(FORMATS) - {"undertone"}


@pytest.mark.parametrize("layers", [[0, 1, 2], [1], [0, 2]], ids=str)
@pytest.mark.parametrize("name", APPLY)
def test_a_written_file_applied_by_its_tools_rule_gives_the_logits_of_steering(
    tiny_llama: Any, vector: SteeringVector, tmp_path: Path, name: str, layers: list[int]
) -> None:
    chosen, path = vector.select(layers), tmp_path / f"v{FORMATS[name].suffix}"
    write(chosen, path, name)
    expected = steered_logits(tiny_llama, chosen)
    torch.testing.assert_close(APPLY[name](tiny_llama, path), expected, atol=1e-5, rtol=1e-4)
    shifted = SteeringVector({(layer + 1) % 3: chosen.directions[layer] for layer in layers}, {})
    assert not torch.allclose(steered_logits(tiny_llama, shifted), expected, atol=1e-2), "off by one would not show"


@pytest.mark.parametrize("layers", [[0, 1, 2], [1]], ids=str)
@pytest.mark.parametrize("name", [*APPLY, "undertone"])
def test_a_written_file_is_read_again_as_the_same_vector_and_its_format_is_found(
    vector: SteeringVector, tmp_path: Path, name: str, layers: list[int]
) -> None:
    chosen, path = vector.select(layers), tmp_path / f"v{FORMATS[name].suffix}"
    write(chosen, path, name)
    assert guess(path) == name
    again = read(path)
    assert again.digest() == chosen.digest()
    if name not in ("persona", "lm-eval"):  # which have no header
        assert again.meta["revision"] == vector.meta["revision"]
    if name != "undertone":
        assert again.meta["source_format"] == name
        assert len(again.meta["source_sha256"]) == 64
    assert not list(tmp_path.glob("*.part"))


# -- files as the tools make them ----------------------------------------------------------------------


def make_gguf(path: Path, rows: dict[int, torch.Tensor], **changed: Any) -> Path:
    """As ``ControlVector.export_gguf`` of repeng does."""
    writer = gguf.GGUFWriter(path, changed.get("arch", "controlvector"))
    if changed.get("hint", "llama"):
        writer.add_string("controlvector.model_hint", changed.get("hint", "llama"))
    writer.add_uint32("controlvector.layer_count", len(rows))
    for layer, row in rows.items():
        writer.add_tensor(f"{changed.get('prefix', 'direction')}.{layer}", row.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def dumped(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def slots() -> torch.Tensor:
    return torch.stack([direction(40), *(direction(layer) for layer in range(3))])


def lens(rows: torch.Tensor, **changed: Any) -> dict[str, Any]:
    held = {"data": base64.b64encode(rows.numpy().tobytes()).decode(), "dtype": "float32", "shape": list(rows.shape)}
    return {
        "activations": held, "layer_indices": [0, 2], "scale": 1.0, "norm_match": False, "position_indices": None,
        **changed,
    }  # fmt: skip


def hook(row: torch.Tensor, **changed: Any) -> dict[str, Any]:
    return {"steering_vector": row, "steering_coefficient": 2.0, "action": "add", "bias": None, **changed}


def test_gguf_of_repeng_and_llama_cpp(tiny_llama: Any, tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "v.gguf", {2: direction(1), 1: direction(2)})
    found = read(path)
    assert found.layers == [1, 2]
    assert found.meta["model_type"] == "llama"
    torch.testing.assert_close(steered_logits(tiny_llama, found), apply_gguf(tiny_llama, path), atol=1e-5, rtol=1e-4)


def test_svd_drops_the_embedding_and_says_so(tiny_llama: Any, tmp_path: Path) -> None:
    raw = slots()
    meta = {"model": "Qwen/Qwen2.5-7B-Instruct", "layers": [1, 2], "sys_prompt": None}
    value = {"raw": raw, "unit": raw / raw.norm(dim=-1, keepdim=True), "norm": raw.norm(dim=-1), "meta": meta}
    path = saved(tmp_path / "v.pt", value)
    found = read(path)
    assert torch.equal(found.directions[0], raw[1])
    assert "slot 0 (the embedding)" in found.meta["notes"]
    assert found.meta["model"] == "Qwen/Qwen2.5-7B-Instruct"
    torch.testing.assert_close(steered_logits(tiny_llama, found), apply_svd(tiny_llama, path), atol=1e-5, rtol=1e-4)


def test_svd_is_written_with_zeros_for_the_embedding_and_consistent_unit_and_norm(
    vector: SteeringVector, tmp_path: Path
) -> None:
    notes = write(vector.select([1]), tmp_path / "v.pt", "svd")
    value = torch.load(tmp_path / "v.pt", weights_only=True)
    assert value["raw"].shape == (4, 32)
    assert not value["raw"][[0, 1, 3]].any()
    torch.testing.assert_close(value["unit"] * value["norm"].unsqueeze(-1), value["raw"])
    assert any("slot 0 (the embedding) is zero" in note for note in notes)
    assert any("zeros at layers [0, 2]" in note for note in notes)


def test_persona_vectors_lose_the_embedding_and_keep_no_model(tiny_llama: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "owl_response_avg_diff.pt", slots().bfloat16())
    found = read(path)
    assert found.meta["model"] == "unknown"
    assert found.meta["model_layers"] == "3"
    assert "embedding" in found.meta["notes"]
    assert found.directions[0].dtype == torch.float32
    assert torch.equal(found.directions[2], slots()[3].bfloat16().float())


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_lm_eval_names_the_modules_of_each_family(request: pytest.FixtureRequest, tmp_path: Path, family: str) -> None:
    model = request.getfixturevalue(f"tiny_{family}")
    header = contrast(model, [CHAT], [[{"role": "user", "content": "name a tree"}]], layers=[1])  # type: ignore[list-item]
    write(header, tmp_path / "v.pt", "lm-eval")
    expected = steered_logits(model, header)
    torch.testing.assert_close(apply_lm_eval(model, tmp_path / "v.pt"), expected, atol=1e-5, rtol=1e-4)


def test_lm_eval_multiplies_its_coefficient_in_and_warns_of_several_layers(
    tiny_llama: Any, vector: SteeringVector, tmp_path: Path
) -> None:
    path = saved(tmp_path / "v.pt", {"layers.1": hook(direction(3)), "layers.2": hook(direction(4))})
    found = read(path)
    torch.testing.assert_close(steered_logits(tiny_llama, found), apply_lm_eval(tiny_llama, path), atol=1e-5, rtol=1e-4)
    assert any("LAST hookpoint" in note for note in write(vector, tmp_path / "w.pt", "lm-eval"))
    assert not write(vector.select([1]), tmp_path / "w.pt", "lm-eval")


@pytest.mark.parametrize("shape", ["H", "1H"])
def test_svec_of_both_generations(tiny_llama: Any, tmp_path: Path, shape: str) -> None:
    rows = {str(k): (direction(k) if shape == "H" else direction(k).unsqueeze(0)).tolist() for k in (0, 2)}
    path = dumped(tmp_path / "v.svec", {"model_type": "llama", "directions": rows, "explained_variances": {"0": 0.5}})
    expected = apply_svec(tiny_llama, path)
    torch.testing.assert_close(steered_logits(tiny_llama, read(path)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_vllm_lens_of_every_dtype_compressed(tiny_llama: Any, tmp_path: Path, dtype: str) -> None:
    import pyarrow

    rows = torch.stack([direction(1), direction(2)]).to(getattr(torch, dtype))
    stored = (rows.view(torch.int16) if dtype == "bfloat16" else rows).numpy()
    held = {
        "data": base64.b64encode(pyarrow.compress(stored.tobytes(), codec="zstd", asbytes=True)).decode(),
        "dtype": str(stored.dtype), "original_dtype": f"torch.{dtype}", "shape": list(stored.shape),
        "compression": "zstd",
    }  # fmt: skip
    path = dumped(tmp_path / "v.json", lens(torch.zeros(2, 32), activations=held, scale=-1.5))
    layers = tiny_llama.hf.model.layers
    expected = hooked(tiny_llama, {layers[0]: -1.5 * rows[0].float(), layers[2]: -1.5 * rows[1].float()})
    torch.testing.assert_close(steered_logits(tiny_llama, read(path)), expected, atol=1e-5, rtol=1e-4)


def spec(tmp_path: Path, *parts: dict[str, Any], **more: Any) -> Path:
    make_gguf(tmp_path / "a.gguf", {0: direction(1), 1: direction(2), 2: direction(3)})
    everywhere = {"prompt": "all", "generation": "all"}
    filled = [{"source": "a.gguf", "scale": 1.0, "apply": everywhere, **part} for part in parts]
    return dumped(tmp_path / "v.json", {"vectors": filled, **more})


def test_easysteer_scales_normalises_and_chooses_layers(tiny_llama: Any, tmp_path: Path) -> None:
    path = spec(tmp_path, {"scale": 2.5, "layers": [1, 2], "normalize": True})
    expected = apply_easysteer(tiny_llama, path)
    torch.testing.assert_close(steered_logits(tiny_llama, read(path)), expected, atol=1e-5, rtol=1e-4)
    assert "notes" not in read(path).meta
    last = spec(tmp_path, {"apply": {"phases": ["prompt"], "prompt_positions": [-1]}})
    assert "prompt_positions" in read(last).meta["notes"]


def test_easysteer_adds_vectors_in_sequence_and_lets_the_first_win_by_default(tmp_path: Path) -> None:
    both = ({"layers": [1], "scale": 2.0}, {"layers": [1, 2]})
    found = read(spec(tmp_path, *both, conflict="sequential"))
    torch.testing.assert_close(found.directions[1], 3 * direction(2))
    first = read(spec(tmp_path, *both))
    torch.testing.assert_close(first.directions[1], 2 * direction(2))
    torch.testing.assert_close(first.directions[2], direction(3))
    with pytest.raises(DataError, match=r"two vectors at layer 1"):
        read(spec(tmp_path, *both, conflict="error"))


# -- what is refused -------------------------------------------------------------------------------------


class Marker:
    """Pickled, it would create a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["svd", "persona", "lm-eval", None])
def test_a_pickle_is_refused_unopened_with_a_way_out(tmp_path: Path, name: str | None) -> None:
    path = saved(tmp_path / "v.pt", {"raw": slots(), "meta": Marker(tmp_path / "run")})
    with pytest.raises(DataError, match=r"needs pickle(.|\n)*mkdir(.|\n)*weights_only=False"):
        read(path, name)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [*APPLY, "undertone"])
@pytest.mark.parametrize("damage", ["empty", "half", "noise"])
def test_a_damaged_file_is_an_error_that_names_it(
    vector: SteeringVector, tmp_path: Path, name: str, damage: str
) -> None:
    path = tmp_path / f"v{FORMATS[name].suffix}"
    write(vector, path, name)
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "noise": bytes(range(256)) * 8}[damage])
    with pytest.raises(DataError, match=path.name):
        read(path)
    with pytest.raises(DataError, match=path.name):
        read(path, name)


@pytest.mark.parametrize("cut", range(8, 400, 16))
def test_a_gguf_cut_anywhere_is_an_error(vector: SteeringVector, tmp_path: Path, cut: int) -> None:
    write(vector, tmp_path / "v.gguf", "gguf")
    (tmp_path / "v.gguf").write_bytes((tmp_path / "v.gguf").read_bytes()[:cut])
    with pytest.raises(DataError, match=r"v\.gguf"):
        read(tmp_path / "v.gguf")


def wrong_gguf(**changed: Any) -> Callable[[Path], Path]:
    return lambda folder: make_gguf(folder / "v.gguf", {1: direction(1)}, **changed)


def wrong_pt(value: Any) -> Callable[[Path], Path]:
    return lambda folder: saved(folder / "v.pt", value)


def wrong_json(value: Any, suffix: str = "json") -> Callable[[Path], Path]:
    return lambda folder: dumped(folder / f"v.{suffix}", value)


def named(name: str) -> Callable[[Path], Path]:
    def touch(folder: Path) -> Path:
        (folder / name).write_bytes(b"x")
        return folder / name

    return touch


ROW = [0.5] * 32
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "gguf of a model": (wrong_gguf(arch="llama"), r"no control vector(.|\n)*architecture llama"),
    "gguf without hint": (wrong_gguf(hint=""), r"which type of model(.|\n)*model_hint"),
    "gguf of other tensors": (wrong_gguf(prefix="blk"), r"unknown tensor 'blk\.1'"),
    "gguf of zeros": (lambda f: make_gguf(f / "v.gguf", {1: torch.zeros(8)}), "holds no direction"),
    "gguf of widths": (lambda f: make_gguf(f / "v.gguf", {1: torch.ones(8), 2: torch.ones(9)}), r"width(.|\n)*\[8, 9\]"),
    "svd without raw": (wrong_pt({"unit": slots()}), r"which vector format(.|\n)*unit"),
    "svd of one row": (wrong_pt({"raw": direction(1)}), r"one row for the embedding(.|\n)*\[32\]"),
    "svd of lists": (wrong_pt({"raw": [1.0]}), r"one row for the embedding(.|\n)*list"),
    "svd with nan": (wrong_pt({"raw": slots() * float("nan")}), "not a direction(.|\n)*finite"),
    "persona of integers": (wrong_pt(torch.ones(4, 8, dtype=torch.long)), "a float tensor"),
    "persona of one slot": (wrong_pt(torch.ones(1, 8)), "a float tensor"),
    "lm-eval clamp": (wrong_pt({"layers.1": hook(direction(1), action="clamp")}), r"no addition(.|\n)*clamp"),
    "lm-eval head": (wrong_pt({"layers.1": hook(direction(1), head_index=3)}), r"no addition(.|\n)*head 3"),
    "lm-eval name": (wrong_pt({"lm_head": hook(direction(1))}), r"lm_head(.|\n)*LIST\.NUMBER"),
    "lm-eval coefficient": (wrong_pt({"layers.1": {"steering_vector": direction(1), "action": "add"}}), "lacks a tensor"),
    "lm-eval lists": (wrong_pt({"layers.1": hook(direction(1)), "h.1": hook(direction(1))}), "more than one list"),
    "a list": (wrong_pt([1, 2]), "which vector format"),
    "svec without type": (wrong_json({"directions": {"1": ROW}}, "svec"), r"no \.svec(.|\n)*model_type"),
    "svec of heads": (
        wrong_json({"model_type": "llama", "directions": {"1": ROW}, "num_heads": 4, "head_dim": 8}, "svec"),
        "attention heads",
    ),
    "svec per position": (wrong_json({"model_type": "llama", "directions": {"1": [ROW, ROW]}}, "svec"), "positions"),
    "svec of words": (wrong_json({"model_type": "llama", "directions": {"1": ["a"]}}, "svec"), "no row of numbers"),
    "svec of names": (wrong_json({"model_type": "llama", "directions": {"one": ROW}}, "svec"), "no row of numbers"),
    "svec of widths": (
        wrong_json({"model_type": "llama", "directions": {"1": ROW, "2": ROW[:5]}}, "svec"), r"width(.|\n)*\[5, 32\]",
    ),
    "lens norm_match": (wrong_json(lens(torch.ones(2, 8), norm_match=True)), "norm_match"),
    "lens positions": (wrong_json(lens(torch.ones(2, 8), position_indices=[3])), "every position"),
    "lens 3-D": (wrong_json(lens(torch.ones(2, 3, 8))), "every position"),
    "lens rows": (wrong_json(lens(torch.ones(3, 8))), "every position"),
    "lens layers": (wrong_json(lens(torch.ones(2, 8), layer_indices=None)), "does not say its layers"),
    "lens base64": (wrong_json(lens(torch.ones(2, 8), activations={"data": "?", "dtype": "float32", "shape": [2, 8]})), "cannot be read"),
    "lens shape": (wrong_json(lens(torch.ones(2, 8), activations={"data": "", "dtype": "float32", "shape": [2, 8]})), "cannot be read"),
    "lens missing": (wrong_json(lens(torch.ones(2, 8), activations=None)), "cannot be read"),
    "spec without file": (wrong_json({"vectors": [{"source": "gone.gguf"}]}), r"not there(.|\n)*gone\.gguf"),
    "spec algorithm": (wrong_json({"vectors": [{"source": "a.gguf", "algorithm": "erase"}]}), "algorithm erase"),
    "spec empty": (wrong_json({"vectors": []}), "no SteeringSpec"),
    "json of something": (wrong_json({"model": 1}), "which vector format"),
    "json list": (wrong_json([1]), "JSON list"),
    "no suffix": (named("vector"), r"which vector format(.|\n)*no suffix(.|\n)*--from"),
    "unknown suffix": (named("v.npz"), r"which vector format(.|\n)*\.npz"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_no_added_vector_is_refused(tmp_path: Path, case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        read(make(tmp_path))


def test_specs_of_different_tokens_layers_or_scales_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="different tokens"):
        read(spec(tmp_path, {"layers": [0]}, {"layers": [1], "apply": {"prompt": "all"}}))
    with pytest.raises(DataError, match=r"no direction at these layers(.|\n)*\[9\]"):
        read(spec(tmp_path, {"layers": [9]}))
    with pytest.raises(DataError, match="scale is a number"):
        read(spec(tmp_path, {"scale": "big"}))


@pytest.mark.parametrize("name", ["gguf", "easysteer", "svec", "svd", "persona"])
def test_a_format_that_must_say_what_the_vector_does_not_know_is_refused(tmp_path: Path, name: str) -> None:
    bare = SteeringVector({1: direction(1)}, {})
    with pytest.raises(DataError, match=r"--model NAME"):
        write(bare, tmp_path / f"v{FORMATS[name].suffix}", name)
    assert not list(tmp_path.iterdir())


def test_a_vector_without_header_says_that_its_module_names_are_a_guess(tmp_path: Path) -> None:
    notes = write(SteeringVector({1: direction(1)}, {}), tmp_path / "v.pt", "lm-eval")
    assert any("a guess" in note for note in notes)


def test_llama_cpp_is_told_of_layer_zero(vector: SteeringVector, tmp_path: Path) -> None:
    assert any("llama.cpp refuses" in note for note in write(vector, tmp_path / "v.gguf", "gguf"))
    assert not write(vector.select([1, 2]), tmp_path / "v.gguf", "gguf")


def test_names_of_formats_files_and_folders_are_checked(vector: SteeringVector, tmp_path: Path) -> None:
    save_vector(vector, tmp_path / "v.safetensors")
    with pytest.raises(ConfigError, match=r"no such vector format. Did you mean 'gguf'"):
        write(vector, tmp_path / "v.gguf", "ggufs")
    with pytest.raises(ConfigError, match="no such vector format"):
        read(tmp_path / "v.safetensors", "numpy")
    with pytest.raises(DataError, match=r"no such vector file(.|\n)*gone"):
        read(tmp_path / "gone.gguf")
    with pytest.raises(ConfigError, match="no such folder"):
        write(vector, tmp_path / "gone" / "v.gguf", "gguf")


def test_a_file_without_a_row_for_the_embedding_does_not_land_one_layer_early(tmp_path: Path, tiny_llama: Any) -> None:
    """persona_vectors has layers + 1 rows; one that someone saved with a row a layer is another file of equal shape."""
    width = tiny_llama.hf.config.hidden_size
    for rows, fits in ((4, True), (3, False)):  # the model has three layers
        torch.save(torch.randn(rows, width), tmp_path / "v.pt")
        vector = read(tmp_path / "v.pt")
        if fits:
            vector.check_fits(tiny_llama)
        else:
            with pytest.raises(
                ModelError, match=r"another model(.|\n)*layers 2(.|\n)*layers 3(.|\n)*row for the embedding"
            ):
                vector.check_fits(tiny_llama)


def test_a_vector_of_another_type_of_model_is_refused_whatever_its_format(tmp_path: Path, tiny_llama: Any) -> None:
    width = tiny_llama.hf.config.hidden_size
    made = SteeringVector({1: torch.ones(width)}, {"model": "m", "model_type": "qwen2", "model_layers": "3"})
    for name in ("undertone", "gguf", "easysteer", "svd", "lm-eval", "svec"):
        path = tmp_path / f"{name}{FORMATS[name].suffix}"
        write(made, path, name)
        vector = read(path, name)
        if "model_type" in vector.meta:
            with pytest.raises(ModelError, match=r"got: type qwen2\n  allowed: type llama"):
                vector.check_fits(tiny_llama)
    assert "model_type" in read(tmp_path / "undertone.safetensors").meta


@pytest.mark.parametrize(
    ("said", "fits"), [("gptneox", True), ("gpt_neox", True), ("GPT-NeoX", True), ("llama", False)]
)
def test_other_tools_spellings_of_a_models_type_are_understood(tiny_neox: Any, said: str, fits: bool) -> None:
    vector = SteeringVector({1: torch.ones(32)}, {"model_type": said})
    if fits:
        vector.check_fits(tiny_neox)
    else:
        with pytest.raises(ModelError, match="it is of another model"):
            vector.check_fits(tiny_neox)
