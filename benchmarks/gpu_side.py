"""One side of the comparison ``gpu`` in a process of its own: ``python -m benchmarks.gpu_side JOB RESULT``.

Whatever trains, the clock is read when a torch optimizer has stepped and the device has done all that it was given.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.training_side import SIDES


def main() -> None:
    """Train as the job says, and write what was measured."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(measure(job)), encoding="utf-8")


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Losses, seconds of each step after the first, and the most bytes of the device (on a CPU, of the process)."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from tunesmith.model.memory.peak import peak_memory

    def mark(*_: Any) -> None:
        if job["on_gpu"]:
            torch.cuda.synchronize()
        marks.append(time.perf_counter())

    marks: list[float] = []
    hook = register_optimizer_step_post_hook(mark)
    try:
        losses = SIDES[job["side"]](job)
    finally:
        hook.remove()
    if len(marks) < len(losses) or len(losses) != job["steps"]:
        raise SystemExit(f"{len(marks)} steps and {len(losses)} losses")
    seconds = [after - before for before, after in pairwise(marks[-len(losses) :])]
    peak = torch.cuda.max_memory_reserved() if job["on_gpu"] else peak_memory(torch.device("cpu"))
    return {"losses": losses, "seconds": seconds, "peak": peak}


if __name__ == "__main__":
    main()
