"""Starts a run as several processes on this machine, when no launcher has done so already."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from tunesmith import notices
from tunesmith.config.resolve import Resolved


def launched() -> bool:
    """Whether a launcher (torchrun, accelerate, deepspeed) started this process with ranks."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def processes_wanted(resolved: Resolved) -> int:
    """Processes that this run should start: 1 when a launcher did its work or one process is all that was asked."""
    launch = resolved.config.launch
    if launched():
        return 1
    if launch.num_processes is not None:
        return launch.num_processes
    if not launch.distributed_training:
        return 1
    import torch

    visible = 1 if launch.gpu_id is not None else torch.cuda.device_count()
    if visible < 2:
        notices.say("distributed_training is on, and fewer than two accelerators are visible: one process trains")
    return max(visible, 1)


def command(program: Sequence[str], num_processes: int) -> list[str]:
    """The torchrun command that runs ``program`` (a module with ``-m``, or a script) as ``num_processes`` ranks."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}", *program,
    ]  # fmt: skip
