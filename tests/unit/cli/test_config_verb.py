"""``tunesmith config`` and the front of the command line: answers, exit codes, and no heavy import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.cli.main import VERBS, main


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.py"
    path.write_text('model_id = "m"\nlearning_rate = 3e-4\n')
    return path


def test_json_has_values_and_origins(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "run.py", "--json", "--seed", "7"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert set(shown) == {"values", "origins"}
    assert set(shown["values"]) == set(shown["origins"])
    assert shown["values"]["training.learning_rate"] == 3e-4
    assert shown["origins"]["training.learning_rate"] == "run.py:2"
    assert shown["origins"]["training.seed"] == "command line"
    assert shown["origins"]["training.weight_decay"] == "default"


def test_the_table_shows_origins_and_can_be_limited(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "run.py", "--written"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if "=" in line] == ["run.py:1", "run.py:2"]


def test_the_list_names_every_setting_with_a_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("training.learning_rate = ") for line in lines)
    meanings = [line for line in lines if line.startswith("    ")]
    assert len(meanings) > 100
    assert all(len(meaning.strip()) > 10 for meaning in meanings)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["config", "run.py", "--learning_rat", "1"], "command line: unknown setting 'learning_rat'; did you mean"),
        (["config", "nowhere.py"], "nowhere.py: no such configuration file"),
        (["confg", "run.py"], "command line: unknown verb 'confg'; did you mean 'config'?"),
        (["config", "run.py", "--learning_rate", "fast"], "command line: learning_rate = 'fast'"),
        (["config", "--no_such_option"], "unknown setting"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    config: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert words in shown.err


def test_a_misspelt_key_in_a_file_is_named_with_its_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text('model_id = "m"\n\nbatch_sise = 4\n')
    assert main(["config", "run.py"]) == 2
    expected = "error: run.py:3: unknown setting 'batch_sise'; did you mean 'batch_size'"
    assert capsys.readouterr().err.startswith(expected)


def test_every_verb_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert len(VERBS) >= 5
    assert all(f"\n  {verb} " in text for verb in VERBS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["config", "run.py", "--json"],
        ["data", "--help"],
        ["config", "x.py"],
        ["config", "run.py", "--learning_rat", "1"],
    ],
)
def test_nothing_heavy_is_imported(config: Path, arguments: list[str]) -> None:
    program = (
        f"import sys; from tunesmith.cli.main import main; main({arguments!r})\n"
        "print(sorted({'torch', 'transformers', 'trl', 'peft', 'datasets', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
