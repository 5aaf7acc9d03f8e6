"""Folders whose files somebody else may have written: models, checkpoints, run folders, and what the hub gave."""

from __future__ import annotations

from pathlib import Path

from tunesmith.config.files import read_json
from tunesmith.config.recorded import problem_of

_MARKS = (
    "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "model.safetensors",
    "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json", "trainer_state.json",
    "tokenizer_config.json", "inference.json", ".cache/huggingface/download",
)  # fmt: skip
"""What only a model, a checkpoint or a download has directly in its folder."""
_CACHED = ("models--", "datasets--", "spaces--")
"""How folders of the hub's cache begin."""


def foreign_folder(file: Path) -> Path | None:
    """The folder of a model, checkpoint, run or download in which a file lies, links followed; None for any other."""
    return next((folder for folder in file.resolve().parents if is_foreign(folder)), None)


def is_foreign(folder: Path) -> bool:
    """Whether a folder is that of a model, a checkpoint, a run or a download."""
    named = folder.name.startswith(_CACHED)
    return named or any((folder / mark).exists() for mark in _MARKS) or _is_run(folder)


def _is_run(folder: Path) -> bool:
    try:
        return problem_of(read_json(folder / "run.json")) is None
    except (OSError, ValueError):
        return False
