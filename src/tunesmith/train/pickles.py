"""Pickles in a checkpoint: which may be there, and whether what they name can run code. Nothing is unpickled here.

Weights are safetensors and our own records JSON. Optimizer, schedule, scaler and random streams are files of
``torch.save``, which the trainer opens weights-only; those of FSDP and DeepSpeed are in the engines' own formats.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from transformers.trainer_pt_utils import safe_globals

from tunesmith.errors import UnsafeError

_ENDINGS = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
_TRAINERS = re.compile(r"optimizer\.pt|scheduler\.pt|scaler\.pt|rng_state(_\d+)?\.pth")
"""What the trainer writes and opens weights-only."""
_ENGINES = re.compile(
    r"(optimizer|pytorch_model_fsdp)(_\d+)?\.bin|global_step\d+/[\w.-]+_(model|optim)_states\.pt|"
    r"pytorch_model/[\w.-]+_(model|optim)_states\.pt"
)
"""What FSDP and DeepSpeed write."""
_DEEPSPEEDS = re.compile(r"deepspeed\.(runtime\.fp16\.loss_scaler|runtime\.zero\.config|utils\.tensor_fragment)\.\w+")
"""What DeepSpeed's states name besides numbers; it opens them without torch's limit, so that they are compared here."""


def check_pickles(folder: Path) -> None:
    """Refuse a checkpoint with a pickle that no engine of ours has written, before anything of it is opened.

    Raises:
        UnsafeError: names the file, and what in it could run code.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in _ENDINGS or not path.is_file():
            continue
        if not _TRAINERS.fullmatch(name) and not _ENGINES.fullmatch(name):
            raise UnsafeError(
                f"holds {name}, which may be a pickle and run code when it is opened",
                where=str(folder),
                remedy="no checkpoint of tunesmith has such a file; take another checkpoint",
            )
        named = _named_in(path)
        if _ENGINES.fullmatch(name):
            named = [one for one in named if not _DEEPSPEEDS.fullmatch(one)]
        if named:
            raise UnsafeError(
                f"is a pickle that names {', '.join(named[:3])}, which could run code when it is opened",
                where=str(path),
                remedy="no checkpoint of tunesmith has such a file; take another checkpoint",
            )


def _named_in(path: Path) -> list[str]:
    """The functions and classes that a file of ``torch.save`` names, without those that hold mere numbers."""
    try:
        with safe_globals():
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as error:  # whatever is wrong with it, it is no file of torch.save that could be looked through
        return [f"nothing that can be told ({type(error).__name__})"]
