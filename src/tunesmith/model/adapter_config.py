"""``adapter_config.json`` of anybody's adapter: read as data, with every value of the kind that it should be.

A configuration from outside must not make PEFT import a module, allocate what nobody trained, or search for hours.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig

from tunesmith.errors import ModelError, UnsafeError
from tunesmith.model.source import ADAPTER_CONFIG, check_one_kind

PATTERN_DEADLINE = 5.0
"""Seconds in which all regular expressions of an adapter must have found their layers."""
MOST_REPEATED = 10_000
"""Layers that ``layer_replication`` may ask for."""

_PLAIN = re.compile(r"[\w.]+")
_MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    try:
        found = [name for name in names if re.fullmatch(pattern, name) or re.match(pattern, name)]
    except (re.error, RecursionError, OverflowError) as error:
        sys.exit(f"{pattern[:100]!r}: {error}")
"""
"""What a child does: the same search as PEFT's, with nothing else in its memory."""


def read_lora_config(folder: Path) -> LoraConfig:
    """The configuration of a saved adapter.

    Raises:
        ModelError: there is none, it is not a LoRA adapter for a causal language model, a value is of the wrong kind,
            or a model lies in the same folder.
        UnsafeError: it names code to import.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        raise ModelError(f"has no {ADAPTER_CONFIG}", where=str(folder))
    check_one_kind(folder)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"the adapter's configuration cannot be read ({error})", where=str(path)) from error
    if not isinstance(values, dict):
        raise ModelError("the adapter's configuration cannot be read (it is no object)", where=str(path))
    if str(values.get("peft_type")).upper() != "LORA":
        raise ModelError("is not a LoRA adapter", where=str(path))
    _check_kinds(values, path)
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except Exception as error:  # whatever is wrong in it, it is this file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"the adapter's configuration cannot be read ({reason[:300]})", where=str(path)) from error
    if not isinstance(config, LoraConfig):
        raise ModelError("is not a LoRA adapter", where=str(path))
    return config


def check_patterns(config: LoraConfig, names: Iterable[str]) -> None:
    """Refuse regular expressions that are none, or that take too long to find their layers among ``names``.

    They are tried in a child that can be stopped, since Python cannot be interrupted while it matches.

    Raises:
        ModelError: it names the pattern, or the deadline.
    """
    patterns = [value for value in (config.target_modules, config.exclude_modules) if isinstance(value, str)]
    patterns = [value for value in patterns if value != "all-linear"]
    patterns += [rf"(.*\.)?({key})$" for part in (config.rank_pattern, config.alpha_pattern) for key in part or {}]
    layers = config.layers_pattern
    for layer in [layers] if isinstance(layers, str) else layers or []:
        patterns.append(rf"(?:^|.*?\.){layer}\.(\d+)\.")
    patterns += [rf"(^|.*\.){name}($|\..*)" for name in config.modules_to_save or [] if not _PLAIN.fullmatch(name)]
    if not patterns:
        return
    where = "target_modules" if isinstance(config.target_modules, str) else "rank_pattern, alpha_pattern"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _MATCH],
            input=json.dumps([patterns, list(names)]),
            capture_output=True,
            text=True,
            timeout=PATTERN_DEADLINE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"{where}: the regular expression does not end within {PATTERN_DEADLINE:g} s",
            remedy="list the layers' names, or write it without a repetition inside of another",
        ) from error
    if done.returncode:
        reason = " ".join(done.stderr.split())[-200:]
        raise ModelError(f"{where}: no regular expression ({reason})")


# kinds ----------------------------------------------------------------------------------------------------------------


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_rank(value: Any) -> bool:
    return _is_whole(value) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_text_or_texts(value: Any) -> bool:
    return _is_text(value) or _is_texts(value)


def _is_layers(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, list) and all(map(_is_whole, value)))


def _is_ranks(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_rank, value.values()))


def _is_token_indices(value: Any) -> bool:
    lists = list(value.values()) if isinstance(value, dict) else [value]
    return all(isinstance(one, list) and all(_is_whole(index) and index >= 0 for index in one) for one in lists)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_initial(value: Any) -> bool:
    return _is_flag(value) or _is_text(value)


def _is_replication(value: Any) -> bool:
    pairs = isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(map(_is_whole, pair)) for pair in value
    )
    return pairs and sum(max(0, end - start) for start, end in value) <= MOST_REPEATED


_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_rank, "a whole number from 1"),
    "lora_alpha": (_is_number, "a number"),
    "lora_dropout": (_is_share, "a number from 0 to below 1"),
    "target_modules": (_is_text_or_texts, "a text or a list of texts"),
    "exclude_modules": (_is_text_or_texts, "a text or a list of texts"),
    "modules_to_save": (_is_texts, "a list of texts"),
    "trainable_token_indices": (_is_token_indices, "a list of whole numbers, or an object of such lists"),
    "target_parameters": (_is_texts, "a list of texts"),
    "layers_pattern": (_is_text_or_texts, "a text or a list of texts"),
    "layers_to_transform": (_is_layers, "a whole number or a list of them"),
    "bias": (lambda value: value in ("none", "all", "lora_only"), "none, all or lora_only"),
    "rank_pattern": (_is_ranks, "an object of whole numbers from 1"),
    "alpha_pattern": (_is_numbers, "an object of numbers"),
    "init_lora_weights": (_is_initial, "true, false or a text"),
    "fan_in_fan_out": (_is_flag, "true or false"),
    "use_rslora": (_is_flag, "true or false"),
    "use_dora": (_is_flag, "true or false"),
    "lora_bias": (_is_flag, "true or false"),
    "inference_mode": (_is_flag, "true or false"),
    "layer_replication": (_is_replication, f"a list of pairs of at most {MOST_REPEATED} layers"),
    "base_model_name_or_path": (_is_text, "a text"),
    "revision": (_is_text, "a text"),
    "task_type": (lambda value: value == "CAUSAL_LM", "CAUSAL_LM"),
}
_OPTIONAL = frozenset(_KINDS) - {"r", "lora_alpha", "lora_dropout", "bias"}
"""Keys that may be null."""
_IMPORTS = ("megatron_config",)
"""Keys that make PEFT import a module which the file names."""


def _check_kinds(values: Mapping[str, Any], path: Path) -> None:
    named = [key for key in _IMPORTS if values.get(key) is not None]
    if named:
        raise UnsafeError(f"{named[0]} would import code that the file names", where=str(path))
    for key, (fits, expected) in _KINDS.items():
        if key not in values or (values[key] is None and key in _OPTIONAL):
            continue
        if not fits(values[key]):
            raise ModelError(f"{key} is {repr(values[key])[:100]}, and must be {expected}", where=str(path))
