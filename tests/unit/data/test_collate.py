from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tunesmith.data.batching import BatchRows
from tunesmith.data.collate import Collator
from tunesmith.data.masking import IGNORE_INDEX, Example

EXAMPLES = [
    Example([1, 5, 6, 2], [IGNORE_INDEX, IGNORE_INDEX, 6, 2], "f:1", 2, 2, 4),
    Example([7, 2], [7, 2], "f:2", 0, 0, 2),
    Example([1, 8, 2], [IGNORE_INDEX, 8, 2], "f:3", 1, 1, 3),
]


def test_padding_on_the_right_hides_no_end_token() -> None:
    batch = Collator("padded", pad_token_id=2)(BatchRows(EXAMPLES, "padded", 8))
    assert batch["input_ids"].tolist() == [[1, 5, 6, 2], [7, 2, 2, 2], [1, 8, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 6, 2], [7, 2, -100, -100], [-100, 8, 2, -100]]
    assert batch["origins"] == ["f:1", "f:2", "f:3"]
    names = ("input_ids", "labels", "attention_mask")
    assert {name: batch[name].dtype for name in names} == dict.fromkeys(names, torch.long)
    alone = Collator("padded", pad_token_id=2)(BatchRows(EXAMPLES[:1], "padded", 8))
    assert alone["input_ids"].tolist() == [[1, 5, 6, 2]]


def test_padding_to_a_multiple() -> None:
    batch = Collator("length_grouped", pad_token_id=0, pad_to_multiple_of=8)(BatchRows(EXAMPLES, "padded", 8))
    assert batch["input_ids"].shape == batch["labels"].shape == (3, 8)


def test_laid_end_to_end_positions_restart_and_first_labels_are_silent() -> None:
    expected: dict[str, Any] = {
        "input_ids": [[1, 5, 6, 2, 7, 2, 1, 8, 2]],
        "labels": [[-100, -100, 6, 2, -100, 2, -100, 8, 2]],
        "position_ids": [[0, 1, 2, 3, 0, 1, 0, 1, 2]],
    }
    plain = [{name: getattr(example, name) for name in ("input_ids", "labels", "origin")} for example in EXAMPLES]
    for features in (BatchRows(EXAMPLES, "unpadded", 8), plain):
        batch = Collator("unpadded", pad_token_id=0)(features)
        assert {name: batch[name].tolist() for name in expected} == expected
        assert batch.keys() == {*expected, "origins"}
        assert batch["origins"] == ["f:1", "f:2", "f:3"]


def test_packed_items_keep_their_examples_apart() -> None:
    packed = BatchRows(EXAMPLES, "packed", 7)
    assert [item["origins"] for item in packed] == [["f:1", "f:3"], ["f:2"]]
    batch = Collator("packed", pad_token_id=0)(packed)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 6, 2, -100, 8, 2, -100, 2]]
    assert EXAMPLES[1].labels == [7, 2]
    assert packed[1]["labels"] == [7, 2]


def test_weights_lie_beside_the_labels_and_are_0_at_padding() -> None:
    weighted = [replace(EXAMPLES[0], weights=[1.0, 1.0, 0.5, 2.0]), EXAMPLES[1]]
    padded = Collator("padded", pad_token_id=0)(BatchRows(weighted, "padded", 8))
    assert padded["weights"].tolist() == [[1.0, 1.0, 0.5, 2.0], [1.0, 1.0, 0.0, 0.0]]
    assert Collator("packed", 0)(BatchRows(weighted, "packed", 8))["weights"].tolist() == [
        [1.0, 1.0, 0.5, 2.0, 1.0, 1.0]
    ]
    assert padded["weights"].dtype == torch.float32
    assert "weights" not in Collator("padded", 0)(BatchRows(EXAMPLES, "padded", 8))


@pytest.mark.parametrize(
    ("boundaries", "expected"),
    [
        ("positions", {}),
        ("lengths", {"segment_lengths": [4, 3, 2]}),
        (
            "cu_seq_lens",
            {"cu_seq_lens_q": [0, 4, 7, 9], "cu_seq_lens_k": [0, 4, 7, 9], "max_length_q": 4, "max_length_k": 4},
        ),
    ],
)
def test_boundaries_are_told_as_the_attention_wants_them(boundaries: Any, expected: dict[str, Any]) -> None:
    batch = Collator("packed", 0, boundaries=boundaries)(BatchRows(EXAMPLES, "packed", 7))
    told = {name: batch[name] for name in batch if name not in ("input_ids", "labels", "position_ids", "origins")}
    assert {name: value.tolist() if hasattr(value, "tolist") else value for name, value in told.items()} == expected
    if boundaries == "cu_seq_lens":
        assert batch["cu_seq_lens_q"].dtype == torch.int32
