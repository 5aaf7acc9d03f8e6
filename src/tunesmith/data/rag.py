"""Documents in the prompts of retrieval rows: where they stand, and how they are cut when a row is too long.

Only documents are ever cut, the last one first. The question, the instruction and the answer stay whole. Tokens and
labels are not looked at here; the caller says how long a row is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from tunesmith.data.masking import TooLongError
from tunesmith.data.row import Row
from tunesmith.errors import DataError

SPANS_COLUMN = "context_spans"
"""Column in which prepared rows say where in ``prompt`` each text of ``PASSAGES_COLUMN`` stands, as [start, end]."""
PASSAGES_COLUMN = "passages"
DOCUMENT_COLUMNS = (
    PASSAGES_COLUMN,
    "positive_passages",
    "negative_passages",
    "documents",
    "docs",
    "contexts",
    "context",
)
"""Columns that hold a row's documents: a list of texts (or of objects with a ``text``), or one joined text."""
QUESTION_COLUMNS = ("query", "question")

Spans = list[tuple[int, int]]

_LABEL = re.compile(r"[\s\W]*((document|doc|passage|context|source|title|text)\b)?[\s\W]*\d*[\s\W]*", re.IGNORECASE)
"""What may stand between two documents and belongs to the second: white space, a number, a word such as Passage."""


def cut_documents(row: Row, num_tokens: Callable[[Row], int], max_length: int) -> Row:
    """The row with as much of its documents in the prompt as ``max_length`` allows.

    Args:
        row: has its prompt in the column ``prompt``.
        num_tokens: length of a row's finished example.
        max_length: longest example, in tokens.

    Raises:
        TooLongError: the row is too long even without its documents.
        DataError: the prompt holds no document that the row names.
    """
    spans = document_spans(row.values)
    if not spans:
        raise DataError(
            f"longer than max_length {max_length}, and no text of {', '.join(DOCUMENT_COLUMNS)} stands in the prompt",
            where=row.where,
            remedy="only documents are cut: set max_length higher, or too_long: drop",
        )
    prompt = row.values["prompt"]

    def with_documents(num_characters: int) -> Row:
        shorter = {**row.values, "prompt": keep_documents(prompt, spans, num_characters)}
        return Row(shorter, row.source, row.line)

    best = with_documents(0)
    needed = num_tokens(best)
    if needed > max_length:
        raise TooLongError(
            f"{needed} tokens without any document, max_length is {max_length}",
            where=row.where,
            remedy=f"set max_length: {needed} or more, or too_long: drop",
            needed=needed,
        )
    low, high = 0, sum(end - start for start, end in spans)
    while low + 1 < high:  # the longest start of the documents that fits, by bisection
        middle = (low + high) // 2
        candidate = with_documents(middle)
        if num_tokens(candidate) <= max_length:
            best, low = candidate, middle
        else:
            high = middle
    return best


def document_spans(values: dict[str, Any]) -> Spans:
    """Where the documents stand in ``values["prompt"]``, in order and without overlap.

    A prepared row says it. In any other row each text of its document columns is looked for; one that stands there
    twice is left alone, and so is one that holds the only copy of the question.
    """
    prompt = values.get("prompt")
    if not isinstance(prompt, str):
        return []
    stated = _stated_spans(values, prompt)
    if stated is not None:
        return stated
    found: Spans = []
    for text in sorted(_documents(values), key=len, reverse=True):
        start = prompt.find(text)
        if start < 0 or prompt.find(text, start + 1) >= 0:
            continue
        span = (start, start + len(text))
        if not any(span[0] < end and begin < span[1] for begin, end in found):
            found.append(span)
    return sorted(_without_question(values, prompt, found))


def keep_documents(prompt: str, spans: Spans, num_characters: int) -> str:
    """``prompt`` with the first ``num_characters`` characters of its documents, cut at a space.

    A label before a document that goes away (``[3]``) goes with it; all other text between documents stays.
    """
    pieces: list[str] = []
    done, left = 0, num_characters
    for index, (start, end) in enumerate(spans):
        document = prompt[start:end]
        kept = document if len(document) <= left else _at_a_space(document, left)
        left = left - len(document) if len(document) <= left else 0
        before = prompt[done:start]
        if kept or index == 0 or not _LABEL.fullmatch(before):
            pieces.append(before)
        pieces.append(kept)
        done = end
    return "".join([*pieces, prompt[done:]])


def _at_a_space(text: str, length: int) -> str:
    cut = text[:length]
    return cut.rstrip() if text[length].isspace() else cut[: cut.rfind(" ") + 1].rstrip()


def _stated_spans(values: dict[str, Any], prompt: str) -> Spans | None:
    stated, passages = values.get(SPANS_COLUMN), values.get(PASSAGES_COLUMN)
    if not isinstance(stated, list) or not isinstance(passages, list) or len(stated) != len(passages):
        return None
    spans: Spans = []
    for pair, text in zip(stated, passages, strict=True):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(edge, int) for edge in pair)):
            return None
        start, end = pair
        if start < (spans[-1][1] if spans else 0) or prompt[start:end] != text:
            return None  # the prompt is another one than the one these spans belong to
        spans.append((start, end))
    return spans


def _documents(values: dict[str, Any]) -> set[str]:
    texts: set[str] = set()
    for column in DOCUMENT_COLUMNS:
        held = values.get(column)
        for item in held if isinstance(held, list) else [held]:
            text = item.get("text") if isinstance(item, dict) else item
            if isinstance(text, str) and text.strip():
                texts.add(text.strip())
    return texts


def _without_question(values: dict[str, Any], prompt: str, spans: Spans) -> Spans:
    """The spans, unless they leave no whole copy of the question: then without those that touch one."""
    question = next((values[key] for key in QUESTION_COLUMNS if isinstance(values.get(key), str)), "").strip()
    if not question or question not in prompt or any(question in piece for piece in _outside(prompt, spans)):
        return spans
    places = [match.span() for match in re.finditer(re.escape(question), prompt)]
    return [span for span in spans if not any(start < span[1] and span[0] < end for start, end in places)]


def _outside(prompt: str, spans: Spans) -> Sequence[str]:
    edges = [0, *(edge for span in sorted(spans) for edge in span), len(prompt)]
    return [prompt[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
