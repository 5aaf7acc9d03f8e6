"""A run waits for no library that it does not use."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys

import torch

from tunesmith.train import lean_trl
from accelerate.utils import extract_model_from_parallel

model = torch.nn.Linear(1, 1)
assert extract_model_from_parallel(torch.nn.DataParallel(model)) is model
print(sorted({"deepspeed", "wandb"} & set(sys.modules)))

import deepspeed

engine = object.__new__(deepspeed.DeepSpeedEngine)
torch.nn.Module.__init__(engine)
engine.module = model
assert extract_model_from_parallel(engine) is model
import transformers
import wandb

print(lean_trl.SFTTrainer.__name__, transformers.is_wandb_available())

import importlib.metadata
from trl import import_utils

assert len(import_utils.PACKAGE_DISTRIBUTION_MAPPING) == 0
assert import_utils.PACKAGE_DISTRIBUTION_MAPPING["PIL"] == ["pillow"]
assert import_utils.PACKAGE_DISTRIBUTION_MAPPING["torch"] == ["torch"]
assert "PIL" in importlib.metadata.packages_distributions()
print(import_utils._is_package_available("transformers", return_version=True) == (True, transformers.__version__))
"""


def test_deepspeed_and_wandb_are_imported_by_who_uses_them() -> None:
    """And where DeepSpeed is in use, accelerate takes models out of its engine as ever."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()  # DeepSpeed says a word as well
    assert lines[0] == "[]"
    assert lines[-2:] == ["SFTTrainer True", "True"]
