"""``make demo``: data from the embedded world, QLoRA fine-tuning of nano-mistral, evaluation before and after.

Runs the same commands that a user types, in one process, and ends with a table and the path of the run.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path

# so small a model gains nothing from a second thread, and loses much when another program wants the core
os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console
from rich.table import Table

from tunesmith.cli.main import main

ROOT = Path(__file__).parents[1]
DEMO = Path("demo")
CONFIG = "recipes/nli_cot/train/configs/demo.py"
HELD_OUT = f"{DEMO}/data/heldout.jsonl"


def command(line: str) -> None:
    """Show a command and run it; stop the demo when it fails."""
    print(f"\n$ tunesmith {line}", flush=True)
    code = main(shlex.split(line))
    if code:
        sys.exit(code)


def figures(folder: str) -> dict[str, float]:
    """The metrics that an evaluation wrote."""
    metrics: dict[str, float] = json.loads((DEMO / folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def run() -> None:
    began = time.monotonic()
    command(f"data make nli {DEMO}/data --overwrite")
    command(f"evaluate --config {CONFIG} --data {HELD_OUT} --output {DEMO}/before")
    command(f"train {CONFIG} --overwrite_output_dir")
    command(f"evaluate {DEMO}/run --data {HELD_OUT} --output {DEMO}/after")
    before, after = figures("before"), figures("after")
    table = Table(title=f"nano-mistral, {after['num_examples']} held-out rows", title_justify="left")
    for column in ("", "before", "after"):
        table.add_column(column, justify="left" if not column else "right")
    for name, words in [("accuracy", "label accuracy"), ("macro_f1", "macro F1"), ("parse_failure_rate", "unreadable")]:
        table.add_row(words, f"{before[name]:.3f}", f"{after[name]:.3f}")
    table.add_row("majority class", f"{before['majority_share']:.3f}", f"{after['majority_share']:.3f}")
    console = Console(highlight=False)
    console.print()
    console.print(table)
    console.print(f"run: {DEMO / 'run'}   predictions: {DEMO / 'after' / 'predictions.jsonl'}")
    console.print(f"took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    run()
