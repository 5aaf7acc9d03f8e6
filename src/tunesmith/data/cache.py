"""Tokenised data kept on disk under a key of everything that decides it, so that a stale copy is never found.

It keeps and finds; how rows become examples is ``examples.py``'s. Nothing that has a doubtful key is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import __version__
from tunesmith.config import places
from tunesmith.config.schema import DataSection
from tunesmith.data.files import local_files
from tunesmith.data.remote import is_url
from tunesmith.data.row import Row
from tunesmith.errors import StorageError
from tunesmith.installed import version_of
from tunesmith.notices import notify

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ABOUT = "about.json"
PREFIX, UNFINISHED = "data-", ".unfinished-"
ABANDONED = 7 * 24 * 3600
"""Seconds after which what a killed process left unfinished is removed."""
MECHANICS = {"cache", "cache_dir", "num_proc"}
"""Settings that say how data is prepared and change nothing in the result."""
LIBRARIES = ("tokenizers", "transformers", "sentencepiece", "jinja2", "pyarrow")


@dataclass(frozen=True, slots=True)
class Entry:
    """One kept preparation: its folder, its size on disk in bytes and what its ``about.json`` says."""

    folder: Path
    num_bytes: int
    about: dict[str, Any]


def cache_folder(data: DataSection | None = None) -> Path:
    """Where prepared data is kept: the setting, else ``TUNESMITH_CACHE``, else the user's cache folder."""
    return places.cache_folder(None if data is None else data.cache_dir)


