"""Saved configurations, in words that transformers 4 reads as well: what version 5 renamed is written under both names.

Version 4 knows no ``rope_parameters`` and would take a base of 10000 in silence; and it has no class of the name that
version 5 gives to tokenizers of the tokenizers library.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_OF_VERSION_5 = ("backend", "is_local", "local_files_only")
"""Keys that say how the tokenizer was opened here, and nothing about it."""


def write_old_names(folder: Path) -> None:
    """Add the names of version 4 to the configurations of a saved model or adapter.

    Raises:
        OSError: a file cannot be written.
    """
    _rewrite(folder / "config.json", _with_rope)
    _rewrite(folder / "tokenizer_config.json", _tokenizer)


def _rewrite(path: Path, change: Any) -> None:
    if path.is_file():
        values = json.loads(path.read_text(encoding="utf-8"))
        text = json.dumps(change(values), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")


def _with_rope(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration, and those of its parts, with base and scaling of the rotary positions at their old places."""
    config = {name: _with_rope(value) if name.endswith("_config") and isinstance(value, dict) else value
              for name, value in config.items()}  # fmt: skip
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return config
    of_kinds = [rope.get(name) for name in ("full_attention", "sliding_attention")]
    if isinstance(of_kinds[0], dict) and isinstance(of_kinds[1], dict):
        return {"rope_theta": of_kinds[0]["rope_theta"], "rope_local_base_freq": of_kinds[1]["rope_theta"]} | config
    if "rope_theta" not in rope:
        return config
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    old = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    old["rope_scaling"] = scaling if scaling.get("rope_type", "default") != "default" else None
    return old | config


def _tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    config = {name: value for name, value in config.items() if name not in _OF_VERSION_5}
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    return config
