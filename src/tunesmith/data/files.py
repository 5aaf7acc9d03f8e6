"""Local data files: which ones a name stands for, and who reads which kind."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path

from tunesmith.data.json_rows import json_file, json_lines, json_lines_gz
from tunesmith.data.row import Row
from tunesmith.data.tables import csv_file, parquet_file
from tunesmith.errors import DataError, did_you_mean
from tunesmith.notices import notify

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}
READERS = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".jsonl.gz": json_lines_gz,
    ".json": json_file,
    ".csv": csv_file,
    ".parquet": parquet_file,
}


def local_files(name: str, split: str = "train") -> list[Path] | None:
    """The files that ``name`` stands for, sorted; None when it can only be a hub data set.

    Raises:
        DataError: the name looks like a path and nothing is there.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _files_of_folder(path, split)
    if path.exists():
        return [path]
    if any(character in name for character in "*?["):
        found = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not found:
            raise DataError("no file matches this pattern", where=name)
        return found
    if looks_like_path(name):
        raise DataError("no such file", where=name, remedy=_nearest(path))
    return None


def looks_like_path(name: str) -> bool:
    """Whether a name that does not exist here was meant as a local path and not as a hub data set."""
    if name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or _suffix(Path(name)) in READERS:
        return True
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is None


def file_rows(path: Path) -> Iterator[Row]:
    """Rows of one local file; the ending of its name decides how it is read.

    Raises:
        DataError: unknown kind of file, unreadable file, broken rows, or no row at all.
    """
    reader = READERS.get(_suffix(path))
    if reader is None:
        raise DataError(
            f"{path.suffix or 'a name without an ending'} is not a kind of data file that can be read",
            where=str(path),
            remedy=f"use one of {', '.join(READERS)}",
        )
    empty = True
    try:
        for row in reader(path):
            empty = False
            yield row
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", where=str(path)) from error
    if empty:
        raise DataError("no examples", where=str(path), remedy="the file holds no rows")


def _suffix(path: Path) -> str:
    return "".join(path.suffixes[-2:]).lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def _files_of_folder(folder: Path, split: str) -> list[Path]:
    """The data files of a folder: those named after the split when files are named after splits, else all of them."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and _suffix(path) in READERS)
    files = [path for path in files if path.name not in ("dataset_info.json", "dataset_dict.json", "state.json")]
    if not files:
        raise DataError(
            "the folder holds no data files", where=str(folder), remedy=f"it needs files in {', '.join(READERS)}"
        )
    named = {path: _split_of(path) for path in files}
    if not any(named.values()):
        return files
    wanted = next((name for name, words in SPLIT_NAMES.items() if split in words), split)
    chosen = [path for path, name in named.items() if name == wanted]
    if not chosen:
        found = ", ".join(path.name for path in files)
        raise DataError(
            f"no file for the split {split!r} among {found}", where=str(folder), remedy="name the file itself"
        )
    notify(f"{folder}: taking {', '.join(path.name for path in chosen)} for the split {split}")
    return chosen


def _split_of(path: Path) -> str | None:
    word = re.split(r"[^a-z]", path.name.lower(), maxsplit=1)[0]
    return next((name for name, words in SPLIT_NAMES.items() if word in words), None)


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    names = [entry.name for entry in path.parent.iterdir()]
    return did_you_mean(path.name, names, "check the path", folder=path.parent)
