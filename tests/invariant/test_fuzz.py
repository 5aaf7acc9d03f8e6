"""Whatever stands in a file or on a command line, only errors of ours come out: anything else is a finding.

A few seconds of it run with the suite; ``make fuzz`` gives the same tests an hour (FUZZ_EXAMPLES sets how many).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from tunesmith import notices
from tunesmith.config.draft import Draft
from tunesmith.config.load import load, resolve_draft
from tunesmith.config.names import NameTable, leaf_paths
from tunesmith.config.resolve import from_values
from tunesmith.data.files import file_rows
from tunesmith.data.formats import FORMATS, FormatOptions
from tunesmith.data.row import Row
from tunesmith.errors import TunesmithError
from tunesmith.evaluate.answers import read_class, read_json, read_label, read_number

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "15"))
fuzzed = hypothesis.settings(max_examples=EXAMPLES, deadline=None)

PATHS = leaf_paths()
NAMES = NameTable().names()
ODD = [
    "\0",
    "\ud800",
    "~",
    "$",
    "${x}",
    "*",
    "!!int",
    "&a",
    "*a",
    "{",
    "[",
    "9" * 5000,
    "1e999",
    "nan",
    "-",
    "=",
    "é",
    "\r",
    "\x1b[",
]
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(10**4000), st.floats(), st.text(max_size=8), st.sampled_from(ODD)
)
KEYS = [*NAMES, "model", "dataset", "training", "hydra", "defaults", *ODD]
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
odd_texts = st.one_of(st.text(max_size=8), st.sampled_from(ODD))
indents = st.sampled_from(["", "  ", "    ", "- "])
marks = st.sampled_from([": ", ":\n", " ", ": &a ", ": *a\n", ": !!float "])
lines = st.lists(st.tuples(indents, st.sampled_from(KEYS), marks, odd_texts).map("".join), max_size=6).map("\n".join)
beginnings = st.sampled_from(["--", "", "--no_", "+"])
options = st.tuples(beginnings, st.sampled_from([*NAMES, *ODD]), st.sampled_from(["=", ""]), odd_texts).map("".join)


@contextlib.contextmanager
def only_our_errors() -> Iterator[None]:
    notices.clear()
    with contextlib.suppress(TunesmithError):
        yield


contents = st.one_of(lines, values.map(json.dumps), scalars.map(str))


@pytest.mark.parametrize("dialect", ["yaml", "hydra", None])
@fuzzed
@hypothesis.given(text=contents)
def test_yaml_readers(dialect: str | None, text: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with only_our_errors():
        load(file, dialect=dialect)


@fuzzed
@hypothesis.given(settings=st.dictionaries(st.sampled_from(NAMES), values, max_size=4), cut=st.integers(0, 3))
def test_json_reader(settings: dict[str, Any], cut: int, tmp_path: Path) -> None:
    text = json.dumps(settings)
    (tmp_path / "own.json").write_text(text[: len(text) - cut])
    with only_our_errors():
        load(tmp_path / "own.json")


@fuzzed
@hypothesis.given(tokens=st.lists(options, max_size=3))
def test_overrides(tokens: list[str]) -> None:
    with only_our_errors():
        resolve_draft(Draft("test", (), names=NameTable()), ["--model=nano-mistral", *tokens])


@fuzzed
@hypothesis.given(stored=st.dictionaries(st.sampled_from(PATHS), values, max_size=3))
def test_settings_of_a_run_folder(stored: dict[str, Any]) -> None:
    with only_our_errors():
        from_values({"model.model_name_or_path": "nano-mistral"} | stored)


COLUMNS = ["prompt", "completion", "messages", "text", "weight", "question", "answer", "instruction", "conversations"]
COLUMNS += ["premise", "hypothesis", "predicted_label", "tools", "output", "chosen", "query", "documents"]
row = st.dictionaries(st.sampled_from(COLUMNS), values, max_size=5)
ENDINGS = ["jsonl", "json", "csv", "tsv", "txt", "parquet", "arrow", "jsonl.gz", "jsonl.zst", "json.xz"]
raw_bytes = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(row, max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
)


@pytest.mark.parametrize("ending", ENDINGS)
@fuzzed
@hypothesis.given(raw=raw_bytes)
def test_data_files(ending: str, raw: bytes, tmp_path: Path) -> None:
    file = tmp_path / f"own.{ending}"
    file.write_bytes(raw)
    with only_our_errors():
        list(file_rows(str(file)))


@pytest.mark.parametrize("name", FORMATS)
@fuzzed
@hypothesis.given(columns=row)
def test_rows_of_every_format(name: str, columns: dict[str, Any]) -> None:
    with only_our_errors():
        FORMATS[name](Row(columns, "own.jsonl", 1), FormatOptions())


ANSWERS = [*ODD, '{"predicted_label": ', '"label"', "}", "\\boxed{", "####", "1,0", "[" * 3000]
answers = st.lists(
    st.one_of(st.text(max_size=8), st.sampled_from(ANSWERS)),
    max_size=6,
).map("".join)  # fmt: skip


@fuzzed
@hypothesis.given(text=answers)
def test_answers(text: str) -> None:
    with only_our_errors():
        read_label(text)
        read_class(text, ["a", "b c"])
        read_json(text)
        read_number(text)
