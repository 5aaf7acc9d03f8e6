"""Whether the libraries can make a run's optimizer and schedule and take a step with them, before weights are loaded.

Each has conditions of its own: a package, a keyword, a device. They are not repeated here: a layer of 64 x 64 weights
is trained for one step instead, by the library's own optimizer on the run's device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import get_scheduler

from tunesmith.config.resolve import Resolved
from tunesmith.errors import ConfigError, ModelError, TunesmithError
from tunesmith.model.device import Device, seen
from tunesmith.train.plan import Plan
from tunesmith.train.trainer import Arguments


def make_arguments(resolved: Resolved, keywords: dict[str, Any]) -> Arguments:
    """The trainer's configuration.

    Raises:
        ConfigError: the library refuses a setting.
    """
    with _refusals(resolved, "training.output_dir", "the trainer refuses a setting", ConfigError):
        return Arguments(**keywords)


def check_optimization(resolved: Resolved, arguments: Arguments, device: Device, plan: Plan) -> None:
    """Take one step with the run's optimizer, and look at its learning rate along the run.

    Raises:
        ModelError: the optimizer cannot be made here (a package is missing), or the device cannot run it.
        ConfigError: the schedule wants other settings.
    """
    optim, schedule = resolved.config.training.optim, resolved.config.training.lr_scheduler_type
    place = device.kind if device.kind != "cuda" or seen(count_only=True).count else "cpu"
    layer = torch.nn.Linear(64, 64, device=place)
    with _refusals(resolved, "training.optim", f"the optimizer {optim} cannot be made", ModelError):
        cls, keywords = transformers.Trainer.get_optimizer_cls_and_kwargs(arguments, layer)  # type: ignore[arg-type]
        keywords.pop("model", None)  # of those that keep it, in the place of the parameters
        if "lr" in keywords:  # the largest that a weight gets
            keywords["lr"] *= resolved.config.adapter.loraplus_lr_ratio or 1.0
        optimizer = cls(layer.parameters(), **keywords)
    written = "training.lr_scheduler_kwargs"
    where = written if resolved.explicit(written) else "training.lr_scheduler_type"
    kept = f"the schedule {schedule} cannot be made with lr_scheduler_kwargs as they are"
    with _refusals(resolved, where, kept, ConfigError):
        scheduler = get_scheduler(
            schedule,
            optimizer,
            num_warmup_steps=plan.warmup_steps,
            num_training_steps=plan.total_steps,
            scheduler_specific_kwargs=resolved.config.training.lr_scheduler_kwargs or None,
        )
        _check_rates(scheduler, plan)
    if place != device.kind:
        return
    with _refusals(
        resolved, "training.optim", f"the optimizer {optim} cannot take a step on {device.name}", ModelError
    ):
        getattr(optimizer, "train", lambda: None)()
        layer(torch.ones(1, 64, device=place)).sum().backward()
        optimizer.step()


def _check_rates(scheduler: Any, plan: Plan) -> None:
    """Refuse a learning rate that is not a number, or below 0, at the turns of the schedule."""
    last = max(plan.total_steps - 1, 0)
    steps = sorted({0, plan.warmup_steps, plan.warmup_steps + 1, plan.total_steps // 2, last})
    for shape in getattr(scheduler, "lr_lambdas", ()):
        for step in steps:
            factor = float(shape(step))
            if not math.isfinite(factor) or factor < 0:
                raise ValueError(f"the learning rate would be {factor:g} times learning_rate after step {step}")


@contextmanager
def _refusals(resolved: Resolved, path: str, what: str, kind: type[TunesmithError]) -> Iterator[None]:
    """What a library raises inside becomes an error of a kind of ours, with the place of a setting."""
    try:
        yield
    except TunesmithError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise kind(f"{what}: {said}", where=resolved.origins[path]) from error
