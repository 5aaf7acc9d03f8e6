"""A model that is asked something: in evaluation mode, with some of its modules answering by another function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def modes_kept(model: torch.nn.Module) -> Iterator[None]:
    """Afterwards each module is in training or evaluation mode as it was."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def attributes_kept(model: torch.nn.Module) -> Iterator[None]:
    """Afterwards no module of the model's own code has a tensor among its attributes that was not there before.

    Some models leave there what belongs to the rows of a call, such as the state of a recurrent layer or how far
    positions lag behind an image, and read it at the next call, whose rows are others. Buffers and parameters are not
    touched, nor are layers of libraries, which may unpack their weights at the first call: code that has layers alone,
    and nothing that is made of them.
    """
    modules = list(model.modules())
    own = {type(module).__module__ for module in modules if any(True for _ in module.children())}
    before = {module: dict(vars(module)) for module in modules if type(module).__module__ in own}
    try:
        yield
    finally:
        for module, held in before.items():
            for name, value in list(vars(module).items()):
                if isinstance(value, torch.Tensor) and held.get(name) is not value:
                    delattr(module, name)
                    if name in held:
                        setattr(module, name, held[name])


@contextmanager
def in_evaluation(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; each of its modules goes back to its own."""
    with modes_kept(model):
        model.eval()
        yield


@contextmanager
def answering(module: torch.nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Let a module answer by another function; it is called as ever, with all hooks."""
    former = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if former is not None:  # a library had put its own there
            module.forward = former
