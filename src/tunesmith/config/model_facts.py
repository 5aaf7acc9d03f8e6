"""Facts about a local model that its config.json tells without loading anything."""

from __future__ import annotations

from pathlib import Path

from tunesmith import assets
from tunesmith.config.files import read_json


def max_positions(name: str) -> int | None:
    """Positions of a local model; None where that cannot be known without loading."""
    path = (assets.embedded_model(name) or Path(name)) / "config.json"
    try:
        config = read_json(path)
    except (OSError, ValueError):
        return None
    value = config.get("max_position_embeddings", config.get("n_positions")) if isinstance(config, dict) else None
    return value if isinstance(value, int) else None
