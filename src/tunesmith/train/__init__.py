"""Training: the recipe, and the only place that knows Trainer and TRL names.

Called, ``tunesmith.train(...)`` is the function of that name in ``entrypoints/python.py``: Python puts this package at
that name as soon as anything of it is imported, so the package itself has to answer.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return importlib.import_module("tunesmith.entrypoints.python").train(*args, **keywords)

    @property
    def __signature__(self) -> Any:
        """What ``help`` and notebooks show of the call."""
        import inspect

        return inspect.signature(importlib.import_module("tunesmith.entrypoints.python").train)


sys.modules[__name__].__class__ = _Callable
