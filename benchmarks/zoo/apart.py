"""Runs in processes of their own, forked off this one, which has its imports behind it: no run pays for them again.

A run that ends its process, hangs, or leaves something changed in a library costs that run and no other.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

SECONDS = 90
"""Seconds of a core that a run may take; a tiny model takes a few."""
PATIENCE = 900
"""Seconds on the clock after which a run is ended that waits for something."""
MODULES = ("bitsandbytes", "trl", "tunesmith.evaluate.generate", "tunesmith.export.merge", "tunesmith.train.run")
"""What a run would import; what else it does, it tells (``learn``)."""
PACKAGES = (
    "accelerate", "bitsandbytes", "datasets", "jinja2", "pandas", "peft", "pyarrow", "torch", "transformers", "trl",
    "tunesmith",
)  # fmt: skip


class Ended(Exception):
    """A run's process came to an end without a result."""


def warm() -> None:
    """Import what runs need; nothing is computed here, since threads cannot be forked."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    for module in MODULES:
        importlib.import_module(module)


def imported() -> list[str]:
    """Modules of ours and of the libraries that this process has."""
    return [name for name in sys.modules if name.split(".")[0] in PACKAGES]


def learn(modules: list[str]) -> None:
    """Import what a run had to import, for those that come after it."""
    for name in modules:
        if name not in sys.modules:
            with suppress(Exception):  # some exist only while a run is under way
                importlib.import_module(name)


def call(action: Callable[[], Any], seconds: int = SECONDS) -> tuple[Any, float]:
    """What ``action`` returns in a forked process, and the seconds of a core that it took.

    Args:
        action: returns what JSON can hold; what it prints is lost.
        seconds: of a core, after which it is ended.

    Raises:
        Ended: the process ended, or was ended, without a result.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _run(action, writing, seconds)
    os.close(writing)
    content = _read(reading, child)
    _, status, used = os.wait4(child, 0)
    taken = used.ru_utime + used.ru_stime
    if content is None or status:
        code = os.waitstatus_to_exitcode(status)
        slow = content is None or -code in (signal.SIGXCPU, signal.SIGKILL)
        raise Ended(f"not done after {taken:.0f} s of a core" if slow else f"its process ended with {code}")
    return json.loads(content), taken


def _run(action: Callable[[], Any], writing: int, seconds: int) -> None:
    """The forked process: never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silent, stream)
        content = json.dumps(action()).encode()
        with open(writing, "wb") as pipe:
            pipe.write(content)
        code = 0
    finally:
        os._exit(code)


def _read(reading: int, child: int) -> bytes | None:
    """All that the child writes; None when it takes too long, and is ended."""
    parts: list[bytes] = []
    deadline = time.monotonic() + PATIENCE
    with open(reading, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            part = pipe.read(1 << 16)
            if not part:
                return b"".join(parts)
            parts.append(part)
    os.killpg(child, signal.SIGKILL)
    return None
