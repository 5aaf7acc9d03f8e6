"""How many processes a run wants on this machine, who started this one, and what it owes to an agent of ours.

It starts no process: that is ``torchrun.py``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from tunesmith import notices
from tunesmith.config.resolve import Resolved
from tunesmith.config.strategy import read_accelerate
from tunesmith.errors import ConfigError
from tunesmith.model.device import seen
from tunesmith.train.processes import Processes, running

AGENT = "TUNESMITH_AGENT"
"""Variable that holds the process number of the agent that started a rank."""


def launched() -> bool:
    """Whether a launcher started this process: torchrun, accelerate, deepspeed or srun with ranks, or accelerate with
    a single process, which has none."""
    return ("WORLD_SIZE" in os.environ and "RANK" in os.environ) or "ACCELERATE_DYNAMO_BACKEND" in os.environ


def processes_wanted(resolved: Resolved) -> int:
    """Processes that this machine should start: 1 when a launcher did its work or one process is all that is wanted.

    ``num_processes`` decides, then that of ``accelerate_config``, which counts all machines. Where neither is set there
    is one process for every visible accelerator, unless one device was chosen (``gpu_id``, ``device_map``) or somebody
    wrote ``distributed_training`` false: then one process trains, and with ``device_map`` auto the model is spread over
    all accelerators.
    """
    launch, model = resolved.config.launch, resolved.config.model
    if launched():
        return 1
    if launch.num_processes is not None:
        return launch.num_processes
    if launch.accelerate_config is not None:
        origin = resolved.origins["launch.accelerate_config"]
        return int(read_accelerate(launch.accelerate_config, origin).get("num_processes") or 1) // launch.nodes
    if not launch.distributed_training and resolved.explicit("launch.distributed_training"):
        return 1
    one = launch.gpu_id is not None or model.device_map != "auto"
    visible = 1 if one else seen(count_only=True).count
    if visible < 2 and launch.distributed_training:
        notices.notify("distributed_training is on, and fewer than two accelerators are visible: one process trains")
    return max(visible, 1)


def planned(resolved: Resolved) -> Processes:
    """The processes with which ``train`` runs this configuration: those of a launcher, or those that it starts itself.

    Ray counts the workers of its whole cluster; how they lie on machines it decides when it starts them.
    """
    launch = resolved.config.launch
    if launched():
        return running()
    if launch.engine == "ray":
        return Processes(launch.num_processes or 1)
    return Processes(processes_wanted(resolved), launch.nodes)


def check_launcher(resolved: Resolved) -> None:
    """Refuse settings that contradict what a launcher has done.

    Raises:
        ConfigError: with both numbers.
    """
    launch = resolved.config.launch
    if not launched() or launch.num_processes is None:
        return
    here = os.environ.get("LOCAL_WORLD_SIZE")
    wanted, started = launch.num_processes, int(here or os.environ.get("WORLD_SIZE", "1"))
    if here is None:
        wanted *= launch.nodes
    if wanted != started:
        raise ConfigError(
            f"num_processes asks for {wanted} processes, and the launcher started {started}",
            where=resolved.origins["launch.num_processes"],
            remedy="leave num_processes out, or start without a launcher",
        )


def has_agent() -> bool:
    """Whether an agent of ours started this process, reads its log and shows the result."""
    return AGENT in os.environ


def die_with_agent() -> None:
    """Let the kernel end this process when the agent that started it dies, however that happens; Linux alone can."""
    agent = os.environ.get(AGENT)
    if agent is None or sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != int(agent):  # it died before that
        os.kill(os.getpid(), signal.SIGKILL)
