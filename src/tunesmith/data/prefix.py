"""Which beginnings the rows of a batch have in common, as a tree of segments; no tensor is made here.

What a causal model computes at a position depends on nothing but the tokens up to it, so a beginning that several rows
have in common needs to be computed once. Every label keeps the position that predicts it: a row shares at most the
tokens before its last prompt token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tunesmith.data.masking import IGNORE_INDEX

LEAST_SAVED = 24
"""Tokens that a common beginning has to save, summed over its rows; fewer cost more in pieces than they save."""
LEAST_SHARE = 0.02
"""The part of their tokens that it has to save its rows; of long rows, less does not pay for attention in pieces."""
ROOT = -1
"""The parent of a segment that begins a row."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens ``start`` to ``stop`` of a row, which follow those of the segment number ``parent``, or begin the row."""

    row: int
    start: int
    stop: int
    parent: int

    def __len__(self) -> int:
        return self.stop - self.start


def shareable(labels: Sequence[int]) -> int:
    """Tokens at the beginning of a row that it may have in common with others: those before its last prompt token."""
    first = next((index for index in range(1, len(labels)) if labels[index] != IGNORE_INDEX), len(labels))
    return max(first - 1, 0)


def prefix_tree(
    rows: Sequence[Sequence[int]],
    limits: Sequence[int],
    *,
    least_saved: int = LEAST_SAVED,
    least_share: float = LEAST_SHARE,
) -> list[Segment]:
    """The segments of which a batch consists; a parent stands before its children.

    Args:
        rows: tokens of each row.
        limits: how many of them a row may share, see ``shareable``.
        least_saved: tokens that a common beginning has to save to get a segment of its own.
        least_share: the part of its rows' remaining tokens that it has to save as well. With 1 and 0, whatever is
            common is shared.
    """
    tree: list[Segment] = []
    pending = [(list(range(len(rows))), ROOT, 0, 0)]
    while pending:
        group, parent, start, at = pending.pop()
        common = _common(rows, limits, group, at)
        saved = (len(group) - 1) * (common - start)
        if saved >= max(least_saved, least_share * sum(len(rows[index]) - start for index in group), 1):
            tree.append(Segment(group[0], start, common, parent))
            parent, start = len(tree) - 1, common
        branches = list(_branches(rows, limits, group, common))
        tree += [Segment(one[0], start, len(rows[one[0]]), parent) for one in branches if len(one) == 1]
        pending += [(several, parent, start, common) for several in reversed(branches) if len(several) > 1]
    return tree


def _common(rows: Sequence[Sequence[int]], limits: Sequence[int], group: Sequence[int], at: int) -> int:
    """How many first tokens all rows of a group have in common and may share, given that they have ``at``."""
    first, most = rows[group[0]], min(limits[index] for index in group)
    for index in group[1:]:
        row, reached = rows[index], at
        while reached < most and row[reached] == first[reached]:
            reached += 1
        most = min(most, reached)
    return max(most, at)


def _branches(
    rows: Sequence[Sequence[int]], limits: Sequence[int], group: Sequence[int], at: int
) -> Iterator[list[int]]:
    """The rows of a group by their next token; one that may share no more is a branch by itself."""
    by_token: dict[int, list[int]] = {}
    for index in group:
        if limits[index] <= at:
            yield [index]
        else:
            by_token.setdefault(rows[index][at], []).append(index)
    yield from by_token.values()
