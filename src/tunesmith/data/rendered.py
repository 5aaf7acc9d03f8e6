"""A rendered conversation: text, and spans that say whose words each stretch of it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

CONTEXT = "context"
"""Role of a span that nobody is trained on unless loss is on everything."""
Piece = tuple[str, str, float]
"""Text, role and weight of a stretch of a rendered conversation."""


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``start`` to ``end`` of a rendered text and their role: an assistant turn with its end, or context.

    ``weight`` is what the loss of their tokens is multiplied by, where they carry loss.
    """

    start: int
    end: int
    role: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Rendered:
    """Text and the spans that cover it without gaps.

    ``protected``: character ranges in which content spells a special token and must not become one. ``begins``: True
    starts the ids with the begin token, False leaves that to the text, None to the settings. ``ends``: the end token
    follows the text as an id; otherwise the text ends with the template's own end of turn (or is a prompt).
    """

    text: str
    spans: tuple[Span, ...]
    protected: tuple[tuple[int, int], ...] = ()
    begins: bool | None = None
    ends: bool = False


def join(pieces: Iterable[Piece]) -> tuple[str, tuple[Span, ...]]:
    """The whole text of the pieces, and their spans."""
    text, spans = "", []
    for piece, role, weight in pieces:
        spans.append(Span(len(text), len(text) + len(piece), role, weight))
        text += piece
    return text, tuple(spans)
