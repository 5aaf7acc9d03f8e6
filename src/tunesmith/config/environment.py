"""The environment variables that a configuration may read."""

from __future__ import annotations

import os

READABLE = (
    "CUDA_VISIBLE_DEVICES", "HF_HOME", "HOME", "HOSTNAME", "LOCAL_RANK", "RANK", "SCRATCH", "SLURM_ARRAY_TASK_ID",
    "SLURM_JOB_ID", "SLURM_JOB_NAME", "TMPDIR", "TUNESMITH_DATA", "USER", "WORLD_SIZE",
)  # fmt: skip
"""What a configuration file may read; none of them holds a secret."""
NEEDED = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT")
"""What a child process needs besides, to run at all."""


def passed_on() -> dict[str, str]:
    """The environment of a child that runs somebody's file: what it may read, and what it needs to run."""
    return {name: os.environ[name] for name in (*READABLE, *NEEDED) if name in os.environ}
