"""Every row of the battery of trust has a test with its number in its name; counted by reading the tests."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PROJECT = TESTS.parent
LISTED = tomllib.loads(Path(__file__).with_name("rows.toml").read_text(encoding="utf-8"))
NUMBERS = re.compile(r"test_((?:[FDCTS]\d+_)+)")
DOCUMENT = PROJECT.parent / "shared" / "design" / "trust.md"


def every_test() -> Iterator[tuple[Path, str]]:
    """File and name of every test function."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield path, node.name


def numbers_of(name: str) -> set[str]:
    """The rows with whose numbers the name of a test begins."""
    found = NUMBERS.match(name)
    return set(found[1].rstrip("_").split("_")) if found else set()


@pytest.fixture(scope="module")
def tested() -> dict[str, list[str]]:
    """Row -> its tests."""
    found: dict[str, list[str]] = {}
    for path, name in every_test():
        for number in numbers_of(name):
            found.setdefault(number, []).append(f"{path.relative_to(PROJECT)}::{name}")
    return found


@pytest.mark.parametrize("number", LISTED["rows"])
def test_row_has_a_test_with_its_number(number: str, tested: dict[str, list[str]]) -> None:
    reason = LISTED["without_test"].get(number)
    assert (number in tested) != (reason is not None), f"{number} ({LISTED['rows'][number]}): {reason or 'no test'}"


def test_no_test_has_the_number_of_a_row_that_is_not_listed(tested: dict[str, list[str]]) -> None:
    assert {number: names for number, names in tested.items() if number not in LISTED["rows"]} == {}


def test_reasons_are_those_of_rows_and_say_something() -> None:
    for part in ("without_test", "apart"):
        assert LISTED[part].keys() <= LISTED["rows"].keys()
        assert all(len(reason.split()) >= 5 for reason in LISTED[part].values())


def test_numbers_are_read_at_the_beginning_of_a_name_alone() -> None:
    assert numbers_of("test_F3_F4_D12_each_file") == {"F3", "F4", "D12"}
    assert (
        numbers_of("test_macro_f1_of_counts")
        == numbers_of("test_F3")
        == numbers_of("test_T11x_y")
        == numbers_of("test_f10_script")
        == set()
    )


def test_the_list_is_that_of_the_document() -> None:
    if not DOCUMENT.is_file():
        pytest.skip("the document with the battery is not beside the project")
    battery = re.search(r"^## 2\..*?(?=^## 3\.)", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert battery is not None
    numbers = re.findall(r"^\| ([A-Z]\d+) \|", battery[0], re.MULTILINE)
    assert len(numbers) == len(set(numbers)) > 90
    assert set(numbers) == LISTED["rows"].keys()
