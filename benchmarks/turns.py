"""Sides of a comparison take turns, each turn in a process of its own with one thread."""

from __future__ import annotations

import compileall
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn came to.

    Attributes:
        result: what the side measured.
        began: when its process was started, by ``time.time()``.
        ended: when it was gone.
        cpu: seconds of a core, those of the kernel and of child processes included.
    """

    result: dict[str, Any]
    began: float
    ended: float
    cpu: float


def alternating(sides: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Number of the round and side of each turn; every other round goes the other way."""
    for number in range(rounds):
        for side in sides if number % 2 == 0 else list(sides)[::-1]:
            yield number, side


@cache
def _compile() -> None:
    """Have our modules as bytecode, as those of every installed package are; once is enough."""
    for folder in ("src", "benchmarks"):
        compileall.compile_dir(Path(__file__).parents[1] / folder, quiet=2)


def take(module: str, job: dict[str, Any], python: str = sys.executable) -> Turn:
    """Run ``python -m MODULE JOB RESULT`` to its end, by this or another interpreter.

    Raises:
        SystemExit: it ended with an error.
    """
    _compile()
    given, measured, log = (Path(job["folder"], name) for name in ("job.json", "result.json", "log"))
    given.write_text(json.dumps(job), encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    # this process has it from the package; no other side would
    environment.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY", None)
    with log.open("w", encoding="utf-8") as file:
        began = time.time()
        process = subprocess.Popen(
            [python, "-m", module, str(given), str(measured)],
            cwd=Path(__file__).parents[1], env=environment, stdout=file, stderr=file,
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        ended = time.time()
    if process.returncode:
        raise SystemExit(f"{job['side']} ended with {process.returncode}:\n{log.read_text(encoding='utf-8')[-2000:]}")
    return Turn(json.loads(measured.read_text(encoding="utf-8")), began, ended, usage.ru_utime + usage.ru_stime)
