"""How much of a machine's main memory its processes take together."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.model.device import Device
from tunesmith.model.memory.formulas import Memory
from tunesmith.model.memory.gpus import resident


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes of main memory: of one process at its peak, and of all processes of a machine."""

    processes: int
    each: int
    peak: int


def on_host(found: Memory, device: Device, processes: int) -> HostMemory:
    """The main memory of a machine.

    A process holds its libraries (as much as this one holds now), what is offloaded, and on the cpu everything else as
    well. While it loads, all weights are there unless they go straight to a device.

    Args:
        found: what one process needs on its device.
        device: that device.
        processes: processes of the machine.
    """
    training = found.peak if device.memory is None else resident() + found.offloaded
    straight = device.memory is not None and device.device_map is not None
    each = max(training, resident() + (0 if straight else found.loaded))
    return HostMemory(processes, each, each * processes)
