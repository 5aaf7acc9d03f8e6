"""The environment variables that a configuration may read, since settings are stored and shown."""

from __future__ import annotations

import os

from tunesmith.config.urls import has_credentials
from tunesmith.errors import ConfigError, UnsafeError
from tunesmith.secrets import may_be_secret, secret_in

READABLE = (
    "CUDA_VISIBLE_DEVICES", "HF_HOME", "HOME", "HOSTNAME", "LOCAL_RANK", "RANK", "SCRATCH", "SLURM_ARRAY_TASK_ID",
    "SLURM_JOB_ID", "SLURM_JOB_NAME", "TMPDIR", "TUNESMITH_DATA", "USER", "WORLD_SIZE",
)  # fmt: skip
"""What the code of a configuration file may read; none of them holds a secret."""
NEEDED = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT")
"""What a child process needs besides, to run at all."""
_MISSING = object()


def variable(name: str, where: str | None = None, default: object = _MISSING) -> str:
    """The value of an environment variable.

    Args:
        name: the variable.
        where: where it was asked for, for messages.
        default: what stands in its place where it is not set.

    Raises:
        UnsafeError: its name, or its value, looks like a secret.
        ConfigError: it is not set, and there is no default.
    """
    value = os.environ.get(name, "")
    if may_be_secret(name) or secret_in(value) or has_credentials(value):
        raise UnsafeError(
            f"the environment variable {name} is not read: it may hold a secret, and settings are stored with the run",
            where=where,
            remedy="libraries find their tokens in the environment themselves; write other values out",
        )
    if name in os.environ:
        return value
    if default is _MISSING:
        raise ConfigError(
            f"names the variable {name}, which is not set",
            where=where,
            remedy=f"set it, or write ${{oc.env:{name},VALUE}}",
        )
    return str(default)


def passed_on() -> dict[str, str]:
    """The environment of a child that runs somebody's file: what it may read, and what it needs to run."""
    return {name: os.environ[name] for name in (*READABLE, *NEEDED) if name in os.environ}
