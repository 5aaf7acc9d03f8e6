"""The pages on other programs: each command runs on the example file, and each name in a table is one that is known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers import commands
from tunesmith.cli.main import main
from tunesmith.config.coming_from.table import TOOLS
from tunesmith.config.names import NameTable

PROJECT = Path(__file__).parents[2]
PAGES = {name: PROJECT / "docs/how_to/coming_from" / f"{name.replace('-', '_')}.md" for name in TOOLS}


@pytest.mark.parametrize("tool", PAGES)
def test_the_command_of_a_page_translates(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(PROJECT / "tests" / "coming_from")
    translate, check, train = [line.split() for line in commands(PAGES[tool])]
    program, *arguments = translate[: translate.index(">")]
    assert program == "tunesmith"
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "is left out: " in shown.err
    assert shown.out.startswith("# ")
    assert (check[1], train[1], translate[-1]) == ("check", "train", check[2]) == ("check", "train", train[2])


@pytest.mark.parametrize("tool", PAGES)
def test_the_names_of_a_page_exist(tool: str) -> None:
    rows = re.findall(r"^\| (`.*) \| (.*) \|$", PAGES[tool].read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(rows) > 5
    ours = [re.split(r"[: ]", name)[0] for _, right in rows for name in re.findall(r"`([^`]+)`", right)]
    unknown = [name for name in ours if name not in NameTable() and name not in ("pissa", "olora", "o_proj")]
    assert unknown == ["false"] * unknown.count("false")
