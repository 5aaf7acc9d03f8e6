"""What the weights in a file are: a hash of each tensor, and whether all of its values are finite.

All bytes of a file are read once; what was found is kept in the cache folder under the file's path, size, times and
inode, so that an untouched file is not read again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tunesmith.config.places import cache_folder
from tunesmith.errors import ModelError, StorageError
from tunesmith.model.headers import few, file_headers, weight_files

FOLDER = "tensors"
"""Folder within the cache folder."""
_PIECE = 1 << 22
"""Elements that are looked at in one go."""
_MOST_THREADS = 16


@dataclass(frozen=True, slots=True)
class Digest:
    """A tensor's type and shape as its file has them, sha256 over its bytes, and whether all its values are finite."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str
    finite: bool


def digests(folder: Path) -> dict[str, Digest]:
    """The digest of every tensor in a model's files, by name.

    Raises:
        ModelError: a file cannot be read.
    """
    return {name: digest for file in weight_files(folder) for name, digest in file_digests(file).items()}


def check_finite(folder: Path) -> None:
    """Refuse a model with weights that are no numbers, or infinite.

    Raises:
        ModelError: it names them; or a file cannot be read.
    """
    wrong = [name for name, digest in digests(folder).items() if not digest.finite]
    if wrong:
        raise ModelError(
            f"{len(wrong)} tensors hold values that are not finite ({few(wrong)})",
            where=str(folder),
            remedy="use another copy of the model",
        )


def file_digests(file: Path) -> dict[str, Digest]:
    """The digest of every tensor in one file, from the cache where the file is as it was.

    Raises:
        ModelError: the file cannot be read.
    """
    place = _place(file)
    if place is None:
        return _compute(file)
    with _alone(place):  # of several processes one reads the file, and the others wait for what it found
        state = _state(file)
        kept = _read(place, state)
        if kept is not None:
            return kept
        found = _compute(file)
        if state == _state(file):
            _keep(place, state, found)
        return found


def sha256_of_file(file: Path) -> str:
    """The digest of all of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _compute(file: Path) -> dict[str, Digest]:
    headers = file_headers(file)
    # Hashing and looking at values run outside of Python's lock; the file is mapped, so threads cost no memory.
    with safe_open(file, framework="pt") as tensors, ThreadPoolExecutor(_num_threads()) as pool:

        def digest(name: str) -> Digest:
            tensor = tensors.get_tensor(name)
            sha256 = hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy()).hexdigest()
            return Digest(headers[name].dtype, headers[name].shape, sha256, _is_finite(tensor))

        try:
            return dict(zip(headers, pool.map(digest, headers), strict=True))
        except Exception as error:  # safetensors has one kind of its own besides OSError and ValueError
            raise ModelError(f"the weights cannot be read ({error})", where=str(file)) from error


def _num_threads() -> int:
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _is_finite(tensor: torch.Tensor) -> bool:
    """The smallest and greatest value tell: a NaN is both, an infinity one of them."""
    if not tensor.is_floating_point():
        return True
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), _PIECE):
        piece = flat[start : start + _PIECE]
        low, high = torch.aminmax(piece if piece.element_size() > 1 else piece.float())
        if not (math.isfinite(low) and math.isfinite(high)):
            return False
    return True


# kept digests ---------------------------------------------------------------------------------------------------------


def _place(file: Path) -> Path | None:
    """Where a file's digests are kept; None where nothing can be kept."""
    try:
        folder = cache_folder() / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, StorageError):
        return None
    return folder / f"{hashlib.sha256(os.fsencode(file.resolve())).hexdigest()}.json"


def _state(file: Path) -> list[int]:
    try:
        now = file.stat()
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror or error})", where=str(file)) from error
    return [now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino, now.st_dev]


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Hold a lock beside ``place``; without one where the system has none."""
    try:
        import fcntl

        lock = place.with_suffix(".lock").open("wb")
    except (ImportError, OSError):
        yield
        return
    with lock:
        with suppress(OSError):  # a file system without locks; reading twice is all that it costs
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(place: Path, state: list[int]) -> dict[str, Digest] | None:
    try:
        kept = json.loads(place.read_text(encoding="utf-8"))
        if kept["state"] != state:
            return None
        return {name: Digest(**values | {"shape": tuple(values["shape"])}) for name, values in kept["tensors"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _keep(place: Path, state: list[int], found: dict[str, Digest]) -> None:
    tensors: dict[str, dict[str, Any]] = {name: asdict(digest) for name, digest in found.items()}
    part = place.with_suffix(".part")
    try:
        part.write_text(json.dumps({"state": state, "tensors": tensors}), encoding="utf-8")
        part.replace(place)
    except OSError:  # it is read again next time
        part.unlink(missing_ok=True)
