"""Whether a tokenizer may encode a text in parts: what it knows about the border between them.

Merging pairs is local. It takes the two neighbours of the best rank, wherever they stand, and never parts them again.
So where the ids of a whole text have a border at some place, nothing was ever merged over it, and the ids on either
side are those which that side has by itself. Everything else that a tokenizer does has to keep to this as well: what
goes before (normalizer, words) must look at one character at a time, and the texts of added tokens at nothing around
them. Then the ids of a text up to a border, and of what follows it, need no encoding of the whole.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers.models import BPE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BYTES = tuple(f"<0x{number:02X}>" for number in range(256))
"""Tokens of single bytes, which stand for characters that a vocabulary does not know."""


def merges_locally(tokenizer: Tokenizer) -> bool:
    """Whether encoding the parts of a text gives the ids of the whole, wherever these have a border there."""
    model = tokenizer.model
    if not isinstance(model, BPE) or model.dropout or model.ignore_merges:
        return False
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    if model.fuse_unk and not (model.byte_fallback and all(tokenizer.token_to_id(byte) is not None for byte in BYTES)):
        return False  # unknown characters become one token with their neighbours
    odd = any(
        token.lstrip or token.rstrip or token.single_word or token.normalized
        for token in tokenizer.get_added_tokens_decoder().values()
    )
    return not odd and all(map(_looks_at_characters, _parts(tokenizer)))


def begins_after_tokens(tokenizer: Tokenizer) -> bool:
    """Whether text behind an added token is marked as a beginning again, of a tokenizer that merges locally."""
    return any(
        part["type"] == "Prepend" or (part["type"] == "Metaspace" and part["prepend_scheme"] == "always")
        for part in _parts(tokenizer)
    )


def _parts(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The settings of what comes before the model, in order."""
    parts: list[dict[str, Any]] = []
    for outer in (tokenizer.normalizer, tokenizer.pre_tokenizer):
        if outer is not None:
            found = json.loads(outer.__getstate__())
            parts += found.get("normalizers") or found.get("pretokenizers") or [found]
    return parts


def _looks_at_characters(part: dict[str, Any]) -> bool:
    """Whether a normalizer or pre-tokenizer treats each character alone, but for a mark at the beginning."""
    if part["type"] == "Replace":
        return len(part["pattern"].get("String", "")) == 1 and bool(part["content"])
    return part["type"] in ("Prepend", "Metaspace")
