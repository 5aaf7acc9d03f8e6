"""llama.cpp's converter is found where it is, called as it wants to be called, and asked for where it is not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tunesmith.cli.main import main
from tunesmith.errors import ModelError
from tunesmith.export import gguf

STAND_IN = """import argparse, pathlib, sys
parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--outfile")
parser.add_argument("--outtype", choices=["f32", "f16"])
options = parser.parse_args()
assert (pathlib.Path(options.model) / "config.json").is_file(), "no model there"
pathlib.Path(options.outfile).write_text(options.outtype)
"""


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program with the command line of the converter."""
    path = tmp_path / "llama.cpp" / gguf.CONVERTER
    path.parent.mkdir()
    path.write_text(STAND_IN)
    monkeypatch.delenv(gguf.HOME, raising=False)
    monkeypatch.setenv("PATH", "")
    return path


def test_converter_is_found_on_the_path_and_by_its_variable(converter: Path, monkeypatch) -> None:
    with pytest.raises(ModelError, match=r"git clone https://github\.com/ggml-org/llama\.cpp") as caught:
        gguf.find_converter()
    assert caught.value.exit_code == 4
    monkeypatch.setenv("PATH", str(converter.parent))
    assert gguf.find_converter() == converter
    monkeypatch.setenv(gguf.HOME, str(converter.parent))
    monkeypatch.setenv("PATH", "")
    assert gguf.find_converter() == converter
    monkeypatch.setenv(gguf.HOME, str(converter))
    with pytest.raises(ModelError, match="names a folder without"):
        gguf.find_converter()


def test_converted_file_is_there_or_not_at_all(
    converter: Path, models_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv(gguf.HOME, str(converter.parent))
    output = gguf.convert(models_folder / "llama", tmp_path / "model-f16.gguf", "f16")
    assert output.read_text() == "f16"
    with pytest.raises(ModelError, match="invalid choice"):
        gguf.convert(models_folder / "llama", tmp_path / "model-f99.gguf", "f99")
    with pytest.raises(ModelError, match="no model there"):
        gguf.convert(tmp_path, tmp_path / "model-f32.gguf", "f32")
    assert [path.name for path in tmp_path.iterdir() if "gguf" in path.name] == ["model-f16.gguf"]


def test_merge_says_what_is_missing_before_it_merges(converter: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "adapter_config.json").write_text("{}")
    assert main(["merge", str(tmp_path / "run"), str(tmp_path / "merged"), "--gguf", "f16"]) == 4
    assert "neither on the path nor in $LLAMA_CPP" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


@pytest.mark.skipif(not os.environ.get(gguf.HOME), reason="needs llama.cpp; LLAMA_CPP names its folder")
def test_the_real_converter_writes_what_llama_cpp_reads(stories_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(stories_model, folder)
    output = gguf.convert(folder, tmp_path / "model-f32.gguf", "f32")
    assert output.read_bytes()[:4] == b"GGUF"
    assert output.stat().st_size > (stories_model / "model.safetensors").stat().st_size
