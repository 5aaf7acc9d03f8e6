"""The notebook's cells run in their order, each as a notebook runs it, and what its text promises is so."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]
NOTEBOOK = PROJECT / "docs/notebook.ipynb"


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell and return the value of its last line, where that is an expression: what a notebook would show."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, "cell", "exec"), names)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)  # noqa: S307 - a cell of ours


def test_the_notebook_runs_and_ends_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    text = "".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    names: dict[str, Any] = {}
    shown = [run_cell(cell, names) for cell in cells]
    assert f"{shown[0]} messages" in text
    assert [type(value).__name__ for value in shown if hasattr(value, "_repr_html_")] == ["Preview"]
    assert names["run"].metrics["loss"] < 0.5
    assert "more than nine in ten" in text
    assert names["run"].evaluate().metrics["accuracy"] > 0.9
    assert next(iter(names["comparison"].models.values()))["accuracy"] < 0.5
    assert names["merged"].proof is not None
    assert names["page"].is_file()
    assert repr(names["again"]) == repr(names["run"])
    assert "did you mean 'learning_rate'" in capsys.readouterr().out
