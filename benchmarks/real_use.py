"""A model of real size in use, as commands: check, two QLoRA steps, save, resume, merge with proof.

    python -m benchmarks.real_size FOLDER
    python -m benchmarks.real_use FOLDER [--work FOLDER]

Of each command: seconds on the clock and of a core, and the most memory that was its own (anonymous; pages of
mapped files can be given back at any time), summed over the processes it started.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.zoo import cells
from tunesmith.model.internals import cpu_multiplies_bfloat16

SETTINGS = {
    "load_in_4bit": "true", "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": "true",
    "gradient_checkpointing": "true", "lora_r": "16", "lora_alpha": "32", "lora_dropout": "0.05",
    "per_device_train_batch_size": "1", "gradient_accumulation_steps": "1", "max_length": "512",
    "learning_rate": "2e-4", "optim": "adamw_torch", "logging_steps": "1", "eval_strategy": "no",
    "save_strategy": "steps", "save_steps": "2",
}  # fmt: skip
"""Those of the guide for reasoning about natural language, with a batch of one; the optimizer is one for any device."""
SECONDS = 0.1
"""How often memory is looked at."""


def main(argv: list[str]) -> None:
    """Run the commands one after the other and print what each took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_use", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, help="where runs are written (beside the model)")
    options = parser.parse_args(argv)
    work = options.work or options.model.with_name(f"{options.model.name}-in-use")
    work.mkdir(parents=True)
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in cells.rows(16)), encoding="utf-8")
    print("| command | on the clock | of a core | own memory |", "|---|---|---|---|", sep="\n", flush=True)
    for name, command in commands(options.model, work).items():
        clock, core, memory = measured([sys.executable, "-m", "tunesmith", *command], work / "log.txt")
        print(f"| {name} | {clock:.0f} s | {core:.0f} s | {memory / 2**30:.1f} GiB |", flush=True)


def commands(model: Path, work: Path) -> dict[str, list[str]]:
    """Arguments of each command by what it does."""
    rows = work / "rows.jsonl"
    given = {"model_name_or_path": model, "train_data": rows, "output_dir": work / "run"}
    given["bf16"] = str(cpu_multiplies_bfloat16()).lower()  # without units for it a step takes hours
    settings = [f"--{name}={value}" for name, value in (given | SETTINGS).items()]
    return {
        "check": ["check", *settings, "--max_steps=2"],
        "two steps and save": ["train", *settings, "--max_steps=2"],
        "resume and one step": ["train", *settings, "--max_steps=3", "--resume_from_checkpoint=true"],
        "merge with proof": ["merge", str(work / "run"), str(work / "merged"), f"--data={rows}"],
    }


def measured(command: list[str], log: Path) -> tuple[float, float, int]:
    """Seconds on the clock and of a core, and bytes of own memory, of a command and all that it starts.

    Raises:
        SystemExit: it fails; its last words are shown.
    """
    start, memory = time.monotonic(), 0
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            memory = max(memory, own_memory(process.pid))
            time.sleep(SECONDS)
    _, status, used = ended
    if status:
        words = log.read_text(encoding="utf-8").splitlines()[-8:]
        sys.exit("\n".join([f"error: {' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}", *words]))
    return time.monotonic() - start, used.ru_utime + used.ru_stime, memory


def own_memory(process: int) -> int:
    """Bytes of anonymous memory that a process and its children hold; 0 of one that is gone."""
    folder = Path("/proc") / str(process)
    try:
        found = re.search(r"^RssAnon:\s+(\d+) kB$", (folder / "status").read_text(encoding="ascii"), re.MULTILINE)
        children = (folder / "task" / str(process) / "children").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return (int(found[1]) * 1024 if found else 0) + sum(own_memory(int(child)) for child in children)


if __name__ == "__main__":
    main(sys.argv[1:])
