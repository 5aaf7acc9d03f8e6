"""The page of a run while it changes: made anew, in memory, when the run's folder has something new."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import StorageError
from tunesmith.report.page import render
from tunesmith.report.page_facts import EVALUATION, LEDGER, read_run
from tunesmith.report.plots import METRICS
from tunesmith.report.record import RECORD
from tunesmith.report.told import StatusOf

Signature = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """A page, and whether the run that it shows goes on."""

    page: bytes
    goes_on: bool


class LivePage:
    """The newest page of one run; any number of threads may ask for it.

    Args:
        folder: the run folder.
        status_of: what became of the run, by its record.

    Raises:
        StorageError: the folder is not a run folder of ours, or its record is damaged.
    """

    def __init__(self, folder: Path, status_of: StatusOf) -> None:
        self._folder = folder
        self._status_of = status_of
        self._lock = threading.Lock()
        self._seen, self._shown = self._signature(), self._made()

    def newest(self) -> Shown:
        """The page of what the folder holds now; the one before where it cannot be read at this moment."""
        with self._lock:
            signature = self._signature()
            if signature != self._seen:
                try:
                    self._shown = self._made()
                    self._seen = signature
                except StorageError:  # a run that is about to replace it has just moved it away
                    pass
            return self._shown

    def _made(self) -> Shown:
        run = read_run(self._folder, status_of=self._status_of)
        return Shown(render([run]).encode("utf-8", "backslashreplace"), run.status == "running")

    def _signature(self) -> Signature:
        """What changes with the folder: sizes and times of its files, and whether somebody still trains in it."""
        return (self._status_of({"status": "running"}, self._folder), *map(_stamp, self._files()))

    def _files(self) -> Iterator[Path]:
        yield from (self._folder / name for name in (RECORD, METRICS, LEDGER))
        yield from sorted(self._folder.glob(f"{EVALUATION}/**/metrics.json"))


def _stamp(file: Path) -> tuple[str, int, int]:
    try:
        found = file.lstat()
    except OSError:
        return (file.name, 0, 0)
    return (str(file), found.st_size, found.st_mtime_ns)
