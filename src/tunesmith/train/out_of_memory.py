"""What a run says when a device has no more memory: where it was, what is kept, and which settings need less."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.errors import ModelError
from tunesmith.model.memory import BatchShape, savers
from tunesmith.train.checkpoint import MANIFEST, Checkpoint, list_checkpoints
from tunesmith.train.setup import Setup
from tunesmith.train.trainer import Trainer


@contextmanager
def memory_explained(setup: Setup, when: str = "", trainer: Trainer | None = None) -> Iterator[None]:
    """Memory that runs out inside becomes an error of ours, with the settings that need less.

    Raises:
        ModelError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not re.search(r"out of memory|can't allocate memory", str(error)):
            raise
        rows, length = setup.resolved.config.training.per_device_train_batch_size, setup.resolved.config.data.max_length
        if trainer is not None:
            rows, length = trainer.batch_shape or (rows, length)
            when = f"at step {trainer.state.global_step + 1}, with a batch of {rows} x {length} tokens"
        kept = f"; {newest.path.name} is kept" if (newest := newest_complete(setup)) else ""
        changes = savers(setup.resolved, BatchShape(rows, length, length), bitsandbytes=setup.device.kind != "mps")
        raise ModelError(
            f"{setup.device.name} ran out of memory {when}{kept}",
            remedy=f"set one of: {', '.join(changes)}; or take a smaller model or a larger device",
        ) from error


def newest_complete(setup: Setup) -> Checkpoint | None:
    """The newest checkpoint of the run that was ever complete."""
    found = list_checkpoints(Path(setup.resolved.config.training.output_dir))
    return next((checkpoint for checkpoint in reversed(found) if (checkpoint.path / MANIFEST).is_file()), None)
