"""Which base an adapter belongs to: a hash of the base's shape and of its first and last weights.

It opens files, never a model, so it is the same for a base in any dtype.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open

from tunesmith.errors import ModelError
from tunesmith.model import source

VOLATILE = frozenset(
    [
        "transformers_version",
        "dtype",
        "torch_dtype",
        "use_cache",
        "_name_or_path",
        "quantization_config",
        "auto_map",
        "architectures",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ]
)
"""Keys of config.json that may change without the weights being others."""


def fingerprint(folder: Path) -> str:
    """sha256 over the lasting parts of config.json and the first and last tensor by name, from a model folder.

    Two tensors tell bases of the same shape apart (a base and its own fine-tuning differ in both) at the cost of
    reading them alone.

    Raises:
        ModelError: the folder's files cannot be read.
    """
    config = {key: value for key, value in source.read_json(str(folder), "config.json").items() if key not in VOLATILE}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    homes: dict[str, Path] = {}
    try:
        for file in source.weight_files(folder):
            with safe_open(file, framework="pt") as tensors:
                homes |= dict.fromkeys(tensors.keys(), file)
        for name in (min(homes), max(homes)):
            with safe_open(homes[name], framework="pt") as tensors:
                tensor = tensors.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.flatten().contiguous().view(torch.uint8).numpy().tobytes())
    except Exception as error:  # safetensors has one kind of its own besides OSError and ValueError
        raise ModelError(f"the weights cannot be read ({error})", where=str(folder)) from error
    return digest.hexdigest()
