"""YAML with lines: whatever stands in a file, the answer is a value or one error that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.config.readers.yaml_lines import read_yaml
from tunesmith.errors import ConfigError

BROKEN = {
    "a: \x7f\n": "not valid YAML",
    "a: \x00\n": "not valid YAML",
    'a: "\\ud83d"\n': "half of a surrogate pair",
    '"\\udc00": 1\n': "half of a surrogate pair",
    'a: ["\\ud83d\\ude00"]\n': "half of a surrogate pair",
    f"a: {'[' * 5000}\n": "nested too deeply",
    f"a: {'[' * 5000}{']' * 5000}\n": "nested too deeply",
    f"a: {'9' * 5000}\n": "cannot be read as a number",
    "a: *b\n": "not valid YAML",
}


@pytest.mark.parametrize(("text", "words"), BROKEN.items(), ids=[text[:16].strip() for text in BROKEN])
def test_a_broken_file_is_one_error_that_names_it(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words) as caught:
        read_yaml(path)
    assert "c.yaml" in str(caught.value.where)


def test_characters_beyond_the_basic_plane_are_read(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text('a: "\\U0001f600 \U0001f600"\n', encoding="utf-8")
    assert read_yaml(path).value == {"a": "\U0001f600 \U0001f600"}
