"""Every command that is printed can be pasted: how the program is named, and that nothing else writes its bare name."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

import tunesmith
from tunesmith import program
from tunesmith.cli.main import VERBS

ROOT = Path(tunesmith.__file__).parent


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The programs of a virtual environment below the working directory, which is not on the PATH."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("python", "tunesmith", "accelerate"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setenv("PATH", "/usr/bin")
    return folder


def test_it_lies_below_the_working_directory(environment: Path) -> None:
    assert program.command("tunesmith", "merge", "a run") == ".venv/bin/tunesmith merge 'a run'"
    assert program.command("accelerate", "launch") == ".venv/bin/accelerate launch"
    assert program.command("python", "x.py") == ".venv/bin/python x.py"
    assert program.command("./script.sh") == "./script.sh"
    assert program.named("see `tunesmith config --list`, tunesmith") == (
        "see `.venv/bin/tunesmith config --list`, tunesmith"
    )


def test_seen_from_another_folder(environment: Path, tmp_path: Path) -> None:
    assert program.command("tunesmith", "check", seen_from=tmp_path / "a") == "../.venv/bin/tunesmith check"


def test_it_lies_elsewhere_or_right_here(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert program.command("tunesmith", "runs") == f"{environment}/tunesmith runs"
    monkeypatch.chdir(environment)
    assert program.command("tunesmith", "runs") == "./tunesmith runs"


def test_it_is_the_one_on_the_path(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"/usr/bin:{environment}")
    assert program.command("tunesmith", "runs") == "tunesmith runs"
    assert program.command("python", "x.py").endswith("python x.py")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "tunesmith").symlink_to(environment / "tunesmith")  # as pipx and uv do
    monkeypatch.setenv("PATH", str(linked))
    assert program.command("tunesmith", "runs") == "tunesmith runs"


def test_another_one_is_on_the_path(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("tunesmith", "python"):
        (other / name).write_text("#!/bin/sh\n")
        (other / name).chmod(0o755)
    (environment / "python").unlink()
    (environment / "python").symlink_to(other / "python")  # an environment's interpreter is a link to another one
    monkeypatch.setenv("PATH", str(other))
    assert program.command("tunesmith", "runs") == ".venv/bin/tunesmith runs"
    assert program.command("python", "x.py") == ".venv/bin/python x.py"


def test_there_is_no_script(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (environment / "tunesmith").unlink()
    assert program.command("tunesmith", "runs") == ".venv/bin/python -m tunesmith runs"
    script = tmp_path / "bin" / "tunesmith"  # pip install --user
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert program.command("tunesmith", "runs") == "bin/tunesmith runs"


# no bare name elsewhere -----------------------------------------------------------------------------------------------

_COMMAND = re.compile(rf"(^|`|: |: `|with |\()tunesmith ({'|'.join(VERBS)})\b")
NAMED_LATER = {
    "config/answered.py": "both places that show an answer call named()",
    "config/coming_from/axolotl.py": "tool.py calls named() on every reason",
    "config/coming_from/unsloth.py": "tool.py calls named() on every reason",
    "cli/init.py": "next_commands() gives each word list to command()",
}
FOR_OTHERS = {
    "cli/runs.py": "usage of a verb",
    "cli/data.py": "usage of a verb",
    "cli/main.py": "usage",
    "cli/completion.py": "scripts that complete the plain name",
    "cli/init_data.py": "comments of a file that is kept",
    "train/proposal.py": "comments of a file that is kept",
    "export/inference.py": "the card of a model, read by others",
}


def _texts(tree: ast.Module) -> list[str]:
    """String constants, but for docstrings and for what ``named`` or ``command`` is given."""
    passed = {
        id(part)
        for node in ast.walk(tree)
        for part in (
            ast.walk(node)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("named", "command")
            else [node.value]
            if isinstance(node, ast.Expr)
            else []
        )
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in passed
    ]


def test_nothing_else_writes_the_bare_name() -> None:
    bare = {
        str(file.relative_to(ROOT))
        for file in ROOT.rglob("*.py")
        if any(_COMMAND.search(text) for text in _texts(ast.parse(file.read_text(encoding="utf-8"))))
    }
    assert bare - {*NAMED_LATER, *FOR_OTHERS} == set()
    assert {*NAMED_LATER, *FOR_OTHERS} - bare == set(), "these stand here for nothing"
