"""Which of a run's processes this one is: what torchrun, accelerate or deepspeed put in the environment.

Seeds: every process builds the same model from ``training.seed`` and draws rows in the order of ``data_seed``; dropout
and everything else that is random while training comes from ``process_seed``, another one in each process.

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
