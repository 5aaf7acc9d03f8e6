"""Which split a file was named for: the words of its name tell."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from tunesmith.errors import DataError
from tunesmith.notices import notify

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development", "eval", "evaluation", "heldout", "holdout"),
    "test": ("test", "testing"),
}
_TWO_WORDS = re.compile(r"(held|hold)[^a-z0-9]out(?![a-z])")
_GLUED = re.compile(r"(sets?|data|split|s)$")
"""What is written together with such a word: ``testset``, ``evals``."""
T = TypeVar("T")


def canonical(split: str) -> str:
    """The split that a name stands for; a name of its own stands for itself."""
    return next((name for name, words in SPLIT_NAMES.items() if split in words), split)


def split_of(name: str) -> str | None:
    """The split that the name of a file or folder tells, by its first word, else by any other; None: none.

    >>> split_of("train-00000-of-00002.parquet"), split_of("my_test.jsonl"), split_of("latest.jsonl")
    ('train', 'test', None)
    """
    words = re.findall(r"[a-z]+", _TWO_WORDS.sub(r"\1out", name.lower()))
    meant = (canonical(form) for word in words for form in (word, _GLUED.sub("", word)))
    return next((split for split in meant if split in SPLIT_NAMES), None)


def of_split(entries: Sequence[T], split: str, where: str, name_of: Callable[[T], str]) -> list[T]:
    """The entries of a folder that belong to ``split``: all where none is named after a split.

    For training, entries without such a name are taken where none is named after it.

    Raises:
        DataError: none belongs to it.
    """
    named = {index: split_of(name_of(entry)) for index, entry in enumerate(entries)}
    exact = [index for index, entry in enumerate(entries) if name_of(entry).partition(".")[0] == split]
    wanted = canonical(split)
    if not any(named.values()) and not exact:
        return list(entries)
    chosen = exact or [index for index, name in named.items() if name == wanted]
    if not chosen and wanted == "train":
        chosen = [index for index, name in named.items() if name is None]
    if not chosen:
        found = ", ".join(map(name_of, entries))
        raise DataError(f"no file for the split {split!r} among {found}", where=where, remedy="name the file itself")
    left = [name_of(entry) for index, entry in enumerate(entries) if index not in chosen]
    leaving = f", leaving {', '.join(left)}" if left else ""
    notify(f"{where}: taking {', '.join(name_of(entries[index]) for index in chosen)} for the split {split}{leaving}")
    return [entries[index] for index in chosen]


def refuse_other_splits(files: Sequence[str], pattern: str, split: str) -> None:
    """Stop where a pattern takes files that are named after another split, and does not say so itself.

    Raises:
        DataError: names such a file and the remedy.
    """
    others = {"train"} if canonical(split) != "train" else SPLIT_NAMES.keys() - {"train"}
    fixed = re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    folder = fixed.rpartition("/")[2].lower()
    if split_of(pattern.removeprefix(fixed)) is not None or canonical(folder) in SPLIT_NAMES:
        return
    for file in files:
        told = [split_of(part) for part in file.removeprefix(fixed).split("/")]
        other = next((name for name in told if name in others), None)
        if other is not None:
            raise DataError(
                f"the pattern takes {file}, which is named after the split {other}",
                where=pattern,
                remedy=f"name the folder, or write a pattern or a list of names that leaves files of {other} out",
            )
