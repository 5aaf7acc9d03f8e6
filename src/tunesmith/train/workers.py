"""Processes that prepare batches beside the training (``dataloader_num_workers``), and what is said when one dies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tunesmith.errors import StorageError

_DIED = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (.+?)\.|exited unexpectedly)"
)


@contextmanager
def deaths_explained(go_on: str) -> Iterator[None]:
    """The death of such a process becomes an error of ours.

    Args:
        go_on: the command that continues the run.

    Raises:
        StorageError: one died; its number and, where it is known, the signal.
    """
    try:
        yield
    except RuntimeError as error:
        died = _DIED.search(str(error))
        if died is None:
            raise
        how = f"was killed ({died[2]})" if died[2] else "died"
        raise StorageError(
            f"process {died[1]}, which prepared batches, {how}; the newest complete checkpoint is whole",
            remedy="where memory is short, set dataloader_num_workers 0 or make /dev/shm larger; go on with: " + go_on,
        ) from error
