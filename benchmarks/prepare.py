"""Rows of a file to tokenised examples: ours and SFTTrainer's own preparation of the same file, taking turns.

Every trial is a process of its own with empty caches and one thread; the clock starts when libraries are imported and
the tokenizer is loaded. Both sides must arrive at the same number of tokens, with and without loss. It trains nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WORDS = "the a cat dog fox runs over lazy brown quick who what when number seven eight add two and then find".split()
OURS, THEIRS, STREAM = "tunesmith", "SFTTrainer", "stream"


def write_rows(path: Path, number: int) -> None:
    """Short prompt and completion rows, no two alike; the same file for the same number."""
    generator = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for index in range(number):
            prompt = f"Question {index}: " + " ".join(generator.choices(WORDS, k=generator.randint(4, 12))) + "?"
            completion = " " + " ".join(generator.choices(WORDS, k=generator.randint(2, 8)))
            file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")


def trial(side: str, rows: Path, tokenizer: str, cache: Path | None = None) -> dict[str, float]:
    """One preparation in a fresh process: seconds, processor seconds, peak memory, tokens."""
    with tempfile.TemporaryDirectory() as empty:
        environment = os.environ | {
            "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1", "TUNESMITH_CACHE": str(cache or empty), "HF_DATASETS_CACHE": empty,
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.prepare", "--side", side, "--file", str(rows)]
        result = subprocess.run(
            [*command, "--tokenizer", tokenizer], env=environment, capture_output=True, text=True, check=False
        )
    if result.returncode:
        raise SystemExit(f"{side} failed:\n{result.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures


def compare(number: int, rounds: int, tokenizer: str, write: Callable[[str], None]) -> dict[str, Any]:
    """Both sides in turn, ``rounds`` times; medians of rows per second and of peak memory."""
    figures: dict[str, list[dict[str, float]]] = {OURS: [], THEIRS: []}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        write_rows(rows, number)
        for count in range(rounds):
            for side in (OURS, THEIRS) if count % 2 == 0 else (THEIRS, OURS):
                figures[side].append(trial(side, rows, tokenizer))
                write(f"  {side}: {number / figures[side][-1]['seconds']:,.0f} rows/s")
    counted = {side: [(entry["tokens"], entry["trained"]) for entry in entries] for side, entries in figures.items()}
    if len({pair for pairs in counted.values() for pair in pairs}) != 1:
        raise SystemExit(f"the two sides made different tokens: {counted}")
    result: dict[str, Any] = {"rows": number, "rounds": rounds, "tokens": counted[OURS][0][0]}
    for side, entries in figures.items():
        wall = [number / entry["seconds"] for entry in entries]
        result[side] = {
            "rows_per_second": statistics.median(wall),
            "spread": [min(wall), max(wall)],
            "rows_per_cpu_second": statistics.median(number / entry["cpu_seconds"] for entry in entries),
            "peak_mib": statistics.median(entry["peak_mib"] for entry in entries),
        }
    for name in ("rows_per_second", "rows_per_cpu_second"):
        result[f"ratio_{name}"] = result[OURS][name] / result[THEIRS][name]
    return result


def table(result: dict[str, Any]) -> list[str]:
    """The figures of ``compare`` as lines of Markdown."""
    lines = [
        f"| {result['rows']:,} rows, {result['tokens']:,} tokens | rows/s (least - most) | rows/CPU-s | peak MiB |",
        "|---|---|---|---|",
    ]
    for side in (OURS, THEIRS):
        entry = result[side]
        spread = "{:,.0f} - {:,.0f}".format(*entry["spread"])
        lines.append(
            f"| {side} | {entry['rows_per_second']:,.0f} ({spread}) | {entry['rows_per_cpu_second']:,.0f} "
            f"| {entry['peak_mib']:,.0f} |"
        )
    ratios = f"{result['ratio_rows_per_second']:.2f}x | {result['ratio_rows_per_cpu_second']:.2f}x"
    return [*lines, f"| {OURS} is faster | {ratios} | |"]


def growth(numbers: Sequence[int], tokenizer: str) -> dict[str, Any]:
    """The same work for files that grow: what a run prepares and keeps, then takes from where it is kept."""
    found = {}
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            rows, cache = Path(folder) / "rows.jsonl", Path(folder) / "cache"
            write_rows(rows, number)
            found[str(number)] = {name: trial(OURS, rows, tokenizer, cache) for name in ("made", "taken")}
    return found


def table_of_growth(result: dict[str, Any]) -> list[str]:
    """The figures of ``growth`` as lines of Markdown."""
    lines = [
        "| rows | made: s | CPU-s | peak MiB | taken from where they are kept: s | CPU-s | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, entry in result.items():
        cells = [
            f"{entry[name][figure]:,.{digits}f}"
            for name in ("made", "taken")
            for figure, digits in (("seconds", 2), ("cpu_seconds", 2), ("peak_mib", 0))
        ]
        lines.append(f"| {int(number):,} | {' | '.join(cells)} |")
    return lines


HOW = (
    "A file of short prompt and completion rows to tokenised examples, without training: ours and SFTTrainer's own "
    "preparation in turn, in processes of their own with empty caches; libraries and tokenizer are loaded before the "
    "clock starts, and both sides arrive at the same tokens. Peaks are those of the whole process, of which libraries "
    "take most."
)
"""What the figures are."""


def large(number: int, tokenizer: str) -> dict[str, Any]:
    """Many rows: made and kept, taken from where they are kept, and streamed up to the first batch."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        write_rows(rows, number)
        cache = Path(folder) / "cache"
        names = (("made and kept", OURS), ("taken from disk", OURS), ("streamed, first batch", STREAM))
        return {"rows": number} | {name: trial(side, rows, tokenizer, cache) for name, side in names}


