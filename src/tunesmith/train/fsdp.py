"""FSDP2 on the cpu. On accelerators, accelerate switches it on by itself; nothing here is used then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import PartialState
from accelerate.utils import DistributedType


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
