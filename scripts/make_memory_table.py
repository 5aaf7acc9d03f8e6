"""Writes docs/memory.md: memory per GPU for model sizes, GPU counts and strategies.

The figures are the fit check's (``tunesmith check``), which counts activations on the model's own code. Beside them
stands what a formula gives for weights, gradients and states alone; the two must agree, or nothing is written.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import notices
from tunesmith.config.resolve import Resolved, from_values
from tunesmith.model.memory import GIB, BatchShape, Memory, estimate
from tunesmith.model.precision import Precision

TARGET = Path(__file__).parents[1] / "docs" / "memory.md"
GPU_COUNTS = (1, 2, 4, 8)
BATCH = BatchShape(rows=1, length=2048, labelled=1024)
PRECISION = Precision("bfloat16", "a CUDA device with bfloat16")
TOLERANCE = 0.02
"""How far formula and fit check may be apart: the formula knows no scales of small tensors."""

MODELS: dict[str, dict[str, Any]] = {
    "0.5B (Qwen2.5)": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
        "max_position_embeddings": 32768,
    },
    "7B (Mistral)": {
        "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768, "tie_word_embeddings": False,
        "max_position_embeddings": 32768, "sliding_window": None,
    },
    "13B (Llama 2)": {
        "model_type": "llama", "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
        "num_attention_heads": 40, "num_key_value_heads": 40, "vocab_size": 32000, "tie_word_embeddings": False,
        "max_position_embeddings": 4096,
    },
    "70B (Llama 3)": {
        "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
        "max_position_embeddings": 8192,
    },
}  # fmt: skip
"""Shapes of well-known models, as their config.json gives them."""

METHODS: dict[str, dict[str, Any]] = {
    "full": {"adapter.use_lora": False},
    "LoRA": {"adapter.use_lora": True},
    "QLoRA": {"adapter.use_lora": True, "quantization.load_in_4bit": True},
}

ROWS: tuple[tuple[str, str], ...] = (
    ("full", "ddp"), ("full", "zero2"), ("full", "zero3"), ("full", "fsdp2"), ("full", "zero3-offload-cpu"),
    ("LoRA", "ddp"), ("LoRA", "zero3"), ("LoRA", "fsdp2"),
    ("QLoRA", "ddp"),
)  # fmt: skip


def settings(model: Path, method: str) -> Resolved:
    """A run with AdamW, bfloat16 arithmetic and checkpointing, as one would train such a model."""
    values = {
        "model.model_name_or_path": str(model),
        "adapter.lora_r": 16,
        "adapter.target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "training.bf16": True,
        "training.optim": "adamw_torch_fused",
        "training.gradient_checkpointing": True,
        "training.per_device_train_batch_size": BATCH.rows,
        "data.max_length": BATCH.length,
    }
    return from_values(values | METHODS[method])


@dataclass(frozen=True, slots=True)
class Counts:
    """Weights of a model with its adapter.

    Attributes:
        all: every weight.
        trained: those that are trained.
        linear: those of linear layers but the output head, which 4 bits hold.
    """

    all: int
    trained: int
    linear: int


def counts(shape: dict[str, Any], found: Memory) -> Counts:
    """The numbers that the formula needs; those of linear layers follow from the shape."""
    hidden, heads, shared = shape["hidden_size"], shape["num_attention_heads"], shape["num_key_value_heads"]
    attention = 2 * hidden * hidden + 2 * hidden * (hidden // heads) * shared
    linear = shape["num_hidden_layers"] * (attention + 3 * hidden * shape["intermediate_size"])
    return Counts(found.parameters, found.trainable, linear)


def formula(method: str, strategy: str, gpus: int, count: Counts) -> float:
    """Bytes of weights, gradients and AdamW's states on one GPU, in bfloat16 arithmetic; see FORMULA."""
    frozen, trained = count.all - count.trained, count.trained
    copies = 2 if gpus > 1 else 1  # of the gradients, for their exchange
    if strategy == "ddp":
        held = 2 * frozen if method == "LoRA" else 0.516 * count.linear + 2 * (frozen - count.linear)
        return (0 if method == "full" else held) + (4 + 4 * copies + 8) * trained
    if strategy == "fsdp2":
        return (2 * frozen + 16 * trained) / gpus
    if strategy == "zero2":
        return 2 * count.all + (2 + 12) * trained / gpus
    return (2 * count.all + (2 + 12) * trained) / gpus if strategy == "zero3" else 0


