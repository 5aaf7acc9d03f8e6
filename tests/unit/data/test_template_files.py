"""Texts that settings name: string templates and instructions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.data.template_files import parse_string_template, read_instruction
from tunesmith.errors import ConfigError


@pytest.mark.parametrize("template", ["", "{query}", "{output} {query}", "{query} {output} {output}"])
def test_broken_string_templates_are_refused(template: str) -> None:
    with pytest.raises(ConfigError, match=r"needs \{query\}"):
        parse_string_template(template, "t.txt")


def test_an_instruction_is_a_file_or_a_text(tmp_path: Path) -> None:
    path = tmp_path / "qa.txt"
    path.write_text("Answer briefly.\n")
    assert read_instruction(str(path)) == "Answer briefly."
    assert read_instruction("Answer the question. See a.txt") == "Answer the question. See a.txt"
    assert read_instruction(" ") is None
