"""Which of a run's processes this one is: what torchrun, accelerate or deepspeed put in the environment.

Seeds: every process builds the same model from ``training.seed`` and draws rows in the order of ``data_seed``; dropout
and everything else that is random while training comes from ``process_seed``, another one in each process.

It starts no process and answers before anything is loaded: torch is imported after a restart alone.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Processes:
    """How many processes share a run, one device each; planned, or running."""

    per_machine: int = 1
    machines: int = 1

    @property
    def total(self) -> int:
        """Processes on all machines together."""
        return self.per_machine * self.machines


def running() -> Processes:
    """The processes of the run that this one belongs to; a launcher that does not count those of a machine (srun)
    counts as one with a single machine."""
    total = num_processes()
    per_machine = int(os.environ.get("LOCAL_WORLD_SIZE", total))
    return Processes(per_machine, max(1, total // per_machine))


def environment_of(processes: Processes) -> Mapping[str, str]:
    """This process's environment; where other processes are planned, that of the last one on a machine, which is the
    first to lack a device."""
    if processes == running():
        return os.environ
    planned = {"WORLD_SIZE": str(processes.total), "LOCAL_RANK": str(processes.per_machine - 1)}
    return os.environ | (planned if processes.total > 1 else {})


def rank() -> int:
    """Number of this process among all of the run's; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def num_processes() -> int:
    """Processes of the run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process is the one that writes and talks."""
    return rank() == 0


def process_seed(seed: int, step: int = 0) -> int:
    """Seed of the random numbers that this process draws while it trains.

    Args:
        seed: the run's seed.
        step: optimizer steps already done, for streams that start in the middle of a run because no process has left
            its own to this one (another number of processes continues).
    """
    return (seed + rank() + 1_000_003 * step) % 2**32


def connected() -> bool:
    """Whether this process is in a group with others already; whoever made the group, not the run, then ends it."""
    if num_processes() == 1:
        return False
    import torch.distributed

    return torch.distributed.is_initialized()


def connect_with_itself() -> None:
    """Make a single process a group of its own, in which DeepSpeed exchanges its pieces; needs no port or launcher."""
    import torch.distributed

    from tunesmith.model.device import seen

    if num_processes() > 1 or torch.distributed.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if seen(count_only=True).count else "gloo"
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    if "LOCAL_RANK" not in os.environ:  # DeepSpeed asks for it, and nobody else while the run lasts
        os.environ["LOCAL_RANK"] = "0"
        _LENT.append("LOCAL_RANK")


def leave_sums_to_gloo() -> None:
    """Let DeepSpeed sum on CPUs by torch's own group of processes.

    Else it compiles an operator for shared memory, a minute of a core in every new environment, whose processes then
    wait for each other in busy loops, which take the cores from what they wait for.
    """
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False


_LENT: list[str] = []
"""Variables that a process has only while it is a group of its own."""
_LEFT: list[object] = []
"""Groups that this process has left."""


def disconnect() -> None:
    """Leave the group of processes: what this one does from here on, no other waits for, however long it takes.

    Every process must call this, after its last exchange with the others; one that is alone may.
    """
    import torch.distributed

    while _LENT:
        os.environ.pop(_LENT.pop(), None)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    # A group that is freed joins its threads with Python's lock held, and a thread that still frees a tensor of the
    # last exchange waits for that lock: for ever (torch 2.13, gloo). So nobody frees one before the process ends.
    _LEFT.extend(torch.distributed.distributed_c10d._world.pg_map)
    deepspeed = sys.modules.get("deepspeed.comm")  # it keeps the group as well
    if deepspeed is not None and deepspeed.is_initialized():
        deepspeed.destroy_process_group()
    else:
        torch.distributed.destroy_process_group()


def use_fresh_store() -> None:
    """After a restart by torchrun, meet at a new store instead of the one that all starts of an agent share.

    In the shared one the processes would find the addresses of those that died, and wait for them until the timeout
    (torch 2.13, gloo). Every process must call this before they are connected.
    """
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if start == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    from torch.distributed import TCPStore

    shared = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    key = f"tunesmith/port/{start}"
    if is_main_process():
        with socket.socket() as probe:
            probe.bind(("", 0))
            shared.set(key, str(probe.getsockname()[1]))
    os.environ["MASTER_PORT"] = shared.get(key).decode()
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
