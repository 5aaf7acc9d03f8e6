"""The columns of rows: those that a format reads, those that the settings rename, and what is said of all others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tunesmith.data.formats import KNOWN_COLUMNS, columns_read, expected_columns
from tunesmith.data.ledger import DEFAULT_KEYS
from tunesmith.data.rag import DOCUMENT_COLUMNS
from tunesmith.data.row import Row, holds_nothing
from tunesmith.errors import ConfigError, DataError, did_you_mean
from tunesmith.notices import notify


class ColumnCheck:
    """Looks at the columns of a run's rows as they are read.

    Args:
        renamed: {name that the format expects: name in the file}.
        used: columns that are read for something else than the text.
    """

    def __init__(self, renamed: Mapping[str, str], used: Iterable[str] = ()) -> None:
        self._renamed = dict(renamed)
        self._used = frozenset(used)
        self._not_met = set(renamed.values())
        self._seen: dict[str, None] = {}
        self._said: dict[str, set[str]] = {}
        self._checked: set[str] = set()

    def unread(self, original: Row, row: Row, format_name: str) -> frozenset[str]:
        """Columns of the file that are not read; those that are news are said.

        Args:
            original: the row as the file has it.
            row: the same with its columns renamed.
            format_name: how it is read.

        Raises:
            ConfigError: a column is renamed to a name that the format does not know.
            DataError: a column is not read whose name means something in other formats.
        """
        if self._renamed and format_name not in self._checked:
            self._check_expected(format_name)
        read = columns_read(row, format_name)
        if format_name == "rag":
            read |= frozenset(DOCUMENT_COLUMNS)
        if self._renamed:
            shadowed = {name for name, given in self._renamed.items() if given in original.values and given != name}
            if self._not_met:
                self._not_met -= original.values.keys()
                self._seen.update(dict.fromkeys(original.values))
            read = (read - shadowed) | set(self._renamed.values())
        if original.values.keys() <= read:
            return frozenset()
        unread = frozenset(original.values.keys() - read)
        self._say(original, unread, format_name)
        return unread

    def check_met(self) -> None:
        """Refuse a name that no row had.

        Raises:
            ConfigError: with the nearest names of columns.
        """
        if self._not_met and self._seen:
            name = min(self._not_met)
            raise ConfigError(
                f"no row has the column {name!r}", where="data.columns", remedy=_nearest(name, self._seen)
            )

    def _check_expected(self, format_name: str) -> None:
        self._checked.add(format_name)
        known = expected_columns(format_name)
        for name in self._renamed:
            if known is not None and name not in known:
                raise ConfigError(
                    f"the format {format_name} has no column {name!r}",
                    where="data.columns",
                    remedy=_nearest(name, known),
                )

    def _say(self, row: Row, unread: frozenset[str], format_name: str) -> None:
        said = self._said.setdefault(row.source, set())
        if unread <= said:
            return
        wrong = next((name for name in sorted(unread & KNOWN_COLUMNS) if not holds_nothing(row.values[name])), None)
        if wrong is not None:
            raise DataError(
                f"the column {wrong!r} is not read in rows of the format {format_name}",
                where=row.where,
                remedy="remove or rename it, or give the rows as messages, which may have one",
            )
        news = sorted(unread - said - set(DEFAULT_KEYS) - KNOWN_COLUMNS - self._used)
        said |= unread - KNOWN_COLUMNS
        if news:
            notify(f"{row.source}: columns that are not read: {', '.join(news)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    return did_you_mean(name, names, f"there are {', '.join(names)}")
