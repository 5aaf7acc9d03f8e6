"""Special tokens in content: what spells one is kept from becoming one, in every template alike.

Rendering itself is ``templates.py``'s and ``chat_template.py``'s.
"""

from __future__ import annotations

import os.path
import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.data.conversation import Message
from tunesmith.data.rendered import Piece, Rendered, join
from tunesmith.errors import DataError
from tunesmith.notices import notify

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SpecialInContent = Literal["split", "error", "allow"]


def special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Matches the text of every special token of ``tokenizer``; None when it has none."""
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special and token.content}
    tokens |= set(tokenizer.all_special_tokens)
    return re.compile(any_of(tokens)) if tokens else None


def any_of(texts: Iterable[str], branchings: int = 16) -> str:
    """A regular expression for the longest of ``texts``, of which there is one at least, at a place.

    Beginnings that texts share stand in it once, for so many ``branchings`` one inside the other: of hundreds that
    begin alike each would be tried at every place.
    """
    longest_first = sorted(set(texts), key=lambda text: (-len(text), text))
    if len(longest_first) == 1:
        return re.escape(longest_first[0])
    if not branchings:
        return f"(?:{'|'.join(map(re.escape, longest_first))})"
    heads: dict[str, list[str]] = {}
    for text in longest_first:
        heads.setdefault(text[:1], []).append(text)
    branches = []
    for some in heads.values():  # the empty text, which ends all of them, comes last
        shared = os.path.commonprefix(some)  # noqa: RUF071 - letters, no paths
        branches.append(re.escape(shared) + any_of([text[len(shared) :] for text in some], branchings - 1))
    return f"(?:{'|'.join(branches)})"


def token_text(value: Any) -> str | None:
    """The text of a special token of a tokenizer; None when it has none of this kind."""
    return value if isinstance(value, str) else None


def last_match(pattern: re.Pattern[str], text: str, start: int = 0) -> re.Match[str] | None:
    """The last match at or after ``start``."""
    found = deque(pattern.finditer(text, start), maxlen=1)
    return found[0] if found else None


def end_of_turn(said: str, specials: re.Pattern[str] | None) -> tuple[str, bool]:
    """An assistant turn without the layout after its end token, and whether it lacks an end token."""
    trimmed = said.rstrip()
    if specials is not None:
        last = last_match(specials, said)
        if last is not None and last.end() == len(trimmed):
            return trimmed, False
    return said, True


@dataclass(frozen=True, slots=True)
class ContentPolicy:
    """What happens to content that spells a special token: split into plain text, refused, or allowed to be one."""

    specials: re.Pattern[str] | None
    policy: SpecialInContent

    @property
    def hidden(self) -> re.Pattern[str] | None:
        """Texts that have to be kept from becoming tokens; None when they may."""
        return None if self.policy == "allow" else self.specials

    def check(self, messages: Iterable[Message], where: str) -> None:
        """Refuse content that spells a special token, where the policy says so.

        Raises:
            DataError: names the turn and the token.
        """
        if self.policy != "error" or self.specials is None:
            return
        for index, turn in enumerate(messages):
            found = self.specials.search(turn.content) or self.specials.search(repr(turn.extra))
            if found:
                raise DataError(
                    f"the content of turn {index} ({turn.role}) spells the special token {found.group()}",
                    where=where,
                    remedy="remove it, or set special_in_content: split (it is trained as plain text)",
                )


class Guard:
    """Keeps special-token text in content apart from a template's own special tokens.

    Before rendering, each occurrence in a message is replaced by a placeholder of characters that occur in none of the
    messages; afterwards the text comes back and its place is known. So no template has to be searched for content.
    """

    def __init__(self, specials: re.Pattern[str] | None, messages: tuple[Message, ...]) -> None:
        self.hidden: list[str] = []
        self.messages = messages
        self.mark = ""
        if specials is None or not any(
            specials.search(turn.content) or (turn.extra and _search(specials, turn.extra)) for turn in messages
        ):
            return
        everything = repr(messages) + "".join(turn.content for turn in messages)
        self.mark = next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in everything)
        self.messages = tuple(
            replace(turn, content=self._hide(specials, turn.content), extra=self._hide(specials, turn.extra))
            for turn in messages
        )

    def rendered(self, pieces: Iterable[Piece], *, begins: bool | None, ends: bool = False) -> Rendered:
        """Join rendered pieces with the hidden texts back in their places."""
        if not self.hidden:
            text, spans = join(pieces)
            return Rendered(text, spans, (), begins, ends)
        shown: list[Piece] = []
        protected: list[tuple[int, int]] = []
        length = 0
        for piece, role, weight in pieces:
            parts = re.split(f"{self.mark}(\\d+){self.mark}", piece)
            for index in range(1, len(parts), 2):
                parts[index] = self.hidden[int(parts[index])]
            for index, part in enumerate(parts):
                if index % 2:
                    protected.append((length, length + len(part)))
                length += len(part)
            shown.append(("".join(parts), role, weight))
        text, spans = join(shown)
        note_protected(protected, text)
        return Rendered(text, spans, tuple(protected), begins, ends)

    def _hide(self, specials: re.Pattern[str], value: Any) -> Any:
        if isinstance(value, str):
            return specials.sub(self._placeholder, value)
        if isinstance(value, dict):
            return {key: self._hide(specials, item) for key, item in value.items()}
        return [self._hide(specials, item) for item in value] if isinstance(value, list) else value

    def _placeholder(self, match: re.Match[str]) -> str:
        self.hidden.append(match.group())
        return f"{self.mark}{len(self.hidden) - 1}{self.mark}"


def _search(specials: re.Pattern[str], value: Any) -> bool:
    if isinstance(value, str):
        return specials.search(value) is not None
    if isinstance(value, dict):
        return any(_search(specials, item) for item in value.values())
    return isinstance(value, list) and any(_search(specials, item) for item in value)


def note_protected(protected: Sequence[tuple[int, int]], text: str) -> None:
    """Say once that content which spells special tokens is kept as plain text."""
    if protected:
        start, end = protected[0]
        notify(
            f"some rows spell special tokens such as {text[start:end]} in their content; they are trained as plain "
            "text. Rows that bring their own template belong in the format text"
        )
