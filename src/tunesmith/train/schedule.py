"""New values for an optimizer and a schedule that were loaded from a checkpoint.

A checkpoint brings the values that were in force when it was written. Where some of them were changed on purpose, or
the run became longer, the schedule goes on as if it had been the new one from the start.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from tunesmith.errors import ConfigError

_IN_GROUPS = {
    "training.learning_rate": "initial_lr",
    "training.weight_decay": "weight_decay",
    "training.adam_beta1": "betas",
    "training.adam_beta2": "betas",
    "training.adam_epsilon": "eps",
}
"""Setting -> its name in an optimizer's groups of weights."""


def values_of(optimizer: Any) -> list[dict[str, Any]]:
    """What stands beside the weights in each of an optimizer's groups."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def reschedule(optimizer: Any, scheduler: Any, fresh: Sequence[Mapping[str, Any]], changed: Collection[str]) -> None:
    """Put new values into what was loaded.

    Args:
        optimizer: it has the checkpoint's values.
        scheduler: made for this run's length; it has the checkpoint's place.
        fresh: ``values_of`` the optimizer before it was loaded.
        changed: paths of the settings that changed, and ``total_steps``.

    Raises:
        ConfigError: this schedule has no value that could be computed anew.
    """
    for group, values in zip(optimizer.param_groups, fresh, strict=True):
        for name in {_IN_GROUPS[path] for path in changed if path in _IN_GROUPS} & values.keys():
            group[name] = values[name]
    if not isinstance(scheduler, LambdaLR):
        if set(changed) - {"total_steps"}:
            raise ConfigError(
                f"the schedule {type(scheduler).__name__} cannot be continued with other settings",
                remedy="set them back, or train anew",
            )
        return
    scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    for group, rate, factor in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = rate * factor(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