def key_of(data: DataSection, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """sha256 over everything that decides the examples of a run; None where that cannot be known.

    It covers the contents of all data files in order, every data setting, the files that settings name, the tokenizer
    as it would be saved, our version and code, and the libraries that render and tokenise. A hub data set has no
    contents that could be read cheaply, nor has a URL; their examples are not kept.
    """
    names = dict.fromkeys(_names(data.eval_data), data.eval_split or "validation")
    names |= dict.fromkeys(_names(data.train_data), data.train_split)
    files: list[list[str]] = []
    for name, split in names.items():
        found = None if is_url(name) else local_files(name, split)
        if found is None:
            return None
        if Path(name).is_dir():
            found = [path for path in sorted(Path(name).rglob("*")) if path.is_file()]
        files += [[str(path), file_hash(path)] for path in found]
    if data.eval_split is not None and data.eval_data is None and not any(Path(name).is_dir() for name in names):
        return None
    settings = data.model_dump(mode="json", exclude=MECHANICS)
    parts = {
        "version": __version__,
        "code": _code_hash(),
        "libraries": {name: version_of(name) for name in LIBRARIES},
        "settings": settings,
        "files": files,
        "named_files": [[text, file_hash(Path(text))] for text in _texts(settings) if _is_file(text)],
        "tokenizer": tokenizer_hash(tokenizer),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def find(folder: Path, key: str) -> Entry | None:
    """What is kept under ``key``, whole and unchanged; a damaged copy is said, removed and not returned."""
    place = folder / (PREFIX + key)
    if not place.is_dir():
        return None
    damage = _damage(place, key)
    if damage is None:
        return read(place)
    notify(f"prepared data in {place} is damaged ({damage}); it is made again")
    shutil.rmtree(place, ignore_errors=True)
    return None


def read(place: Path) -> Entry:
    """What stands in a folder of prepared data; nothing is checked."""
    return Entry(place, _size(place), json.loads((place / ABOUT).read_text(encoding="utf-8")))


def keep(folder: Path, key: str, stage: Path, about: dict[str, Any]) -> Path:
    """Move the finished files of ``stage`` to their place at one stroke, with the sha256 of each.

    Returns:
        the place; where another process was faster, its copy is taken.

    Raises:
        StorageError: the folder cannot be written.
    """
    place = folder / (PREFIX + key)
    files = {path.name: file_hash(path) for path in sorted(stage.iterdir())}
    try:
        with (stage / ABOUT).open("w", encoding="utf-8") as file:
            json.dump({"key": key, "files": files, **about}, file)
            file.flush()
            os.fsync(file.fileno())
        try:
            stage.rename(place)
        except OSError:
            if not place.is_dir():
                raise
            shutil.rmtree(stage)
    except OSError as error:
        raise StorageError(f"prepared data cannot be kept ({error.strerror or error})", where=str(folder)) from error
    return place


def new_stage(folder: Path) -> Path:
    """An empty folder beside the kept ones, for files that are not finished yet.

    Raises:
        StorageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(UNFINISHED + "*"):
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder))
    except OSError as error:
        raise StorageError(
            f"prepared data cannot be kept there ({error.strerror or error})",
            where=str(folder),
            remedy=f"set cache_dir or {places.VARIABLE} to a folder that can be written, or cache: false",
        ) from error


def entries(folder: Path) -> list[Entry]:
    """Everything that is kept, the newest first."""
    places = [path for path in folder.glob(PREFIX + "*") if (path / ABOUT).is_file()]
    return [read(place) for place in sorted(places, key=lambda path: (path / ABOUT).stat().st_mtime, reverse=True)]


def clear(folder: Path) -> tuple[int, int]:
    """Remove everything that is kept or was left unfinished; nothing else in the folder is touched.

    Returns:
        number of folders removed, and their size in bytes.
    """
    places = [path for pattern in (PREFIX + "*", UNFINISHED + "*") for path in folder.glob(pattern) if path.is_dir()]
    num_bytes = sum(_size(place) for place in places)
    for place in places:
        shutil.rmtree(place)
    return len(places), num_bytes


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def contents_hash(names: str | list[str] | None, split: str | None) -> str | None:
    """sha256 over the contents of data files in order, wherever they lie; None where some are on no disk of ours."""
    digest = hashlib.sha256()
    for name in _names(names):
        found = None if is_url(name) else local_files(name, split)
        if found is None:
            return None
        for path in found:
            inside = sorted(path.rglob("*")) if path.is_dir() else [path]
            digest.update("".join(file_hash(file) for file in inside if file.is_file()).encode())
    return digest.hexdigest() if names else None


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over the files that the tokenizer would be saved as, and its class."""
    digest = hashlib.sha256(type(tokenizer).__qualname__.encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(str(path.relative_to(folder)).encode() + file_hash(path).encode())
    return digest.hexdigest()


def rows_to_json(rows: Iterable[Row]) -> list[list[Any]] | None:
    """Rows as JSON that gives equal rows again; None where one holds something that JSON does not."""
    plain = [[row.values, row.source, row.line] for row in rows]
    try:
        same = json.loads(json.dumps(plain, allow_nan=False)) == plain
    except (TypeError, ValueError):
        return None
    return plain if same else None


def rows_from_json(plain: Sequence[Sequence[Any]]) -> list[Row]:
    """The rows that ``rows_to_json`` wrote."""
    return [Row(values, source, line) for values, source, line in plain]


def _damage(place: Path, key: str) -> str | None:
    try:
        about = json.loads((place / ABOUT).read_text(encoding="utf-8"))
        if about["key"] != key:
            return "its key is another one"
        for name, digest in about["files"].items():
            if file_hash(place / name) != digest:
                return f"{name} changed"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _size(place: Path) -> int:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def _names(data: str | list[str] | None) -> list[str]:
    return [data] if isinstance(data, str) else list(data or ())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError):  # a long or strange text is no name
        return False


@once
def _code_hash() -> str:
    """sha256 over the sources that turn rows into examples, and the templates that come with them."""
    package = Path(__file__).parents[1]
    sources = [*(package / "data").glob("*.py"), *(package / "assets" / "templates").rglob("*")]
    digest = hashlib.sha256()
    for path in sorted(sources):
        if path.is_file():
            digest.update(path.name.encode() + file_hash(path).encode())
    return digest.hexdigest()
