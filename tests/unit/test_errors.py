"""Errors: one line each, and one wording for names that do not exist."""

from __future__ import annotations

import ast
from pathlib import Path

import tunesmith
from tunesmith.errors import ConfigError, did_you_mean


def test_an_error_is_one_line() -> None:
    error = ConfigError("two\nlines", where="a.yaml:3", remedy="write one")
    assert error.line() == "a.yaml:3: two lines; write one"


def test_near_names_are_suggested_and_others_are_not() -> None:
    known = ["learning_rate", "warmup_ratio", "warmup_steps"]
    assert did_you_mean("learning_rat", known, "see the list") == "did you mean 'learning_rate'?"
    assert did_you_mean("warmup_step", known, "") == "did you mean 'warmup_steps' or 'warmup_ratio'?"
    assert did_you_mean("colour", known, "see the list") == "see the list"
    assert did_you_mean("a.jsn", ["a.json"], "", folder=Path("data")) == "did you mean 'data/a.json'?"


def test_no_other_file_words_suggestions_of_its_own() -> None:
    root = Path(tunesmith.__file__).parent
    users = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and "difflib" in {getattr(node, "module", None), *(alias.name for alias in node.names)}
    }
    assert users == {"errors.py"}
