"""Which base an adapter belongs to: a hash of the base's configuration and of every one of its weights.

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
from tunesmith.model.digests import digests
from tunesmith.model.headers import read_headers

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


VERSION = "2:"
"""What a fingerprint of today begins with; the first ones were bare hashes over the first and the last tensor."""


def fingerprint(folder: Path) -> str:
    """``2:`` and the sha256 over the lasting parts of config.json and every tensor: name, type, shape and values.

    Raises:
        ModelError: the folder's files cannot be read.
    """
    digest = hashlib.sha256(_configuration(folder))
    for name, tensor in sorted(digests(folder).items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape} {tensor.sha256}\n".encode())
    return VERSION + digest.hexdigest()


def is_fingerprint_of(recorded: str, folder: Path) -> bool:
    """Whether a fingerprint of today, or one of the first version, is that of a base.

    Raises:
        ModelError: the folder's files cannot be read.
    """
    return recorded == (fingerprint(folder) if recorded.startswith(VERSION) else _first_version(folder))


def _configuration(folder: Path) -> bytes:
    config = {key: value for key, value in source.read_json(str(folder), "config.json").items() if key not in VOLATILE}
    return json.dumps(config, sort_keys=True).encode()


def _first_version(folder: Path) -> str:
    """The hash over the configuration, the first and the last tensor by name, as adapters of before carry it."""
    digest = hashlib.sha256(_configuration(folder))
    found = read_headers(folder)
    for name in (min(found), max(found)) if found else ():
        try:
            with safe_open(found[name].file, framework="pt") as tensors:
                tensor = tensors.get_tensor(name)
        except Exception as error:  # safetensors has one kind of its own besides OSError and ValueError
            raise ModelError(f"the weights cannot be read ({error})", where=str(folder)) from error
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
