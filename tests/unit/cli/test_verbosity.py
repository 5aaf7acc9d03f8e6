"""``--quiet`` and ``--verbose``: what is said, and that nothing of it outlives the command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.console import Console

from tunesmith import notices
from tunesmith.cli import progress
from tunesmith.cli.environment import prepare
from tunesmith.cli.main import main


@pytest.fixture(autouse=True)
def as_usual(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(notices.VERBOSITY, raising=False)


@pytest.mark.parametrize("arguments", [["runs", "--quiet"], ["--quiet", "runs"]])
def test_quiet(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    assert capsys.readouterr().err == "no run at or below .\n"
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""
    assert notices.VERBOSITY not in os.environ
    assert main([*arguments, "absent"]) == 6
    assert capsys.readouterr().err == "error: absent: there is no such folder\n"


def test_quiet_has_no_bar_and_no_notes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(notices, "_listener", notices._to_stderr)
    monkeypatch.setenv(notices.VERBOSITY, "quiet")
    notices.clear()
    notices.notify("a word")
    listener = progress.make_listener(Console(force_terminal=True))
    assert isinstance(listener, progress.Plain)
    notices.notify("another word")
    assert notices.collected() == ["a word", "another word"]  # run.json keeps them
    assert capsys.readouterr().err == ""


def test_verbose_lets_libraries_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY")
    for name in names:
        monkeypatch.setenv(name, "before the test")
        monkeypatch.delenv(name)
    monkeypatch.setenv(notices.VERBOSITY, "verbose")
    prepare()
    assert [os.environ.get(name) for name in names] == ["info", None, "1"]


def test_no_color(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(notices, "_listener", notices._to_stderr)
    for value, coloured in ((None, True), ("1", False)):
        monkeypatch.delenv("NO_COLOR", raising=False)
        if value is not None:
            monkeypatch.setenv("NO_COLOR", value)
        notices.clear()
        progress.Terminal(Console(stderr=True, force_terminal=True, color_system="standard"))
        notices.notify("a word")
        assert ("\x1b[33m" in capsys.readouterr().err) == coloured
