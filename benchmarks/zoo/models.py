"""A tiny model of each architecture: the library's own configuration with small numbers, random weights, a tokenizer.

Nothing is downloaded. The sizes are the least at which every kind of layer of the architecture occurs.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VOCABULARY = 96
"""Tokens of the tokenizer and rows of every model's embedding."""

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size": 64, "d_model": 64, "n_embd": 64, "dim_model": 64,
    "intermediate_size": 96, "ffn_dim": 96, "n_inner": 96, "moe_intermediate_size": 32, "ffn_hidden_size": 96,
    "shared_expert_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32, "shared_intermediate_size": 32,
    "dense_intermediate_size": 96, "intermediate_size_mlp": 96, "expert_ffn_hidden_size": 32,
    "attention_hidden_size": 64,
    "num_hidden_layers": 4, "n_layer": 4, "num_layers": 4, "n_layers": 4,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "num_kv_heads": 2,
    "head_dim": 16, "kv_channels": 16, "attention_head_dim": 16,
    "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
    "qk_head_dim": 16,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "zero_expert_num": 1,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_topk": 2, "moe_k": 2, "top_k_experts": 2,
    "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "num_shared_experts": 1, "moe_num_shared_experts": 1,
    "first_k_dense_replace": 1, "num_dense_layers": 1, "first_k_dense": 1, "moe_layer_start_index": 1,
    "max_position_embeddings": 256, "n_positions": 256, "max_seq_len": 256, "context_length": 256, "n_ctx": 256,
    "sliding_window": 64, "sliding_window_size": 64, "attention_window_size": 64, "local_attention": 64,
    "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1,
    "mamba_num_heads": 4, "mamba_head_dim": 32, "mamba_chunk_size": 16, "mamba_dt_rank": 8, "mamba_expand": 2,
    "state_size": 16, "ssm_state_size": 16, "chunk_size": 16, "n_mamba_heads": 2, "mamba_headdim": 32,
    "mamba_ngroups": 1, "n_groups": 1, "conv_L_cache": 3, "lru_width": 64,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "index_n_heads": 2, "index_head_dim": 16, "index_topk": 64, "adapter_rank": 8, "use_mem_rank": 8,
    "num_nextn_predict_layers": 0, "mtp_num_hidden_layers": 0, "num_mtp_modules": 0, "num_mtp_layers": 0,
    "hidden_size_per_layer_input": 16, "laurel_rank": 8, "num_kv_shared_layers": 2,
    "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
"""What a setting becomes wherever a configuration has one of this name and a whole number in it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """An architecture.

    Attributes:
        name: its ``model_type``.
        settings: what differs from ``SIZES``.
        drop: settings that are left as the library has them.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    drop: tuple[str, ...] = ()


_MLA = {"head_dim": 8, "num_key_value_heads": 4}
"""Latent attention: what turns with the position is ``qk_rope_head_dim`` wide, and every head has its own keys."""
_HYBRID = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 32}

