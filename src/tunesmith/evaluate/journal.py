"""Finished answers on disk while others are still generated, so that an interrupted evaluation can go on.

Every line carries a fingerprint of everything that decides an answer. Lines with another one are never taken, so a
journal cannot mix answers of two models, of two data sets or of two ways to decode.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.files import parse_json, read_bytes
from tunesmith.errors import StorageError
from tunesmith.notices import notify
from tunesmith.report.folder import MAX_BYTES, append_jsonl, write_jsonl
from tunesmith.report.record import versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

JOURNAL = "unfinished.jsonl"
"""Its usual name, beside the predictions that it becomes."""

FIELDS = {"fingerprint", "index", "token_ids", "stopped", "together"}
"""``together``: how many answers were kept with this one; fewer than that are worth nothing."""

Answer = tuple[list[int], bool]
"""New token ids without the stop token, and whether a stop token ended them."""


class Journal:
    """The answers of one generation that are finished, by the place of their prompts.

    Hand it to ``generate`` or ``evaluate_rows``, write what comes back, then ``remove`` it.

    Args:
        path: a file of its own; its folder is made when the first answer is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fingerprint = ""

    def open(self, decides: Mapping[str, Any]) -> dict[int, Answer]:
        """The answers that an interrupted generation has left, if all that decides them is the same.

        Those of another generation, and what was being written when the process died, are thrown away; the user is
        told which of it happened.

        Args:
            decides: everything that decides an answer, as plain values.

        Raises:
            StorageError: the file cannot be read or written.
        """
        self._fingerprint = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        try:
            lines = read_bytes(self.path, MAX_BYTES).splitlines(keepends=True) if self.path.exists() else []
        except OSError as error:
            raise StorageError(f"cannot read: {error.strerror or error}", where=str(self.path)) from error
        entries = list(map(_parse, lines))
        own = _whole([entry for entry in entries if entry is not None and entry["fingerprint"] == self._fingerprint])
        if len(own) < len(lines):
            if any(entry is not None and entry["fingerprint"] != self._fingerprint for entry in entries):
                notify(f"{self.path}: holds answers of other weights, data or settings; they are not used")
            write_jsonl(self.path, own)
        if own:
            notify(f"{self.path}: goes on after {len(own)} answers of an interrupted evaluation")
        return {entry["index"]: (entry["token_ids"], entry["stopped"]) for entry in own}

    def add(self, answers: Iterable[tuple[int, Answer]]) -> None:
        """Keep finished answers, all of them or none: the place of each prompt, and what was generated.

        Raises:
            StorageError: they cannot be written.
        """
        kept = list(answers)
        common = {"fingerprint": self._fingerprint, "together": len(kept)}
        append_jsonl(
            self.path,
            *(common | {"index": index, "token_ids": ids, "stopped": stopped} for index, (ids, stopped) in kept),
        )

    def remove(self) -> None:
        """Throw the journal away; what it held is written elsewhere.

        Raises:
            StorageError: it cannot be removed.
        """
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"cannot remove: {error.strerror or error}", where=str(self.path)) from error


def identity(model: PreTrainedModel) -> dict[str, Any]:
    """What a loaded model answers by: every weight as it stands in memory, its settings, its way to compute.

    Adapters and quantized weights are hashed as they are used, wherever they were loaded from; how an adapter is scaled
    stands in its settings.
    """
    import torch

    from tunesmith.model.internals import attention_of

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    device = str(model.get_input_embeddings().weight.device.type)
    return {
        "weights": digest.hexdigest(),
        "config": model.config.to_json_string(),
        "adapters": {
            name: json.dumps(config.to_dict(), sort_keys=True, default=_plain)
            for name, config in getattr(model, "peft_config", {}).items()
        },
        "attention": attention_of(model),
        "device": device,
        "autocast": str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None,
        "versions": versions(),
    }


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


def _whole(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries without those that were kept together with others which are missing."""
    whole: list[dict[str, Any]] = []
    at = 0
    while at < len(entries):
        together = entries[at : at + max(entries[at]["together"], 1)]
        if len(together) == entries[at]["together"]:
            whole += together
        at += len(together)
    return whole


def _parse(line: bytes) -> dict[str, Any] | None:
    """The entry in a line, or None for one that is torn or not ours."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = parse_json(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and entry.keys() == FIELDS else None
