"""The walks of docs/house.md are true: a run takes them, and calls every function that they name."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import transformers

from tunesmith import notices
from tunesmith.entrypoints.nli import main

ROOT = Path(__file__).resolve().parents[2]
SOURCE, RECIPE = ROOT / "src" / "tunesmith", ROOT / "recipes" / "nli_cot"
WALKS = (ROOT / "docs" / "house.md").read_text(encoding="utf-8").partition("## Two walks")[2]
HOPS = re.findall(r"`([\w/]+\.py):([\w.]+)`", WALKS)
ELSEWHERE = ("config/readers/run_python_file.py", "main")
"""Runs in a child process."""


def text_rows(first: int, number: int) -> list[dict[str, str]]:
    """Rows as ``data prepare nli`` writes them."""
    return [
        {"id": str(index), "text": f"<s>[INST] Premise: {index} dogs ran. [/INST] It moved, so yes. </s>"}
        for index in range(first, first + number)
    ]


def test_the_walks_have_their_hops() -> None:
    assert len(re.findall(r"^\d+\. ", WALKS, flags=re.MULTILINE)) == 21
    assert len(HOPS) >= 40
    assert len(set(HOPS)) == len(HOPS)
    for file, _ in HOPS:
        assert (SOURCE / file).is_file(), file
    for name in re.findall(r"`transformers\.Trainer\.(\w+)`", WALKS):
        assert hasattr(transformers.Trainer, name)
    assert (RECIPE / "train" / "configs" / "ablation2.py").is_file()
    assert "def main(" in (SOURCE / ELSEWHERE[0]).read_text(encoding="utf-8")


def test_a_run_calls_every_function_of_the_walks(
    tmp_path: Path, stories_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {}
    for name, rows in (("train", text_rows(0, 4)), ("eval", text_rows(4, 2))):
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    called: set[tuple[str, str]] = set()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(SOURCE)):
            called.add((frame.f_code.co_filename, frame.f_code.co_qualname))

    monkeypatch.chdir(RECIPE)
    notices.clear()
    command = ["--config", "train/configs/ablation2.py", "--model_id", str(stories_model), "--no_load_in_4bit"]
    command += ["--train_data", str(files["train"]), "--eval_data", str(files["eval"]), "--no_wandb"]
    command += ["--output_dir", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache"), "--max_steps", "1"]
    sys.setprofile(profile)
    try:
        code = main(RECIPE / "train" / "configs" / "default.py", command)
    finally:
        sys.setprofile(None)
    assert code == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["settings"]["training.learning_rate"] == 2e-4
    assert record["origins"]["training.learning_rate"].startswith("train/configs/ablation2.py:")
    missing = [hop for hop in HOPS if hop != ELSEWHERE and (str(SOURCE / hop[0]), hop[1]) not in called]
    assert missing == []