FORMULA = """With M weights, N of them trained, P GPUs, AdamW and bfloat16 arithmetic, one GPU holds in bytes:

| strategy | weights + gradients + states | full fine-tuning (N = M) |
|---|---|---|
| `ddp` | 2 (M - N) + 4 N + 8 N + 8 N (4 N gradients when P = 1) | 20 M |
| `zero2` | 2 M + 2 N / P + 12 N / P | 2 M + 14 M / P |
| `zero3` | (2 M + 2 N + 12 N) / P | 16 M / P |
| `fsdp2` | (2 (M - N) + 4 N + 4 N + 8 N) / P | 16 M / P |
| `zero3-offload-cpu` | 0: all of it lies in the host's memory | 0 |

QLoRA holds the linear layers in 4 bits (0.516 bytes a weight with their scales), embeddings and head in 2 bytes.
Sources: ZeRO, Rajbhandari et al. 2020; FSDP, Zhao et al. 2023; QLoRA, Dettmers et al. 2023. The peak adds activations
(counted on the model's own code), logits (of a frozen head a chunk at a time; of an evaluation all), layers that are
whole while they are used, and 0.6 GiB for CUDA."""


def rows(models: dict[str, dict[str, Any]], gpu_counts: tuple[int, ...]) -> Iterator[tuple[str, str, str, list[str]]]:
    """(model, method, strategy, cells) of the table, one cell a GPU count.

    Raises:
        AssertionError: formula and fit check are further apart than TOLERANCE.
    """
    for name, shape in models.items():
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(shape), encoding="utf-8")
            for method, strategy in ROWS:
                resolved = settings(Path(folder), method)
                cells = [_cell(resolved, shape, method, strategy, gpus) for gpus in gpu_counts]
                yield name, method, strategy, cells


def _cell(resolved: Resolved, shape: dict[str, Any], method: str, strategy: str, gpus: int) -> str:
    found = estimate(resolved, PRECISION, BATCH, cuda=True, num_processes=gpus, strategy=strategy)
    expected = formula(method, strategy, gpus, counts(shape, found))
    measured = found.weights + found.gradients + found.optimizer
    if abs(measured - expected) > TOLERANCE * max(expected, GIB):
        raise AssertionError(
            f"{method} {strategy} x {gpus}: the formula says {expected / GIB:.2f} GiB, the fit check "
            f"{measured / GIB:.2f} ({found})"
        )
    return f"{expected / GIB:,.1f} → {found.peak / GIB:,.1f}"


def page() -> str:
    """The whole page."""
    head = " | ".join(f"{gpus} GPU{'s' if gpus > 1 else ''}" for gpus in GPU_COUNTS)
    lines = [
        "# Memory for one GPU",
        "",
        "Made by `make docs`. GiB on each GPU: what the formula below gives for weights, gradients and optimizer",
        "states → the peak by the fit check, which `tunesmith check CONFIG --gpu 24GB` compares with the device.",
        "An estimate, not a measurement; no GPU was used. One row of 2,048 tokens (1,024 with loss) on each GPU,",
        "AdamW, bfloat16, gradient checkpointing, adapters of rank 16 on q, k, v and o.",
        "",
        f"| model | method | strategy | {head} |",
        f"|---|---|---|{'---:|' * len(GPU_COUNTS)}",
    ]
    for name, method, strategy, cells in rows(MODELS, GPU_COUNTS):
        lines.append(f"| {name} | {method} | `{strategy}` | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "## Formula", "", FORMULA]) + "\n"


def main() -> None:
    notices.listen(lambda text: None)
    TARGET.write_text(page(), encoding="utf-8")
    print("wrote docs/memory.md")


if __name__ == "__main__":
    main()
