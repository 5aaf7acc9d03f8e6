"""One set of settings in all four dialects, each written by hand: the same RunConfig, the same training bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith import notices
from tunesmith.config.describe import differences
from tunesmith.config.load import detect_dialect, load
from tunesmith.config.resolve import Resolved
from tunesmith.report.folder import read_jsonl

MEASURED = ("tokens_per_second", "eval_runtime", "peak_memory_gib")
STEPS = 8

PYTHON = """\
model_id = "{model}"
load_in_4bit = False
train_data = "{rows}"
eval_data = "{held_out}"
max_seq_length = 128
lora_r = 4
lora_alpha = 8
lora_dropout = 0.1
target_modules = ["q_proj", "v_proj"]
num_epochs = 2
batch_size = 2
grad_accumulation_steps = 2
learning_rate = 5e-3
lr_scheduler = "cosine"
warmup_steps = 2
weight_decay = 0.01
optim = "adamw_torch"
logging_steps = 1
eval_steps = 4
save_steps = 4
save_total_limit = 1
seed = 7
max_steps = 8
wandb_project = "four"
use_wandb = False
"""

JSON = """\
{{
  "model_name_or_path": "{model}",
  "load_in_4bit": false,
  "train_file": "{rows}",
  "eval_file": "{held_out}",
  "max_seq_length": 128,
  "add_bos": null,
  "lora_r": 4,
  "lora_alpha": 8,
  "lora_dropout": 0.1,
  "lora_target_modules": ["q_proj", "v_proj"],
  "num_train_epochs": 2,
  "train_batch_size": 2,
  "eval_batch_size": 8,
  "gradient_accumulation_steps": 2,
  "learning_rate": 5e-3,
  "lr_scheduler_type": "cosine",
  "warmup_ratio": 0.0,
  "warmup_steps": 2,
  "weight_decay": 0.01,
  "log_every_n_steps": 1,
  "eval_every_n_steps": 4,
  "save_every_n_steps": 4,
  "save_total_limit": 1,
  "load_best_model_at_end": false,
  "early_stopping_patience": null,
  "early_stopping_threshold": 0.0,
  "fp16": null,
  "bf16": null,
  "gradient_checkpointing": false,
  "max_steps": 8,
  "seed": 7,
  "output_dir": "outputs",
  "final_subdir": null,
  "wandb_project": "four",
  "use_wandb": false
}}
"""

HYDRA = """\
model:
    _target_: ragfit.models.hf.HFTrain
    model_name_or_path: {model}
    load_in_4bit: false
    load_in_8bit: false
    lora:
        r: 4
        lora_alpha: 8
        lora_dropout: 0.1
        target_modules: [q_proj, v_proj]
        use_rslora: false
    max_sequence_len: 128

train:
    output_dir: outputs
    gradient_accumulation_steps: 2
    learning_rate: 5e-3
    logging_steps: 1
    lr_scheduler_type: cosine
    max_steps: 8
    num_train_epochs: 2
    per_device_train_batch_size: 2
    optim: adamw_torch
    eval_steps: 4
    save_steps: ${{train.eval_steps}}
    save_total_limit: 1
    warmup_ratio: 0
    warmup_steps: 2
    weight_decay: 0.01
    seed: 7
    report_to:

data_file: {rows}
eval_data: {held_out}
format: auto
too_long: drop
wandb_project: four
use_wandb: false
"""

YAML = """\
model:
  path: {model}
  max_seq_length: 128
  use_lora: true
  lora_config: {{r: 4, lora_alpha: 8, lora_dropout: 0.1, target_modules: [q_proj, v_proj]}}
dataset:
  name: {rows}
  eval_data: {held_out}
training:
  epochs: 2
  max_steps: 8
  per_device_train_batch_size: 2
  gradient_accumulation_steps: 2
  learning_rate: 5e-3
  lr_scheduler_type: cosine
  warmup_steps: 2
  weight_decay: 0.01
  logging_steps: 1
  eval_steps: 4
  save_steps: 4
  save_total_limit: 1
  save_merged_model: false
  seed: 7
tracking:
  wandb_project: four
  use_wandb: false
"""

FILES = {
    "python": ("settings.py", PYTHON),
    "json": ("settings.json", JSON),
    "hydra": ("rag.yaml", HYDRA),
    "yaml": ("settings.yaml", YAML),
}
"""Dialect -> name and text of its file."""


@pytest.fixture
def configurations(tmp_path: Path, stories_model: Path) -> dict[str, Resolved]:
    """Dialect -> the same settings, read from a file of that dialect."""
    problems = [{"prompt": f"Tom has {n} toys and finds 1.", "completion": f" Now he has {n + 1}."} for n in range(48)]
    names = {"rows": problems[:40], "held_out": problems[40:]}
    for name, rows in names.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"model": stories_model} | {name: tmp_path / f"{name}.jsonl" for name in names}
    read = {}
    for dialect, (name, text) in FILES.items():
        path = tmp_path / name
        path.write_text(text.format(**values))
        assert detect_dialect(path) == dialect
        read[dialect] = load(path)
    return read


def test_four_files_are_one_configuration(configurations: dict[str, Resolved]) -> None:
    first = configurations["python"]
    assert len(configurations) == 4
    for dialect, resolved in configurations.items():
        assert differences(first, resolved) == {}, dialect
        assert resolved.fingerprint() == first.fingerprint()
    origins = {resolved.origins["training.learning_rate"].rpartition(":")[0] for resolved in configurations.values()}
    assert {Path(origin).name for origin in origins} == {name for name, _ in FILES.values()}


def test_four_files_train_the_same_model(configurations: dict[str, Resolved], tmp_path: Path) -> None:
    from tunesmith.train.run import train

    logs, weights = {}, {}
    for dialect, resolved in configurations.items():
        notices.clear()
        folder = tmp_path / dialect
        config = resolved.config
        training = config.training.model_copy(update={"output_dir": str(folder)})
        elsewhere = Resolved(config.model_copy(update={"training": training}), resolved.origins)
        result = train(elsewhere, command=["python", "-m", "pytest"])
        assert result.steps == STEPS
        logs[dialect] = [
            {name: value for name, value in entry.items() if name not in MEASURED}
            for entry in read_jsonl(folder / "metrics.jsonl")
        ]
        weights[dialect] = (folder / "adapter_model.safetensors").read_bytes()
    assert len([entry for entry in logs["python"] if "loss" in entry]) == STEPS
    assert [entry["loss"] for entry in logs["python"] if "loss" in entry][-1] < logs["python"][0]["loss"]
    for dialect in FILES:
        assert logs[dialect] == logs["python"], dialect
        assert weights[dialect] == weights["python"], dialect
