"""Verbs called on rows, with the embedded model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import write_rows
from row_faults import Call, Outcome
from tunesmith import notices
from tunesmith.cli.main import main


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call a verb on rows (or on a file) with the embedded model."""

    def run(rows: Any, verb: str = "preview", **settings: Any) -> Outcome:
        notices.clear()
        file = rows if isinstance(rows, Path) else write_rows(tmp_path / "rows.jsonl", rows)
        given = {"model_name_or_path": "nano-mistral", "train_data": file, "cache": "false",
                 "output_dir": tmp_path / "run"} | settings  # fmt: skip
        if verb == "train":
            given = {"max_steps": 1, "save_strategy": "no", "overwrite_output_dir": "true"} | given
        arguments = [f"--{name}={value}" for name, value in given.items()]
        code = main([verb, *arguments, *(["--json"] if verb == "preview" else [])])
        said = capsys.readouterr()
        lines = said.err.splitlines()
        shown = json.loads(said.out)["rows"] if verb == "preview" and code == 0 else []
        return Outcome(
            code,
            [line for line in (*lines, *said.out.splitlines()) if line.startswith("error:")],
            [line for line in lines if line.startswith(f"note: {file}")],
            shown,
        )

    return run


@pytest.fixture
def template(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        (tmp_path / "template.jinja").write_text(text)
        return tmp_path / "template.jinja"

    return write


@pytest.fixture
def v3(real_data: Path) -> Path:
    return real_data / "tok_mistral" / "hf_v3"
