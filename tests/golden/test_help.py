"""Every ``--help`` as it was last agreed on.

``UPDATE_GOLDEN=1 pytest tests/golden/test_help.py`` (or ``make golden``) writes the files anew; what has changed is
then read in the commit.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tunesmith.cli.arguments import COMMON
from tunesmith.cli.completion import words_of
from tunesmith.cli.main import VERBS, main
from tunesmith.config.names import NameTable

FOLDER = Path(__file__).with_name("help")
PAGES = {"tunesmith": ["--help"]} | {
    " ".join(words): [*words, "--help"]
    for verb in VERBS
    for words in ([verb], *([verb, action] for action in words_of(verb).actions))
}


@pytest.mark.parametrize("page", PAGES)
def test_help(page: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    try:
        code = main(PAGES[page])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 0
    text = capsys.readouterr().out
    file = FOLDER / f"{page.replace(' ', '-')}.txt"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        FOLDER.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), "make golden writes it anew"


def test_common_settings_are_settings_and_fit_a_terminal() -> None:
    names, known = re.findall(r"--(\w+)", COMMON), NameTable()
    assert len(names) > 15
    assert [name for name in names if name.removeprefix("no_") not in known] == []
    assert max(map(len, COMMON.splitlines())) < 80


def test_no_file_is_left_over() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == {page.replace(" ", "-") for page in PAGES}
