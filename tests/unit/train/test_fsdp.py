"""Weights that lie in one process become pieces, without a second copy; in a group of one process, which needs none."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.distributed
from accelerate.utils import fsdp_utils
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, init_device_mesh

from tunesmith.train import fsdp


class Tied(torch.nn.Module):
    """Tied weights, a frozen one, a buffer that files hold and one that they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(8, 4)
        self.layer = torch.nn.Linear(4, 4)
        self.layer.bias.requires_grad = False
        self.head = torch.nn.Linear(4, 8, bias=False)
        self.register_buffer("scale", torch.tensor([3.0]))
        self.register_buffer("passing", torch.tensor([5.0]), persistent=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        self.head.weight = self.embedding.weight


@pytest.fixture
def group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_pieces_are_handed_out_and_the_whole_is_let_go(group: None) -> None:
    model = Tied()
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = model.state_dict()
    model = model.to("meta")
    model.tie_weights()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    fsdp.hand_out(SimpleNamespace(device=torch.device("cpu")), model, whole)
    assert whole == {}
    assert model.head.weight._local_tensor.data_ptr() == model.embedding.weight._local_tensor.data_ptr()
    assert (model.layer.weight.requires_grad, model.layer.bias.requires_grad) == (True, False)
    for name, tensor in model.state_dict().items():
        assert isinstance(tensor, DTensor) == (name != "scale")
        assert torch.equal(tensor.full_tensor() if isinstance(tensor, DTensor) else tensor, expected[name])


def test_weights_without_data_get_an_address_each() -> None:
    """accelerate tells the optimizer's weights apart by it; tied ones stay one, and what has data keeps it."""
    model = Tied().to("meta")
    model.tie_weights()
    model.passing = torch.tensor([5.0])
    kept = torch.nn.Parameter(torch.ones(4))
    model.layer.bias = kept
    fsdp.make_room(model)
    assert model.layer.bias is kept
    assert model.head.weight is model.embedding.weight
    assert model.passing.item() == 5
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    assert len(set(addresses)) == len(addresses) == 3
    assert 0 not in addresses
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_accelerate_calls_what_is_patched() -> None:
    """By the names and arguments of 1.15; where they are others, ``handing_out`` must be looked at again."""
    called = inspect.getsource(fsdp_utils.fsdp2_prepare_model)
    assert "fsdp2_load_full_state_dict(" in called
    theirs = inspect.signature(fsdp_utils.fsdp2_load_full_state_dict).parameters
    assert list(theirs) == list(inspect.signature(fsdp.hand_out).parameters)
    before = fsdp_utils.fsdp2_load_full_state_dict
    with fsdp.handing_out(torch.nn.Linear(2, 2)):
        assert fsdp_utils.fsdp2_load_full_state_dict is fsdp.hand_out
    assert fsdp_utils.fsdp2_load_full_state_dict is before
