"""Text to ids with one tokenizer: begin token, special tokens in content, and text that continues other text.

It knows tokenizers only; which ids carry loss is ``masking.py``'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from tunesmith.data.borders import begins_after_tokens, merges_locally
from tunesmith.data.special_tokens import last_match, special_pattern
from tunesmith.errors import DataError, ModelError
from tunesmith.notices import notify

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANCHORS = ("\n", "\t", "|", "=", "a", "é")
"""Texts put before a continuation to keep the tokenizer from treating it as a beginning."""

Protected = Sequence[tuple[int, int]]


class Piece(NamedTuple):
    """A text to encode; special-token text inside ``protected`` ranges of characters stays ordinary text.

    One that ``continues`` follows other text directly, without the leading space that some tokenizers would add.
    """

    text: str
    protected: Protected = ()
    continues: bool = False


class Encoder:
    """Encodes with ``tokenizer``, which adds nothing by itself here.

    Args:
        tokenizer: any tokenizer of transformers.
        add_bos: whether plain text begins with the begin token; ``if_known`` says yes where it has one; None
            does what the tokenizer does when it encodes.

    Raises:
        ModelError: there is no end token, or no begin token where one is asked for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, add_bos: bool | Literal["if_known"] | None = None) -> None:
        self.tokenizer = tokenizer
        # The same ids as the tokenizer's own call gives, in half the time: no offsets, no masks, no dictionaries.
        self._backend = tokenizer.backend_tokenizer if _is_plain(tokenizer) else None
        if tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end token", remedy="set model.eos_token")
        self.eos_token_id: int = int(tokenizer.eos_token_id)
        self.bos_token_id: int | None = tokenizer.bos_token_id
        if add_bos == "if_known":
            add_bos = self.bos_token_id is not None
            if not add_bos:
                notify("the tokenizer has no begin token, so texts begin without one")
        # tokenizers of bytes know every word: what they call unknown (GPT-2: its end token) they never write
        unknown = getattr(tokenizer.backend_tokenizer.model, "unk_token", tokenizer.unk_token)
        self.unk_token_id: int | None = tokenizer.unk_token_id if unknown is not None else None
        if add_bos and self.bos_token_id is None:
            raise ModelError("the tokenizer has no begin token", remedy="set data.add_bos: false")
        self.add_bos = add_bos
        self._adds_bos = self.bos_token_id is not None and tokenizer("a").input_ids[:1] == [self.bos_token_id]
        self._specials = special_pattern(tokenizer)
        self._flags = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        self._ids = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
        self._controls = {self._ids[content] for content, token in self._flags.items() if token.special}
        self._plain_ends = {
            content
            for content, token in self._flags.items()
            if token.special and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
        }
        self._endings = tuple(self._plain_ends)
        self._search = min(128, 2 * max(map(len, self._plain_ends), default=0))
        """Characters at the end of a text in which its last special token is looked for."""
        before, alone, joined = self._call(["\n", "a", "\na"])
        self._marks_beginnings = joined != before + alone
        eos = str(tokenizer.eos_token)
        self.splits_at_specials = eos in self._plain_ends and all(
            self(eos + text) == [self.eos_token_id, *self(text)] for text in ("a", " a", "\na")
        )
        """Whether the text after a special token is encoded as if it stood alone, which most tokenizers do."""
        self._merges_locally = self._backend is not None and merges_locally(self._backend)
        begins_again = self._backend is not None and self._merges_locally and begins_after_tokens(self._backend)
        words = tuple(token.content for token in self._flags.values() if token.content and not token.special)
        self._before_beginnings = {True: words, False: words + self._endings} if begins_again else {True: (), False: ()}
        """Ends of texts, protected or not, behind which a text is encoded as a beginning."""

    def begin(self, begins: bool | None) -> list[int]:
        """The begin token as a list, or nothing; ``begins`` as in ``rendered.Rendered``."""
        if begins is False or self.bos_token_id is None or self.add_bos is False:
            return []
        return [self.bos_token_id] if begins or self.add_bos or self._adds_bos else []

    def batch(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """Ids of many pieces of text, in two calls of the tokenizer.

        Without protected ranges the tokenizer finds special tokens itself. Else those outside become their ids, and
        the stretches between them are encoded as ordinary text.
        """
        native = [not piece.protected and not (piece.continues and self._marks_beginnings) for piece in pieces]
        found = iter(self._call([piece.text for piece, alone in zip(pieces, native, strict=True) if alone]))
        guarded = [list(self._stretches(piece)) for piece, alone in zip(pieces, native, strict=True) if not alone]
        stretches = iter(self._ordinary([(text, joined) for item in guarded for text, _, joined in item if text]))
        waiting = iter(guarded)
        return [next(found) if alone else self._together(next(waiting), stretches) for alone in native]

    def __call__(self, text: str, protected: Protected = ()) -> list[int]:
        """Ids of one text; special-token text inside ``protected`` ranges stays ordinary text."""
        return self.batch([Piece(text, protected)])[0]

    def continues(self, before: str, guarded: bool = False) -> bool:
        """Whether the ids of any text after ``before`` are those of a piece that continues it, whatever the ids of
        the whole would be; ``guarded`` says that ``before`` ends with a protected range."""
        return self._merges_locally and bool(before) and not before.endswith(self._before_beginnings[guarded])

    def ends_with_special(self, text: str) -> bool:
        """Whether ``text`` ends with a special token at which encoding can be cut."""
        if self._specials is None or not text or not self.splits_at_specials:
            return False
        if not text.endswith(self._endings):  # most texts, without a search
            return False
        last = last_match(self._specials, text, max(0, len(text) - self._search))
        return last is not None and last.end() == len(text) and last.group() in self._plain_ends

    def is_control(self, number: int) -> bool:
        """Whether an id is the end token or another special token."""
        return number == self.eos_token_id or number in self._controls

    def _call(self, texts: list[str], split: bool = False) -> list[list[int]]:
        if not texts:
            return []
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
            self._backend.encode_special_tokens = split
            return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        ids: list[list[int]] = self.tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=split,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        return ids

    def _stretches(self, piece: Piece) -> Iterator[tuple[str, str, bool]]:
        """Ordinary text, the special token after it, and whether the text is joined to what stands before it.

        The last token is empty, and so are texts between tokens that follow each other.
        """
        text, at, joined = piece.text, 0, piece.continues
        for match in self._specials.finditer(text) if self._specials else ():
            if match.start() < at or any(start < match.end() and match.start() < end for start, end in piece.protected):
                continue
            stretch = text[at : match.start()]
            at = match.end()
            token = self._flags.get(match.group())
            if token is not None and token.lstrip:
                stretch = stretch.rstrip()
            if token is not None and token.rstrip:
                at = len(text) - len(text[at:].lstrip())
            yield stretch, match.group(), joined
            joined = not self.splits_at_specials
        yield text[at:], "", joined

    def _together(self, stretches: list[tuple[str, str, bool]], found: Iterator[list[int]]) -> list[int]:
        """The ids of a piece from those of its stretches, the next of ``found``, and its special tokens."""
        ids: list[int] = []
        for text, token, _ in stretches:
            ids += next(found) if text else []
            ids += [self._ids[token]] if token else []
        return ids

    def _ordinary(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Ids of ordinary texts without special tokens, each joined to a text before it or not."""
        anchor = ANCHORS[0] if self._marks_beginnings else ""
        asked = [anchor + text if joined else text for text, joined in texts]
        if not anchor or not any(joined for _, joined in texts):
            return self._call(asked, split=True)
        before, *found = self._call([anchor, *asked], split=True)
        return [
            ids if not joined else ids[len(before) :] if ids[: len(before)] == before else self._joined(text)
            for (text, joined), ids in zip(texts, found, strict=True)
        ]

    def _joined(self, stretch: str) -> list[int]:
        for anchor in ANCHORS:
            before, both = self._call([anchor, anchor + stretch], True)
            if both[: len(before)] == before:
                return both[len(before) :]
        raise DataError(f"the tokenizer cannot encode {stretch[:40]!r} as the continuation of a text")


def _is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer of the tokenizers library encodes, with nothing of its class around it."""
    from transformers import TokenizersBackend

    kind = type(tokenizer)
    methods = ("__call__", "_encode_plus")
    return isinstance(tokenizer, TokenizersBackend) and all(
        getattr(kind, method) is getattr(TokenizersBackend, method) for method in methods
    )
