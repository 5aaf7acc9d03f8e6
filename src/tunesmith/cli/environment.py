"""The process around a run: secrets from ``.env``, quiet libraries, the chosen accelerator.

Must run before torch is imported. Values of secrets are never printed, saved or sent.
"""

from __future__ import annotations

import io
import logging
import os
import re
import stat
import warnings
from functools import cache
from importlib import metadata
from pathlib import Path

from tunesmith.config.files import read_bytes
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ConfigError
from tunesmith.model.device import narrow
from tunesmith.notices import notify, verbosity

SECRETS = ("HF_TOKEN", "WANDB_API_KEY")
"""What ``.env`` may hold for us; other lines of the file are left alone."""


def prepare(resolved: Resolved | None = None) -> None:
    """Read ``.env`` from the working directory, choose the accelerator, and keep the libraries' chatter off the
    terminal unless ``--verbose`` asks for it."""
    read_env_file(Path(".env"))
    if resolved is not None:
        narrow(resolved)
    # transformers and TRL ask, while they are imported, for the packages of all that is installed: a third of a second
    if not hasattr(metadata.packages_distributions, "cache_info"):
        metadata.packages_distributions = cache(metadata.packages_distributions)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("WANDB_DISABLE_CODE", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if verbosity() == "verbose":
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info")
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of several machines: that names cannot be looked up
    # these speak when they are imported, whether or not their feature is wanted
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of a user without a home
    logging.getLogger("DeepSpeed").addFilter(lambda entry: "Setting accelerator to CPU" not in entry.getMessage())
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|torch|bitsandbytes)\.")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|bitsandbytes|peft)\.")


def read_env_file(path: Path) -> None:
    """Put the secrets of an env file into the environment, unless they are set there already; nothing is executed.

    Raises:
        ConfigError: the file cannot be read, or one of our lines holds what no secret does.
    """
    if not path.is_file():
        return
    from dotenv import dotenv_values

    try:
        text = read_bytes(path).decode("utf-8", "replace")  # lines of other programs may be in any encoding
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=str(path)) from error
    held = dotenv_values(stream=io.StringIO(text), interpolate=False)
    found = {name: value for name, value in held.items() if name in SECRETS and value}
    for name, value in found.items():
        if not value.isprintable() or "\ufffd" in value:
            raise ConfigError(f"{name} holds characters that no secret has", where=str(path), remedy="write it anew")
    if found and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        notify(f"{path}: others on this machine can read the secrets in it; chmod 600 {path}")
    for name, value in found.items():
        os.environ.setdefault(name, value)


def adopt_slurm_ranks(nodes: int) -> None:
    """Give the tasks that ``srun`` started the ranks that torchrun would have given them.

    A step of one task is no training of several processes. With ``nodes`` above 1 a task is a machine, which starts its
    own processes. Where another launcher has set ranks, or a master, they stay.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1)
    if "SLURM_STEP_NODELIST" not in os.environ or tasks == 1 or nodes > 1 or "RANK" in os.environ:
        return
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    os.environ["WORLD_SIZE"] = str(tasks)
    os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]
    os.environ.setdefault("MASTER_ADDR", first_host(os.environ["SLURM_STEP_NODELIST"]))
    job = int(os.environ.get("SLURM_JOB_ID", "0"))
    os.environ.setdefault("MASTER_PORT", str(15000 + job % 20000))  # jobs that share a machine take different ports


def first_host(nodelist: str) -> str:
    """The first host of a SLURM list: ``gpu[03-05,9],cpu1`` begins with ``gpu03``."""
    start, bracket, rest = nodelist.partition("[")
    if not bracket or "," in start:
        return nodelist.split(",")[0]
    number = re.split("[],-]", rest)[0]
    return start + number + rest.partition("]")[2].split(",")[0]
