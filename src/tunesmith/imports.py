"""Importing libraries without waiting for what few runs need of them."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial, wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


@contextmanager
def lean_imports() -> Iterator[None]:
    """Libraries that are imported inside bring neither torch's compiler nor scipy along, which come when they are
    called; and Python's collector rests.

    torch and its relatives make half a million objects that stay for the life of the process. The collector would
    search them again and again while they come, for about a sixth of the time that the import takes.
    """
    enabled, finder = gc.isenabled(), _Finder()
    gc.disable()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        if enabled:
            gc.enable()


class _Finder(MetaPathFinder):
    """Finds the modules of ``_SURROUNDINGS`` as Python does, and has them run in what stands there."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in _SURROUNDINGS else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_in_surroundings(module: ModuleType) -> None:
            with _SURROUNDINGS[fullname]():
                run(module)

        spec.loader.exec_module = run_in_surroundings  # type: ignore[method-assign]
        return spec


@contextmanager
def _compiled_when_called() -> Iterator[None]:
    """bitsandbytes has torch compile functions that stand in for kernels, and hardly ever calls one."""
    import torch

    compile_now = torch.compile

    def compile_when_called(model: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
        if model is None:
            return partial(compile_when_called, **options)
        compiled = cache(lambda: compile_now(model, **options))
        return wraps(model)(lambda *args, **kwargs: compiled()(*args, **kwargs))

    torch.compile = compile_when_called
    try:
        yield
    finally:
        torch.compile = compile_now


@contextmanager
def _scipy_when_called() -> Iterator[None]:
    """transformers imports a solver of scipy with the losses of all models; those that find objects call it."""
    name = "scipy.optimize"
    if name in sys.modules:
        yield
        return
    waiting: Any = ModuleType(name)
    waiting.linear_sum_assignment = lambda *args, **kwargs: importlib.import_module(name).linear_sum_assignment(
        *args, **kwargs
    )
    sys.modules[name] = waiting
    try:
        yield
    finally:
        del sys.modules[name]


_SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "bitsandbytes": _compiled_when_called,
    "transformers.loss.loss_utils": _scipy_when_called,
}
"""Module -> what is different while it is imported."""
