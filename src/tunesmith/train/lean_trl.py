"""TRL's trainer, without what its import and its constructor bring along and few runs need.

wandb is imported by the tracker and DeepSpeed by a run under DeepSpeed. Where they are installed, every other run would
wait about a second for both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import accelerate.utils.other
import transformers.trainer


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


# which is not what we imported: transformers puts another module in its own place while it is imported
with _replaced(sys.modules[transformers.__name__], "is_wandb_available", _no_wandb):
    from trl import SFTConfig, SFTTrainer

_unwrapping: Any = accelerate.utils.other
_unwrapping.is_deepspeed_available = _deepspeed_is_in_use

__all__ = ["SFTConfig", "SFTTrainer"]
