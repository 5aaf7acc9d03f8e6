"""The commands that README and the reference page show are run; how many were run is asserted as well."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from helpers import commands
from tunesmith.cli.main import VERBS, main

PROJECT = Path(__file__).parents[2]


def test_readme_commands_run(tmp_path, monkeypatch):
    (tmp_path / "recipes").symlink_to(PROJECT / "recipes")
    monkeypatch.chdir(tmp_path)
    ran = []
    for line in commands(PROJECT / "README.md"):
        program, *arguments = shlex.split(line)
        if program == "make":
            ran.append(line)
            targets = (PROJECT / "Makefile").read_text(encoding="utf-8")
            assert re.search(rf"^{arguments[0]}:", targets, flags=re.MULTILINE)
            continue
        assert program == "tunesmith"
        assert main(arguments) == 0, line
        ran.append(line)
    assert ran[:2] == ["make demo", "make test"]
    assert len(ran) == 11
    for made in ("mine/evaluation/metrics.json", "answers.jsonl", "merged/proof.json"):
        assert (tmp_path / "demo" / made).is_file()


def test_the_reference_page_is_up_to_date():
    done = subprocess.run(
        [sys.executable, str(PROJECT / "scripts/make_reference.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_verb_explains_itself(capsys):
    explained = 0
    for verb in VERBS:
        try:
            code = main([verb, "--help"])
        except SystemExit as stop:
            code = int(stop.code or 0)
        assert code == 0
        assert "usage: tunesmith" in capsys.readouterr().out
        explained += 1
    assert explained == len(VERBS) >= 5
