"""A model that is asked something is afterwards as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tunesmith.model.answering import attributes_kept


class Recurrent(torch.nn.Module):
    state: torch.Tensor | None = None

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.state = rows
        return rows


def unpack(layer: Any, *_: Any) -> None:
    layer.unpacked = torch.ones(1)


class Whole(torch.nn.Module):
    """Keeps what it saw of the rows in an attribute that was empty, one that was full, and a new one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
        self.layer.register_forward_pre_hook(unpack)  # as layers of libraries do
        self.recurrent = Recurrent()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.register_buffer("counted", torch.zeros(1))
        self.lag: Any = None
        self.first = torch.zeros(1)
        self.calls = 0

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.lag, self.first, self.new = rows, rows, rows
        self.counted = self.counted + 1
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.calls += 1
        return self.recurrent(self.layer(rows))


@pytest.mark.parametrize("fails", [False, True])
def test_what_belongs_to_the_rows_of_a_call_goes_with_it(fails: bool) -> None:
    model = Whole()
    first = model.first
    with pytest.raises(KeyError) if fails else attributes_kept(torch.nn.Module()), attributes_kept(model):
        model(torch.ones(3))
        assert model.new is model.lag is model.first
        if fails:
            raise KeyError
    assert model.lag is None
    assert model.first is first
    assert not hasattr(model, "new")
    assert model.recurrent.state is None


def test_weights_buffers_and_what_a_layer_has_unpacked_stay() -> None:
    model = Whole()
    with attributes_kept(model):
        model(torch.ones(3))
    assert model.weight == model.counted == 1
    assert model.layer.unpacked is not None
    assert model.calls == 1
