"""The account of every row: read, kept, cut or dropped, with reasons and addresses, and what stands out among them.

It counts and compares with limits; it changes no row.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields
from typing import Any

from tunesmith.config.schema import DataSection
from tunesmith.data.masking import Example
from tunesmith.data.row import Row
from tunesmith.errors import DataError
from tunesmith.notices import notify
from tunesmith.program import named

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
ROWS_SHOWN = 5
LINE_BITS = 40
DEFAULT_KEYS = ("id", "idx", "index", "pairID", "pair_id", "Unnamed: 0", "__index_level_0__")
"""Columns that no format reads as text and that are no news."""
CUTS = {
    "truncate_prompt": "lose the beginning of their prompt",
    "turns": "lose their oldest turns",
    "documents": "lose documents",
    "split": "become several examples",
}
"""What cutting does to a row, by the name of the cut."""

_LABEL = re.compile(r'"predicted_label"\s*:\s*"?([\w.-]+)')


@dataclass(slots=True)
class SourceAccount:
    """What became of the rows of one source; addresses are ``source:line``."""

    read: int = 0
    kept: int = 0
    cut: dict[str, list[str]] = field(default_factory=dict)
    """Addresses of shortened rows by policy."""
    dropped: dict[str, list[str]] = field(default_factory=dict)
    """Addresses of left-out rows by reason."""
    pieces: int = 0
    """Examples beyond the first that rows were split into."""
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    """Tokens of the longest row before any cut."""
    list_answers: int = 0
    """Rows whose answer was a list of several, of which the first was taken."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Rows by length in tokens, before any cut."""
    end_beyond_limit: list[str] = field(default_factory=list)
    """Rows longer than ``max_length``: a plain cut there would lose their end token."""
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    """(row, the first row with the same tokens and labels)."""
    repeated: int = 0
    """Rows drawn once more by mixing."""
    labels: Counter[str] = field(default_factory=Counter)
    """Rows by class label, where answers hold one."""
    first_of_label: dict[str, str] = field(default_factory=dict)
    """The first row with each label."""
    unused_columns: Counter[str] = field(default_factory=Counter)
    """Rows by column that the format does not read."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows by part of theirs that is not in the text, or in it as another than it was."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data in a fixed order."""
        return {
            "read": self.read,
            "kept": self.kept,
            "pieces": self.pieces,
            "cut": {reason: list(self.cut[reason]) for reason in sorted(self.cut)},
            "dropped": {reason: list(self.dropped[reason]) for reason in sorted(self.dropped)},
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "trained_share": self.trained_tokens / self.tokens if self.tokens else 0.0,
            "longest": self.longest,
            "lengths": distribution(self.lengths),
            "end_beyond_limit": list(self.end_beyond_limit),
            "duplicates": [list(pair) for pair in self.duplicates],
            "repeated": self.repeated,
            "labels": {label: self.labels[label] for label in sorted(self.labels)},
            "first_of_label": {label: self.first_of_label[label] for label in sorted(self.first_of_label)},
            "unused_columns": {name: self.unused_columns[name] for name in sorted(self.unused_columns)},
            "left_out": {what: self.left_out[what] for what in sorted(self.left_out)},
            "list_answers": self.list_answers,
        }

    def add(self, other: SourceAccount) -> None:
        """Add another account to this one."""
        for item in fields(self):
            ours, theirs = getattr(self, item.name), getattr(other, item.name)
            if item.name == "longest":
                self.longest = max(ours, theirs)
            elif item.name == "first_of_label":
                self.first_of_label = theirs | ours
            elif isinstance(ours, Counter):
                ours.update(theirs)
            elif isinstance(ours, dict):
                for reason, rows in theirs.items():
                    ours.setdefault(reason, []).extend(rows)
            else:
                setattr(self, item.name, ours + theirs)


