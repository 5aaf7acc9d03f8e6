"""How much of a machine's main memory its processes take together."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.model.device import Device
from tunesmith.model.memory.formulas import Memory
from tunesmith.model.memory.gpus import resident


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes of main memory: of the process that needs most at its peak, and of all processes of a machine together."""

    processes: int
    each: int
    peak: int


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
    return HostMemory(processes, each, max(processes * training, loading))
