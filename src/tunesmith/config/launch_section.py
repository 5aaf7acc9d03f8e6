"""The settings of devices, processes and machines."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.config.kinds import NonNegativeInt, PositiveInt, Section


class LaunchSection(Section):
    """Devices, processes and machines."""

    gpu_id: NonNegativeInt | None = None
    """The accelerator to use, counted within ``CUDA_VISIBLE_DEVICES``; unset means all visible ones."""
    distributed_training: bool = False
    """One process for each visible accelerator; written as false, one process, which ``device_map`` auto spreads."""
    num_processes: Annotated[int, Field(gt=0, le=1024)] | None = None
    """Processes to start on each machine; unset, what the launcher started, else one for each visible accelerator
    (one in all where ``gpu_id`` or ``device_map`` chooses a device, or ``distributed_training`` is written false)."""
    strategy: Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"] | None = None
    """How several processes share the work: copies of the model (``ddp``), or its states spread over them."""
    nodes: Annotated[int, Field(gt=0, le=65_536)] = 1
    """Machines that train together."""
    node_rank: NonNegativeInt | None = None
    """Number of this machine among them, from 0; rank 0, which writes the run folder, is on machine 0."""
    rendezvous: str | None = None
    """``HOST:PORT`` of machine 0, where the machines meet; the same on all of them."""
    max_restarts: NonNegativeInt = 0
    """How often all processes are started again, from the newest complete checkpoint, after one has died; above 0, the
    same command also continues an unfinished run in ``output_dir``."""
    engine: Literal["torchrun", "ray"] = "torchrun"
    """What starts the processes."""
    ddp_timeout: PositiveInt = 1800
    """Seconds that processes wait for each other before they give up."""
    deepspeed: str | None = None
    """DeepSpeed configuration: a JSON file, or the name of one that tunesmith brings (``zero3-offload-cpu`` ...)."""
    nvme_path: str | None = None
    """Folder on an NVMe disk, for the DeepSpeed configuration ``zero3-offload-nvme``."""
    accelerate_config: str | None = None
    """Configuration file of accelerate, as ``accelerate config`` writes it, for the processes that tunesmith starts."""
