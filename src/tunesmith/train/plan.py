"""How many optimizer steps a run takes and what follows from that: arithmetic only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tunesmith.config.resolve import Resolved
from tunesmith.errors import ConfigError, DataError
from tunesmith.train.arguments import eval_interval


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps of a run; a batch row is an example, or a pack of them."""

    num_batch_rows: int
    num_processes: int
    gradient_accumulation_steps: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    global_batch_size: int


def make_plan(resolved: Resolved, num_batch_rows: int, num_processes: int) -> Plan:
    """Count the steps, as transformers does: an incomplete last batch and an incomplete last accumulation both count.

    Raises:
        ConfigError: the global batch size cannot be reached, warmup is longer than the training, or early stopping was
            asked for and nothing is evaluated before the last step.
        DataError: there is nothing to train on.
    """
    training = resolved.config.training
    if num_batch_rows == 0:
        raise DataError("no training rows are left, so there would be 0 optimizer steps")
    per_pass = training.per_device_train_batch_size * num_processes
    accumulation = training.gradient_accumulation_steps
    if training.global_batch_size is not None:
        accumulation, rest = divmod(training.global_batch_size, per_pass)
        if rest or not accumulation:
            raise ConfigError(
                f"global_batch_size {training.global_batch_size} is not a multiple of {num_processes} processes x "
                f"{training.per_device_train_batch_size} rows",
                where=resolved.origins["training.global_batch_size"],
                remedy="change global_batch_size, per_device_train_batch_size or the number of processes",
            )
    steps_per_epoch = math.ceil(math.ceil(num_batch_rows / per_pass) / accumulation)
    total = training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * steps_per_epoch)
    warmup = training.warmup_steps or math.ceil(training.warmup_ratio * total)
    if warmup > total:
        raise ConfigError(
            f"warmup_steps {warmup} is longer than the training of {total} steps",
            where=resolved.origins["training.warmup_steps"],
            remedy="shorten the warmup or train longer",
        )
    _check_early_stopping(resolved, total, steps_per_epoch)
    return Plan(num_batch_rows, num_processes, accumulation, steps_per_epoch, total, warmup, per_pass * accumulation)


def _check_early_stopping(resolved: Resolved, total: int, steps_per_epoch: int) -> None:
    path = "training.early_stopping_patience"
    strategy, steps = eval_interval(resolved)
    interval = steps_per_epoch if strategy == "epoch" else steps
    if strategy == "no" or not resolved.explicit(path) or resolved.config.training.early_stopping_patience is None:
        return
    if interval >= total:
        raise ConfigError(
            f"early stopping can never stop this run: its first evaluation would follow step {interval}, and step "
            f"{total} is the last",
            where=resolved.origins[path],
            remedy="evaluate more often (eval_strategy steps, eval_steps), or leave out early_stopping_patience",
        )