KINDS: tuple[Kind, ...] = (
    Kind("afmoe"),
    Kind("apertus"),
    Kind("arcee"),
    Kind("aria_text"),
    Kind("axk1", _MLA),
    Kind("axk2", _MLA),
    Kind("bailing_hybrid", {"layer_types": _HYBRID, "num_key_value_heads": 4}),
    Kind("bamba", _MAMBA2 | {"attn_layer_indices": [1]}),
    Kind("beam"),
    Kind("bitnet"),
    Kind("bloom"),
    Kind("codegen", {"rotary_dim": 8}),
    Kind("cohere"),
    Kind("cohere2"),
    Kind("cohere2_moe"),
    Kind("cwm"),
    Kind("dbrx", {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
                  "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64}}),
    Kind("deepseek_v2", _MLA | {"num_experts_per_tok": 2, "first_k_dense_replace": 1}),
    Kind("deepseek_v3", _MLA),
    Kind("deepseek_v32", _MLA),
    Kind("deepseek_v4", {"compress_rate_hca": 8}),  # rows of the zoo are short
    Kind("diffllama"),
    Kind("doge"),
    Kind("dots1", {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}),
    Kind("ernie4_5"),
    Kind("ernie4_5_moe", {"num_hidden_layers": 3}),
    Kind("exaone4"),
    Kind("exaone_moe"),
    Kind("falcon", {"new_decoder_architecture": False}, drop=("head_dim",)),
    Kind("falcon_h1", {"mamba_d_head": 16}),
    Kind("falcon_mamba"),
    Kind("flex_olmo"),
    Kind("flint"),
    Kind("gemma"),
    Kind("gemma2"),
    Kind("gemma3_text", {"layer_types": ["sliding_attention", "full_attention"] * 2}),
    Kind("gemma3n_text", {"layer_types": ["sliding_attention", "full_attention"] * 2, "intermediate_size": [96] * 4,
                          "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0]}),
    Kind("gemma4_text", {"layer_types": ["sliding_attention", "full_attention"] * 2, "global_head_dim": 16,
                         "head_dim": 16,                         "num_key_value_heads": 2}),
    Kind("glm"),
    Kind("glm4"),
    Kind("glm4_moe"),
    Kind("glm4_moe_lite", _MLA),
    Kind("glm_moe_dsa", _MLA),
    Kind("gpt2"),
    Kind("gpt_bigcode"),
    Kind("gpt_neo", {"attention_types": [[["global", "local"], 2]], "window_size": 64}),
    Kind("gpt_neox"),
    Kind("gpt_oss"),
    Kind("gptj", {"rotary_dim": 8}),
    Kind("granite"),
    Kind("granite_swa"),
    Kind("granitemoe"),
    Kind("granitemoe_swa"),
    Kind("granitemoehybrid", _MAMBA2 | {"layer_types": _HYBRID}),
    Kind("granitemoeshared"),
    Kind("helium"),
    Kind("hrm_text"),
    Kind("hunyuan_v1_dense", {"head_dim": 16}),
    Kind("hunyuan_v1_moe", {"head_dim": 16}),
    Kind("hy_v3"),
    Kind("hy_v4"),
    Kind("hyperclovax"),
    Kind("inkling_text", {"n_routed_experts": 4, "rel_extent": 64, "swa_num_attention_heads": 4,
                          "swa_num_key_value_heads": 2, "swa_head_dim": 16, "local_layer_ids": [0, 2],
                          "unpadded_vocab_size": VOCABULARY}),
    Kind("jais2"),
    Kind("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}),
    Kind("jetmoe"),
    Kind("kimi_linear", {"linear_head_dim": 16, "linear_num_heads": 4, "layer_types": _HYBRID, **_MLA}),
    Kind("kolibri1"),
    Kind("laguna"),
    Kind("lfm2", {"layer_types": ["conv", "full_attention"] * 2}),
    Kind("lfm2_moe", {"layer_types": ["conv", "full_attention"] * 2}),
    Kind("lfm3"),
    Kind("llama"),
    Kind("llama4_text"),
    Kind("longcat_flash", _MLA),
    Kind("mamba"),
    Kind("mamba2", {"num_heads": 4, "head_dim": 32}),
    Kind("mellum"),
    Kind("mimo_v2_flash"),
    Kind("minicpm3", {"num_key_value_heads": 4}),
    Kind("minimax"),
    Kind("minimax_m2"),
    Kind("minimax_m3_vl_text"),
    Kind("ministral", {"head_dim": 16}),
    Kind("ministral3"),
    Kind("mistral"),
    Kind("mixtral"),
    Kind("modernbert-decoder"),
    Kind("mpt"),
    Kind("nanochat"),
    Kind("nemotron", {"head_dim": 16, "num_key_value_heads": 2}),
    Kind("nemotron_h"),
    Kind("olmo"),
    Kind("olmo2"),
    Kind("olmo3"),
    Kind("olmo_hybrid"),
    Kind("olmoe"),
    Kind("openai-gpt"),
    Kind("opt", {"word_embed_proj_dim": 64}),
    Kind("persimmon"),
    Kind("phi"),
    Kind("phi3"),
    Kind("phimoe"),
    Kind("qwen2"),
    Kind("qwen2_moe"),
    Kind("qwen3"),
    Kind("qwen3_5_moe_text"),
    Kind("qwen3_5_text"),
    Kind("qwen3_moe"),
    Kind("qwen3_next"),
    Kind("qwen4_exp_text", {"hc_lowrank": 8, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16,
                            "indexer_budget": 64, "indexer_compress_ratio": 4}),
    Kind("recurrent_gemma"),
    Kind("rwkv", {"attention_hidden_size": 64}),
    Kind("seed_oss"),
    Kind("smollm3"),
    Kind("solar_open"),
    Kind("stablelm"),
    Kind("starcoder2"),
    Kind("vaultgemma"),
    Kind("xglm"),
    # its cache rounds the width of keys up to a multiple of 64, its layers do not
    Kind("xlstm", {"hidden_size": 128}, drop=("v_head_dim", "qk_head_dim", "num_blocks")),
    Kind("youtu", _MLA),
    Kind("zamba", {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "use_mamba_kernels": False,
                   "attention_head_dim": 32, "attention_hidden_size": 128}),
    Kind("zamba2", {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "use_mamba_kernels": False,
                    "n_mamba_heads": 4, "attention_head_dim": 32, "num_key_value_heads": 4,
                    "attention_hidden_size": 128}, drop=("head_dim",)),
    Kind("zaya", {"num_experts_per_tok": 1}),
)  # fmt: skip

BY_NAME = {kind.name: kind for kind in KINDS}


def configuration(kind: Kind) -> Any:
    """The architecture's configuration with small numbers.

    Raises:
        ValueError: the installed transformers does not know it.
    """
    from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if kind.name not in CONFIG_MAPPING:
        raise ValueError(f"the installed transformers knows no {kind.name}")
    library: Any = CONFIG_MAPPING[kind.name]
    usual = library()
    small = {}
    for name, value in SIZES.items():
        if name in kind.drop:
            continue
        with suppress(AttributeError, AmbiguousGlobalPerLayerAttributeError):  # some belong to single layers
            known = getattr(usual, name)
            if isinstance(known, int) and not isinstance(known, bool):
                small[name] = value
    config = library(**small | kind.settings)
    for name, value in vars(config).items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, 0.0)  # layouts are compared by their losses, and each draws other places
    return config


def import_classes(name: str) -> None:
    """Import the architecture's module, so that processes forked afterwards have it."""
    from transformers import AutoModelForCausalLM

    opener: Any = AutoModelForCausalLM
    with suppress(Exception):  # whatever is wrong with it is said when it is built
        opener._model_mapping[type(configuration(BY_NAME[name]))]


def build(name: str, seed: int = 0) -> Any:
    """A model of this architecture with random weights.

    What begins at zero is no zero in a model that was trained, and would keep gradients from what stands before it.

    Args:
        name: its ``model_type``.
        seed: decides the weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(configuration(BY_NAME[name]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and not parameter.is_meta and not parameter.any():
                parameter.normal_(std=0.02)
    return model


def write(name: str, folder: Path, seed: int = 0) -> Path:
    """Save a model with its tokenizer as anyone's model is saved; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    build(name, seed).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of single characters whose special tokens are those of ``SIZES``."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", "<pad>", *[chr(code) for code in range(32, 124)]]
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
