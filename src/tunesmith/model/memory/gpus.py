"""How much memory a device has: this machine's, or a known one that need not be here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from tunesmith.errors import ConfigError
from tunesmith.model.device import Device

GIB = 2**30

GPUS: dict[str, int] = {
    "t4": 16, "l4": 24, "a10": 24, "3090": 24, "4090": 24, "5090": 32, "v100": 32, "a6000": 48, "l40s": 48, "a100": 80,
    "h100": 80, "h200": 141, "b200": 180,
}  # fmt: skip
"""Memory of known devices in GiB; of those sold in several sizes the greatest."""


def device_memory(name: str) -> int:
    """Bytes of a device that is named by its size (``24GB``, ``80 GiB``) or its model (``RTX 3090``).

    Sellers' gigabytes of GPU memory are 2**30 bytes.

    Raises:
        ConfigError: neither a size nor a known model.
    """
    size = re.search(r"(\d+(?:\.\d+)?)\s*gi?b?$", name.strip().lower())
    if size:
        return int(float(size.group(1)) * GIB)
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    known = [gib for model, gib in GPUS.items() if model in words]
    if not known:
        raise ConfigError(
            f"--gpu {name!r} is no size and no device known here",
            where="command line",
            remedy=f"give its memory, for example 24GB; known are {', '.join(GPUS)}",
        )
    return known[0] * GIB


def usable(device: Device) -> int:
    """Bytes of the device on which a run computes; for the cpu what this process could use of the host's memory."""
    return device.memory if device.memory is not None else host_memory()


def resident() -> int:
    """Bytes of memory that this process holds."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return GIB
    return pages * os.sysconf("SC_PAGE_SIZE")


def host_memory() -> int:
    """Bytes that this process could use: what is free and its own, within the limit of its control group."""
    limits = list(_control_group_limits())
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        free = re.search(r"MemAvailable:\s+(\d+) kB", text)
        limits.append(int(free.group(1)) * 1024 + resident() if free else 0)
    except OSError:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limit for limit in limits if limit)


def _control_group_limits() -> Iterator[int]:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            yield int(Path(path).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
