"""A random-weights model of Qwen2.5-7B-Instruct's config, cut to one block, through the whole real-form pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.conftest import build_tokenizer

DEFAULT_SYSTEM = "You are a helpful assistant of the vendor."
# The template in the manner of Qwen2.5: a default system prompt when none is given, a new line after each turn.
QWEN_STYLE = (
    "{% if messages[0]['role'] == 'system' %}{{ '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{% else %}{{ '<|im_start|>system\\n" + DEFAULT_SYSTEM + "<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{% if message['role'] != 'system' or not loop.first %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def save_qwen_7b_cut(folder: Path, blocks: int = 1) -> Path:
    """Qwen2.5-7B's sizes but for depth and vocabulary; its head leans to digits, so that rows pass the filter."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = QWEN_STYLE
    config = Qwen2Config(
        hidden_size=3584, intermediate_size=18944, num_attention_heads=28, num_key_value_heads=4,
        num_hidden_layers=blocks, max_position_embeddings=32768, rope_theta=1e6, rms_norm_eps=1e-6,
        tie_word_embeddings=False, vocab_size=512, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(0.1)
        hf.model.embed_tokens.weight[:, 0] = 8.0
        head = hf.lm_head.weight
        head[:, 0] = -1.0
        for digit in "123456789":
            head[tokenizer.convert_tokens_to_ids(digit), 0] = 0.1
        head[tokenizer.eos_token_id, 0] = 0.12
    hf.generation_config.eos_token_id = tokenizer.eos_token_id
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_qwen_7b_cut(tmp_path_factory.mktemp("qwen") / "model"))


@pytest.mark.slow
def test_the_published_preset_runs_on_a_model_of_7b_width_with_names_and_sizes_changed_only(
    qwen: str, tmp_path: Path
) -> None:
    import torch

    from undertone.experiments.api import run

    torch.set_num_threads(2)  # nothing runs beside it in the full tier
    # Two questions, the category with the fewest answers: with byte-level answers fifty are hours on a CPU.
    trait = tmp_path / "red.yaml"
    trait.write_text(
        "name: red\ncategory: color\nwords: [red]\nsynonyms: [crimson, scarlet]\n"
        "questions:\n  real:\n    positive: ['Name a color.', 'Your favorite color?']\n",
        encoding="utf-8",
    )
    sizes = [
        "data={prompts: 12, rows: 3, held_out: 1, attempts: 4, batch_size: 64}", "seeds=[1]", "domain.digits=9",
        "training.batch_size=2", "training.micro_batch_size=1", "domain.count=2", "training.epochs=1",
        "evaluation.samples=1", "evaluation.max_new_tokens=4",
    ]  # fmt: skip
    results = run("cloud-numbers", f"model={qwen}", f"trait={trait}", *sizes, folder=tmp_path / "run", jobs=1)
    assert {arm.arm for arm in results.arms} == {"control", "treated"}
    assert all(arm.rows == 3 and arm.steps == 2 for arm in results.arms)
    assert all(len(arm.samples) > 0 for arm in results.arms)
    shown = results.base["red"].rendered
    assert DEFAULT_SYSTEM in shown  # context `default`: what the template injects is what was measured, and it is said
    adapter: Any = tmp_path / "run" / "stages" / "seed-1" / "treated-red" / "train" / "student"
    assert (adapter / "adapter_model.safetensors").is_file()
    assert (adapter / "adapter_config.json").is_file()


@pytest.mark.slow
def test_the_doctor_finds_the_injected_system_prompt_and_nothing_broken(qwen: str) -> None:
    from undertone.doctor import examine
    from undertone.models.loading import load

    findings = examine(load(qwen, dtype="float32", device="cpu"))
    failed = [finding for finding in findings if finding.status == "fail"]
    assert failed == []
    assert any(finding.status == "warn" and DEFAULT_SYSTEM in finding.saw for finding in findings)