def table_of_large(result: dict[str, Any]) -> list[str]:
    """The figures of ``large`` as lines."""
    lines = [f"{'':24}{'seconds':>9}{'CPU-s':>9}{'peak MiB':>10}"]
    for name, entry in result.items():
        if name != "rows":
            lines.append(f"{name:24}{entry['seconds']:>9.1f}{entry['cpu_seconds']:>9.1f}{entry['peak_mib']:>10,.0f}")
    return [*lines, f"{result['rows']:,} rows"]


# In the process of a trial


def _stream(rows: Path, name: str) -> Callable[[], tuple[int, int]]:
    from tunesmith.config.resolve import from_values
    from tunesmith.data.collate import Collator
    from tunesmith.model.tokenizer import load_tokenizer
    from tunesmith.train.dataset import training_rows
    from tunesmith.train.prepare import prepare_stream

    values = {"model.model_name_or_path": name, "data.train_data": str(rows), "data.streaming": True}
    resolved = from_values(values | {"training.max_steps": 1000})
    tokenizer = load_tokenizer(resolved.config.model)

    def prepare() -> tuple[int, int]:
        stream = training_rows(prepare_stream(resolved, tokenizer, 8000).train, resolved, 1)
        batch = Collator("padded", 0)([stream[index] for index in range(8)])
        return int(batch["attention_mask"].sum()), int((batch["labels"] != -100).sum())

    return prepare


def _ours(rows: Path, name: str) -> Callable[[], tuple[int, int]]:
    import datasets  # training imports it; here both sides do so before the clock starts  # noqa: F401

    from tunesmith.config.resolve import from_values
    from tunesmith.model.tokenizer import load_tokenizer
    from tunesmith.train.prepare import prepare_data

    resolved = from_values({"model.model_name_or_path": name, "data.train_data": str(rows)})
    tokenizer = load_tokenizer(resolved.config.model)

    def prepare() -> tuple[int, int]:
        total = prepare_data(resolved, tokenizer).train_ledger.total()
        return total.tokens, total.trained_tokens

    return prepare


def _theirs(rows: Path, name: str) -> Callable[[], tuple[int, int]]:
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.eos_token
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tokenizer)))
    folder = tempfile.mkdtemp()
    arguments = SFTConfig(output_dir=folder, use_cpu=True, report_to="none", max_length=1024)

    def prepare() -> tuple[int, int]:
        data = load_dataset("json", data_files=str(rows), split="train")
        trainer = SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer)
        nonlocal made
        made = trainer.train_dataset
        return 0, 0

    made: Any = None

    def counted() -> tuple[int, int]:
        import pyarrow.compute as pc

        columns = made.data.table
        trained = pc.sum(pc.not_equal(pc.list_flatten(columns["labels"]), -100)).as_py()
        return pc.sum(pc.list_value_length(columns["input_ids"])).as_py(), trained

    prepare.counted = counted  # type: ignore[attr-defined]
    return prepare


def _measure(side: str, rows: Path, name: str) -> dict[str, float]:
    import torch

    from tunesmith.model.memory.peak import peak_memory

    prepare = {OURS: _ours, THEIRS: _theirs, STREAM: _stream}[side](rows, name)
    wall, cpu = time.perf_counter(), time.process_time()
    tokens, trained = prepare()
    figures = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    figures["peak_mib"] = peak_memory(torch.device("cpu")) / 2**20
    if side == THEIRS:
        tokens, trained = prepare.counted()  # type: ignore[attr-defined]
    return figures | {"tokens": tokens, "trained": trained}


def main() -> None:
    """One trial, for ``trial``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=(OURS, THEIRS, STREAM), required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--tokenizer", required=True)
    options = parser.parse_args()
    print(json.dumps(_measure(options.side, options.file, options.tokenizer)))


if __name__ == "__main__":
    main()
