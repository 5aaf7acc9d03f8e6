"""What the pages say that tunesmith says: messages stand in its source, and verbs, options and settings exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tunesmith.cli.main import VERBS
from tunesmith.config.names import NameTable

PROJECT = Path(__file__).parents[2]
HELP = PROJECT / "tests/golden/help"
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
NAMES = NameTable()
EVERYWHERE = {"help", "debug", "quiet", "verbose", "version"}


@pytest.fixture(scope="module")
def said() -> set[str]:
    """Every text of the source that is no docstring; of texts with values in them, each piece."""
    texts = set()
    for file in (PROJECT / "src/tunesmith").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        described = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in described)
        texts |= {node.value for node in constants if isinstance(node.value, str)}
    return texts


def test_messages_of_the_page_on_troubles_are_those_of_the_source(said: set[str]) -> None:
    page = (PROJECT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```text\n(.*?)```", page, flags=re.DOTALL) for line in block.splitlines()]
    pieces = [piece.strip(" ") for line in lines for piece in line.split("...") if len(piece.strip()) > 3]
    assert len(pieces) > 60
    assert [piece for piece in pieces if not any(piece in text for text in said)] == []


def commands_of(page: Path) -> list[list[str]]:
    """The words behind ``tunesmith`` in blocks and in running text."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line.split("  #")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", outside)]
    found = (re.match(r"(?:source <\()?tunesmith +([a-z].*)", line) for line in lines)
    return [match.group(1).split() for match in found if match]


def unknown(words: list[str]) -> list[str]:
    """What of a command's options its verb does not have, nor any setting."""
    help_texts = "".join(file.read_text(encoding="utf-8") for file in HELP.glob(f"{words[0]}*.txt"))
    options = [word[2:].partition("=")[0].rstrip(")") for word in words if word.startswith("--")]
    known = EVERYWHERE | set(re.findall(r"--([\w-]+)", help_texts))
    return [
        name for name in options if name not in known and name not in NAMES and name.removeprefix("no_") not in NAMES
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_have_verbs_and_options_that_exist(page: Path) -> None:
    for words in commands_of(page):
        if words[0].isupper():
            continue
        assert words[0].rstrip(")") in VERBS, words
        assert unknown(words) == [], words


def test_an_option_that_does_not_exist_is_found() -> None:
    assert unknown(["train", "config.yaml", "--learning_rat", "1"]) == ["learning_rat"]
    assert unknown(["train", "config.yaml", "--learning_rate=1", "--no_bf16", "--debug"]) == []
