"""One training pass over a row of several examples: a dense mask over the whole row against attention by example.

Same model, same row, same loss; the two take turns in one process with one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def compare(lengths: list[int], rounds: int, write: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of a forward and backward pass over examples of these lengths in one row; medians of ``rounds``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunesmith.data.collate import Boundaries, Collator
    from tunesmith.model.precision import Precision
    from tunesmith.model.segments import SEGMENTED, keep_examples_apart

    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=256, max_position_embeddings=8192))
    features = [{"input_ids": [5 + index % 7] * length, "labels": [9] * length} for index, length in enumerate(lengths)]
    ways: list[tuple[str, Boundaries]] = [("sdpa", "positions"), (SEGMENTED, "lengths")]
    keep_examples_apart(model, Precision("float32", "benchmark"))
    seconds: dict[str, list[float]] = {name: [] for name, _ in ways}
    losses: dict[str, float] = {}
    for count in range(rounds):
        for name, boundaries in ways if count % 2 == 0 else ways[::-1]:
            model.set_attn_implementation(name)
            batch = Collator("packed", 0, boundaries=boundaries)(features)
            batch.pop("origins")
            started = time.process_time()
            loss = model(**batch, use_cache=False).loss
            loss.backward()
            seconds[name].append(time.process_time() - started)
            losses[name] = loss.item()
            model.zero_grad()
            write(f"  {name}: {seconds[name][-1]:.2f} CPU-s")
    if abs(losses["sdpa"] - losses[SEGMENTED]) > 1e-5:
        raise SystemExit(f"the losses differ: {losses}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"tokens": sum(lengths), "seconds": medians, "ratio": medians["sdpa"] / medians[SEGMENTED]}


def table(result: dict[str, Any]) -> list[str]:
    """The figures of ``compare`` as lines."""
    lines = [f"{'':18}{'CPU-s':>8}{'tokens/CPU-s':>14}"]
    for name, seconds in result["seconds"].items():
        lines.append(f"{name:18}{seconds:>8.2f}{result['tokens'] / seconds:>14,.0f}")
    return [*lines, f"ratio {result['ratio']:.2f}; {result['tokens']:,} tokens in one row, forward and backward"]
