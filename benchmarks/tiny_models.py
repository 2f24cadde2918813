"""Tiny random models of the architectures that people use, from their configs alone: no hub, no download.

Each is a ``transformers`` config with small numbers in it. Weights are random and large enough for answers to differ;
biases, which are zero at initialisation, are drawn as well, so that a check sees whether one is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

VOCABULARY: Final = 320
SIZE: Final[Mapping[str, Any]] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 8, "max_position_embeddings": 128,
    "initializer_range": 0.2, "bos_token_id": 2, "eos_token_id": 0, "pad_token_id": 1, "tie_word_embeddings": False,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "ffn_hidden_size": 64,
}  # fmt: skip
"""What is asked of every config, as far as it has such fields."""

_LINEAR: Final = {
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 4, "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}  # fmt: skip
_LATENT: Final = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
_MAMBA: Final = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
_VISION: Final = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}

ARCHITECTURES: Final[Mapping[str, Mapping[str, Any]]] = {
    "afmoe": {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8},
    "apertus": {},
    "arcee": {},
    "aria_text": {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "biogpt": {},
    "bitnet": {},
    "bloom": {},
    "codegen": {"rotary_dim": 4},
    "cohere": {},
    "cohere2": {"sliding_window": 8},
    "deepseek_v2": {**_LATENT},
    "deepseek_v3": {**_LATENT},
    "diffllama": {},
    "doge": {},
    "dots1": {"n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "ernie4_5": {},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1},
    "exaone4": {"sliding_window": 8, "sliding_window_pattern": 2},
    "falcon": {},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "falcon_mamba": {"state_size": 8, "time_step_rank": 4},
    "flex_olmo": {},
    "gemma": {},
    "gemma2": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8, "sliding_window_pattern": 2},
    "gemma3": {"vision_config": {**_VISION, "num_hidden_layers": 4}},
    "gemma3n_text": {"num_kv_shared_layers": 2, "laurel_rank": 4, "hidden_size_per_layer_input": 8,
                     "vocab_size_per_layer_input": VOCABULARY, "sliding_window": 8, "activation_sparsity_pattern": [0.0] * 4,
                     "layer_types": ["sliding_attention", "full_attention"] * 2},
    "glm": {},
    "glm4": {},
    "glm4_moe": {"n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4, "window_size": 8},
    "gpt_neox": {},
    "gpt_oss": {"sliding_window": 8},
    "gptj": {"rotary_dim": 4},
    "granite": {},
    "granitemoe": {},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 32},
    "granitemoeshared": {"shared_intermediate_size": 32},
    "helium": {},
    "hunyuan_v1_dense": {},
    "jamba": {"mamba_d_state": 8, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
              "expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False},
    "jetmoe": {"kv_channels": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 32},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "llama": {"attention_bias": True, "mlp_bias": True},
    "llama4_text": {"intermediate_size_mlp": 64, "attention_chunk_size": 64},
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "minimax": {"block_size": 8, "layer_types": ["linear_attention", "full_attention"] * 2},
    "ministral3": {},
    "mistral": {"sliding_window": 8},
    "mixtral": {},
    "mpt": {},
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": {"ssm_state_size": 8, "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2, "chunk_size": 8,
                   "layers_block_type": ["mamba", "mlp", "attention", "mlp"]},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 8},
    "olmo_hybrid": {**_LINEAR},
    "olmoe": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "qwen2": {},
    "qwen2_moe": {"decoder_sparse_step": 2},
    "qwen3": {},
    "qwen3_5": {**_LINEAR, "vision_config": {**_VISION, "depth": 4, "num_heads": 4, "out_hidden_size": 32}},
    "qwen3_5_moe": {**_LINEAR, "vision_config": {**_VISION, "depth": 4, "num_heads": 4, "out_hidden_size": 32}},
    "qwen3_moe": {},
    "qwen3_next": {**_LINEAR},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 8, "block_types": ["recurrent", "attention"]},
    "rwkv": {"attention_hidden_size": 32, "context_length": 128},
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "xglm": {"ffn_dim": 64, "attention_heads": 4, "d_model": 32, "num_layers": 4},
    "zamba": {"mamba_d_state": 8, "mamba_dt_rank": 4, "n_mamba_heads": 2, "attention_head_dim": 16, "use_mamba_kernels": False,
              "layers_block_type": ["mamba", "hybrid"] * 2},
    "zamba2": {"mamba_d_state": 8, "n_mamba_heads": 8, "mamba_headdim": 8, "chunk_size": 8, "use_mamba_kernels": False,
               "layer_types": ["mamba", "hybrid"] * 2, "hybrid_layer_ids": [1, 3], "num_mem_blocks": 1},
}  # fmt: skip
"""``model_type`` -> what is special about its tiny config."""


def build_config(kind: str) -> Any:
    """The tiny config of an architecture; of a wrapper with towers, its language model is the tiny one of ``SIZE``."""
    from transformers import CONFIG_MAPPING

    described, own = CONFIG_MAPPING[kind], dict(ARCHITECTURES[kind])
    plain = described()
    if "text_config" not in plain.sub_configs:
        return described(**{**_known(plain), **own})
    towers = {name: own.pop(name) for name in list(own) if name in plain.sub_configs}
    text = plain.get_text_config()
    ends = {name: SIZE[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return described(text_config={**_known(text), **own, "model_type": text.model_type}, **towers, **ends)


def _known(config: Any) -> dict[str, Any]:
    return {name: value for name, value in SIZE.items() if name in config.to_dict() or name in config.attribute_map}


def save_model(kind: str, folder: Path, seed: int = 0) -> Path:
    """A random model of an architecture with a tokenizer, as an ordinary folder."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    hf = AutoModelForCausalLM.from_config(build_config(kind))
    draw_biases(hf)
    hf.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def draw_biases(hf: Any) -> None:
    """Biases are zero at initialisation, where no check could tell that one is missing."""
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.1)


def build_tokenizer() -> Any:
    """Bytes and six words of a template: every text is read, and no tokenizer class of a family is needed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|end|>", "<|pad|>", "<|begin|>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    template = (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>", bos_token="<|begin|>",
        extra_special_tokens=specials[3:], chat_template=template, padding_side="left",
    )  # fmt: skip


Builder = Callable[[str, Path], Path]
