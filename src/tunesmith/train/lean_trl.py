"""TRL's trainer, without what its import and its constructor bring along and few runs need.

wandb is imported by the tracker and DeepSpeed by a run under DeepSpeed. Where they are installed, every other run would
wait about a second for both. Nor are the records of everything that is installed opened to look up one version.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import accelerate.utils.other
import transformers.trainer

from tunesmith.installed import version_of


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    former = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, former)


def _no_wandb() -> bool:
    """TRL asks it for a link in model cards, which we write ourselves."""
    return False


def _deepspeed_is_in_use() -> bool:
    """Only where somebody has imported it can a model be wrapped in its engine, which accelerate looks for."""
    return "deepspeed" in sys.modules


class _Distributions(dict[str, list[str]]):
    """Name of a module -> the distributions that hold it, found when they are asked for."""

    def __missing__(self, name: str) -> list[str]:
        return [name] if version_of(name) is not None else _all_distributions()[name]


_all_distributions = importlib.metadata.packages_distributions

# which is not what we imported: transformers puts another module in its own place while it is imported
with (
    _replaced(sys.modules[transformers.__name__], "is_wandb_available", _no_wandb),
    _replaced(importlib.metadata, "packages_distributions", _Distributions),
):
    from trl import SFTConfig, SFTTrainer

_unwrapping: Any = accelerate.utils.other
_unwrapping.is_deepspeed_available = _deepspeed_is_in_use

__all__ = ["SFTConfig", "SFTTrainer"]
