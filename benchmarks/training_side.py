"""One side of the comparison ``training`` in a process of its own: ``python -m benchmarks.training_side JOB RESULT``.

Sides get the same model, seeds and batches; whatever trains, the clock is read when a torch optimizer has stepped.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}


def main() -> None:
    """Train as the job says, and write what was measured."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    torch.set_num_threads(1)
    marks: list[float] = []
    hook = register_optimizer_step_post_hook(lambda *_: marks.append(time.process_time()))
    losses = SIDES[job["side"]](job)
    hook.remove()
    if len(marks) < len(losses) or len(losses) != job["steps"]:
        raise SystemExit(f"{len(marks)} steps and {len(losses)} losses")
    # not before: what the package sets for torch is a part of one side alone
    from tunesmith.model.memory.peak import peak_memory

    marks = marks[-len(losses) :]  # the engine tries an optimizer before it trains
    cpu = [after - before for before, after in pairwise(marks)]
    result = {
        "losses": losses,
        "seconds": cpu,
        "peak": peak_memory(torch.device("cpu")),
    }
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


def tunesmith(job: dict[str, Any], **more: Any) -> list[float]:
    """The engine, by its settings; ``more`` over the defaults."""
    from tunesmith.config.resolve import from_values
    from tunesmith.train.run import train

    run = Path(job["folder"]) / "runs" / f"{job['side']}-{os.getpid()}"
    train(from_values(settings(job) | {f"training.{name}": value for name, value in more.items()} | {
        "training.output_dir": str(run)}), command=["benchmark"])  # fmt: skip
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def settings(job: dict[str, Any]) -> dict[str, Any]:
    """The engine's settings of a job; what stands under ``settings`` in it comes over them."""
    chosen = {
        "model.model_name_or_path": job["model"],
        "data.train_data": job["rows"],
        "data.max_length": job["max_length"],
        "data.too_long": "drop",
        "data.max_dropped": 1.0,
        "data.max_duplicates": 1.0,
        "data.cache": False,
        "training.output_dir": str(Path(job["folder"]) / "out"),
        "training.max_steps": job["steps"],
        "training.per_device_train_batch_size": job["batch_size"],
        "training.learning_rate": 2e-4,
        "training.lr_scheduler_type": "constant",
        "training.warmup_ratio": 0.0,
        "training.weight_decay": 0.0,
        "training.logging_steps": 1,
        "training.save_strategy": "no",
        "training.seed": job["seed"],
        "training.group_by_prefix": job["group_by_prefix"],
        "adapter.use_lora": True,
        "adapter.lora_r": LORA["r"],
        "adapter.lora_alpha": LORA["lora_alpha"],
        "adapter.lora_dropout": 0.0,
        "adapter.target_modules": LORA["target_modules"],
    }
    return chosen | job.get("settings", {})


def adapted(job: dict[str, Any]) -> Any:
    """The model with a fresh adapter, drawn as the engine draws it, where and in the types that a job asks for; or
    without, where all weights are trained."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed

    set_seed(job["seed"])
    dtype = torch.bfloat16 if job.get("bf16") else torch.float32
    quantized = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    ) if job.get("load_in_4bit") else None  # fmt: skip
    place = {"device_map": {"": 0}} if job.get("on_gpu") else {}
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype, quantization_config=quantized, **place)
    if quantized is not None:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return model if job.get("full") else get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA))


def by_hand(job: dict[str, Any], layout: str) -> list[float]:
    """A loop of ``loops.py``."""
    from benchmarks import loops

    return list(loops.train(adapted(job), job["batches"], layout, 2e-4))


def arguments(job: dict[str, Any]) -> dict[str, Any]:
    """Keywords that transformers' Trainer and TRL's have in common."""
    return {
        "output_dir": str(Path(job["folder"]) / "runs" / f"{job['side']}-{os.getpid()}"), "max_steps": job["steps"],
        "per_device_train_batch_size": job["batch_size"], "learning_rate": 2e-4, "lr_scheduler_type": "constant",
        "weight_decay": 0.0, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "seed": job["seed"], "train_sampling_strategy": "sequential",
        "use_cpu": not job.get("on_gpu", False), "bf16": job.get("bf16", False),
    }  # fmt: skip


def _rows(job: dict[str, Any]) -> Any:
    from datasets import Dataset

    rows = [row for batch in job["batches"] for row in batch]
    return Dataset.from_list([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows])


def trainer(job: dict[str, Any]) -> list[float]:
    """transformers' Trainer with the model's own loss."""
    import transformers as t

    from benchmarks import loops

    trained = t.Trainer(
        model=adapted(job), args=t.TrainingArguments(**arguments(job)), train_dataset=_rows(job),
        data_collator=loops.padded,
    )  # fmt: skip
    trained.train()
    return [line["loss"] for line in trained.state.log_history if "loss" in line]


def trl(job: dict[str, Any]) -> list[float]:
    """TRL's SFTTrainer as it is."""
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    trained = SFTTrainer(
        model=adapted(job),
        args=SFTConfig(**arguments(job), gradient_checkpointing=job.get("checkpointing", False), max_length=None),
        train_dataset=_rows(job), processing_class=AutoTokenizer.from_pretrained(job["model"]),
    )  # fmt: skip
    trained.train()
    return [line["loss"] for line in trained.state.log_history if "loss" in line]


def trl_labelled(job: dict[str, Any]) -> list[float]:
    """TRL as it is where Triton runs: its fused head scores labelled positions alone."""
    from trl.trainer import utils

    former = utils._use_triton
    utils._use_triton = lambda _device: True  # of positions it decides, not of kernels, which ask another module
    try:
        return trl(job)
    finally:
        utils._use_triton = former


SIDES: dict[str, Any] = {
    "tunesmith": tunesmith,
    "tunesmith padded": lambda job: tunesmith(job, batching="padded"),
    "loop unpadded": lambda job: by_hand(job, "unpadded"),
    "loop padded": lambda job: by_hand(job, "padded"),
    "Trainer": trainer,
    "TRL": trl,
    "TRL, labelled positions only": trl_labelled,
}
"""Name -> what trains as a job says and returns its losses."""

if __name__ == "__main__":
    main()
