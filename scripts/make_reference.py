"""Writes the reference pages from what they describe; ``--check`` only says which of them are stale.

Settings come from the schema and the dialects' readers, rows from the table of formats, commands from the agreed help
texts (tests/golden/help), exit codes from the kinds of errors.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunesmith import errors
from tunesmith.cli.main import VERBS
from tunesmith.config.convert import dialect_of, name_in
from tunesmith.config.describe import reference, shown_value
from tunesmith.config.schema import SECTIONS
from tunesmith.data import formats

PROJECT = Path(__file__).parents[1]
DOCS = PROJECT / "docs"
HELP = PROJECT / "tests" / "golden" / "help"
DIALECTS = {"python": "Python", "json": "JSON", "hydra": "Hydra", "yaml": "YAML"}
MADE = "<!-- Made by `make docs`; scripts/make_reference.py writes it. -->"
LARGEST = 2**31
"""Bounds from here on are those of the machine, not of the setting."""


def settings() -> Iterator[str]:
    """Every setting with type, default (of each dialect), meaning and names."""
    yield from ("# Settings", "", MADE, "")
    yield (
        "Every setting can be written in a file of any dialect, and on a command line as `--name value` or "
        "`section.name=value`. `tunesmith config FILE` shows the value of each with the line that set it. `-` is "
        "unset. Where a dialect has a default of its own, it stands behind the general one: that is what holds where a "
        "file of that dialect is silent. The dialects are Python files, flat JSON (and `TrainingConfig`), Hydra, and "
        "YAML in sections; [complete files](how_to/configurations.md) of each."
    )
    defaults = {dialect: dialect_of(dialect)[2] for dialect in DIALECTS}
    section = None
    for path, default, meaning, others in reference():
        if path.split(".")[0] != section:
            section = path.split(".")[0]
            yield from ("", f"## {section}", "", " ".join((SECTIONS[section].__doc__ or "").split()))
        yield from _setting(path, default, meaning, others, {name: values[path] for name, values in defaults.items()})


def _setting(path: str, default: str, meaning: str, others: list[str], of_dialects: dict[str, Any]) -> Iterator[str]:
    section, name = path.split(".")
    schema = SECTIONS[section].model_json_schema()["properties"][name]
    own = [(DIALECTS[one], shown_value(value)) for one, value in of_dialects.items()]
    differing = "".join(f", of {dialect} `{value}`" for dialect, value in own if value != default)
    if default == "required":
        differing = "".join(f", of {dialect} `{value}`" for dialect, value in own if value not in ("-", default))
    yield from ("", f"### `{name}`", "", _escaped(meaning), "")
    yield f"- {kind(schema)}; default `{default}`{differing}"
    written = {dialect: name_in(path, dialect) for dialect in DIALECTS}
    spellings = [f"{DIALECTS[one]} `{called}`" for one, called in written.items() if called not in (name, path)]
    if spellings:
        yield f"- in files: {', '.join(spellings)}"
    if others:
        yield "- also accepted: " + ", ".join(f"`{other}`" for other in others)


def kind(schema: dict[str, Any]) -> str:
    """What values a setting takes, in words."""
    if "anyOf" in schema:
        kinds = [kind(one) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return "one of " + ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list ({kind(schema['items'])})"
    if schema.get("type") == "object":
        inner = schema.get("additionalProperties")
        return f"mapping of names ({kind(inner)})" if isinstance(inner, dict) and inner else "mapping of names"
    if "pattern" in schema and schema["pattern"].startswith("[\\\\"):
        return "regular expression"
    words = {"string": "text", "boolean": "true or false", "integer": "whole number", "number": "number"}
    return words.get(schema.get("type", ""), "any value") + _bounds(schema)


def _bounds(schema: dict[str, Any]) -> str:
    signs = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    bounds = [(word, schema[key]) for key, word in signs.items() if key in schema and abs(schema[key]) < LARGEST - 1]
    return "".join(f", {word} {value:,g}" for word, value in bounds)


def _escaped(text: str) -> str:
    """A docstring's words as Markdown: code in single backticks, and braces as they stand."""
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def rows() -> Iterator[str]:
    """Every format of rows: its columns, which of them ask, and the question it writes."""
    yield from ("# Rows and columns", "", MADE, "")
    yield (
        "`format` names the shape of a row; `auto` takes the first shape below whose columns a row has. `columns` "
        "gives your names to these: `--columns prompt=message,completion=category`. Any row may have `weight`. How to "
        "give rows, and what is refused, stands in [Give rows](../how_to/rows.md)."
    )
    yield from ("", "## How a format is recognised", "", "| columns in the row | `format` |", "|---|---|")
    for name, keys in formats.SIGNS:
        yield f"| {', '.join(f'`{key}`' for key in sorted(keys))} | `{name}` |"
    for name, read in formats.FORMATS.items():
        about = " ".join((read.__doc__ or "").partition("Raises:")[0].split())
        columns = sorted(formats.COLUMNS[name] - {"weight"})
        asked = formats.QUESTION_COLUMNS[name]
        yield from ("", f"## `{name}`", "", _escaped(about), "")
        yield "- columns: " + ", ".join(f"`{column}`" for column in columns)
        yield "- to ask without an answer (`predict`): " + ", ".join(f"`{column}`" for column in asked)
        if name in formats.QUERIES:
            yield from (
                "- the question that is written:",
                "",
                *_block(formats.QUERIES[name].replace("{{", "{").replace("}}", "}")),
            )


