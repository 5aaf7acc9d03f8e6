"""Rules between settings of devices, processes and machines."""

from __future__ import annotations

import re

from tunesmith.config.resolve import Resolved
from tunesmith.config.rule import Problem, Rules

RULES = Rules()


@RULES.rule
def chosen_device_is_for_one_process(resolved: Resolved) -> Problem | None:
    launch, device_map = resolved.config.launch, resolved.config.model.device_map
    if (launch.num_processes or 1) == 1:
        return None
    for path, chosen in (("launch.gpu_id", launch.gpu_id is not None), ("model.device_map", device_map != "auto")):
        if chosen:
            return Problem(
                (path, "launch.num_processes"),
                f"{path.partition('.')[2]} chooses one device, and num_processes asks for {launch.num_processes} "
                "processes with a device each",
                "leave one of them out; CUDA_VISIBLE_DEVICES=0,1 chooses several",
            )
    return None


@RULES.rule
def machines_find_each_other(resolved: Resolved) -> Problem | None:
    launch = resolved.config.launch
    paths = ("launch.nodes", "launch.node_rank", "launch.rendezvous")
    if launch.nodes == 1:
        if launch.node_rank or launch.rendezvous:
            return Problem(
                paths[::-1], "node_rank and rendezvous are for several machines, and nodes is 1", "set nodes"
            )
        return None
    if launch.node_rank is None or launch.rendezvous is None:
        missing = " and ".join(name for name in ("node_rank", "rendezvous") if getattr(launch, name) is None)
        return Problem(
            paths,
            f"{launch.nodes} machines need {missing}",
            "on each machine give its own node_rank (0, 1, ...) and the same rendezvous, HOST:PORT of machine 0",
        )
    if launch.node_rank >= launch.nodes:
        return Problem(
            paths[1::-1],
            f"node_rank {launch.node_rank} is not one of {launch.nodes} machines",
            f"machines are counted from 0 to {launch.nodes - 1}",
        )
    address = re.fullmatch(r"([^:\s]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", launch.rendezvous)
    if address is None or not 0 < int(address[2]) < 2**16:
        return Problem(paths[2:], f"rendezvous {launch.rendezvous!r} is not HOST:PORT", "write it like 10.0.0.1:29500")
    return None


@RULES.rule
def ray_places_the_workers(resolved: Resolved) -> Problem | None:
    launch = resolved.config.launch
    if launch.engine != "ray":
        return None
    for name, written in (
        ("nodes", launch.nodes > 1),
        ("node_rank", launch.node_rank is not None),
        ("rendezvous", launch.rendezvous is not None),
        ("accelerate_config", launch.accelerate_config is not None),
    ):
        if written:
            return Problem(
                (f"launch.{name}", "launch.engine"),
                f"Ray places the workers on its machines, so {name} says nothing",
                "leave it out; num_processes counts the workers of the whole cluster",
            )
    return None
