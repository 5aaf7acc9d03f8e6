"""LoRA and QLoRA of a model of Mistral-7B's shape on a GPU: tokens a second, MFU and memory, beside TRL.

The model has random weights, which cost what trained ones cost; all sides train on the same rows, of one length each,
half of it with loss. Without a GPU a small model of the same architecture shows that everything runs.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import real_size
from benchmarks.training import LOSSES_AGREE, OURS, batches_of, check_losses
from benchmarks.training_side import LORA
from benchmarks.turns import alternating, take

SIDES = (OURS, "TRL")
LENGTHS = (512, 2048)
TOKENS = 4096
"""Tokens of a step."""
WAYS: dict[str, dict[str, bool]] = {
    "LoRA": {"load_in_4bit": False, "checkpointing": False},
    "QLoRA NF4": {"load_in_4bit": True, "checkpointing": True},
}
"""The second with the guides' gradient checkpointing."""
TERAFLOPS = {"H100": 989.4, "H200": 989.4, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "4090": 165.2}
"""Dense bfloat16 products that makers promise, 10^12 operations a second."""
BFLOAT16_AGREES = 2e-2
"""How far losses may be apart on a GPU, relatively."""
Turns = dict[str, list[dict[str, Any]]]


def compare(
    lengths: Sequence[int] = LENGTHS,
    ways: Sequence[str] = tuple(WAYS),
    sides: Sequence[str] = SIDES,
    *,
    rounds: int,
    steps: int,
    layers: int = 32,
    tokens: int = TOKENS,
    turn: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    write: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Medians over all steps but the first, of all rounds.

    Args:
        lengths: tokens of a row.
        ways: names of ``WAYS``.
        sides: names of ``training_side.SIDES``.
        rounds: turns of each side.
        steps: optimizer steps of each turn.
        layers: those of the model; a device has it at full width, a CPU a narrow one.
        tokens: those of a step.
        turn: measures a side; None in a process of its own.
        write: told of each turn.

    Raises:
        SystemExit: the sides' losses differ, or a side ended with an error.
    """
    import torch

    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else "CPU"
    turn = turn or (lambda job: take("benchmarks.gpu_side", job).result)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        config = _model(Path(name, "model"), layers, narrow=not on_gpu)
        for way in ways:
            for length in lengths:
                write(f"{way}, rows of {length} tokens")
                job = _job(Path(name), way, length, steps, tokens, on_gpu=on_gpu)
                turns: Turns = {side: [] for side in sides}
                for _, side in alternating(sides, rounds):
                    turns[side].append(turn(job | {"side": side}))
                    write(f"  {side}: {statistics.median(turns[side][-1]['seconds']):.3f} s a step")
                check_losses(turns, BFLOAT16_AGREES if on_gpu else LOSSES_AGREE)
                found[f"{way}, {length} tokens"] = {
                    side: _summary(taken, job["batch_size"] * length, flops_a_token(config, length), device)
                    for side, taken in turns.items()
                }
    return {
        "device": device, "layers": layers, "rounds": rounds, "steps": steps, "parameters": _matrices(config),
        "cells": found,
    }  # fmt: skip


def _model(folder: Path, layers: int, *, narrow: bool) -> Any:
    """Write the model, and return its configuration."""
    config = real_size.mistral_7b(layers)
    if narrow:
        config.update({"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16})
        config.update({"num_key_value_heads": 2, "vocab_size": 1024})
    folder.mkdir()
    real_size.write(config, folder)
    tokenizer: Any = real_size.tokenizer_of("nano-mistral")
    tokenizer.save_pretrained(folder)
    return config


def _job(folder: Path, way: str, length: int, steps: int, tokens: int, *, on_gpu: bool) -> dict[str, Any]:
    """What all sides of a cell are given."""
    batch = max(1, tokens // length)
    draw = random.Random(0)
    cell = folder / f"{way}-{length}"
    cell.mkdir()
    rows = cell / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for _ in range(batch * steps):
            ids = [1, *(draw.randrange(300, 1000) for _ in range(length - 1))]
            file.write(json.dumps({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]}) + "\n")
    chosen = WAYS[way]
    job: dict[str, Any] = {
        "folder": str(cell), "model": str(folder / "model"), "rows": str(rows), "steps": steps, "seed": 7,
        "batch_size": batch, "group_by_prefix": False, "max_length": length, "on_gpu": on_gpu, "bf16": on_gpu, **chosen,
        "settings": {
            "training.bf16": on_gpu,
            "training.gradient_checkpointing": chosen["checkpointing"],
            "quantization.load_in_4bit": chosen["load_in_4bit"], "quantization.bnb_4bit_quant_type": "nf4",
            "quantization.bnb_4bit_use_double_quant": True,
        },
    }  # fmt: skip
    return job | {"batches": batches_of(job)}


def _matrices(config: Any) -> int:
    """Numbers of the matrices that a token is multiplied with; of the embeddings it only takes a row."""
    from tunesmith.model.internals import without_weights

    state = without_weights(config).state_dict()
    return sum(one.numel() for name, one in state.items() if one.dim() == 2 and "embed_tokens" not in name)


def flops_a_token(config: Any, length: int) -> float:
    """Operations that training needs for a token, counted as for MFU (Chowdhery et al. 2022, PaLM, appendix B).

    Frozen matrices are used forward and for the gradient of their input, two operations a number each; an adapter's
    also for their own. Attention sees half of the row on average. What checkpointing computes again is no need.
    """
    size = {"q": config.hidden_size, "k": config.num_key_value_heads * config.head_dim}
    width = {f"{name}_proj": config.hidden_size + size["q" if name in "qo" else "k"] for name in "qkvo"}
    adapters = config.num_hidden_layers * LORA["r"] * sum(width[name] for name in LORA["target_modules"])
    attention = config.num_hidden_layers * size["q"] * length * 2
    return 4.0 * _matrices(config) + 6.0 * adapters + 3.0 * attention


def _summary(taken: list[dict[str, Any]], tokens: int, flops: float, device: str) -> dict[str, Any]:
    by_turn = [statistics.median(turn["seconds"]) for turn in taken]
    rate = tokens / statistics.median(by_turn)
    promised = next((one for name, one in TERAFLOPS.items() if name in device), None)
    return {
        "tokens_a_second": rate, "least": tokens / max(by_turn), "most": tokens / min(by_turn),
        "mfu": None if promised is None else rate * flops / promised / 1e12,
        "peak": statistics.median(turn["peak"] for turn in taken),
    }  # fmt: skip


def table(result: dict[str, Any]) -> list[str]:
    """The figures of ``compare`` as lines of Markdown."""
    lines = [
        f"| {result['parameters'] / 1e6:,.1f}M parameters on {result['device']} | side | tokens/s (least - most) "
        "| MFU | peak GiB |",
        "|---|---|---|---|---|",
    ]
    for cell, sides in result["cells"].items():
        for side, found in sides.items():
            mfu = "" if found["mfu"] is None else f"{found['mfu']:.2f}"
            lines.append(
                f"| {cell} | {side} | {found['tokens_a_second']:,.0f} ({found['least']:,.0f} - {found['most']:,.0f}) "
                f"| {mfu} | {found['peak'] / 2**30:.1f} |"
            )
    return lines


def how(result: dict[str, Any]) -> str:
    """What the figures are, in words."""
    return (
        f"Mistral's architecture with {result['layers']} layers and random weights; LoRA r {LORA['r']} on q, k, v, o, "
        f"steps of {TOKENS:,} tokens in rows of one length, half of each with loss; QLoRA in NF4 with double "
        f"quantization and gradient checkpointing; {result['rounds']} turns of {result['steps']} steps each in "
        "processes of their own, medians of the steps after the first; losses of all sides agree. MFU counts what "
        "training needs and no recomputation, against the maker's dense bfloat16 figure."
    )
