"""A peer's turn of the comparison ``training``: ``python -m benchmarks.peer_side JOB RESULT``.

It is run by the interpreter of the peer's environment, where tunesmith is not installed.

It gets the tokens, labels and order of all other sides, and the adapter that they draw.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import types
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "AXOLOTL_DO_NOT_TRACK": "1"}


def main() -> None:
    """Train as the job says, and write what was measured."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    torch.set_num_threads(1)
    marks: list[float] = []
    hook = register_optimizer_step_post_hook(lambda *_: marks.append(time.process_time()))
    losses = SIDES[job["side"]](job, Path(job["folder"], "runs", f"{job['side']}-{os.getpid()}"))
    hook.remove()
    if len(marks) != len(losses) or len(losses) != job["steps"]:
        raise SystemExit(f"{len(marks)} steps and {len(losses)} losses")
    result = {"losses": losses, "seconds": [after - before for before, after in pairwise(marks)], "peak": _peak()}
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


def _peak() -> int:
    """The most main memory of this process, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit("this system does not say how much memory a process had")
    return int(found[1]) * 1024


def llama_factory(job: dict[str, Any], folder: Path) -> list[float]:
    """LLaMA-Factory from rows that are tokens already."""
    from datasets import Dataset, DatasetDict
    from transformers import TrainerCallback

    # it imports what reads sound, which is not installed; text asks nothing of it
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
    from llamafactory.train.tuner import run_exp

    tokenized = folder.with_name(f"{folder.name}-rows")
    DatasetDict({"train": Dataset.from_list(_rows(job))}).save_to_disk(tokenized)
    losses: list[float] = []

    class Heard(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    run_exp({
        "stage": "sft", "do_train": True, "model_name_or_path": job["model"], "template": "empty",
        "dataset": "rows", "tokenized_path": str(tokenized), "cutoff_len": job["max_length"], "output_dir": str(folder),
        "finetuning_type": "lora", "adapter_name_or_path": job["adapter"], "create_new_adapter": False,
        "per_device_train_batch_size": job["batch_size"], "max_steps": job["steps"], "learning_rate": 2e-4,
        "lr_scheduler_type": "constant", "weight_decay": 0.0, "logging_steps": 1, "save_strategy": "no",
        "report_to": "none", "seed": job["seed"], "disable_shuffling": True, "disable_gradient_checkpointing": True,
        "use_cpu": True, "disable_tqdm": True,
    }, callbacks=[Heard()])  # fmt: skip
    return losses


def axolotl(job: dict[str, Any], folder: Path) -> list[float]:
    """Axolotl from rows that are tokens already."""
    import yaml
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import train

    folder.mkdir(parents=True)
    rows, config = folder / "rows.jsonl", folder / "config.yaml"
    rows.write_text("".join(json.dumps(row) + "\n" for row in _rows(job)), encoding="utf-8")
    config.write_text(yaml.safe_dump({
        "base_model": job["model"], "adapter": "lora", "lora_model_dir": job["adapter"],
        "lora_r": job["lora"]["r"], "lora_alpha": job["lora"]["lora_alpha"], "lora_dropout": 0.0,
        "lora_target_modules": job["lora"]["target_modules"],
        "datasets": [{"path": str(rows), "ds_type": "json", "type": None}],
        "dataset_prepared_path": str(folder / "data"), "val_set_size": 0, "shuffle_merged_datasets": False,
        "curriculum_sampling": True, "sequence_len": job["max_length"], "sample_packing": False,
        "pad_to_sequence_len": False, "train_on_inputs": False, "group_by_length": False,
        "micro_batch_size": job["batch_size"], "gradient_accumulation_steps": 1, "max_steps": job["steps"],
        "optimizer": "adamw_torch", "learning_rate": 2e-4, "lr_scheduler": "constant", "weight_decay": 0.0,
        "bf16": False, "fp16": False, "tf32": False, "gradient_checkpointing": False, "attn_implementation": "sdpa",
        "logging_steps": 1, "save_strategy": "no", "seed": job["seed"], "output_dir": str(folder / "out"),
    }), encoding="utf-8")  # fmt: skip
    chosen = load_cfg(str(config))
    _, _, trainer = train(cfg=chosen, dataset_meta=load_datasets(cfg=chosen))
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def _rows(job: dict[str, Any]) -> list[dict[str, list[int]]]:
    rows = [row for batch in job["batches"] for row in batch]
    return [row | {"attention_mask": [1] * len(row["input_ids"])} for row in rows]


SIDES: dict[str, Any] = {"LLaMA-Factory": llama_factory, "Axolotl": axolotl}
"""Name -> what trains as a job says, with its files in a folder, and returns its losses."""

if __name__ == "__main__":
    main()