class Ledger:
    """Accounts by source, in the order in which sources were met.

    Attributes:
        leaks: (evaluation row, training row) with equal prompts, where they were allowed.
    """

    def __init__(self) -> None:
        self.sources: dict[str, SourceAccount] = {}
        self.leaks: list[tuple[str, str]] = []
        self._seen: dict[int, int] = {}
        self._numbers: dict[str, int] = {}

    def account(self, source: str) -> SourceAccount:
        """The account of ``source``, opened when it is new."""
        account = self.sources.get(source)
        if account is None:
            account = self.sources[source] = SourceAccount()
        return account

    def read(
        self,
        row: Row,
        unread: AbstractSet[str] = frozenset(),
        *,
        list_answer: bool = False,
        answer: str | None = None,
    ) -> None:
        """Count a row that was read.

        Args:
            row: the row.
            unread: its columns that the format does not read.
            list_answer: whether its answer was a list of several.
            answer: text in which a class label is looked for, or None.
        """
        account = self.account(row.source)
        account.read += 1
        account.list_answers += list_answer
        if unread:
            account.unused_columns.update(unread)
        if answer is not None and "predicted_label" in answer:
            found = _LABEL.search(answer)
            if found:
                account.labels[found.group(1)] += 1
                account.first_of_label.setdefault(found.group(1), row.where)

    def leave_out(self, row: Row, what: str) -> None:
        """Count a row of which something is left out."""
        self.account(row.source).left_out[what] += 1

    def keep(self, row: Row, *examples: Example) -> None:
        """Count the example of a row that is trained on, or the several that it was split into."""
        account = self.account(row.source)
        first = examples[0]
        account.kept += 1
        account.pieces += len(examples) - 1
        for example in examples:
            account.tokens += len(example.input_ids)
            account.trained_tokens += example.num_trained_tokens
        account.longest = max(account.longest, first.full_length)
        account.lengths[first.full_length] += 1
        if first.cut is not None:
            account.cut.setdefault(first.cut, []).append(first.origin)
            account.end_beyond_limit.append(first.origin)

    def drop(self, row: Row, reason: str, length: int = 0) -> None:
        """Count a row that is left out, with the reason and the length it would have had (0: it got none)."""
        account = self.account(row.source)
        account.dropped.setdefault(reason, []).append(row.where)
        account.longest = max(account.longest, length)
        if length:
            account.lengths[length] += 1
        if reason == "too_long":
            account.end_beyond_limit.append(row.where)

    def is_duplicate(self, row: Row, example: Example) -> bool:
        """Whether another row had the same tokens and labels; counts it then.

        The same row again (drawn twice by mixing) is counted as repeated and is no duplicate.
        """
        digest = hashlib.blake2b(array("q", example.input_ids).tobytes(), digest_size=8)
        digest.update(array("q", example.labels).tobytes())
        key = int.from_bytes(digest.digest(), "big")
        # Two small numbers a row, not texts: there may be millions of rows.
        place = self._numbers.setdefault(row.source, len(self._numbers)) << LINE_BITS | row.line
        first = self._seen.get(key)
        if first is None:
            self._seen[key] = place
            return False
        account = self.account(row.source)
        if first == place:
            account.repeated += 1
            return False
        source = list(self._numbers)[first >> LINE_BITS]
        account.duplicates.append((row.where, f"{source}:{first & (2**LINE_BITS - 1)}"))
        return True

    def total(self) -> SourceAccount:
        """All sources together."""
        total = SourceAccount()
        for account in self.sources.values():
            total.add(account)
        return total

    # What stands out

    def refuse(self, data: DataSection) -> None:
        """Stop a run whose rows pass one of the limits of the settings.

        Raises:
            DataError: names the limit, some of the rows and the setting to change.
        """
        total = self.total()
        dropped = [row for rows in total.dropped.values() for row in rows]
        reasons = ", ".join(f"{len(rows)} {reason}" for reason, rows in total.dropped.items())
        cut = [row for rows in total.cut.values() for row in rows]
        twice = [f"{row} = {first}" for row, first in total.duplicates]
        for what, rows, name, limit in (
            (f"dropped ({reasons})", dropped, "max_dropped", data.max_dropped),
            ("cut", cut, "max_cut", data.max_cut),
            ("equal to an earlier row", twice, "max_duplicates", data.max_duplicates),
        ):
            share = len(rows) / total.read if total.read else 0.0
            if share > limit:
                raise DataError(
                    f"{len(rows)} of {total.read} rows are {what}, more than {name} {limit:g} allows: {_some(rows)}",
                    remedy=f"change these rows or the setting that does it, or set {name}: {_above(share):g}",
                )
        share = total.trained_tokens / total.tokens if total.tokens else 1.0
        if share < data.min_trained_share:
            raise DataError(
                f"{total.trained_tokens} of {total.tokens} tokens carry loss ({share:.3%}), fewer than "
                f"min_trained_share {data.min_trained_share:g} asks for",
                where=next(iter(self.sources), None),
                remedy=named("look at the rows (`tunesmith preview FILE`); ")
                + f"if this is meant, set min_trained_share: {share:.1g}",
            )

    def say_what_stands_out(self) -> None:
        """Tell the user what is no error and yet worth a look."""
        for source, account in self.sources.items():
            for name, number in sorted(account.unused_columns.items()):
                if number < account.read and name not in DEFAULT_KEYS:
                    notify(
                        f"{source}: the column {name!r} stands in {number} of {account.read} rows only and is not read"
                    )
        total = self.total()
        if total.duplicates:
            pairs = [f"{row} = {first}" for row, first in total.duplicates]
            notify(f"{len(pairs)} rows repeat an earlier one: {_some(pairs)}; set duplicates: drop to train each once")
        for reason, what in CUTS.items():
            rows = total.cut.get(reason, [])
            if rows:
                notify(f"{len(rows)} rows are longer than max_length and {what}: {_some(rows)}; the longest has "
                       f"{total.longest} tokens")  # fmt: skip
        ends = total.cut.get("truncate_completion", [])
        if ends:
            notify(
                f"{len(ends)} answers are cut at max_length and learn to stop early: {_some(ends)}; set max_length: "
                f"{total.longest} to keep them whole"
            )
        if len(total.labels) == 1 and total.labels.total() > 1:
            ((label, first),) = total.first_of_label.items()
            notify(
                f"{first}: this and all {total.labels.total() - 1} other labelled rows have the label {label}, so the "
                "model can learn to say it always; give rows of every class"
            )

    # As data and as a table

    def to_dict(self) -> dict[str, Any]:
        """What ``ledger.json`` holds: each source, and the totals with counts in place of addresses."""
        total = self.total().to_dict()
        for name in ("cut", "dropped"):
            total[name] = {reason: len(rows) for reason, rows in total[name].items()}
        for name in ("end_beyond_limit", "duplicates"):
            total[name] = len(total[name])
        return {
            "sources": {name: account.to_dict() for name, account in self.sources.items()},
            "total": total,
            "leaks": [list(pair) for pair in self.leaks],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Ledger:
        """The ledger that ``to_dict`` wrote; it says the same, and knows no duplicates of rows that come later."""
        ledger = cls()
        for source, held in values["sources"].items():
            account = ledger.account(source)
            for item in fields(SourceAccount):
                if item.name == "lengths":
                    account.lengths = Counter({int(key): number for key, number in held["lengths"]["counts"].items()})
                elif item.name in ("labels", "unused_columns", "left_out"):
                    setattr(account, item.name, Counter(held[item.name]))
                elif item.name == "duplicates":
                    account.duplicates = [(row, first) for row, first in held["duplicates"]]
                else:
                    setattr(account, item.name, held[item.name])
        ledger.leaks = [(evaluated, trained) for evaluated, trained in values["leaks"]]
        return ledger

    def table(self) -> list[str]:
        """The ledger for people: a line for each source and the total, then what stands out."""
        named = [*self.sources.items(), ("total", self.total())] if len(self.sources) != 1 else [*self.sources.items()]
        rows = [["source", "read", "kept", "cut", "dropped", "tokens", "trained", "median", "longest"]]
        for name, account in named:
            share = account.trained_tokens / account.tokens if account.tokens else 0.0
            numbers = (
                account.read,
                account.kept,
                sum(map(len, account.cut.values())),
                sum(map(len, account.dropped.values())),
                account.tokens,
            )
            median = next(iter(percentiles(account.lengths, (50,)).values()), 0)
            rows.append([name, *map(str, numbers), f"{share:.1%}", str(median), str(account.longest)])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = []
        for first, *others in rows:
            cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            lines.append("  ".join([first.ljust(widths[0]), *cells]))
        return [*lines, *self._remarks()]

    def _remarks(self) -> Iterator[str]:
        total = self.total()
        for word, held in (("cut", total.cut), ("dropped", total.dropped)):
            for reason, rows in sorted(held.items()):
                yield f"{word}: {len(rows)} by {reason}: {_some(rows)}"
        if total.end_beyond_limit:
            yield f"longer than max_length: {len(total.end_beyond_limit)}: {_some(total.end_beyond_limit)}"
        if total.duplicates:
            pairs = [f"{row} = {first}" for row, first in total.duplicates]
            yield f"duplicates: {len(pairs)}: {_some(pairs)}"
        if total.repeated:
            yield f"drawn again by mixing: {total.repeated}"
        if self.leaks:
            pairs = [f"{evaluated} = {trained}" for evaluated, trained in self.leaks]
            yield f"evaluation prompts among the training rows: {len(pairs)}: {_some(pairs)}"
        if total.labels:
            yield "labels: " + ", ".join(f"{label}: {number}" for label, number in sorted(total.labels.items()))
        if total.unused_columns:
            names = sorted(total.unused_columns.items())
            yield "columns not read: " + ", ".join(f"{name} ({number} rows)" for name, number in names)
        for what, number in sorted(total.left_out.items()):
            yield f"left out: {what} ({number} rows)"
        if total.list_answers:
            yield f"answers that were lists, of which the first was taken: {total.list_answers}"
        for name, number in histogram(total.lengths).items():
            bar = "#" * round(40 * number / total.lengths.total())
            yield f"{name:>13} tokens  {number:>8}  {bar}".rstrip()


def distribution(lengths: Counter[int]) -> dict[str, Any]:
    """Percentiles, a histogram and the exact counts of lengths."""
    return {
        "percentiles": {str(percent): length for percent, length in percentiles(lengths, PERCENTILES).items()},
        "histogram": histogram(lengths),
        "counts": {str(length): lengths[length] for length in sorted(lengths)},
    }


def percentiles(lengths: Counter[int], wanted: Iterable[int]) -> dict[int, int]:
    """For each percent the least length that at least so many percent of the rows do not exceed (nearest rank)."""
    number = lengths.total()
    if not number:
        return {}
    ordered = sorted(lengths.items())
    found: dict[int, int] = {}
    for percent in wanted:
        rank, seen = -(-percent * number // 100), 0
        for length, rows in ordered:
            seen += rows
            if seen >= rank:
                found[percent] = length
                break
    return found


def histogram(lengths: Counter[int]) -> dict[str, int]:
    """Rows by length in bins that double: 1-16, 17-32, 33-64 ...; empty bins at the ends are left out."""
    bins: Counter[int] = Counter()
    for length, rows in lengths.items():
        bins[max(4, (length - 1).bit_length())] += rows
    if not bins:
        return {}
    edges = range(min(bins), max(bins) + 1)
    return {f"{1 if edge == 4 else 2 ** (edge - 1) + 1}-{2**edge}": bins[edge] for edge in edges}


def _some(rows: Sequence[str]) -> str:
    more = f" and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else ""
    return ", ".join(rows[:ROWS_SHOWN]) + more


def _above(share: float) -> float:
    """The share as a percentage rounded up, so that the limit named in a remedy is enough."""
    return min(1.0, -(-int(share * 10000) // 100) / 100 + 0.01)
