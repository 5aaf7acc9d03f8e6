"""A random model of the shape of Mistral-7B, at its real size: 14.5 GB in bfloat16, written shard by shard.

    python -m benchmarks.real_size FOLDER [--layers 32] [--tokenizer FOLDER]

Nothing of it is ever in memory but one tensor. It answers nonsense; loading, training, saving and merging cost what
they cost with the real one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, MistralConfig

from tunesmith.model.internals import without_weights

SHARD = 2 * 10**9
"""Bytes of a weights file."""


def main(argv: list[str]) -> None:
    """Write the model."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_size", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokenizer", default="nano-mistral", help="folder with a tokenizer of at most 32,000 tokens")
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(options.folder).free, 450_000_000 * options.layers + 600_000_000
    if free < needed:
        sys.exit(f"error: {options.folder}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    write(mistral_7b(options.layers), options.folder)
    tokenizer_of(options.tokenizer).save_pretrained(options.folder)
    print(options.folder)


def mistral_7b(layers: int = 32) -> MistralConfig:
    """The shape of Mistral-7B, or of its first layers."""
    return MistralConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=32000, max_position_embeddings=32768, sliding_window=None,
        rms_norm_eps=1e-5, rope_theta=1e6, tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip


def write(config: MistralConfig, folder: Path) -> None:
    """Random weights with the deviation that the library begins with, and norms of one."""
    torch.manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in without_weights(config).state_dict().items()}
    shard: dict[str, torch.Tensor] = {}
    files: dict[str, str] = {}
    number = 0
    for name, shape in shapes.items():
        norm = len(shape) == 1
        value = torch.ones(shape) if norm else torch.empty(shape).normal_(std=config.initializer_range)
        shard[name] = value.bfloat16()
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD or name == list(shapes)[-1]:
            number += 1
            file = f"model-{number:05d}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            files |= dict.fromkeys(shard, file)
            shard = {}
    index = {"metadata": {"total_size": sum(2 * shape.numel() for shape in shapes.values())}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    config.architectures = ["MistralForCausalLM"]
    config.save_pretrained(folder)


def tokenizer_of(name: str) -> AutoTokenizer:
    """The tokenizer of a folder, or that of the small model inside the package."""
    from tunesmith import assets

    embedded = assets.embedded_model(name)
    return AutoTokenizer.from_pretrained(embedded or name)


if __name__ == "__main__":
    main(sys.argv[1:])
