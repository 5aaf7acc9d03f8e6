"""The page of complete configurations: its four files mean one training, and it passes the check."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.main import main
from tunesmith.config.load import load

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs/how_to/configurations.md").read_text(encoding="utf-8")
DIALECTS = {"YAML in sections": "yaml", "Python file": "python", "Flat JSON": "json", "Hydra": "hydra"}
OF_JSON = {"data.add_bos", "training.final_subdir", "tracking.wandb_project"}
"""Defaults of that dialect which its file leaves in force."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file for each dialect, below which the data lies where the page says."""
    folder = tmp_path_factory.mktemp("configurations")
    (folder / "docs").symlink_to(PROJECT / "docs")
    blocks = re.findall(r"^## (.+?)\n.*?^```(\w+)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    made = {}
    for heading, language, text in blocks:
        dialect = DIALECTS[heading]
        made[dialect] = folder / f"{dialect}.{'py' if language == 'python' else language}"
        made[dialect].write_text(text, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def values(files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(files["yaml"].parent)
        return {dialect: load(file.name).values() for dialect, file in files.items()}


def test_all_of_them_mean_the_same(values: dict[str, dict[str, Any]]) -> None:
    assert set(values) == set(DIALECTS.values())
    for dialect, theirs in values.items():
        differing = {path for path, value in theirs.items() if value != values["yaml"][path]}
        assert differing <= (OF_JSON if dialect == "json" else set()) | {"tracking.use_wandb"}, dialect


def test_they_pass_the_check(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files["yaml"].parent)
    assert main(["check", "yaml.yaml"]) == 0, capsys.readouterr().err
