"""``tunesmith preview``: the tokens of a run's rows, and which of them are trained, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli import early, environment
from tunesmith.cli.arguments import VerbParser, of_a_run
from tunesmith.cli.output import say, say_json, tell
from tunesmith.config.load import DIALECTS, load
from tunesmith.imports import lean_imports
from tunesmith.visible import visible as safe

if TYPE_CHECKING:
    from rich.text import Text

    from tunesmith.data.preview import PreviewRow, Token
    from tunesmith.train.preview import Preview

OPENING, CLOSING = "⟦", "⟧"
"""Around trained text, where there are no colours."""
PIECE = "·"
"""Stands for a token that is only a part of a character."""


def run(argv: Sequence[str]) -> int:
    """Show rows of a run token by token."""
    parser = VerbParser(
        "preview",
        "Show what a run trains on, token by token, without loading the model.",
        help_ends=of_a_run("preview"),
    )
    parser.add_argument("file", nargs="?", help="configuration file")
    parser.add_argument("--config", help="the same, as an option")
    parser.add_argument("--dialect", choices=sorted(DIALECTS), help="dialect of the file; detected when left out")
    parser.add_argument("--num", type=_count, metavar="N", help="rows to show; the first batch, at most 8, otherwise")
    parser.add_argument("--row", type=_count, metavar="N", help="the row at line N of its file")
    parser.add_argument("--where", choices=("cut", "dropped", "longest"), help="such rows instead of the first batches")
    parser.add_argument("--html", metavar="FILE", help="write one self-contained page")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options, settings = parser.split(argv)
    if options.row is not None and options.where is not None:
        parser.error("--row and --where exclude each other")
    resolved = load(options.file or options.config, settings, dialect=options.dialect)
    environment.prepare(resolved)
    early.check_inputs(resolved)
    with lean_imports():
        from tunesmith.train import preview

    if options.row is not None:
        shown = preview.row_at(resolved, options.row)
    elif options.where is not None:
        shown = preview.rows_where(resolved, options.where, options.num)
    else:
        shown = preview.first_batches(resolved, options.num)
    if options.html is not None:
        from tunesmith.report.preview import page

        _write(Path(options.html), page(shown.title, resolved.config.model.model_name_or_path, shown.facts, shown.rows))
    if options.json:
        say_json({"rows": [row.to_dict() for row in shown.rows]}, None)
    elif options.html is None:
        _print(shown)
    return 0


def _write(path: Path, text: str) -> None:
    from tunesmith.report.folder import write_text

    write_text(path, text)
    tell(str(path))


def _print(shown: Preview) -> None:
    """Colours on a terminal, markers elsewhere."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        say("\n".join(plain_lines(shown)))
        return
    console.print(Text(safe(shown.title), style="bold"))
    for fact in shown.facts:
        console.print(Text(safe(fact), style="dim"))
    legend = (("trained", TRAINED[0]), ("not trained", UNTRAINED[0]), ("control token", SPECIAL), ("end token", END))
    console.print(Text("  ").join(Text(*entry) for entry in legend))
    for row in shown.rows:
        console.print()
        console.print(Text(headline(row), style="bold"))
        console.print(coloured(row), soft_wrap=False)


# text ---


def headline(row: PreviewRow) -> str:
    """Address, size and end of a row in one line."""
    if not row.tokens:
        return f"{visible(row.source)}  {visible(row.note or '')}"
    share = row.num_trained / len(row.tokens)
    parts = [visible(row.source), f"{len(row.tokens)} tokens", f"{row.num_trained} trained ({share:.0%})"]
    if row.num_trained:
        parts.append("end token trained" if row.end_is_trained else "END TOKEN NOT TRAINED")
    if row.note is not None:
        parts.append(visible(row.note))
    return "  ".join(parts)


def plain_lines(shown: Preview) -> Iterator[str]:
    """The rows with markers around what is trained."""
    yield shown.title
    yield from shown.facts
    yield f"trained text stands between {OPENING} and {CLOSING}"
    for row in shown.rows:
        yield ""
        yield headline(row)
        yield marked(row)


def marked(row: PreviewRow) -> str:
    """The text of a row; trained stretches between markers, with their weight where it is not 1."""
    parts = []
    for (trained, weight), tokens in groupby(row.tokens, key=lambda token: (token.trained, token.weight)):
        text = visible("".join(token.text for token in tokens))
        parts.append(f"{OPENING}{_weight(weight)}{text}{CLOSING}" if trained else text)
    return "".join(parts)


def _weight(weight: float) -> str:
    return "" if weight == 1 else f"x{weight:g} "


def visible(text: str) -> str:
    """Text in which characters that steer a terminal, or hide, are written as escapes; line ends stay, marked."""
    return safe(text).replace("\n", "↵\n")


# colours ---

TRAINED = ("color(16) on color(114)", "color(16) on color(72)")
"""Two shades in turn, so that the borders of tokens show; fixed ones, for a terminal's own greens may be alike."""
UNTRAINED = ("dim", "dim underline")
SPECIAL, END = "magenta", "bold color(231) on color(26)"


def coloured(row: PreviewRow) -> Text:
    """The text of a row in the colours of the legend."""
    from rich.text import Text

    text = Text()
    weight = 1.0
    for index, token in enumerate(row.tokens):
        if token.trained and token.weight != weight:
            weight = token.weight
            text.append(f"×{weight:g}", style="bold magenta")
        text.append(visible(token.text) or PIECE, style=_style(token, index % 2))
    return text


def _style(token: Token, shade: int) -> str:
    if token.trained and token.ends:
        return END
    if token.special and not token.trained:
        return SPECIAL
    return TRAINED[shade] if token.trained else UNTRAINED[shade]


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number
