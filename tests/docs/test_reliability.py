"""The page on reliability names tests that are there, and one for every row of the battery that it speaks of."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_named_tests_are_there(file: str) -> None:
    named = {name for other, name in NAMED if other == file}
    assert named <= functions(TESTS / file), f"{file} has no {sorted(named - functions(TESTS / file))}"


def test_every_promise_has_a_test() -> None:
    tables = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| Promise")]
    assert len(tables) > 50
    assert [line for line in tables if "::test_" not in line] == []
