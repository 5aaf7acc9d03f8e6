"""Weights that several processes share are spread while they load, so that none of them holds a copy of its own.

- ZeRO stage 3: transformers builds the model inside of ``deepspeed.zero.Init`` once it knows DeepSpeed's configuration;
  each weight is cut up as it is made, and filled from the file that rank 0 has mapped.
- FSDP2: on each machine one process opens the files and the others keep the shapes alone (the meta device); how the
  pieces are handed out stands in ``train/fsdp.py``.

Both need the processes to be connected before the model is loaded.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.config.resolve import Resolved
from tunesmith.config.strategy import Strategy
from tunesmith.model.internals import not_spread
from tunesmith.model.precision import mutates_base
from tunesmith.model.quantize import is_quantized

FSDP_LOADS_IN_PIECES = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")
"""Variables by which accelerate tells transformers that FSDP will hand out the weights."""

MADV_PAGEOUT = 21
"""madvise(2), Linux 5.4: the system should take these pages back now; nothing that was written is lost."""
RETURN_SECONDS = 0.05


def loads_in_pieces(resolved: Resolved, strategy: Strategy, num_processes: int) -> bool:
    """Whether the processes together hold the weights about once while they load.

    Not where a process needs all of them: to quantize them (bitsandbytes keeps the scales of a weight beside it and not
    in it, so pieces of another process would not fit), to take an adapter's first values out of them (PiSSA, OLoRA), or
    in a model class of another package, which loads as it likes; nor where an accelerate file says no.
    """
    config = resolved.config
    adapted = config.adapter.use_lora and mutates_base(config.adapter.init_lora_weights)
    own_class = config.model.model_class is not None
    if num_processes == 1 or is_quantized(config.quantization) or adapted or own_class:
        return False
    return strategy.name == "zero3" or (
        strategy.name == "fsdp2" and bool(strategy.fsdp.get("cpu_ram_efficient_loading", True))
    )


def opens_files(strategy: Strategy) -> bool:
    """Whether this process reads the weights when they are loaded in pieces; one on each machine does."""
    return strategy.name != "fsdp2" or os.environ.get("LOCAL_RANK", "0") == "0"


@contextmanager
def loading(strategy: Strategy, *, in_pieces: bool) -> Iterator[None]:
    """Tell transformers meanwhile whether the weights that it loads are to be spread."""
    before = {name: os.environ.get(name) for name in FSDP_LOADS_IN_PIECES}
    if in_pieces:
        _tell_fsdp2() if strategy.name == "fsdp2" else _connect_deepspeed()
    try:
        with memory_returned() if in_pieces else not_spread():
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}


def _tell_fsdp2() -> None:
    from accelerate.utils import enable_fsdp_ram_efficient_loading

    enable_fsdp_ram_efficient_loading()


def _connect_deepspeed() -> None:
    """Let DeepSpeed see the group of processes before a weight is cut up: it would take itself for alone."""
    from deepspeed import init_distributed

    init_distributed(auto_mpi_discovery=False, verbose=False)


@contextmanager
def memory_returned() -> Iterator[None]:
    """Return to the system, again and again meanwhile, what this process has used for weights and needs no more.

    Files of weights are read through a mapping, whose pages would stay until the last one is read; and the C library
    keeps the room of whole weights that were cut up. Each looks like another copy of the model, in the figures of the
    process and of its container. Linux alone does this, and nothing depends on it.
    """
    over = threading.Event()
    thread = threading.Thread(target=_return_memory, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _return_memory(over: threading.Event) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    library = ctypes.CDLL(None)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    last_time = False
    while not last_time:
        last_time = over.wait(RETURN_SECONDS)
        for line in maps.read_text().splitlines():
            if line.endswith(".safetensors"):
                start, end = (int(number, 16) for number in line.split(maxsplit=1)[0].split("-"))
                library.madvise(start, end - start, MADV_PAGEOUT)  # a mapping that is gone by now is refused
        if hasattr(library, "malloc_trim"):  # glibc
            library.malloc_trim(0)
