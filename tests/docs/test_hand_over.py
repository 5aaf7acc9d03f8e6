"""The page on handing over is run: its commands and its Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from helpers import run_training, story_rows
from tunesmith.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "how_to" / "hand_over.md"


def test_handing_over(stories_model, tmp_path, monkeypatch, capsys):
    """Both ways of loading write the same text."""
    monkeypatch.chdir(tmp_path)
    rows = {"eval_rows": story_rows(4, seed=9), "eval_strategy": "no", "allow_leak": True}
    run_training(tmp_path, stories_model, story_rows(8), max_steps=2, output_dir="my-run", **rows)
    blocks = re.findall(r"```(bash|python)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert [kind for kind, _ in blocks] == ["bash", "python", "python", "bash"]
    written = []
    for kind, text in blocks:
        capsys.readouterr()
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), {})
            written.append(capsys.readouterr().out)
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "tunesmith"
            assert main(arguments) == 0, line
    assert written[0] == written[1]
    assert written[0].startswith("Once upon a time, Lily had 3 things.")
    assert (tmp_path / "my-model" / "proof.json").is_file()
