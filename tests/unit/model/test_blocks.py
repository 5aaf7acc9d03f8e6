"""Weights in 4 bits come back as they were packed, also where blocks run over the ends of rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tunesmith.errors import ModelError
from tunesmith.model import blocks
from tunesmith.model.blocks import led_across_rows, read_across_rows

SHAPES = [
    (64, 64),
    (48, 32),
    (10, 96),
    (128, 48),
    (4, 32, 16),
    (3, 64),
    (7, 130),
    (5, 7),
    (33,),
    (64, 200),
    (16, 3, 48),
]


def scaled(bits: torch.Tensor, absmax: torch.Tensor, blocksize: int, kind: str) -> torch.Tensor:
    """The numbers of a weight in one row, by the definition."""
    from bitsandbytes.functional import get_4bit_type

    code = get_4bit_type(kind, device="cpu")
    values = code[torch.stack([bits.flatten() >> 4, bits.flatten() & 15], dim=1).flatten().long()]
    return values * absmax.repeat_interleave(blocksize)[: len(values)]


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("blocksize", [32, 64, 128, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_shape_comes_back(dtype: torch.dtype, blocksize: int, kind: str) -> None:
    """On this CPU, whichever kernel it has."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    read_across_rows()
    torch.manual_seed(0)
    for shape in SHAPES:
        bits, state = quantize_4bit(torch.randn(shape, dtype=dtype), blocksize=blocksize, quant_type=kind)
        wanted = scaled(bits, state.absmax, blocksize, kind)[: math.prod(shape)].to(dtype).view(shape)
        assert torch.equal(dequantize_4bit(bits, state), wanted), shape


def by_rows(
    _keys: Any, bits: torch.Tensor, absmax: torch.Tensor, size: int, kind: str, shape: list[int], dtype: torch.dtype
) -> torch.Tensor:
    """The fault, on any CPU: each row begins a block."""
    rows, width = (math.prod(shape[:-1]), shape[-1])
    values = scaled(bits, torch.ones_like(absmax), size, kind)[: rows * width].view(rows, width)
    scales = absmax[: rows * -(-width // size)].view(rows, -1) if len(absmax) >= rows * -(-width // size) else None
    if scales is None:  # it reads on, over the end
        scales = absmax.repeat(rows)[: rows * -(-width // size)].view(rows, -1)
    return (values * scales.repeat_interleave(size, dim=1)[:, :width]).to(dtype).view(shape)


def test_a_kernel_that_begins_blocks_with_rows_is_led() -> None:
    from bitsandbytes.functional import quantize_4bit

    torch.manual_seed(0)
    wrong = 0
    for shape in SHAPES:
        bits, state = quantize_4bit(torch.randn(shape), blocksize=64, quant_type="nf4")
        wanted = scaled(bits, state.absmax, 64, "nf4")[: math.prod(shape)].view(shape)
        call = (None, bits, state.absmax, 64, "nf4", list(shape), torch.float32)
        wrong += not torch.equal(by_rows(*call), wanted)
        assert torch.equal(led_across_rows(by_rows)(*call), wanted), shape
    assert wrong >= 6


def test_weights_that_come_back_wrong_all_the_same_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    read_across_rows.cache_clear()
    monkeypatch.setattr(blocks, "_ours", [])  # torch drops what is put there at the end of the test
    monkeypatch.setattr(blocks, "_wrong_widths", lambda: [48, 80])
    try:
        with pytest.raises(ModelError, match=r"wrongly on this CPU \(rows of 48, 80 numbers\)"):
            read_across_rows()
    finally:
        read_across_rows.cache_clear()
