"""The table of memory: formula and fit check agree, and the page shows what they say today."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "docs/memory.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("make_memory_table", PROJECT / "scripts/make_memory_table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_the_page_shows_the_figures_of_today(table):
    name = "7B (Mistral)"
    (column,) = [index for index, count in enumerate(table.GPU_COUNTS) if count == 2]
    number = 0
    for model, method, strategy, (cell,) in table.rows({name: table.MODELS[name]}, (2,)):
        (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {model} | {method} | `{strategy}` |")]
        assert line.split(" | ")[3 + column].removesuffix(" |") == cell
        number += 1
    assert number == len(table.ROWS) == 9
    assert sum(line.startswith(tuple(f"| {model} |" for model in table.MODELS)) for line in PAGE.splitlines()) == 36


def test_formula_and_fit_check_that_disagree_are_an_error(table, monkeypatch):
    monkeypatch.setattr(table, "formula", lambda *given: 0.0)
    small = {"0.5B (Qwen2.5)": table.MODELS["0.5B (Qwen2.5)"]}
    with pytest.raises(AssertionError, match=r"the formula says 0\.00 GiB"):
        list(table.rows(small, (1,)))
