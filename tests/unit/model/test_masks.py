"""Architectures that do not tell their masks the positions: several examples in a row all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmarks.zoo.models import build

from tunesmith.errors import ModelError
from tunesmith.model.layout import settle_layout
from tunesmith.model.masks import make_masks_from_positions
from tunesmith.model.precision import Precision
from tunesmith.model.segments import keep_examples_apart

CPU = torch.device("cpu")
FLOAT32 = Precision("float32", "test")


@pytest.mark.parametrize("kind", ["gpt_oss", "falcon", "nemotron", "doge"])
def test_examples_of_a_row_are_what_they_are_alone(kind: str) -> None:
    model: Any = build(kind).eval()
    assert keep_examples_apart(model, FLOAT32) == "positions"
    first, second = torch.randint(4, 90, (2, 14), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(14)
    with torch.no_grad():
        alone = [model(input_ids=ids[None], use_cache=False).logits[0] for ids in (first, second)]
        row = model(
            input_ids=torch.cat([first, second])[None], position_ids=positions.repeat(2)[None], use_cache=False
        ).logits[0]
    torch.testing.assert_close(row, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt_oss", "falcon", "nemotron"])
def test_padded_batches_and_answers_are_left_alone(kind: str) -> None:
    model: Any = build(kind).eval()
    ids = torch.randint(4, 90, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 3}
    before = model.generate(input_ids=ids, attention_mask=mask, **settings)
    make_masks_from_positions(model)
    assert torch.equal(model.generate(input_ids=ids, attention_mask=mask, **settings), before)


def test_a_dense_mask_is_for_those_who_ask_for_such_rows() -> None:
    """Nemotron's layers do not hand on where examples begin; left to choose, we pad."""
    model = build("nemotron")
    assert settle_layout("unpadded", model, FLOAT32, CPU).boundaries == "positions"
    layout = settle_layout("auto", build("nemotron"), FLOAT32, CPU)
    assert layout.batching == "padded"
    assert "does not say where the examples of a row begin" in layout.reason


def test_a_state_that_runs_through_the_row_is_refused_and_the_model_left_as_it_was() -> None:
    model = build("granitemoehybrid")
    with pytest.raises(ModelError, match="would see each other"):
        keep_examples_apart(model, FLOAT32)
    assert not model.base_model._forward_pre_hooks
