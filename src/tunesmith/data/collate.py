"""Examples to a batch of tensors: pads or lays end to end, decides no label but those of padding and first tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tunesmith.data.batching import Batching
from tunesmith.data.masking import IGNORE_INDEX
from tunesmith.data.prefix import Segment, prefix_tree, shareable

Boundaries = Literal["positions", "lengths", "cu_seq_lens", "seq_idx"]


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes batches in one layout; ``pad_token_id`` fills the places behind shorter examples.

    padded, length_grouped: ``input_ids``, ``attention_mask`` and ``labels`` of shape (examples, longest), padded on the
    right. Padding is known by its position, so a pad token that is also the end token hides nothing.

    packed, unpadded: one row, shape (1, tokens), with ``position_ids`` that start again at 0 for every example and no
    attention mask. The label of each example's first token is IGNORE_INDEX, because the token before it belongs to
    another example. ``boundaries`` says what else tells the model where examples begin: nothing (``positions``), their
    lengths as numbers (``segment_lengths``), or the offsets that FlashAttention takes (``cu_seq_lens_q`` ...), with the
    number of each token's example where kernels of states and convolutions begin anew by it (``seq_idx``).

    prefix_tree: as unpadded, but what several examples begin with stands once, see ``prefix.py``. A segment's
    ``position_ids`` go on from the segment that it follows, whose number stands in ``segment_parents`` (-1: it begins
    an example); ``segment_lengths`` are those of the segments. A batch that shares nothing is an unpadded one.

    Where examples have weights, ``weights`` has the shape of ``labels`` (float32, 0 at padding).

    ``predicting``: batches also have ``predicting``, where the labels are: indices into rows x length of the positions
    whose next token has one. Known here, they need not be asked of a device, which would have to be waited for.

    Each batch also has ``origins``: the addresses of its examples, which the trainer takes out before the forward pass.
    """

    batching: Batching
    pad_token_id: int
    pad_to_multiple_of: int | None = None
    boundaries: Boundaries = "positions"
    predicting: bool = False

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any]
        if self.pads:
            batch = dict(self._padded(features))
        elif self.batching == "prefix_tree" and len(tree := _tree(features)) > len(features):
            batch = _laid_as_tree(features, tree)
        else:
            lengths = [length for feature in features for length in _lengths(feature)]
            batch = _laid_end_to_end(features) | _boundaries(lengths, self.boundaries)
        if self.predicting:
            length = batch["labels"].shape[1]
            rows, columns = (batch["labels"][:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
            batch["predicting"] = rows * length + columns
        batch["origins"] = [origin for feature in features for origin in _origins(feature)]
        return batch

    @property
    def pads(self) -> bool:
        """Whether the layout has one row per example."""
        return self.batching in ("padded", "length_grouped")

    def _padded(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(feature["input_ids"]) for feature in features)
        if self.pad_to_multiple_of:
            longest = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        shape = (len(features), longest)
        input_ids = torch.full(shape, self.pad_token_id, dtype=torch.long)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORE_INDEX, dtype=torch.long)
        for row, feature in enumerate(features):
            length = len(feature["input_ids"])
            input_ids[row, :length] = torch.tensor(feature["input_ids"])
            attention_mask[row, :length] = 1
            labels[row, :length] = torch.tensor(feature["labels"])
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        if "weights" in features[0]:
            batch["weights"] = torch.zeros(shape)
            for row, feature in enumerate(features):
                batch["weights"][row, : len(feature["weights"])] = torch.tensor(feature["weights"])
        return batch


def _laid_end_to_end(features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    input_ids: list[int] = []
    labels: list[int] = []
    position_ids: list[int] = []
    for feature in features:
        start = len(labels)
        input_ids += feature["input_ids"]
        labels += feature["labels"]
        for length in _lengths(feature):
            labels[start] = IGNORE_INDEX
            position_ids += range(length)
            start += length
    rows = {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
    batch = {name: torch.tensor([values], dtype=torch.long) for name, values in rows.items()}
    if "weights" in features[0]:
        weights = [weight for feature in features for weight in feature["weights"]]
        batch["weights"] = torch.tensor([weights], dtype=torch.float32)
    return batch


def _tree(features: Sequence[Mapping[str, Any]]) -> list[Segment]:
    """The segments of a batch; as many as it has examples where they share nothing."""
    return prefix_tree(
        [feature["input_ids"] for feature in features], [shareable(feature["labels"]) for feature in features]
    )


def sharing(features: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Tokens of a batch, and how many of them are computed where common beginnings are computed once."""
    return sum(len(feature["input_ids"]) for feature in features), sum(map(len, _tree(features)))


def _laid_as_tree(features: Sequence[Mapping[str, Any]], tree: Sequence[Segment]) -> dict[str, Any]:
    """One row of segments, whose first tokens have no label, because another segment stands before them."""

    def laid(name: str) -> list[Any]:
        return [value for part in tree for value in features[part.row][name][part.start : part.stop]]

    input_ids, labels = torch.tensor([laid("input_ids")]), torch.tensor([laid("labels")])
    positions = torch.tensor([[position for part in tree for position in range(part.start, part.stop)]])
    starts = torch.tensor([len(part) for part in tree]).cumsum(0)[:-1]
    labels[0, 0] = labels[0, starts] = IGNORE_INDEX
    batch: dict[str, Any] = {"input_ids": input_ids, "labels": labels, "position_ids": positions}
    batch |= {"segment_lengths": [len(part) for part in tree], "segment_parents": [part.parent for part in tree]}
    if "weights" in features[0]:
        batch["weights"] = torch.tensor([laid("weights")], dtype=torch.float32)
    return batch


def _lengths(feature: Mapping[str, Any]) -> list[int]:
    return list(feature.get("lengths") or [len(feature["input_ids"])])


def _boundaries(lengths: list[int], kind: Boundaries) -> dict[str, Any]:
    if kind == "positions":
        return {}
    if kind == "lengths":
        return {"segment_lengths": lengths}
    offsets = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    longest = max(lengths)
    told = {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets, "max_length_q": longest, "max_length_k": longest}
    if kind == "seq_idx":
        told["seq_idx"] = torch.arange(len(lengths), dtype=torch.int32).repeat_interleave(torch.tensor(lengths))[None]
    return told


def _origins(feature: Mapping[str, Any]) -> list[str]:
    if "origins" in feature:
        return list(feature["origins"])
    return [feature["origin"]] if "origin" in feature else []
