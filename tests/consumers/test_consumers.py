"""Saved folders in programs that people use: transformers 4.57 with its PEFT, in an environment of their own.

`make test-consumers` makes the environment and runs this; tunesmith is not in it, so the folders speak for themselves.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from helpers import run_training
from tunesmith.cli.main import main

pytestmark = pytest.mark.consumers
PROJECT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("CONSUMERS_PYTHON") or PROJECT / ".venv/consumers/bin/python")
ROWS = [{"prompt": f"Tom has {index}", "completion": " balls" * index} for index in range(1, 5)]
READ = """
import json, sys
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, ids = sys.argv[1], json.loads(sys.argv[2])
if sys.argv[3] == "adapter":
    from peft import AutoPeftModelForCausalLM as Model
else:
    Model = AutoModelForCausalLM
tokenizer = AutoTokenizer.from_pretrained(folder)
model = Model.from_pretrained(folder, torch_dtype=torch.float32).eval()
with torch.no_grad():
    logits = model(torch.tensor([ids])).logits[0]
text = "Tom has 2 balls"
print(json.dumps({"version": transformers.__version__, "ids": tokenizer(text)["input_ids"], "logits": logits.tolist()}))
"""


def as_read(folder: Path, ids: list[int], kind: str) -> dict[str, object]:
    """What the other environment makes of a folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [PYTHON, "-c", READ, str(folder), json.dumps(ids), kind],
        capture_output=True,
        text=True,
        env=environment | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def check_alike(folder: Path, kind: str) -> None:
    """The other environment reads the tokens and computes the logits that this one does."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model_class = AutoPeftModelForCausalLM if kind == "adapter" else AutoModelForCausalLM
    model = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)("Tom has 2 balls")["input_ids"]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    found = as_read(folder, ids, kind)
    assert str(found["version"]).startswith("4.57")
    assert found["ids"] == ids
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["nano-mistral", "theta"])
def test_what_is_saved_opens_in_transformers_4(model: str, tmp_path: Path) -> None:
    """Each kind of folder; once with a base whose rotary positions are not those that version 4 takes for granted."""
    unreadable = model == "theta"  # the base itself, which somebody else wrote
    if unreadable:
        model = str(with_other_positions(tmp_path / "base"))
    common = {"max_steps": 2, "learning_rate": 1e-2}
    adapter = Path(run_training(tmp_path / "adapter", model, ROWS, use_lora=True, **common).folder)
    if not unreadable:
        check_alike(adapter, "adapter")
    assert main(["merge", str(adapter), str(tmp_path / "merged"), "--dtype", "float32", "--no_proof"]) == 0
    check_alike(tmp_path / "merged", "merged")
    full = Path(run_training(tmp_path / "full", model, ROWS, use_lora=False, **common).folder)
    check_alike(full, "full")


def with_other_positions(folder: Path) -> Path:
    """The small model with another base of its rotary positions, written by version 5 alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunesmith.assets import embedded_model

    home = embedded_model("nano-mistral")
    model = AutoModelForCausalLM.from_pretrained(home)
    model.config.rope_parameters["rope_theta"] = 500.0
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(home).save_pretrained(folder)
    return folder
