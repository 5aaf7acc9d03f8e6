"""Weights in 4 bits whose rows are no whole number of blocks, on CPUs with AVX-512.

NF4 and FP4 divide a weight into blocks as its numbers follow each other, over the ends of rows; each block has a scale.
bitsandbytes' kernel for these CPUs begins a block with every row all the same, takes the scales of other blocks, and
says nothing: https://github.com/bitsandbytes-foundation/bitsandbytes/pull/2072 (a row of numbers is read rightly).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from tunesmith.errors import ModelError

WIDTHS = (8, 16, 48, 80, 130, 200)
"""Numbers in a row with which the kernel is tried; none is a multiple of BLOCK."""
BLOCK = 64
_ours: list[torch.library.Library] = []
"""What holds our kernel; torch drops it together with this."""


@cache
def read_across_rows() -> None:
    """Have weights in 4 bits come back as they were packed, whatever the width of their rows; once a process.

    The kernel itself tells whether it has to be led. torch's way of doing so is ``torch.library.get_kernel``.

    Raises:
        ModelError: the weights come back wrong all the same.
    """
    if not _wrong_widths():
        return
    kernel = torch.library.get_kernel(torch.ops.bitsandbytes.dequantize_4bit.default, "CPU")
    library = torch.library.Library("bitsandbytes", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*other operators may also be overridden")
        library.impl(
            "dequantize_4bit", led_across_rows(kernel.call_boxed), "CPU", with_keyset=True, allow_override=True
        )
    _ours.append(library)
    if wrong := _wrong_widths():
        raise ModelError(
            f"bitsandbytes reads weights in 4 bits wrongly on this CPU (rows of {', '.join(map(str, wrong))} numbers)",
            remedy="install a version that tunesmith was made for (pip install tunesmith), or set load_in_4bit false",
        )


def led_across_rows(kernel: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A kernel that gives another one such weights as a single row.

    Args:
        kernel: takes torch's dispatch keys and the arguments of ``bitsandbytes::dequantize_4bit``.
    """

    def led(
        keys: Any, bits: torch.Tensor, absmax: torch.Tensor, blocksize: int, kind: str, shape: Sequence[int], dtype: Any
    ) -> torch.Tensor:
        whole = len(shape) < 2 or shape[-1] % blocksize == 0
        given = list(shape) if whole else [1, math.prod(shape)]
        return kernel(keys, bits, absmax, blocksize, kind, given, dtype).reshape(list(shape))

    return led


def _wrong_widths() -> list[int]:
    """Widths of rows with which a weight comes back otherwise than its numbers do in one row."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    found = []
    for width in WIDTHS:
        weight = torch.linspace(-1, 1, 16 * width).sin() * torch.arange(1.0, 1 + 16 * width)
        flat, rows = (
            dequantize_4bit(*quantize_4bit(one, blocksize=BLOCK, quant_type="nf4"))
            for one in (weight, weight.view(16, width))
        )
        if not torch.equal(flat, rows.flatten()):
            found.append(width)
    return found
