"""Settings that make a run fit into a device, the mildest first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tunesmith.config.resolve import Resolved
from tunesmith.model.memory.activations import BatchShape


def remedies(
    resolved: Resolved,
    batch: BatchShape,
    fits: Callable[[Resolved, BatchShape], bool],
    *,
    bitsandbytes: bool = True,
) -> tuple[str, ...]:
    """Settings that make a run fit, the mildest first: one that does it alone, else several together; () when none do.

    Args:
        resolved: the run's configuration.
        batch: its largest batch.
        fits: whether a configuration with such a batch fits.
        bitsandbytes: whether the device can hold weights and optimizer states in few bits.
    """
    together, shape = resolved, batch
    texts: list[str] = []
    for change in (_checkpointing, _one_row, _four_bits, _small_states, _adapters, _shorter):
        if not bitsandbytes and change in (_four_bits, _small_states, _adapters):
            continue
        alone = change(resolved, batch)
        if alone is None:
            continue
        if fits(alone[1], alone[2]):
            return (alone[0],)
        both = change(together, shape)
        if both is None:
            continue
        text, together, shape = both
        texts.append(text)
        if fits(together, shape):
            return tuple(texts)
    return ()


def savers(resolved: Resolved, batch: BatchShape, *, bitsandbytes: bool = True) -> tuple[str, ...]:
    """Settings each of which needs less memory than a run does now, the mildest first."""
    changes = [_checkpointing, _one_row, *((_four_bits, _small_states, _adapters) if bitsandbytes else ()), _shorter]
    return tuple(found[0] for change in changes if (found := change(resolved, batch)) is not None)


_Change = tuple[str, Resolved, BatchShape] | None


def _with(resolved: Resolved, section: str, **values: Any) -> Resolved:
    part = getattr(resolved.config, section).model_copy(update=values)
    return replace(resolved, config=resolved.config.model_copy(update={section: part}))


def _checkpointing(resolved: Resolved, batch: BatchShape) -> _Change:
    if resolved.config.training.gradient_checkpointing:
        return None
    return "gradient_checkpointing: true", _with(resolved, "training", gradient_checkpointing=True), batch


def _one_row(resolved: Resolved, batch: BatchShape) -> _Change:
    training = resolved.config.training
    rows = training.per_device_train_batch_size
    if rows == 1:
        return None
    steps = training.gradient_accumulation_steps * rows
    changed = _with(resolved, "training", per_device_train_batch_size=1, gradient_accumulation_steps=steps)
    text = f"per_device_train_batch_size: 1 with gradient_accumulation_steps: {steps} (the same step)"
    smaller = replace(batch, rows=1) if batch.rows > 1 else replace(batch, length=batch.length // rows)
    return text, changed, replace(smaller, labelled=min(batch.labelled, smaller.length))


def _four_bits(resolved: Resolved, batch: BatchShape) -> _Change:
    if resolved.config.quantization.load_in_4bit or not resolved.config.adapter.use_lora:
        return None
    return "load_in_4bit: true", _with(resolved, "quantization", load_in_4bit=True, load_in_8bit=False), batch


def _small_states(resolved: Resolved, batch: BatchShape) -> _Change:
    if "adamw" not in resolved.config.training.optim or "8bit" in resolved.config.training.optim:
        return None
    return "optim: paged_adamw_8bit", _with(resolved, "training", optim="paged_adamw_8bit"), batch


def _adapters(resolved: Resolved, batch: BatchShape) -> _Change:
    if resolved.config.adapter.use_lora:
        return None
    changed = _with(_with(resolved, "adapter", use_lora=True), "quantization", load_in_4bit=True)
    return "use_lora: true with load_in_4bit: true", changed, batch


def _shorter(resolved: Resolved, batch: BatchShape) -> _Change:
    length = resolved.config.data.max_length // 2
    if length < 64 or batch.length <= length:
        return None
    text = f"max_length: {length} (longer rows are then cut or dropped, by too_long)"
    return (
        text,
        _with(resolved, "data", max_length=length),
        replace(batch, length=length, labelled=min(batch.labelled, length)),
    )
