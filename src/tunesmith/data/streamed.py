"""Rows of a run that reads them while it trains: in the order of the files, or shuffled within a buffer, and mixed.

The same settings and pass give the same rows, so that a run which continues reads what it would have read.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import islice

from tunesmith.config.schema import DataSection
from tunesmith.data.files import local_files
from tunesmith.data.remote import is_url
from tunesmith.data.row import Row
from tunesmith.data.rows import iter_rows
from tunesmith.errors import ConfigError, DataError


def streamed_rows(data: DataSection, number: int) -> Iterator[Row]:
    """The training rows of one pass.

    Args:
        data: the settings.
        number: of the pass, from 0; each has its own order where rows are shuffled or mixed.

    Raises:
        DataError: rows cannot be read, or a source that is mixed has none.
    """
    names = [data.train_data] if isinstance(data.train_data, str) else data.train_data or []
    if data.mix_weights is None:
        return islice(_source(data, names, f"{number}"), data.limit)
    if len(data.mix_weights) != len(names):
        raise ConfigError(
            f"mix_weights has {len(data.mix_weights)} numbers for {len(names)} entries of train_data",
            remedy="give one for each entry",
        )
    return islice(_mixed(data, names, number), data.limit)


class Unchanged:
    """Notices when the files of a stream change: each pass must read what the first one read.

    Raises:
        DataError: a file cannot be read.
    """

    def __init__(self, data: DataSection) -> None:
        self._data = data
        self._before = self._stamps()

    def check(self) -> None:
        """Compare the files with what they were.

        Raises:
            DataError: one changed, vanished or came.
        """
        now = self._stamps()
        changed = sorted(name for name in {**now, **self._before} if now.get(name) != self._before.get(name))
        if changed:
            raise DataError(
                "the file changed while the run was reading it",
                where=changed[0],
                remedy="train on a copy that nobody writes to; a resume needs the rows of the first pass",
            )

    def _stamps(self) -> dict[str, tuple[int, int]]:
        names = [self._data.train_data] if isinstance(self._data.train_data, str) else self._data.train_data or []
        found = [local_files(name, self._data.train_split) or [] for name in names if not is_url(name)]
        inside = [file for files in found for path in files for file in ([path] if path.is_file() else path.rglob("*"))]
        stats = {str(file): file.stat() for file in inside}
        return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def shuffled_within(rows: Iterable[Row], size: int, seed: str) -> Iterator[Row]:
    """The rows in an order that depends on ``seed``; each is drawn from ``size`` that wait, and none is lost."""
    generator = random.Random(seed)
    waiting: list[Row] = []
    for row in rows:
        if len(waiting) < size:
            waiting.append(row)
            continue
        place = generator.randrange(size)
        waiting[place], drawn = row, waiting[place]
        yield drawn
    generator.shuffle(waiting)
    yield from waiting


def _source(data: DataSection, names: list[str], pass_of: str) -> Iterator[Row]:
    rows = iter_rows(names, subset=data.subset, split=data.train_split)
    if data.shuffle_seed is None:
        return rows
    return shuffled_within(rows, data.shuffle_buffer, f"{data.shuffle_seed} {pass_of}")


def _mixed(data: DataSection, names: list[str], number: int) -> Iterator[Row]:
    """Rows drawn from each source as its weight says; ``mix_stop`` says when it ends, as for data in memory."""
    generator = random.Random(f"{data.shuffle_seed or 0} {number} mix")
    numbers = range(len(names))
    rounds = [0 for _ in names]

    def begun(source: int) -> Iterator[Row]:
        return _source(data, [names[source]], f"{number} {source} {rounds[source]}")

    open_sources = [begun(source) for source in numbers]
    upcoming = [next(source, None) for source in open_sources]
    if None in upcoming:
        raise DataError("holds no rows to mix", where=names[upcoming.index(None)])
    until_all = data.mix_stop == "all_exhausted"
    while True:
        (chosen,) = generator.choices(numbers, data.mix_weights)
        row = upcoming[chosen]
        assert row is not None
        yield row
        upcoming[chosen] = next(open_sources[chosen], None)
        if upcoming[chosen] is None:
            rounds[chosen] += 1
            if not until_all or all(rounds):
                return
            open_sources[chosen] = begun(chosen)
            upcoming[chosen] = next(open_sources[chosen])
