"""Whether a tokenizer may encode a text in parts: what it knows about the border between them.

Merging pairs is local. It takes the two neighbours of the best rank, wherever they stand, and never parts them again.
So where the ids of a whole text have a border at some place, nothing was ever merged over it, and the ids on either
side are those which that side has by itself. Everything else that a tokenizer does has to keep to this as well: what
goes before (normalizer, words) must look at one character at a time, added tokens at nothing around their text, and no
two of them may overlap. Then the ids of a text up to a border, and of what follows it, need no encoding of the whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Set
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
    added = list(tokenizer.get_added_tokens_decoder().values())
    if any(token.lstrip or token.rstrip or token.single_word or token.normalized for token in added):
        return False
    special = {token.content for token in added if token.special}
    words = {token.content for token in added if not token.special}
    return not _overlap(special, special | words) and not _overlap(words, special) and _by_characters(tokenizer)


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


def _by_characters(tokenizer: Tokenizer) -> bool:
    """Whether what comes before the model treats each character alone, but for a mark at the beginning."""
    return all(
        part["type"] in ("Prepend", "Metaspace")
        or (part["type"] == "Replace" and len(part["pattern"].get("String", "")) == 1 and bool(part["content"]))
        for part in _parts(tokenizer)
    )


def _overlap(texts: Iterable[str], others: Set[str]) -> bool:
    """Whether one of the others may begin within one of the texts, behind its first character."""
    begun = {other[:end] for other in others for end in range(1, len(other) + 1)}
    rests = {text[start:] for text in texts for start in range(1, len(text))}
    return any(rest in begun or any(rest[:end] in others for end in range(1, len(rest))) for rest in rests)
