"""Room on the disk: looked at before the first step and before each save, and what happens where it ends after all."""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tunesmith.config.resolve import Resolved
from tunesmith.errors import StorageError
from tunesmith.train.checkpoint import MANIFEST, list_checkpoints

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WRITERS = ("no space left", "os error 28", "quota exceeded", "pytorchstreamwriter", "unexpected pos", "write failed")
"""What the writers of torch and safetensors say, which raise no OSError, when a file cannot be written to its end."""
_BESIDE = 256 * 1024
"""Bytes of a checkpoint beside weights and optimizer: tokenizer, states, records; a low guess."""
_OPTIMIZER_BYTES = (("sgd", 0), ("adafactor", 0), ("8bit", 2), ("4bit", 1), ("lion", 4), ("adam", 8))
"""Part of an optimizer's name -> bytes of its state for each trained number, before there is any."""


def checkpoint_bytes(trainer: Any) -> int:
    """Bytes of the next checkpoint: weights and optimizer, from the optimizer's state where it has one."""
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    states = [value for state in optimizer.state.values() for value in state.values()] if optimizer else []
    tensors = sum(value.numel() * value.element_size() for value in states if isinstance(value, torch.Tensor))
    if not tensors:
        name = str(getattr(trainer.args.optim, "value", trainer.args.optim))
        each = next((size for part, size in _OPTIMIZER_BYTES if part in name), 0)
        tensors = each * sum(one.numel() for one in trainer.model.parameters() if one.requires_grad)
    return tensors + model_bytes(trainer.model) + _BESIDE


def model_bytes(model: torch.nn.Module) -> int:
    """Bytes of the weights that are saved of a model: those of an adapter, or all."""
    parts = [one for one in model.parameters() if one.requires_grad or not hasattr(model, "peft_config")]
    return sum(one.numel() * one.element_size() for one in parts)


def check_before_training(trainer: Any, folder: Path, total_steps: int, resolved: Resolved) -> None:
    """Refuse a run whose checkpoints and model cannot have room; of what is not known before, the least is taken.

    Args:
        trainer: the trainer, before its first step.
        folder: the run folder.
        total_steps: planned optimizer steps.
        resolved: the run's settings.

    Raises:
        StorageError: there is less than what is needed.
    """
    training = resolved.config.training
    strategy, saves = training.save_strategy, 0
    if strategy == "steps":
        saves = max(1, total_steps // int(training.save_steps)) if training.save_steps >= 1 else 1
    elif strategy != "no":
        saves = max(1, math.floor(training.num_train_epochs)) if strategy == "epoch" and training.max_steps < 1 else 1
    if training.save_total_limit is not None:
        saves = min(saves, training.save_total_limit + 1)  # a new one is whole before the oldest goes
    elif training.early_stopping_patience is not None:
        saves = min(saves, 1)  # it may stop after the first one
    saves = max(min(saves, 1), saves - len(list_checkpoints(folder)))
    model = model_bytes(trainer.model)
    if training.save_merged_model and resolved.config.adapter.use_lora:
        model += sum(one.numel() * one.element_size() for one in trainer.model.parameters())
    what = f"{saves} checkpoint{'s' if saves != 1 else ''} and the finished model"
    check(folder, saves * checkpoint_bytes(trainer) + model, what)


def check(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what there is no room for.

    Raises:
        StorageError: there is less than what is needed.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise _no_space(folder, what, needed, free)


@contextmanager
def saving(folder: Path, needed: int) -> Iterator[None]:
    """Watch over the writing of a checkpoint: what was written of it goes where it does not come to its end.

    Raises:
        StorageError: there is no room, or no more while it is written.
    """
    check(folder.parent, needed, folder.name)
    try:
        with storage_faults(folder.parent, folder.name, needed):
            yield
    except BaseException:
        if not (folder / MANIFEST).is_file():
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def storage_faults(folder: Path, what: str, needed: int = 0) -> Iterator[None]:
    """Turn what libraries raise on a full disk into one error.

    Args:
        folder: where is written.
        what: what is written.
        needed: bytes of it, where that is known.

    Raises:
        StorageError: with what is needed and what is free.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error) or (isinstance(error, StorageError) and "no space left:" in error.what):
            raise
        free = shutil.disk_usage(folder).free  # with what was written of it still there
        raise _no_space(folder, what, needed, free) from error


def is_full(error: BaseException) -> bool:
    """Whether an error, or one behind it, says that a file could not be written to its end."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        if any(text in str(seen).lower() for text in _WRITERS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _no_space(folder: Path, what: str, needed: int, free: int) -> StorageError:
    needs = f"{what} needs {_megabytes(needed)}" if needed else f"{what} could not be written"
    return StorageError(
        f"no space left: {needs}, and {_megabytes(free)} are free",
        where=str(folder),
        remedy="free space or lower save_total_limit, and go on with --resume_from_checkpoint latest",
    )


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f} MB"
