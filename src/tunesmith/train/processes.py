"""Which of a run's processes this one is: what torchrun, accelerate or deepspeed put in the environment.

It starts no process and opens no connection; no library is imported, so it answers before anything is loaded.
"""

from __future__ import annotations

import os


def rank() -> int:
    """Number of this process among all of the run's; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def num_processes() -> int:
    """Processes of the run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def restarted() -> bool:
    """Whether the launcher started all processes again after one of them had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def is_main_process() -> bool:
    """Whether this process is the one that writes and talks."""
    return rank() == 0
