"""One side of the comparison ``start`` in a process of its own: ``python -m benchmarks.start_side JOB RESULT``.

Every side loads the tokenizer, reads the file of rows and tokenises all of it, loads the model, gives it an adapter and
trains; nothing is imported here before the clock runs but what reads it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Train as the job says, and write when the first and the last step had ended."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    import torch  # which every side imports
    from torch.optim.optimizer import register_optimizer_step_post_hook

    torch.set_num_threads(1)
    marks: list[dict[str, float]] = []
    hook = register_optimizer_step_post_hook(lambda *_: marks.append({"cpu": cpu_seconds(), "at": time.time()}))
    losses = SIDES[job["side"]](job)
    hook.remove()
    if len(marks) < len(losses) or len(losses) != job["steps"]:
        raise SystemExit(f"{len(marks)} steps and {len(losses)} losses")
    # the engine tries an optimizer before it trains
    result = {"losses": losses, "first": marks[-len(losses)], "last": marks[-1]}
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


def cpu_seconds() -> float:
    """Processor time of this process and of those that it has waited for, in the kernel as well."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def tunesmith(job: dict[str, Any]) -> list[float]:
    """The command ``tunesmith train``."""
    from benchmarks.training_side import settings
    from tunesmith.cli.main import main as command

    run = Path(job["folder"], "runs", f"{os.getpid()}")
    chosen = settings(job) | {"training.output_dir": str(run)}
    code = command(["train", *(f"{name}={_written(value)}" for name, value in chosen.items())])
    if code:
        raise SystemExit(code)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def _written(value: Any) -> str:
    """A setting as it is typed."""
    return f"[{','.join(value)}]" if isinstance(value, list) else json.dumps(value).strip('"')


def loop(job: dict[str, Any]) -> list[float]:
    """The hand-written loop without padding, from the same files; it tokenises all rows, and of the examples it takes
    the engine's batches, so that losses can be compared."""
    from transformers import AutoTokenizer

    from benchmarks import loops
    from benchmarks.training_side import adapted

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    rows = [json.loads(line) for line in Path(job["rows"]).read_text(encoding="utf-8").splitlines()]
    prompts, completions = (
        tokenizer([row[name] for row in rows], add_special_tokens=False)["input_ids"]
        for name in ("prompt", "completion")
    )
    examples = []
    for prompt, completion in zip(prompts, completions, strict=True):
        answer = [*completion, tokenizer.eos_token_id]
        if len(prompt) + len(answer) <= job["max_length"]:
            examples.append({"input_ids": prompt + answer, "labels": [loops.IGNORE] * len(prompt) + answer})
    if len(examples) < len(job["batches"]) * job["batch_size"]:
        raise SystemExit("there are too few rows for so many steps")
    return list(loops.train(adapted(job), job["batches"], "unpadded", 2e-4))


def trl(job: dict[str, Any]) -> list[float]:
    """TRL's SFTTrainer from the same files, in an order of its own."""
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from benchmarks.training_side import adapted, arguments

    trained = SFTTrainer(
        model=adapted(job),
        args=SFTConfig(**arguments(job), gradient_checkpointing=False, max_length=job["max_length"]),
        train_dataset=load_dataset("json", data_files=job["rows"], split="train"),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
    )  # fmt: skip
    trained.train()
    return [line["loss"] for line in trained.state.log_history if "loss" in line]


SIDES: dict[str, Any] = {"tunesmith": tunesmith, "loop unpadded": loop, "TRL": trl}
"""Name -> what trains as a job says and returns its losses."""

if __name__ == "__main__":
    main()
