"""What a model's weights files say they hold: names, types and shapes, from their headers; no weight is read.

Which files the library would open is decided here, too, and that an index and its shards say the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tunesmith.errors import ModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATING = frozenset(["F64", "F32", "F16", "BF16"])
"""Types, as safetensors names them, in which weights are held."""
_OTHER_LAYOUT = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""Files of torch's distributed checkpoints, which the library would take instead of the model's own."""
NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Header:
    """A tensor as its file describes it; ``dtype`` as safetensors writes it (``BF16``)."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


def few(names: Iterable[str]) -> str:
    """The first names of several, sorted."""
    ordered = sorted(names)
    return ", ".join(ordered[:NAMES_SHOWN]) + (", ..." if len(ordered) > NAMES_SHOWN else "")


def entry_file(folder: Path) -> Path | None:
    """The file with which the library begins: what ``config.json`` names, the single file, or the index of shards.

    Raises:
        ModelError: the configuration names a file that is not one of the folder's weights files.
    """
    named = _json_object(folder / "config.json").get("transformers_weights")
    if named is None:
        return next((folder / name for name in (SINGLE, INDEX) if (folder / name).is_file()), None)
    if not _is_plain(named) or not named.endswith((".safetensors", ".safetensors.index.json")):
        raise ModelError(
            f"transformers_weights: {named!r} is no weights file of the folder", where=str(folder / "config.json")
        )
    return folder / named if (folder / named).is_file() else None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that the library opens for a model, sorted by name; some may be missing.

    Raises:
        ModelError: the index cannot be read or names a file outside of the folder, or the folder holds the shards of
            another layout.
    """
    strange = sorted(path.name for path in folder.glob("shard-*.safetensors") if _OTHER_LAYOUT.fullmatch(path.name))
    if strange:
        raise ModelError(
            f"holds a distributed checkpoint ({few(strange)})", where=str(folder), remedy="save the model as a whole"
        )
    entry = entry_file(folder)
    if entry is None:
        return []
    return (
        [entry] if entry.suffix == ".safetensors" else [folder / name for name in sorted(set(_index(entry).values()))]
    )


def read_headers(folder: Path) -> dict[str, Header]:
    """Every tensor of a model's files by its name there.

    Raises:
        ModelError: a file is missing, cut off or damaged; a tensor is empty or in two files; or the index does not say
            what the shards hold.
    """
    found: dict[str, Header] = {}
    for file in weight_files(folder):
        for name, header in file_headers(file).items():
            if name in found:
                raise ModelError(f"{name} is in two files, {found[name].file.name} and {file.name}", where=str(folder))
            found[name] = header
    entry = entry_file(folder)
    if entry is not None and entry.suffix == ".json":
        _compare_with_index(_index(entry), found, entry)
    return found


def file_headers(file: Path) -> dict[str, Header]:
    """Every tensor of one safetensors file.

    Raises:
        ModelError: the file is missing, cut off or damaged, or a tensor is empty.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping
            found = {name: Header(part.get_dtype(), tuple(part.get_shape()), file) for name, part in slices.items()}
    except Exception as error:  # safetensors has one kind of its own besides OSError and ValueError
        raise ModelError(
            f"cannot be read as safetensors ({error})", where=str(file), remedy="fetch the file again"
        ) from error
    empty = [name for name, header in found.items() if 0 in header.shape]
    if empty:
        raise ModelError(f"holds tensors without a value: {few(empty)}", where=str(file))
    return found


def hub_headers(name: str, revision: str | None = None) -> dict[str, Header]:
    """The headers of a model on the hub; no weight is fetched.

    Raises:
        ModelError: the hub does not give them, or they contradict the index.
    """
    from huggingface_hub import HfApi

    try:
        about = HfApi().get_safetensors_metadata(name, revision=revision)
    except Exception as error:  # the library raises many kinds here, and all mean the same to the user
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"the headers of its weights cannot be read ({reason[:300]})", where=name) from error
    found = {
        tensor: Header(str(facts.dtype), tuple(facts.shape), Path(file))
        for file, content in about.files_metadata.items()
        for tensor, facts in content.tensors.items()
    }
    if about.sharded:
        _compare_with_index(about.weight_map, found, Path(name) / INDEX)
    return found


def _index(path: Path) -> dict[str, str]:
    """Tensor name -> file name, both checked to be what they should be."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = {str(name): file for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError(f"the index of shards cannot be read ({error})", where=str(path)) from error
    outside = [(name, file) for name, file in names.items() if not _is_plain(file)]
    if outside:
        name, file = outside[0]
        raise ModelError(f"the index names files outside of the folder: {file!r} for {name}", where=str(path))
    odd = [(name, file) for name, file in names.items() if not file.endswith(".safetensors")]
    if odd:
        raise ModelError(f"the index names {odd[0][1]!r} for {odd[0][0]}, no safetensors file", where=str(path))
    return names


def _compare_with_index(index: Mapping[str, str], found: Mapping[str, Header], path: Path) -> None:
    lost = {name for name, file in index.items() if name not in found or found[name].file.name != file}
    unnamed = found.keys() - index.keys()
    parts = [f"{len(lost)} tensors are not in the file that it names ({few(lost)})"] if lost else []
    parts += [f"{len(unnamed)} tensors of the shards are not in it ({few(unnamed)})"] if unnamed else []
    if parts:
        raise ModelError(f"the index and the shards differ: {'; '.join(parts)}", where=str(path))


def _is_plain(name: Any) -> bool:
    """Whether a name is that of a file in the folder itself."""
    return isinstance(name, str) and name not in ("", ".", "..") and "\0" not in name and Path(name).name == name


def _json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"not valid JSON ({error})", where=str(path)) from error
    return content if isinstance(content, dict) else {}
