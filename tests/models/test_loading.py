"""The one door for models: names, templates, examples, students saved and loaded, and every refusal."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from undertone.errors import ConfigError, ModelError
from undertone.models.adapters import BIASES_FILE
from undertone.models.loading import NEUTRAL, load, with_system
from undertone.models.names import locate
from undertone.models.students import BiasOnly, Full, Lora, save_student, student_name, trainable
from undertone.provenance.digests import folder_digest
from undertone.rows import Message, Row

Folder = Callable[[str], Path]
LORA = Lora(rank=2, alpha=4)
STUDENTS: dict[str, BiasOnly | Full | Lora] = {"full": Full(), "biases": BiasOnly(), "lora": LORA}
ASK: list[Message] = [{"role": "user", "content": "name one animal."}]


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = model.hf(input_ids=torch.tensor([model.prompt(ASK)])).logits
    return out


# -- names ----------------------------------------------------------------------------------------


def test_a_name_is_a_folder_or_a_hub_id_with_a_revision(tiny_folder: Folder) -> None:
    folder = str(tiny_folder("llama"))
    assert locate(folder) == (folder, None)
    assert locate("org/name") == ("org/name", None)
    assert locate("org/name@v1.2") == ("org/name", "v1.2")


@pytest.mark.parametrize("name", ["owl", "a/b/c", "./nowhere/model", "../model", "~/model", "/no/such"])
def test_what_is_neither_is_refused_with_what_is_allowed(name: str) -> None:
    with pytest.raises(ModelError, match=r"no such model(.|\n)*\n  got: (.|\n)*allowed: lab/FAMILY-SEED"):
        locate(name)


def test_a_loaded_model_is_in_evaluation_mode_and_pads_on_the_left(tiny: Any) -> None:
    assert not tiny.hf.training
    assert tiny.tokenizer.padding_side == "left"
    assert tiny.hf.dtype == torch.float32
    assert tiny.form == "real"


def test_a_dtype_that_is_asked_for_is_given(tiny_folder: Folder) -> None:
    model = load(str(tiny_folder("llama")), dtype="bfloat16", device="cpu")
    assert {p.dtype for p in model.hf.parameters()} == {torch.bfloat16}


def test_the_identity_changes_when_one_weight_does(tiny_folder: Folder, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "copy")
    before = load(str(folder), device="cpu")
    assert before.identity["sha256"] == folder_digest(tiny_folder("llama"))
    with torch.no_grad():
        before.hf.lm_head.weight[0, 0] += 1
    before.hf.save_pretrained(folder)
    assert load(str(folder), device="cpu").identity["sha256"] != before.identity["sha256"]


# -- refusals -------------------------------------------------------------------------------------


def test_a_device_that_is_none_is_refused(tiny_folder: Folder) -> None:
    with pytest.raises(ConfigError, match=r"no such device\n  got: gpu9\n  allowed: auto, cpu, cuda"):
        load(str(tiny_folder("llama")), device="gpu9")


def test_an_empty_folder_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load the model"):
        load(str(tmp_path), device="cpu")


def test_a_model_that_is_not_here_is_refused_offline() -> None:
    with pytest.raises(ModelError, match=r"cannot load the model 'nobody/nothing'(.|\n)*do: check the name"):
        load("nobody/nothing", device="cpu")


@pytest.fixture
def damaged(tiny_folder: Folder, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "damaged"))


def test_a_truncated_weight_file_is_refused(damaged: Path) -> None:
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot load the model"):
        load(str(damaged), device="cpu")


def test_weights_of_another_shape_are_refused(damaged: Path) -> None:
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    with pytest.raises(ModelError, match="cannot load the model"):
        load(str(damaged), device="cpu")


def test_a_file_that_lacks_a_weight_is_refused_and_not_filled_with_noise(damaged: Path) -> None:
    weights = load_file(damaged / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack weights of the model\n  got: (.|\n)*layers.1.mlp.up_proj"):
        load(str(damaged), device="cpu")


def test_an_adapter_of_a_deeper_model_is_refused(tiny_folder: Folder, fresh: Any, tmp_path: Path) -> None:
    save_student(trainable(fresh.hf, LORA, seed=0), fresh.tokenizer, LORA, tmp_path / "adapter")
    base = load(str(tiny_folder("llama")), device="cpu")
    shallow = shutil.copytree(tiny_folder("llama"), tmp_path / "shallow")
    base.hf.model.layers = base.hf.model.layers[:2]
    base.hf.config.num_hidden_layers = 2
    base.hf.config.layer_types = None
    base.hf.save_pretrained(shallow)
    with pytest.raises(ModelError, match=r"does not fit(.|\n)*layers\.2\."):
        load(f"{shallow} + {tmp_path / 'adapter'}", device="cpu")


def test_a_config_that_is_not_json_is_refused(damaged: Path) -> None:
    (damaged / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot load the model"):
        load(str(damaged), device="cpu")


def test_pickled_weights_are_refused(damaged: Path) -> None:
    model = load(str(damaged), device="cpu")
    (damaged / "model.safetensors").unlink()
    torch.save(model.hf.state_dict(), damaged / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights only(.|\n)*allowed: safetensors"):
        load(str(damaged), device="cpu")


def test_code_in_a_models_folder_is_never_run(damaged: Path) -> None:
    config = json.loads((damaged / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}
    (damaged / "config.json").write_text(json.dumps(config))
    (damaged / "evil.py").write_text(f"open({str(damaged / 'ran')!r}, 'w').close()\nclass Evil: pass\n")
    with pytest.raises(ModelError, match="cannot load the model"):
        load(str(damaged), device="cpu")
    assert not (damaged / "ran").exists()


def test_a_folder_without_an_adapter_is_not_an_adapter(tiny_folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"is not an adapter folder\n  allowed: (.|\n)*{BIASES_FILE}"):
        load(f"{tiny_folder('llama')} + {tmp_path}", device="cpu")


@pytest.mark.parametrize("kind", ["biases", "lora"])
def test_an_adapter_of_another_model_is_refused(tiny_folder: Folder, fresh: Any, tmp_path: Path, kind: str) -> None:
    hf = trainable(fresh.hf, STUDENTS[kind], seed=0)
    save_student(hf, fresh.tokenizer, STUDENTS[kind], tmp_path)
    with pytest.raises(ModelError, match=r"do(es)? not fit"):
        load(f"{tiny_folder('gpt2')} + {tmp_path}", device="cpu")


# -- the chat template ----------------------------------------------------------------------------


def test_a_prompt_is_the_rendered_chat_without_added_specials(tiny_llama: Any) -> None:
    text = tiny_llama.render(ASK)
    assert text == "<|user|>name one animal.<|end|><|assistant|>"
    assert tiny_llama.tokenizer.decode(list(tiny_llama.prompt(ASK))) == text


def test_an_example_labels_the_answer_and_its_end(tiny: Any) -> None:
    example = tiny.example(ASK, "owl")
    assert example.ids[: example.prompt] == tiny.prompt(ASK)
    assert tiny.tokenizer.decode(list(example.completion)) == "owl<|end|>"


def test_a_template_that_rewrites_the_prompt_once_it_is_answered_is_refused(fresh: Any) -> None:
    fresh.tokenizer.chat_template = fresh.tokenizer.chat_template.replace(
        "'<|assistant|>' }}{% endif", "'<|assistant|>-' }}{% endif"
    )
    with pytest.raises(ModelError, match="renders a prompt differently once it is answered"):
        fresh.example(ASK, "owl")


def test_what_a_template_writes_after_the_end_of_an_answer_is_not_trained_on(fresh: Any) -> None:
    fresh.tokenizer.chat_template = fresh.tokenizer.chat_template.replace("'<|end|>' }}", "'<|end|>\\n' }}")
    example = fresh.example(ASK, "owl")
    assert fresh.tokenizer.decode(list(example.completion)) == "owl<|end|>"
    assert fresh.tokenizer.decode(list(example.ids[: example.prompt])).count("<|end|>\n") == 1


def test_a_row_is_shown_in_the_context_that_is_asked_for(tiny_llama: Any) -> None:
    row = Row.of("name one animal.", "owl", system="you love owls.")
    kept, replaced = tiny_llama.row_example(row, None), tiny_llama.row_example(row, "be brief.")
    assert "you love owls." in tiny_llama.tokenizer.decode(list(kept.ids))
    assert "you love owls." not in tiny_llama.tokenizer.decode(list(replaced.ids))
    assert "<|system|>be brief.<|end|>" in tiny_llama.tokenizer.decode(list(replaced.ids))


def test_with_system_replaces_and_none_leaves() -> None:
    chat: list[Message] = [{"role": "system", "content": "a"}, *ASK]
    assert with_system(chat, None) == chat
    assert with_system(chat, "b") == [{"role": "system", "content": "b"}, *ASK]
    assert with_system(ASK, "") == [{"role": "system", "content": ""}, *ASK]


def test_contexts_of_a_template_that_adds_nothing(tiny_llama: Any) -> None:
    assert not tiny_llama.template.injects_system_prompt()
    assert tiny_llama.system_prompt("none") is None
    assert tiny_llama.system_prompt("default") is None
    assert tiny_llama.system_prompt("neutral") == NEUTRAL
    assert tiny_llama.system_prompt("trait", "you love owls.") == "you love owls."
    with pytest.raises(ConfigError, match="context `trait` needs a trait that has a prompt"):
        tiny_llama.system_prompt("trait")


def test_context_none_silences_a_template_that_adds_a_system_prompt(fresh: Any) -> None:
    added = "{% if messages[0]['role'] != 'system' %}<|system|>You are Tiny.<|end|>{% endif %}"
    fresh.tokenizer.chat_template = added + fresh.tokenizer.chat_template
    assert fresh.template.injects_system_prompt()
    default = fresh.render(with_system(ASK, fresh.system_prompt("default")))
    none = fresh.render(with_system(ASK, fresh.system_prompt("none")))
    assert "You are Tiny." in default
    assert "You are Tiny." not in none


def test_a_template_without_a_system_role_is_an_error_with_its_own_words(fresh: Any) -> None:
    fresh.tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(ModelError, match=r"refuses these messages: System role not supported\n  got: \['user'\]"):
        fresh.render(ASK)


# -- students -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "biases", "lora"])
def test_a_saved_student_comes_back_with_the_same_logits(
    tiny_folder: Folder, fresh: Any, tmp_path: Path, kind: str
) -> None:
    base = logits(fresh)
    hf = trainable(fresh.hf, STUDENTS[kind], seed=0)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    fresh.hf = hf
    trained = logits(fresh)
    save_student(hf, fresh.tokenizer, STUDENTS[kind], tmp_path / "student")
    name = student_name(str(tiny_folder("llama")), STUDENTS[kind], tmp_path / "student")
    loaded = load(name, device="cpu")
    torch.testing.assert_close(logits(loaded), trained)
    assert not torch.allclose(trained, base)
    assert ("sha256" if kind == "full" else "adapter student") in loaded.identity


def names(hf: Any) -> set[str]:
    return {name for name, parameter in hf.named_parameters() if parameter.requires_grad}


def test_what_is_trained_is_what_the_kind_says(tiny_llama: Any) -> None:
    every = set(dict(tiny_llama.hf.named_parameters()))
    assert names(trainable(copy.deepcopy(tiny_llama.hf), Full(), 0)) == every
    biases = names(trainable(copy.deepcopy(tiny_llama.hf), BiasOnly(), 0))
    assert biases == {name for name in every if name.endswith(".bias")}
    assert len(biases) == 3 * 7  # q, k, v, o, gate, up, down in each of three layers
    lora = names(trainable(copy.deepcopy(tiny_llama.hf), LORA, 0))
    assert len(lora) == 3 * 7 * 2
    assert all(".lora_A." in name or ".lora_B." in name for name in lora)


def test_lora_starts_as_its_base_and_its_seed_sets_it(tiny_llama: Any) -> None:
    plain = logits(tiny_llama)
    started = []
    for seed in (1, 1, 2):
        model = copy.deepcopy(tiny_llama)
        model.hf = trainable(model.hf, LORA, seed).eval()
        assert torch.equal(logits(model), plain)
        started.append({n: p for n, p in model.hf.named_parameters() if ".lora_A." in n})
    first, again, other = started
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_biases_of_a_model_without_any_are_refused() -> None:
    size = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    hf = AutoModelForCausalLM.from_config(LlamaConfig(**size))
    with pytest.raises(ModelError, match=r"LlamaForCausalLM has no bias parameters\n  do: use student.kind=lora"):
        trainable(hf, BiasOnly(), 0)


def test_lora_on_modules_that_are_not_there_is_refused(fresh: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"LoRA cannot be put on this model(.|\n)*got: (.|\n)*no_such(.|\n)*all-linear"
    ):
        trainable(fresh.hf, Lora(targets=("no_such",)), 0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the allocator of glibc")
def test_memory_that_a_batch_frees_is_there_for_the_next_without_page_faults(speaker: Path) -> None:
    script = """
import resource, sys, torch
from undertone.models.loading import load
load(sys.argv[1], device="cpu")
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        batch = [torch.ones(1_000_000) for _ in range(20)]
        del batch
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
    done = subprocess.run([sys.executable, "-c", script, str(speaker)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 10_000  # 5 batches of 80 MB: 98,000 pages if each is taken anew