def commands() -> Iterator[str]:
    """The help of every verb."""
    yield from ("# Commands", "", MADE, "")
    yield "What `tunesmith VERB --help` prints."
    yield from ("", *_block((HELP / "tunesmith.txt").read_text(encoding="utf-8")))
    for verb, what in VERBS.items():
        yield from ("", f"## {verb}", "", f"{what[0].upper()}{what[1:]}.")
        for file in sorted(HELP.glob(f"{verb}*.txt"), key=lambda file: (file.stem != verb, file.stem)):
            action = file.stem.removeprefix(verb).removeprefix("-")
            if file.stem != verb and not file.stem.startswith(f"{verb}-"):
                continue
            yield from (("", f"### {verb} {action}") if action else ())
            yield from ("", *_block(file.read_text(encoding="utf-8")))


def exit_codes() -> Iterator[str]:
    """Exit codes, with the kind of error behind each."""
    yield from ("# Exit codes", "", MADE, "")
    yield (
        "A problem is told in one line on stderr, `error: file:line: what; what to do`, and the exit code says its "
        "kind. In Python the same problems are exceptions, all of them below `TunesmithError` (`tunesmith.errors`)."
    )
    yield from ("", "| code | what it means | exception |", "|---:|---|---|", "| 0 | Done. |  |")
    yield "| 1 | A bug of tunesmith: please report it, with what `--debug` shows. |  |"
    kinds = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.TunesmithError)]
    direct = [one for one in kinds if one.__bases__ == (errors.TunesmithError,) and one is not errors.Interrupted]
    for error in sorted(direct, key=lambda one: one.exit_code):
        yield f"| {error.exit_code} | {' '.join((error.__doc__ or '').split())} | `{error.__name__}` |"
    yield "| 130, 143, 138 | Interrupted by SIGINT (Ctrl-C), SIGTERM or SIGUSR1, after saving. | `Interrupted` |"
    yield from ("", "The run that stopped with 130, 143 or 138 prints the command that goes on.")
    yield "Of several processes, the code is that of the rank that failed first; `accelerate launch` makes 1 of any."


def _block(text: str) -> Iterator[str]:
    yield from ("```text", *text.rstrip("\n").splitlines(), "```")


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "reference.md": settings,
    "reference/rows.md": rows,
    "reference/commands.md": commands,
    "reference/exit_codes.md": exit_codes,
}


def stale() -> list[str]:
    """The pages that differ from what would be written."""
    return [
        name for name, page in PAGES.items()
        if not (DOCS / name).is_file() or (DOCS / name).read_text(encoding="utf-8") != text_of(page)
    ]  # fmt: skip


def text_of(page: Callable[[], Iterator[str]]) -> str:
    """A page as its file holds it."""
    return "\n".join(page()) + "\n"


def main() -> int:
    """Write the pages, or say which are stale."""
    if "--check" in sys.argv:
        old = stale()
        print(f"stale: {', '.join(old)}: run `make docs`" if old else "the reference is up to date")
        return 1 if old else 0
    for name, page in PAGES.items():
        (DOCS / name).write_text(text_of(page), encoding="utf-8")
    print(f"wrote {', '.join(f'docs/{name}' for name in PAGES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
