"""The weights file of a saved adapter: its tensors, the marks that travel with them, and whether it was changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tunesmith.errors import ModelError, UnsafeError
from tunesmith.model.source import ADAPTER_CONFIG
from tunesmith.notices import notify

ADAPTER_WEIGHTS = "adapter_model.safetensors"
FINGERPRINT_KEY = "base_fingerprint"
"""Key in the metadata of the adapter's weights file: it travels with the weights."""
CHECKSUM_KEY = "adapter_checksum"
"""Another such key, for ``checksum``; ``run.json`` holds the value a second time."""

_NOT_IN_CHECKSUM = frozenset(["base_model_name_or_path", "revision", "inference_mode", "peft_version"])
"""Keys of ``adapter_config.json`` that say nothing about what the adapter computes (the base has its fingerprint)."""


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """What an adapter's weights file holds: tensors, and what was recorded with them (None where nothing was)."""

    tensors: dict[str, torch.Tensor]
    base_fingerprint: str | None
    checksum: str | None


def checksum(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> str:
    """sha256 over an adapter's tensors and the keys of its configuration that decide what it computes."""
    lasting = {key: value for key, value in config.items() if key not in _NOT_IN_CHECKSUM}
    digest = hashlib.sha256(json.dumps(lasting, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_adapter(folder: Path) -> AdapterFile:
    """The weights file of a saved adapter.

    Raises:
        ModelError: the weights are missing or cannot be read.
        UnsafeError: they are a pickle file.
    """
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise UnsafeError(
                "the adapter is a pickle file, which can run code when it is opened",
                where=str(folder / "adapter_model.bin"),
                remedy="use an adapter in safetensors",
            )
        raise ModelError(f"has no {ADAPTER_WEIGHTS}", where=str(folder))
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
            return AdapterFile(tensors, metadata.get(FINGERPRINT_KEY), metadata.get(CHECKSUM_KEY))
    except Exception as error:  # safetensors raises a kind of its own
        raise ModelError(f"the adapter's weights cannot be read ({error})", where=str(path)) from error


def check_unchanged(file: AdapterFile, folder: Path, recorded: str | None) -> None:
    """Compare the adapter with the checksums that were written when it was saved.

    Raises:
        ModelError: they differ.
    """
    expected = {value for value in (file.checksum, recorded) if value is not None}
    if not expected:
        notify(
            f"{folder}: the adapter has no checksum, so whether its values are those that were trained cannot be told"
        )
        return
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if expected != {checksum(file.tensors, config)}:
        raise ModelError(
            f"{ADAPTER_WEIGHTS} or {ADAPTER_CONFIG} was changed after the adapter was saved (checksums differ)",
            where=str(folder),
            remedy="use an untouched copy, or train again",
        )
