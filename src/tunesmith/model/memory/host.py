"""How much of a machine's main memory its processes take together."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.model.device import Device
from tunesmith.model.memory.formulas import Memory
from tunesmith.model.memory.gpus import resident

SHARD = 2 * 10**9
"""Bytes of a file that a merge writes."""
LARGE = 6 * 2**30
"""Bytes of weights beyond which the merge's proof computes layer by layer on the cpu."""
WHILE_FOLDED = 6
"""How often a weight is there in float32 while it is folded and proven."""


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes of main memory: of the process that needs most at its peak, and of all processes of a machine together.

    Attributes:
        processes: processes of the machine.
        each: of the process that needs most.
        peak: of all together, at the time when they need most.
        loading: of all together while weights are loaded.
        saving: of the main process while the finished model is saved.
        merging: of a process that merges the adapter afterwards; None where there is none.
    """

    processes: int
    each: int
    peak: int
    loading: int = 0
    saving: int = 0
    merging: int | None = None


def on_host(found: Memory, device: Device, processes: int, *, in_pieces: bool) -> HostMemory:
    """The main memory of a machine.

    A process holds its libraries (as much as this one holds now), what is offloaded, and on the cpu everything else as
    well. While they load, each process holds all weights, unless they go straight to a device; those that are spread
    while they load (``model.spread.loads_in_pieces``) are there once.

    Args:
        found: what one process needs on its device.
        device: that device.
        processes: processes of the machine.
        in_pieces: whether the weights are spread while they load.
    """
    training = found.peak if device.memory is None else resident() + found.offloaded
    straight = device.memory is not None and device.device_map is not None
    copies = 0 if straight else 1 if in_pieces else processes
    loading = processes * resident() + copies * found.loaded
    each = max(training, resident() + (0 if straight else found.loaded))
    saving = (training if device.memory is None else resident()) + found.trained_bytes
    return HostMemory(processes, each, max(processes * training, loading), loading, saving)


def while_merging(found: Memory, *, quantized: bool, on_cpu: bool) -> int:
    """Bytes of main memory of a merge: one file, one weight in float32 a few times over, the adapter, and the quantized
    model on whose weights it was trained.

    Args:
        found: what a process needs to train.
        quantized: whether the base is in 4 or 8 bits.
        on_cpu: whether the run's model is asked on the cpu.
    """
    held = found.loaded if quantized and on_cpu else min(found.loaded, LARGE) if on_cpu else 0
    return resident() + held + min(SHARD, 4 * found.parameters) + WHILE_FOLDED * found.largest + found.trained_bytes
