"""How much memory a training run needs, what there is, and what makes it fit.

``formulas`` adds up; ``shapes`` builds the model without weights, ``activations`` counts what its code keeps; ``gpus``
knows devices; ``fitting`` changes settings until a run fits.
"""

from tunesmith.model.memory.activations import BatchShape
from tunesmith.model.memory.fitting import remedies, savers
from tunesmith.model.memory.formulas import Memory, estimate, optimizer_bytes
from tunesmith.model.memory.gpus import GIB, GPUS, device_memory, host_memory, usable
from tunesmith.model.memory.host import HostMemory, on_host, while_merging
from tunesmith.model.memory.shapes import skeleton

__all__ = [
    "GIB",
    "GPUS",
    "BatchShape",
    "HostMemory",
    "Memory",
    "device_memory",
    "estimate",
    "host_memory",
    "on_host",
    "optimizer_bytes",
    "remedies",
    "savers",
    "skeleton",
    "usable",
    "while_merging",
]
