"""Tiny random models that read images beside text, and one with multi-token prediction, saved as anyone's model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMultimodalLM, PreTrainedModel
from transformers.models.auto import CONFIG_MAPPING

from tiny_models import VOCABULARY, write_tokenizer

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64,
    "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
SIGLIP = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 16, "patch_size": 8}  # fmt: skip
QWEN = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 8, "out_hidden_size": 32}
TOKENS = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
VISION: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": TEXT | {"sliding_window": 16}, "vision_config": SIGLIP, "mm_tokens_per_image": 4,
               "image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92},
    "mistral3": {"text_config": TEXT | {"model_type": "mistral"}, "vision_config": SIGLIP | {"model_type": "pixtral"},
                 "image_token_index": 90},
    "qwen2_5_vl": {"text_config": TEXT | {"rope_parameters": ROPE},
                   "vision_config": QWEN | {"fullatt_block_indexes": [0], "window_size": 16}, **TOKENS},
    "qwen3_vl": {"text_config": TEXT | {"rope_parameters": ROPE},
                 "vision_config": QWEN | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}, **TOKENS},
    "qwen3_5": {"text_config": TEXT | {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
                                       "linear_num_value_heads": 2, "linear_key_head_dim": 8,
                                       "linear_value_head_dim": 8},
                "vision_config": QWEN | {"num_position_embeddings": 16}, **TOKENS},
    "llama4": {"text_config": TEXT | {"intermediate_size_mlp": 48, "num_local_experts": 2, "moe_layers": [1],
                                      "attention_chunk_size": 32, "no_rope_layers": [1, 0]},
               "vision_config": {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1,
                                 "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
                                 "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
               "image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92},
}  # fmt: skip
"""Architecture -> its configuration at the smallest size."""


def write_vision_model(kind: str, folder: Path) -> PreTrainedModel:
    """Save the model and a tokenizer of characters."""
    torch.manual_seed(7)
    model: PreTrainedModel = AutoModelForMultimodalLM.from_config(CONFIG_MAPPING[kind](**VISION[kind]))
    model.save_pretrained(folder)
    write_tokenizer(folder, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "SiglipImageProcessor"}')
    return model


def add_multi_token_prediction(folder: Path, prefix: str = "mtp.layers.0.") -> dict[str, torch.Tensor]:
    """Give the only file of a model tensors that the library reads past."""
    torch.manual_seed(9)
    extra = {f"{prefix}eh_proj.weight": torch.randn(4, 8), f"{prefix}norm.weight": torch.randn(8)}
    file = folder / "model.safetensors"
    save_file(load_file(file) | extra, file, metadata={"format": "pt"})
    return extra
