from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.collate import Collator
from tunesmith.data.masking import IGNORE_INDEX
from tunesmith.data.prefix import ROOT, Segment, prefix_tree, shareable


def chain(tree: list[Segment], index: int) -> list[int]:
    parent = tree[index].parent
    return [index] if parent == ROOT else [*chain(tree, parent), index]


def read(tree: list[Segment], rows: list[list[int]]) -> dict[int, list[int]]:
    """What each row reads along its chain; a row's last segment is the one that ends where it ends."""
    found = {}
    parents = {part.parent for part in tree}
    for index, part in enumerate(tree):
        if index not in parents:
            assert part.stop == len(rows[part.row])
            segments = [tree[at] for at in chain(tree, index)]
            found[part.row] = [token for one in segments for token in rows[one.row][one.start : one.stop]]
    return found


ROWS = st.lists(
    st.tuples(st.lists(st.integers(1, 2), min_size=1, max_size=14), st.integers(0, 14)), min_size=1, max_size=8
)


@settings(max_examples=60)
@given(ROWS, st.integers(1, 6))
def test_every_row_reads_its_own_tokens_and_shares_no_more_than_it_may(
    made: list[tuple[list[int], int]], least: int
) -> None:
    rows, limits = [ids for ids, _ in made], [min(limit, len(ids) - 1) for ids, limit in made]
    tree = prefix_tree(rows, limits, least_saved=least, least_share=0.0)
    assert read(tree, rows) == dict(enumerate(rows))
    assert all(part.parent < index and len(part) > 0 for index, part in enumerate(tree))
    inner = {part.parent for part in tree} - {ROOT}
    for index, part in enumerate(tree):
        if index not in inner:
            assert part.start <= limits[part.row]
    for index in inner:
        leaves = [at for at in range(len(tree)) if at not in inner and index in chain(tree, at)]
        assert (len(leaves) - 1) * len(tree[index]) >= least
    assert sum(map(len, tree)) <= sum(map(len, rows))


@settings(max_examples=60)
@given(ROWS)
def test_whatever_may_be_shared_is(made: list[tuple[list[int], int]]) -> None:
    """With no least, as many tokens are computed as there are different beginnings that may be shared, and rests."""
    rows, limits = [ids for ids, _ in made], [min(limit, len(ids) - 1) for ids, limit in made]
    tree = prefix_tree(rows, limits, least_saved=1, least_share=0.0)
    beginnings: dict[tuple[int, ...], int] = {}
    for ids, limit in zip(rows, limits, strict=True):
        for end in range(1, limit + 1):
            beginnings[tuple(ids[:end])] = beginnings.get(tuple(ids[:end]), 0) + 1
    saved = sum(count - 1 for count in beginnings.values())
    assert sum(map(len, tree)) == sum(map(len, rows)) - saved


def test_deeper_trees_share_what_some_rows_share() -> None:
    system, premise, other = [1] * 30, [2] * 20, [3] * 20
    rows = [system + premise + [4, 5], system + premise + [6, 7], system + other + [8, 9], [9, 9, 9]]
    tree = prefix_tree(rows, [len(row) - 1 for row in rows])
    parts = [(part.row, part.start, part.stop, part.parent) for part in tree]
    assert parts == [(3, 0, 3, ROOT), (0, 0, 30, ROOT), (2, 30, 52, 1), (0, 30, 52, 1), (1, 30, 52, 1)]
    tree = prefix_tree(rows, [len(row) - 1 for row in rows], least_saved=20)
    assert (0, 30, 50, 1) in [(part.row, part.start, part.stop, part.parent) for part in tree]


def test_long_rows_do_not_share_a_little() -> None:
    """Twelve tokens of eight rows are worth a segment where rows are short: one token in fifty has to be saved."""
    for length, parts in ((400, 9), (600, 8)):
        rows = [[1] * 12 + [2 + index] * (length - 12) for index in range(8)]
        assert len(prefix_tree(rows, [len(row) - 1 for row in rows])) == parts


def test_a_row_shares_what_stands_before_its_last_prompt_token() -> None:
    no = IGNORE_INDEX
    assert shareable([no, no, no, 7, 8]) == 2
    assert shareable([5, 6, 7]) == 0  # every token is trained: the second is predicted at the first
    assert shareable([no, 6, no, 7]) == 0
    assert shareable([no] * 4) == 3
    assert shareable([no]) == 0


def feature(prompt: list[int], answer: list[int], **more: Any) -> dict[str, Any]:
    return {"input_ids": prompt + answer, "labels": [IGNORE_INDEX] * len(prompt) + answer, "origins": ["x:1"], **more}


def test_a_batch_that_shares_nothing_is_an_unpadded_one() -> None:
    features = [feature([5, 6], [7, 8]), feature([9, 6], [7]), feature([5], [4])]
    one, other = (Collator(layout, 0, boundaries="lengths")(features) for layout in ("prefix_tree", "unpadded"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in ("input_ids", "labels", "position_ids"))
    assert one["segment_lengths"] == other["segment_lengths"]


def test_tokens_labels_weights_and_positions_stand_where_they_are_needed() -> None:
    shared = list(range(10, 50))
    rows = [
        feature([*shared, 1], [2, 3], weights=[0.5] * 43),
        feature([*shared, 4], [5], weights=[2.0] * 42),
    ]
    batch = Collator("prefix_tree", 0, boundaries="lengths")(rows)
    assert batch["input_ids"].tolist() == [[*shared, 1, 2, 3, 4, 5]]
    assert batch["position_ids"].tolist() == [[*range(40), 40, 41, 42, 40, 41]]
    assert batch["labels"].tolist() == [[IGNORE_INDEX] * 41 + [2, 3, IGNORE_INDEX, 5]]
    assert batch["weights"].tolist() == [[0.5] * 43 + [2.0] * 2]
    assert (batch["segment_lengths"], batch["segment_parents"]) == ([40, 3, 2], [ROOT, 0, 0])
    assert batch["origins"] == ["x:1", "x:1"]
