"""The order in which a run draws its batch rows, known without a model or a trainer.

The trainer shuffles by the same functions and seeds; a test holds the two together. No row is read or changed here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.data import BatchSampler, RandomSampler

from tunesmith.config.resolve import Resolved
from tunesmith.data.batching import Batching, LengthGroupedSampler
from tunesmith.data.families import family_order


def rows_layout(resolved: Resolved) -> Batching:
    """The layout as far as it decides which examples share a row of the data set: ``auto`` leaves each in its own."""
    wanted = resolved.config.training.batching
    return "padded" if wanted == "auto" else wanted


def epoch_order(
    resolved: Resolved, lengths: Sequence[int], epoch: int = 0, related: Sequence[int] | None = None
) -> list[int]:
    """Indices of the batch rows in the order of an epoch, over all processes.

    Args:
        resolved: the run's configuration.
        lengths: tokens of each batch row.
        epoch: counted from 0.
        related: the family of each row, where they are kept together (``data/families.py``).
    """
    training = resolved.config.training
    seed = training.data_seed if training.data_seed is not None else training.seed
    if training.batching == "length_grouped":
        sampler = LengthGroupedSampler(lengths, training.per_device_train_batch_size, seed)
        sampler.set_epoch(epoch)
        return list(sampler)
    if related is not None:
        return family_order(related, training.per_device_train_batch_size, seed + epoch)
    return list(RandomSampler(range(len(lengths)), generator=torch.Generator().manual_seed(seed + epoch)))


def batches(
    resolved: Resolved, lengths: Sequence[int], epoch: int = 0, related: Sequence[int] | None = None
) -> list[list[int]]:
    """The batches of an epoch as indices; of several processes, each takes the next one in turn."""
    size = resolved.config.training.per_device_train_batch_size
    return list(BatchSampler(epoch_order(resolved, lengths, epoch, related), size, drop_last=False))
