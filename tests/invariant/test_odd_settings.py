"""Odd values of every setting end in a configuration or in errors of ours, as the command line and as JSON give them.

The values are those of a longer search, in which ``tunesmith check`` and a step of training follow.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, get_args

import pytest

from tunesmith import notices
from tunesmith.config.load import load
from tunesmith.config.schema import SECTIONS
from tunesmith.errors import understood

WRITTEN = [
    "", "x", "0", "-1", "1e308", "2147483647", "nan", "[]", '{"foo": 1}', "[null]", "true", "../x", "/", "é\x1b[31m",
    "a" * 5000, "${oc.env:HOME}", "{{ 1/0 }}", "~nobody/x", "http://127.0.0.1:9/x", '{"a": {"b": [1]}}', "*", "cuda:0",
]  # fmt: skip
HELD: list[Any] = [
    None,
    True,
    0,
    -1,
    1e308,
    10**30,
    "",
    "x",
    "a" * 5000,
    [],
    [None],
    [[1]],
    {},
    {"foo": None},
    {"": []},
]
CODES = {2, 7}
STRIDE = 1 if "FUZZ_EXAMPLES" in os.environ else 3
"""One setting gets every third value, the next one others; ``make fuzz`` gives each all of them."""


def words(annotation: Any) -> list[str]:
    """The words that a type knows."""
    inner = [word for argument in get_args(annotation) for word in words(argument)]
    return [argument for argument in get_args(annotation) if isinstance(argument, str)] + inner


def code(file: Path | None, *settings: str) -> int:
    """Exit code that loading ends with, 0 where it does not end."""
    notices.clear()
    try:
        load(file, ["--model_name_or_path=nano-mistral", "--train_data=x.jsonl", *settings])
    except Exception as error:  # a full disk, say, has a code, too; what is none of ours has 1
        found = understood(error)
    else:
        return 0
    assert all(len(line) < 20_000 and "\n" not in line for line in found.lines())
    return found.exit_code


@pytest.mark.parametrize("section", SECTIONS)
def test_odd_values_of_every_setting(section: str, tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    for number, (name, field) in enumerate(SECTIONS[section].model_fields.items()):
        for value in [*WRITTEN, *words(field.annotation)][number % STRIDE :: STRIDE]:
            assert code(None, f"--{name}={value}") in {0, *CODES}, (name, value)
        for held in HELD[number % STRIDE :: STRIDE]:
            file.write_text(json.dumps({name: held}))
            assert code(file) in {0, *CODES}, (name, held)
