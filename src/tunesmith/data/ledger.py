"""The account of every row: read, kept, cut or dropped, with reasons and addresses. It decides nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.masking import Example
from tunesmith.data.rows import Row


@dataclass(slots=True)
class SourceAccount:
    """What became of the rows of one source."""

    read: int = 0
    kept: int = 0
    cut: dict[str, list[str]] = field(default_factory=dict)
    """Addresses of shortened rows by policy."""
    dropped: dict[str, list[str]] = field(default_factory=dict)
    """Addresses of left-out rows by reason."""
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    """Tokens of the longest row before any cut."""
    list_answers: int = 0
    """Rows whose answer was a list of several, of which the first was taken."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data in a fixed order."""
        return {
            "read": self.read,
            "kept": self.kept,
            "cut": {reason: list(self.cut[reason]) for reason in sorted(self.cut)},
            "dropped": {reason: list(self.dropped[reason]) for reason in sorted(self.dropped)},
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "trained_share": self.trained_tokens / self.tokens if self.tokens else 0.0,
            "longest": self.longest,
            "list_answers": self.list_answers,
        }


class Ledger:
    """Accounts by source, in the order in which sources were met."""

    def __init__(self) -> None:
        self.sources: dict[str, SourceAccount] = {}

    def account(self, source: str) -> SourceAccount:
        """The account of ``source``, opened when it is new."""
        return self.sources.setdefault(source, SourceAccount())

    def read(self, row: Row, *, list_answer: bool = False) -> None:
        """Count a row that was read."""
        account = self.account(row.source)
        account.read += 1
        account.list_answers += list_answer

    def keep(self, row: Row, example: Example) -> None:
        """Count an example that is trained on."""
        account = self.account(row.source)
        account.kept += 1
        account.tokens += len(example.input_ids)
        account.trained_tokens += example.num_trained_tokens
        account.longest = max(account.longest, example.full_length)
        if example.cut is not None:
            account.cut.setdefault(example.cut, []).append(example.origin)

    def drop(self, row: Row, reason: str, length: int = 0) -> None:
        """Count a row that is left out, with the reason and the length it would have had."""
        account = self.account(row.source)
        account.dropped.setdefault(reason, []).append(row.where)
        account.longest = max(account.longest, length)

    def total(self) -> SourceAccount:
        """All sources together."""
        total = SourceAccount()
        for account in self.sources.values():
            for name in ("read", "kept", "tokens", "trained_tokens", "list_answers"):
                setattr(total, name, getattr(total, name) + getattr(account, name))
            total.longest = max(total.longest, account.longest)
            for ours, theirs in ((total.cut, account.cut), (total.dropped, account.dropped)):
                for reason, rows in theirs.items():
                    ours.setdefault(reason, []).extend(rows)
        return total

    def to_dict(self) -> dict[str, Any]:
        """What ``ledger.json`` holds: each source, and the totals with counts in place of addresses."""
        total = self.total().to_dict()
        for name in ("cut", "dropped"):
            total[name] = {reason: len(rows) for reason, rows in total[name].items()}
        return {"sources": {name: account.to_dict() for name, account in self.sources.items()}, "total": total}
