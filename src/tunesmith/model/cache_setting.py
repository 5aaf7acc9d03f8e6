"""``use_cache`` of a model's configuration: off while nothing is generated, and saved as the base has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from tunesmith.model.adapters import base_of

_ABSENT = object()


def switch_cache_off(model: Any) -> None:
    """Keep no keys and values for later tokens, for there are none; what the base says is remembered."""
    base: Any = base_of(model)
    base.use_cache_of_base = vars(base.config).get("use_cache", _ABSENT)
    base.config.use_cache = False


@contextmanager
def cache_as_in_base(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the configuration says of the cache what the base's says; on, for a model that came another way."""
    now = model.config.use_cache
    of_base = getattr(model, "use_cache_of_base", True)
    if of_base is _ABSENT:
        del model.config.use_cache
    else:
        model.config.use_cache = of_base
    try:
        yield
    finally:
        model.config.use_cache = now
