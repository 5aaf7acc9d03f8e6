"""Looking at a model without leaving a trace: modules' modes and every random number stream are put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from tunesmith.model.answering import modes_kept


@contextmanager
def untouched(model: torch.nn.Module) -> Iterator[None]:
    """Afterwards each module is in its former mode, and all streams go on where they were.

    Those of accelerators are the streams of the devices on which the model lies; nothing draws on the others.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    places = {parameter.device for parameter in model.parameters()}
    cuda = sorted(place.index or 0 for place in places if place.type == "cuda")
    apple = torch.mps.get_rng_state() if any(place.type == "mps" for place in places) else None
    try:
        with modes_kept(model), torch.random.fork_rng(devices=cuda, device_type="cuda"):
            yield
    finally:
        if apple is not None:
            torch.mps.set_rng_state(apple)
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """``untouched``, and in evaluation mode meanwhile."""
    with untouched(model):
        model.eval()
        yield
