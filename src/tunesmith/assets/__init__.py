"""Files that travel inside the package: the embedded base model. Nothing is loaded here, only located."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent
EMBEDDED_MODELS = ("nano-mistral",)


def embedded_model(name: str) -> Path | None:
    """Folder of the embedded model called ``name``, or None when no embedded model has that name."""
    return _HERE / name if name in EMBEDDED_MODELS else None
