"""Where a run computes: what torch sees of this machine, and the one decision that everything else follows.

``seen`` alone asks torch for devices. ``choose`` is a pure function of the settings, of what was seen and of the
environment, so that every rule is tested on machines without a GPU. It loads nothing and changes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tunesmith.config.resolve import Resolved
from tunesmith.config.strategy import ALONE, Strategy
from tunesmith.errors import ModelError

MASK = "CUDA_VISIBLE_DEVICES"
"""Variable by which schedulers and people hide devices: numbers, UUIDs (``GPU-...``) or MIG instances (``MIG-...``)."""
NARROWED = "TUNESMITH_NARROWED"
"""Variable with the device that ``narrow`` has chosen and the mask that it left, ``1:GPU-...``."""
DRIVER = Path("/proc/driver/nvidia/version")
ROOM = 0.8
"""Share of a device that weights may take when a model only answers; the rest is for its cache and its activations."""

DeviceMap = dict[str, int | str] | Literal["auto"] | None
"""The library's ``device_map``: one device for all, spread over all visible ones, or left to whoever places weights."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What torch sees.

    Attributes:
        count: visible CUDA devices.
        bf16: whether all of them (or Apple's, where there is none) compute in bfloat16.
        memory: bytes of each device; of Apple's what it may take of the host's.
        names: the devices' names.
        mps: whether Apple's device is there.
    """

    count: int = 0
    bf16: bool = False
    memory: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    mps: bool = False


@dataclass(frozen=True, slots=True)
class Device:
    """Where a run computes.

    Attributes:
        kind: torch's type of the device.
        device_map: where the library puts weights.
        use_cpu: the trainer's flag that keeps it away from accelerators.
        visible: ``CUDA_VISIBLE_DEVICES`` that shows this device alone, to be set before torch starts; None for as it
            is. What was chosen holds without it as well.
        spread: whether one process lays the model over several devices.
        reason: why it is this one, in words.
        index: number of the CUDA device among the visible ones.
        bf16: whether it computes in bfloat16.
        name: what it is called, for people.
        memory: its bytes (of all devices together where the model is spread); None where the host's memory counts.
    """

    kind: Literal["cuda", "cpu", "mps"]
    device_map: DeviceMap
    use_cpu: bool
    visible: str | None
    spread: bool
    reason: str
    index: int = 0
    bf16: bool = True
    name: str = "cpu"
    memory: int | None = None

    def __str__(self) -> str:
        return f"cuda:{self.index}" if self.kind == "cuda" else self.kind


CPU = Device("cpu", None, use_cpu=True, visible=None, spread=False, reason="there is no accelerator")
"""A machine without accelerators."""


def seen(*, count_only: bool = False) -> Machine:
    """What torch sees here.

    Args:
        count_only: leave all else out. Names and memory cost a CUDA context on each device, which who only starts
            processes should not hold.
    """
    import torch

    count = torch.cuda.device_count()
    if count_only:
        return Machine(count)
    if count and torch.cuda.is_available():
        properties = [torch.cuda.get_device_properties(index) for index in range(count)]
        # as torch.cuda.is_bf16_supported without emulation, for every device and not the current one alone
        bf16 = torch.version.hip is not None or all(each.major >= 8 for each in properties)
        memory = tuple(int(each.total_memory) for each in properties)
        return Machine(count, bf16, memory, tuple(str(each.name) for each in properties))
    if torch.backends.mps.is_available():
        bf16 = torch.backends.mps.is_macos_or_newer(14, 0)
        return Machine(0, bf16, (torch.mps.recommended_max_memory(),), ("Apple mps",), mps=True)
    return Machine()


def built_for() -> str | None:
    """What this torch was built for besides the cpu: ``CUDA 12.6``, ``ROCm 6.3``; None for nothing."""
    import torch

    if torch.version.hip is not None:
        return f"ROCm {torch.version.hip}"
    return f"CUDA {torch.version.cuda}" if torch.version.cuda is not None else None


def driver(path: Path = DRIVER) -> str | None:
    """Version of NVIDIA's driver, which the kernel tells; None where it has none."""
    try:
        found = re.search(r"NVRM version:.*?\s(\d+\.[\d.]+)\s", path.read_text(encoding="ascii", errors="replace"))
    except OSError:
        return None
    return found[1] if found else None


def here(resolved: Resolved, strategy: Strategy = ALONE) -> Device:
    """``choose`` for this machine and this process's environment."""
    return choose(resolved, seen(), os.environ, strategy)


def choose(
    resolved: Resolved, machine: Machine, environ: Mapping[str, str] = os.environ, strategy: Strategy = ALONE
) -> Device:
    """The device of a process.

    One process of several takes its own device. A single one takes the device in ``device_map``, or ``gpu_id`` counted
    within ``CUDA_VISIBLE_DEVICES``; else it is spread over all visible CUDA devices, takes Apple's device, or stays on
    the cpu.

    Args:
        resolved: the run's settings.
        machine: what torch sees.
        environ: the environment of the process.
        strategy: how several processes share the work; who spreads weights also places them.

    Raises:
        ModelError: a device was asked for that is not there, or that cannot do what the settings ask for.
    """
    kind, index = _wish(resolved, environ)
    several = int(environ.get("WORLD_SIZE", "1")) > 1
    if kind == "cpu":
        return _cpu(resolved, machine, environ, strategy)
    if kind == "mps" or (kind == "auto" and machine.mps and not machine.count):
        return _mps(resolved, machine, several=several)
    written = _written(resolved)
    if kind == "cuda" and index >= machine.count:
        if written is None:  # a default gives way
            return _automatic(resolved, machine, environ, strategy)
        raise ModelError(
            f"{_asked(resolved)} was asked for, and the number of visible CUDA devices is {machine.count}",
            where=resolved.origins[written],
            remedy="choose a visible device (they are counted within CUDA_VISIBLE_DEVICES), or leave it out",
        )
    if kind == "auto":
        return _automatic(resolved, machine, environ, strategy)
    return _chosen(resolved, machine, environ, strategy, index)


def narrow(resolved: Resolved, environ: MutableMapping[str, str] = os.environ) -> None:
    """Hide all CUDA devices but the one that somebody chose; to be called before torch is imported.

    Libraries take the first device they see, so what is hidden cannot be taken by mistake. Without a choice, or where
    the mask has no such device, nothing is changed, and ``choose`` says what is wrong.
    """
    try:
        visible = _visible(resolved, environ)
        kind, index = _wish(resolved, environ)
    except ModelError:
        return
    if visible is None:
        return
    environ[NARROWED] = f"{index if kind == 'cuda' else kind}:{visible}"
    environ[MASK] = visible


def check_count(per_machine: int, machine: Machine) -> None:
    """Refuse to start more processes than there are devices; on the cpu they share what there is.

    Raises:
        ModelError: with both numbers.
    """
    if 0 < machine.count < per_machine:
        raise ModelError(
            f"{per_machine} processes take a device each, and the number of visible CUDA devices is {machine.count}",
            where="launch.num_processes",
            remedy=f"start fewer processes on each machine, or hide the devices ({MASK}=) to train on the cpu",
        )


def on_one(device: Device, machine: Machine, weight_bytes: int) -> Device:
    """The same for a model that only answers: it is spread over several devices only where it does not fit into one.

    Args:
        device: what ``choose`` says.
        machine: what torch sees.
        weight_bytes: what the model's weights take.
    """
    fitting = [index for index, size in enumerate(machine.memory) if weight_bytes <= ROOM * size]
    if not device.spread or not fitting:
        return device
    return _cuda(machine, fitting[0], {"": fitting[0]}, "the model fits into one device")


# what is wished for ---------------------------------------------------------------------------------------------------


def _wish(resolved: Resolved, environ: Mapping[str, str]) -> tuple[str, int]:
    """``auto``, ``cpu``, ``mps`` or ``cuda`` and the device's number among those that are visible now."""
    config = resolved.config
    text, gpu_id = config.model.device_map, config.launch.gpu_id
    found = re.fullmatch(r"(auto|cpu|mps)(?::0)?|cuda(?::(\d+))?", text)
    if found is None:
        raise ModelError(
            f"{text!r} names no device",
            where=resolved.origins["model.device_map"],
            remedy="give auto, cpu, mps or cuda:0",
        )
    kind, number = found[1] or "cuda", int(found[2] or 0)
    if gpu_id is None or kind == "auto":
        kind, number = (kind, number) if gpu_id is None else ("cuda", gpu_id)
    elif resolved.explicit("launch.gpu_id") and (kind != "cuda" or number not in (0, gpu_id)):
        raise ModelError(
            f"device_map is {text}, and gpu_id {gpu_id} chooses another device",
            where=resolved.origins["launch.gpu_id"],
            remedy="leave one of them out",
        )
    elif kind == "cuda" and resolved.explicit("launch.gpu_id"):
        number = gpu_id
    if kind == "cuda" and environ.get(NARROWED) == f"{number}:{environ.get(MASK)}":
        return kind, 0  # it is the one that was left visible
    return kind, number


def _visible(resolved: Resolved, environ: Mapping[str, str]) -> str | None:
    """The mask that shows the chosen device alone; None where nobody chose one, or it is the only one already."""
    written = _written(resolved)
    if written is None or "LOCAL_RANK" in environ:  # a launcher gives each process its own
        return None
    kind, index = _wish(resolved, environ)
    mask = environ.get(MASK)
    if kind not in ("cpu", "cuda"):
        return None
    if kind == "cpu":
        return ""
    if mask is None:
        return str(index)
    shown = [entry.strip() for entry in mask.split(",") if entry.strip()]
    return shown[index] if index < len(shown) and len(shown) > 1 else None


def _written(resolved: Resolved) -> str | None:
    """The setting by which somebody chose a device."""
    config = resolved.config
    if config.model.device_map != "auto":
        return "model.device_map"
    chosen = config.launch.gpu_id is not None and resolved.explicit("launch.gpu_id")
    return "launch.gpu_id" if chosen else None


def _asked(resolved: Resolved) -> str:
    """The wish in the user's words."""
    by_number = _written(resolved) == "launch.gpu_id"
    return f"gpu_id {resolved.config.launch.gpu_id}" if by_number else resolved.config.model.device_map


# the answers ----------------------------------------------------------------------------------------------------------


def _cpu(resolved: Resolved, machine: Machine, environ: Mapping[str, str], strategy: Strategy) -> Device:
    if machine.count and strategy.name != "ddp":
        raise ModelError(
            f"device_map is cpu, and {strategy.name} takes the CUDA devices that it sees",
            where=resolved.origins["model.device_map"],
            remedy=f"leave device_map out and hide the devices ({MASK}=), or set the strategy ddp",
        )
    elsewhere = bool(machine.count or machine.mps)
    return replace(
        CPU,
        device_map={"": "cpu"} if elsewhere else None,
        visible=_visible(resolved, environ) if machine.count else None,
        reason="device_map is cpu",
    )


def _mps(resolved: Resolved, machine: Machine, *, several: bool) -> Device:
    config, origins = resolved.config, resolved.origins
    if not machine.mps:
        raise ModelError(
            "device_map is mps, and Apple's device is not there",
            where=origins["model.device_map"],
            remedy="leave it to auto",
        )
    if several:
        if config.model.device_map == "mps":
            raise ModelError(
                "device_map is mps, which several processes cannot share",
                where=origins["model.device_map"],
                remedy="start one process",
            )
        return replace(CPU, device_map={"": "cpu"}, reason="several processes cannot share Apple's device")
    for name in ("load_in_4bit", "load_in_8bit"):
        if getattr(config.quantization, name):
            raise ModelError(
                f"{name} needs bitsandbytes, which has no kernels for Apple's device (mps)",
                where=origins[f"quantization.{name}"],
                remedy="leave it out, or set device_map cpu",
            )
    memory = machine.memory[0] if machine.memory else None
    name = machine.names[0] if machine.names else "mps"
    why = "device_map is mps" if config.model.device_map == "mps" else "Apple's device is there and no CUDA device"
    return Device("mps", {"": "mps"}, False, None, False, why, bf16=machine.bf16, name=name, memory=memory)


def _automatic(resolved: Resolved, machine: Machine, environ: Mapping[str, str], strategy: Strategy) -> Device:
    """Nobody chose a device, or only a default did which is not there."""
    ignored = resolved.config.launch.gpu_id
    note = "" if ignored is None else f" (gpu_id {ignored} is only a default, and not there)"
    if machine.mps and not machine.count:
        return _mps(resolved, machine, several=int(environ.get("WORLD_SIZE", "1")) > 1)
    if not machine.count:
        return replace(CPU, reason=CPU.reason + note)
    own = _own(machine, environ)
    if strategy.name != "ddp":
        return _cuda(machine, own or 0, _placed_by_strategy(resolved, own or 0), f"{strategy.name} places the weights")
    if own is not None:
        return _cuda(machine, own, {"": own}, "each process has a device of its own")
    if machine.count == 1:
        return _cuda(machine, 0, {"": 0}, "it is the only CUDA device" + note)
    spread = _cuda(machine, 0, "auto", f"one process lays the model over {machine.count} CUDA devices" + note)
    size, name = sum(machine.memory) or None, f"{machine.count} x {spread.name}"
    return replace(spread, spread=True, memory=size, name=name)


def _chosen(resolved: Resolved, machine: Machine, environ: Mapping[str, str], strategy: Strategy, index: int) -> Device:
    """A CUDA device that is there and that the settings name."""
    own, asked = _own(machine, environ), _asked(resolved)
    if int(environ.get("WORLD_SIZE", "1")) > 1 or (own is not None and own != index):
        if _written(resolved) is None:
            return _automatic(resolved, machine, environ, strategy)
        raise ModelError(
            f"{asked} chooses one device, and a launcher gave each process a device of its own",
            where=resolved.origins[_written(resolved) or "launch.gpu_id"],
            remedy=f"leave it out; {MASK}=0,1 chooses several",
        )
    if strategy.name != "ddp" and index:
        raise ModelError(
            f"{asked} was asked for, and {strategy.name} takes the first device that it sees",
            where=resolved.origins[_written(resolved) or "launch.gpu_id"],
            remedy=f"show that device alone ({MASK}={_visible(resolved, environ) or index}), or set the strategy ddp",
        )
    device_map: DeviceMap = {"": index} if strategy.name == "ddp" else _placed_by_strategy(resolved, index)
    visible = _visible(resolved, environ) if machine.count > 1 else None
    return replace(_cuda(machine, index, device_map, f"{asked} was asked for"), visible=visible)


def _placed_by_strategy(resolved: Resolved, index: int) -> DeviceMap:
    """Who spreads weights places them; quantized ones are made on their device, together with their scales."""
    quantization = resolved.config.quantization
    return {"": index} if quantization.load_in_4bit or quantization.load_in_8bit else None


def _own(machine: Machine, environ: Mapping[str, str]) -> int | None:
    """The device of one process of several on this machine; where each is shown a single one, that is its first."""
    rank = int(environ.get("LOCAL_RANK", "-1"))
    if rank < 0:
        return None
    if rank >= machine.count > 1:
        raise ModelError(
            f"process {rank} of this machine has no device: the number of visible CUDA devices is {machine.count}",
            remedy="start one process for each device",
        )
    return rank if rank < machine.count else 0


def _cuda(machine: Machine, index: int, device_map: DeviceMap, reason: str) -> Device:
    memory = machine.memory[index] if index < len(machine.memory) else None
    name = machine.names[index] if index < len(machine.names) else f"cuda:{index}"
    return Device("cuda", device_map, False, None, False, reason, index, machine.bf16, name, memory)
