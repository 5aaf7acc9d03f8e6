"""Rows of several examples: the library is not asked for a mask that nobody reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaModel, masking_utils

from tunesmith.model.device import here
from tunesmith.model.load import load_model
from tunesmith.model.precision import Precision
from tunesmith.model.segments import keep_examples_apart

FLOAT32 = Precision("float32", "test")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows when the library looks at positions, which it cannot do before a device has computed them."""
    times: list[int] = []
    function = masking_utils.find_packed_sequence_indices

    def look(positions: torch.Tensor) -> Any:
        times.append(len(positions))
        return function(positions)

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", look)
    return times


def logits_of(model: Any) -> torch.Tensor:
    """Of a row with two examples."""
    row = {"input_ids": torch.arange(9)[None], "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])}
    found: torch.Tensor = model(**row, segment_lengths=[4, 5], use_cache=False).logits
    return found


@pytest.mark.parametrize("reads_its_mask", [False, True])
def test_a_row_of_examples_needs_no_mask(
    reads_its_mask: bool, settings: Callable[..., Any], asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = LlamaModel.forward

    def strict(self: LlamaModel, *args: Any, **keywords: Any) -> Any:
        mask = keywords.get("attention_mask")
        if mask is not None:
            _rows, _length = mask.shape
        return forward(self, *args, **keywords)

    if reads_its_mask:
        monkeypatch.setattr(LlamaModel, "forward", strict)
    resolved = settings("llama", lora_r=2)
    model = load_model(resolved, FLOAT32, here(resolved))
    assert keep_examples_apart(model, FLOAT32) == "lengths"
    asked.clear()
    found = logits_of(model.eval())
    assert bool(asked) == reads_its_mask  # such a model gets the mask that it got before
    alone = model(input_ids=torch.arange(4, 9)[None], use_cache=False).logits
    assert torch.allclose(found[:, 4:], alone, atol=1e-5)
