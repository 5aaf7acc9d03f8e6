"""What FSDP2 needs beyond accelerate 1.15: to be possible on the cpu, and to spread weights that lie in one process.

Patches of accelerate live here and nowhere else; a test fails when a patched name is gone or is not called.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, fsdp_utils
from torch.distributed.tensor import DTensor, distribute_tensor

from tunesmith.model.spread import memory_returned


@contextmanager
def possible_on_cpu() -> Iterator[None]:
    """Let an ``Accelerator`` that is made meanwhile use FSDP2 on cpus.

    accelerate asks for processes on accelerators before it looks at its FSDP plugin, and falls back to copies in
    silence; torch's FSDP2 itself works on cpus.
    """
    state = PartialState()
    if state.distributed_type is not DistributedType.MULTI_CPU:
        yield
        return
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    try:
        yield
    finally:
        if PartialState._shared_state["distributed_type"] is DistributedType.MULTI_GPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU


@contextmanager
def handing_out(model: torch.nn.Module) -> Iterator[None]:
    """Let accelerate spread ``model`` meanwhile without a second copy of it.

    accelerate's own way of handing out weights keeps the whole ones until the last piece is made, and sends each of
    them to every process; ``hand_out`` takes its place.
    """
    make_room(model)
    theirs = fsdp_utils.fsdp2_load_full_state_dict
    fsdp_utils.fsdp2_load_full_state_dict = hand_out
    try:
        yield
    finally:
        fsdp_utils.fsdp2_load_full_state_dict = theirs


def make_room(model: torch.nn.Module) -> None:
    """Give weights without data an address, at which nothing is written yet, so that it costs no memory.

    accelerate tells weights by their addresses when it gives the optimizer their pieces; those without data have none.
    """
    made: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if not parameter.is_meta:
                continue
            if parameter not in made:
                empty = torch.empty_like(parameter, device="cpu")
                made[parameter] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
            setattr(module, name, made[parameter])


def hand_out(
    accelerator: Accelerator, model: torch.nn.Module, full_sd: dict[str, torch.Tensor], cpu_offload: bool = False
) -> torch.nn.Module:
    """Give every process its pieces of the weights that rank 0 has; rank 0 lets go of each weight at once.

    Args:
        accelerator: names the device.
        model: sharded, without data.
        full_sd: the whole weights and buffers; it is emptied. Of other processes the shapes are used.
        cpu_offload: whether the pieces stay in the host's memory.
    """
    pieces: dict[str, torch.Tensor] = {}
    handed_out: dict[int, torch.Tensor] = {}  # tied weights have two names
    with memory_returned():
        for name, target in model.state_dict(keep_vars=True).items():
            full = full_sd.pop(name)
            if id(target) not in handed_out:
                piece = _piece(target, full, accelerator.device)
                handed_out[id(target)] = piece.to("cpu") if cpu_offload else piece
            del full
            pieces[name] = handed_out[id(target)]
    model.load_state_dict(pieces, assign=True)
    return model


def _piece(target: torch.Tensor, full: torch.Tensor, device: torch.device) -> torch.Tensor:
    """This process's piece of a weight, or the whole of a buffer."""
    ours = torch.distributed.get_rank() == 0
    whole = full.detach().to(device) if ours else torch.empty(full.shape, dtype=full.dtype, device=device)
    if isinstance(target, DTensor):
        return distribute_tensor(whole, target.device_mesh, target.placements).contiguous()
    torch.distributed.broadcast(whole, src=0)
    return whole


def accelerate_hands_out(accelerator: Any) -> bool:
    """Whether the run's weights lie in one process and are to be handed out."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    return plugin is not None and bool(plugin.cpu_ram_efficient_loading)
