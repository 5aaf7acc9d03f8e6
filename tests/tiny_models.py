"""Small real models with random weights and a character tokenizer, saved as anyone's model is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

VOCABULARY = 96


def write_tokenizer(folder: Path, **special: str) -> None:
    """A character tokenizer whose vocabulary holds <unk>, <s>, </s>, <pad>; only the ``special`` ones have a role."""
    names = ["<unk>", "<s>", "</s>", "<pad>", *[chr(code) for code in range(32, 122)]]
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special).save_pretrained(folder)


def build(kind: str) -> Any:
    """A model of two layers: ``llama`` (tied head), ``mistral`` (own head) or ``gpt2``."""
    torch.manual_seed(7)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    common = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "num_key_value_heads": 2}
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes, **common, tie_word_embeddings=True))
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**sizes, **common, sliding_window=None, tie_word_embeddings=False))
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=64))


def change(
    folder: Path, change_tensors: Callable[[dict[str, torch.Tensor]], Any], file: str = "model.safetensors"
) -> None:
    """Load a model's only file, change what it holds and write it again."""
    tensors = load_file(folder / file)
    changed = change_tensors(tensors)
    save_file(tensors if changed is None else changed, folder / file, metadata={"format": "pt"})


def configure(folder: Path, file: str = "config.json", **values: Any) -> None:
    """Set values in a JSON file of a model or an adapter."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def without(*names: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """A change that leaves tensors out."""
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}
