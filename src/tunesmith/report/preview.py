"""The preview as one page: every token of the shown rows, coloured by whether it is trained.

The page needs no network and runs no script; text from the data can neither become markup nor steer anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.preview import PreviewRow, Token
from tunesmith.report.templates import environment
from tunesmith.visible import visible

TEMPLATE = "preview.html.jinja"


@dataclass(frozen=True, slots=True)
class Cell:
    """A token as the page writes it: classes, tooltip, and its text by lines."""

    kind: str
    title: str
    lines: list[str]
    weight: str


def page(title: str, model: str, facts: Sequence[str], rows: Sequence[PreviewRow]) -> str:
    """The whole page.

    Args:
        title: what is shown.
        model: name of the model whose tokenizer made the tokens.
        facts: sentences about all rows.
        rows: what is shown, in order.
    """
    shown = [(row, visible(row.source), visible(row.note or ""), _cells(row)) for row in rows]
    template = environment("tunesmith", "report", autoescape=True).get_template(TEMPLATE)
    return template.render(
        title=visible(title), model=visible(model), facts=[visible(fact) for fact in facts], rows=shown
    )


def _cells(row: PreviewRow) -> list[Cell]:
    cells = []
    weight = 1.0
    for index, token in enumerate(row.tokens):
        changed = token.trained and token.weight != weight
        weight = token.weight if token.trained else weight
        cells.append(Cell(_kind(token, index), _title(token), _lines(token), f"×{weight:g}" if changed else ""))
    return cells


def _kind(token: Token, index: int) -> str:
    kinds = ["trained" if token.trained else "context"]
    if token.ends:
        kinds.append("end")
    elif token.special:
        kinds.append("special")
    if index % 2:
        kinds.append("odd")
    return " ".join(kinds)


def _title(token: Token) -> str:
    return f"id {token.id}, " + (f"trained, weight {token.weight:g}" if token.trained else "not trained")


def _lines(token: Token) -> list[str]:
    """An empty text is a token that is only a piece of a character."""
    return visible(token.text).split("\n") if token.text else ["·"]
