"""Data files: which ones a name stands for, and who reads which kind."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tunesmith.config.files import read_json
from tunesmith.data import remote
from tunesmith.data.json_rows import rows_of_json, rows_of_lines
from tunesmith.data.opening import COMPRESSIONS, open_data, refuse_wide
from tunesmith.data.row import Row
from tunesmith.data.splits import canonical, of_split, refuse_other_splits, split_of
from tunesmith.data.tables import rows_of_arrow, rows_of_csv, rows_of_parquet, rows_of_text, rows_of_tsv
from tunesmith.errors import DataError, TunesmithError, did_you_mean
from tunesmith.notices import notify

Reader = Callable[[BinaryIO, str], Iterator[Row]]
"""(file, its name) -> its rows."""
TEXTS: dict[str, Reader] = {
    ".jsonl": rows_of_lines,
    ".ndjson": rows_of_lines,
    ".json": rows_of_json,
    ".csv": rows_of_csv,
    ".tsv": rows_of_tsv,
    ".txt": rows_of_text,
}
"""Kinds that may be compressed."""
READERS: dict[str, Reader] = TEXTS | {".parquet": rows_of_parquet, ".arrow": rows_of_arrow}
KINDS = f"{', '.join(READERS)}; texts also compressed, as .jsonl{', .jsonl'.join(COMPRESSIONS)}"
SAVED = "state.json"
MAX_SAVED = 2**26
"""Bytes of it: a data set of many files names each of them."""
"""A folder with such a file was written by ``save_to_disk`` of ``datasets``."""
NO_ROWS = ("dataset_info.json", "dataset_dict.json", "dataset_infos.json", SAVED)


def local_files(name: str, split: str | None = "train") -> list[Path] | None:
    """The files that ``name`` stands for, sorted; None when it can only be a hub data set.

    Args:
        name: a path, a folder or a glob pattern.
        split: which files of a folder are meant; None takes what a pattern gives, whatever its files are named after.

    Raises:
        DataError: the name looks like a path and nothing is there; or a pattern takes files of another split.
    """
    path = Path(name).expanduser()
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # too long, a loop, a NUL character, not ours to read
        raise DataError(f"cannot be read ({getattr(error, 'strerror', None) or error})", where=name) from error
    if path.is_dir():
        return _files_of_folder(path, split or "train")
    if path.exists():
        if not path.is_file():
            raise DataError("is a pipe or a device, not a file", where=name, remedy="write the rows into a file")
        return [path]
    if any(character in name for character in "*?["):
        found = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not found:
            raise DataError("no file matches this pattern", where=name)
        if split is not None:
            refuse_other_splits([match.as_posix() for match in found], path.as_posix(), split)
        return found
    if looks_like_path(name):
        raise DataError("no such file", where=name, remedy=_nearest(path))
    return None


def remote_files(url: str, split: str | None = "train") -> list[str]:
    """The files that a URL stands for, sorted; see ``local_files``.

    Raises:
        DataError: there is none, or the store cannot be asked.
    """
    if remote.is_folder(url):
        files = [name for name in remote.below(url) if _is_data(name)]
        if not files:
            raise DataError("the folder holds no data files", where=url, remedy=f"it needs files in {KINDS}")
        return of_split(files, split or "train", url, lambda name: _below(name, url))
    found = remote.matching(url)
    if split is not None and len(found) > 1:
        refuse_other_splits(found, url, split)
    return found


def looks_like_path(name: str) -> bool:
    """Whether a name that does not exist here was meant as a local path and not as a hub data set."""
    if name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or _is_data(name):
        return True
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is None


def file_rows(name: str) -> Iterator[Row]:
    """Rows of one file, local or behind a URL; the ending of its name decides how it is read.

    Raises:
        DataError: unknown kind of file, unreadable file, broken rows, or no row at all.
    """
    kind, compression = _kind(name)
    reader = READERS.get(kind)
    if reader is None or (compression and kind not in TEXTS):
        raise DataError(
            f"{kind + compression or 'a name without an ending'} is not a kind of data file that can be read",
            where=name,
            remedy=f"use one of {KINDS}",
        )
    empty = True
    try:
        with open_data(name, compression) as file:
            if kind in TEXTS:
                refuse_wide(file, name)
            for row in reader(file, name):
                empty = False
                yield row
    except TunesmithError:
        raise
    except Exception as error:
        if remote.is_url(name):
            raise remote.unreadable(name, error) from error
        if not isinstance(error, OSError):
            raise
        raise DataError(f"cannot be read ({error.strerror or error})", where=name) from error
    if empty:
        raise DataError("no examples", where=name, remedy="the file holds no rows")


def _kind(name: str) -> tuple[str, str]:
    """The ending that says how a file is read, and the one that says how it is compressed."""
    path = PurePosixPath(name)
    compression = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""
    return (path.with_suffix("") if compression else path).suffix.lower(), compression


def _is_data(name: str) -> bool:
    kind, compression = _kind(name)
    return kind in TEXTS or (kind in READERS and not compression)


def _below(name: str, folder: str) -> str:
    """The part of a path that stands below ``folder``: it alone tells the split."""
    return name.partition("://")[2].removeprefix(folder.partition("://")[2].rstrip("/") + "/")


def _files_of_folder(folder: Path, split: str) -> list[Path]:
    """The data files of a folder: those named after the split when files are named after splits, else all of them."""
    if (folder / SAVED).is_file():
        return _saved_files(folder)
    entries = sorted(path for path in folder.iterdir() if _belongs(path))
    rows = [path for path in entries if path.is_dir() or _kind(path.name)[0] != ".txt"]
    if rows and len(rows) < len(entries):  # texts beside rows describe them
        notify(f"{folder}: leaving {', '.join(path.name for path in entries if path not in rows)}: texts beside rows")
        entries = rows
    if not entries and (folder / "data").is_dir():
        return _files_of_folder(folder / "data", split)
    if not entries:
        raise DataError("the folder holds no data files", where=str(folder), remedy=f"it needs files in {KINDS}")
    chosen = of_split(entries, split, str(folder), lambda path: path.name)
    _say_folders_left(folder, entries)
    return [file for entry in chosen for file in (_all_of_folder(entry) if entry.is_dir() else [entry])]


def _say_folders_left(folder: Path, entries: list[Path]) -> None:
    """Folders of data inside, which are not named after a split, stay unread."""
    others = (path for path in sorted(folder.iterdir()) if path.is_dir() and path not in entries)
    left = [path.name for path in others if not path.name.startswith(".") and any(map(_belongs, path.iterdir()))]
    if left:
        notify(f"{folder}: leaving the folders {', '.join(left)}: name them to read them, too")


def _belongs(path: Path) -> bool:
    """Whether an entry of a folder is data: a file of a known kind, or a folder named after a split."""
    if path.is_dir():
        return (path / SAVED).is_file() or canonical(path.name.lower()) == split_of(path.name)
    return path.is_file() and path.name not in NO_ROWS and _is_data(path.name)


def _all_of_folder(folder: Path) -> list[Path]:
    if (folder / SAVED).is_file():
        return _saved_files(folder)
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in NO_ROWS)
    files = [path for path in found if _is_data(path.name)]
    if not files:
        raise DataError("the folder holds no data files", where=str(folder), remedy=f"it needs files in {KINDS}")
    return files


def _saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a data set that ``save_to_disk`` wrote, in the order of its rows."""
    try:
        state = read_json(folder / SAVED, MAX_SAVED)
        names = [str(entry["filename"]) for entry in state["_data_files"]]
        plain = not state.get("_indices_files") and not state.get("_indices_data_files")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot be read ({type(error).__name__}: {error})", where=str(folder / SAVED)) from error
    files = [folder / name for name in names]
    outside = any(file.resolve().parent != folder.resolve() for file in files)
    if not plain or outside or not files:
        raise DataError(
            "is no data set whose rows lie in its own folder in their order",
            where=str(folder),
            remedy="load it with datasets and call save_to_disk again",
        )
    return files


def _nearest(path: Path) -> str:
    text = str(path)
    if "\\" in text and os.sep == "/":
        turned = re.sub(r"^([A-Za-z]):", lambda drive: f"/mnt/{drive[1].lower()}", text.replace("\\", "/"))
        return f"folders are separated by / here: did you mean {turned!r}?"
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    names = [entry.name for entry in path.parent.iterdir()]
    return did_you_mean(path.name, names, "check the path", folder=path.parent)
