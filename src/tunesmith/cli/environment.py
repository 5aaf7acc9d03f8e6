"""The process around a run: secrets from ``.env``, quiet libraries, the chosen accelerator.

Must run before torch is imported. Values of secrets are never printed, saved or sent.
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

SECRETS = ("HF_TOKEN", "WANDB_API_KEY")
"""What ``.env`` may hold for us; other lines of the file are left alone."""


def prepare(gpu_id: int | None = None) -> None:
    """Read ``.env`` from the working directory, choose the accelerator, and keep the libraries' chatter off the
    terminal."""
    read_env_file(Path(".env"))
    if gpu_id is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu_id)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("WANDB_DISABLE_CODE", "true")
    # these two speak when they are imported, whether or not their feature is wanted
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(lambda entry: "Setting accelerator to CPU" not in entry.getMessage())
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|torch|bitsandbytes)\.")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|bitsandbytes|peft)\.")


def read_env_file(path: Path) -> None:
    """Put the secrets of an env file into the environment, unless they are set there already; nothing is executed."""
    if not path.is_file():
        return
    from dotenv import dotenv_values

    for name, value in dotenv_values(path, interpolate=False).items():
        if name in SECRETS and value:
            os.environ.setdefault(name, value)
