"""Weights that several processes share are spread while they load, so that none of them holds a copy of its own.

- ZeRO stage 3: transformers builds the model inside of ``deepspeed.zero.Init`` once it knows DeepSpeed's configuration;
  each weight is cut up as it is made, and filled from the file that rank 0 has mapped.
- FSDP2: on each machine one process opens the files and the others keep the shapes alone (the meta device); how the
  pieces are handed out stands in ``train/fsdp.py``.

Both need the processes to be connected before the model is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.integrations import deepspeed

from tunesmith.config.resolve import Resolved
from tunesmith.config.strategy import Strategy
from tunesmith.model.precision import mutates_base
from tunesmith.model.quantize import is_quantized


def loads_in_pieces(resolved: Resolved, strategy: Strategy) -> bool:
    """Whether the processes together hold the weights about once while they load.

    Not where a process needs all of them: to quantize them (bitsandbytes keeps the scales of a weight beside it and not
    in it, so pieces of another process would not fit), to take an adapter's first values out of them (PiSSA, OLoRA), or
    in a model class of another package, which loads as it likes; nor where an accelerate file says no.
    """
    config = resolved.config
    adapted = config.adapter.use_lora and mutates_base(config.adapter.init_lora_weights)
    if is_quantized(config.quantization) or adapted or config.model.model_class is not None:
        return False
    return strategy.name == "zero3" or (
        strategy.name == "fsdp2" and bool(strategy.fsdp.get("cpu_ram_efficient_loading", True))
    )


def opens_files(strategy: Strategy) -> bool:
    """Whether this process reads the weights when they are loaded in pieces; one on each machine does."""
    return strategy.name != "fsdp2" or os.environ.get("LOCAL_RANK", "0") == "0"


@contextmanager
def loading(*, in_pieces: bool) -> Iterator[None]:
    """Let transformers spread the weights that are loaded meanwhile by the run's DeepSpeed configuration, or not."""
    reference = deepspeed._hf_deepspeed_config_weak_ref
    known = None if reference is None else reference()
    if in_pieces or known is None:
        yield
        return
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(known)
