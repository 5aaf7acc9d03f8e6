"""Supervised fine-tuning of causal language models that shows its work.

    import tunesmith

    print(tunesmith.preview("config.yaml"))
    run = tunesmith.train("config.yaml", learning_rate=1e-4)
    print(run.evaluate().metrics)

``train`` fine-tunes and returns a ``Run``, ``load`` opens the folder of an earlier one, ``preview`` shows what would be
trained. What goes wrong is a ``TunesmithError``. Nothing heavy is imported before one of them is called.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.entrypoints.python import Preview as Preview
    from tunesmith.entrypoints.python import Run as Run
    from tunesmith.entrypoints.python import load as load
    from tunesmith.entrypoints.python import preview as preview
    from tunesmith.entrypoints.python import train as train
    from tunesmith.errors import TunesmithError as TunesmithError

# oneDNN makes a kernel for each shape, of which a step has about twenty; the next step has others, and the thousand
# that it would keep take a gigabyte and more.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

__version__ = "0.1.0"

__all__ = ["Preview", "Run", "TunesmithError", "__version__", "load", "preview", "train"]

_HOMES = {
    "TunesmithError": "tunesmith.errors",
    **dict.fromkeys(("Preview", "Run", "load", "preview"), "tunesmith.entrypoints.python"),
}
"""Name -> the module that it is in, imported when somebody asks for it."""


def __getattr__(name: str) -> Any:
    if name == "train":  # a package that can be called, see there
        return importlib.import_module("tunesmith.train")
    if name not in _HOMES:
        raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
