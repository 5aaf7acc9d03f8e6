"""The page on tasks: its function and its commands, run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from helpers import commands
from tunesmith.cli.main import main
from tunesmith.evaluate.tasks import TASKS

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "docs/how_to/add_a_task.md"


def test_the_function_of_the_page_scores_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipes").symlink_to(PROJECT / "recipes")
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n# score\.py\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "score.py").write_text(code[0], encoding="utf-8")
    make_data, evaluate = [shlex.split(line)[1:] for line in commands(PAGE)]
    assert main(make_data) == 0
    capsys.readouterr()
    assert main(evaluate) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^task +score\.py:score$", shown, flags=re.MULTILINE)
    assert re.search(r"^score +0\.0000  \(95%: 0\.0000 to 0\.4899\)$", shown, flags=re.MULTILINE)  # cut at 6 tokens
    assert re.search(r"^characters +[1-9]", shown, flags=re.MULTILINE)
    assert "score below 1: 4, as demo/data/eval_ft.jsonl:1: ..." in shown
    assert "not stopped: 4" in shown


def test_the_page_names_every_task() -> None:
    named = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(named) == sorted(TASKS)
