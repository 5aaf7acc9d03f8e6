"""Steps of LoRA training: tunesmith against hand-written loops, transformers' Trainer and TRL, on the same batches.

Every side trains in a process of its own with one thread, in turn, and the losses of all sides must agree before any
time is compared. What is measured is processor time between optimizer steps (the machine may have other work), the time
to the first step from the start of the process, and the most memory.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.training_side import settings
from benchmarks.works import WORKS

MARK = "loop unpadded"
LOSSES_AGREE = 1e-4
RESULTS = Path(__file__).with_name("RESULTS.md")
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- training: begin -->", "<!-- training: end -->"
SCALES: dict[str, dict[str, int]] = {
    "25M": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6},
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
}


def compare(
    work: str,
    sides: Sequence[str],
    *,
    rounds: int,
    steps: int,
    tokenizer: str,
    scale: str = "25M",
    group_by_prefix: bool = False,
    write: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Medians over all steps but the first, of all rounds.

    Args:
        work: a name of ``WORKS``.
        sides: names of ``SIDES``; the first one's losses are what the others must have.
        rounds: turns of each side.
        steps: optimizer steps of each turn; the first is not counted.
        tokenizer: folder of the tokenizer.
        scale: size of the model, a name of ``SCALES``.
        group_by_prefix: whether rows that begin alike are kept in one batch, for all sides.
        write: told of each turn.

    Raises:
        SystemExit: the sides' losses differ, or a side ended with an error.
    """
    from tunesmith.data.collate import sharing

    with tempfile.TemporaryDirectory() as name:
        job = prepare(Path(name), work, steps, tokenizer, scale, group_by_prefix=group_by_prefix)
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for turn in range(rounds):
            for side in sides if turn % 2 == 0 else list(sides)[::-1]:
                found[side].append(run(job | {"side": side}))
                write(f"  {side}: {statistics.median(found[side][-1]['seconds']):.2f} CPU-s a step")
        check_losses(found)
        found_shared = [sharing(batch) for batch in job["batches"]]
        tokens, computed = (sum(counts) for counts in zip(*found_shared, strict=True))
    return {
        "work": work + (", rows that begin alike together" if group_by_prefix else ""), "steps": steps,
        "rounds": rounds, "scale": scale, "tokens_a_step": tokens / steps, "computed": computed / tokens,
        "batch_size": job["batch_size"],
        "sides": {side: summary(turns) for side, turns in found.items()},
    }  # fmt: skip


def summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of a side's turns, and the least and the most of them."""
    by_turn = [statistics.median(turn["seconds"]) for turn in turns]
    whole = {name: statistics.median(turn[name] for turn in turns) for name in ("first_cpu", "whole_cpu", "peak")}
    return {"seconds": statistics.median(by_turn), "least": min(by_turn), "most": max(by_turn), **whole}


def prepare(
    folder: Path, work: str, steps: int, tokenizer: str, scale: str, *, group_by_prefix: bool
) -> dict[str, Any]:
    """Model, rows, and the batches that tunesmith draws of them, which all sides train on."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokens = AutoTokenizer.from_pretrained(tokenizer)
    torch.manual_seed(0)
    config = LlamaConfig(
        **SCALES[scale], num_key_value_heads=2, vocab_size=len(tokens), max_position_embeddings=2048,
        bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokens.pad_token = tokens.pad_token or tokens.eos_token
    tokens.save_pretrained(folder / "model")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in WORKS[work]()), encoding="utf-8")
    job: dict[str, Any] = {
        "folder": str(folder), "model": str(folder / "model"), "rows": str(rows), "steps": steps, "seed": 7,
        "batch_size": 8 if scale != "tiny" else 4, "group_by_prefix": group_by_prefix,
    }  # fmt: skip
    return job | {"batches": _batches(job)}


def _batches(job: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The first batches of the engine's own order, as tokens and labels."""
    from tunesmith.config.resolve import from_values
    from tunesmith.data.families import families
    from tunesmith.train.order import batches
    from tunesmith.train.processes import Processes
    from tunesmith.train.setup import set_up

    resolved = from_values(settings(job))
    examples: Any = set_up(resolved, Processes(), only=["data"]).data.train
    related = families(examples, job["batch_size"]) if job["group_by_prefix"] else None
    lengths = [len(example.input_ids) for example in examples]
    chosen = batches(resolved, lengths, related=related)[: job["steps"]]
    if len(chosen) < job["steps"] or any(len(batch) < job["batch_size"] for batch in chosen):
        raise SystemExit("there are too few rows for so many steps")
    return [
        [{"input_ids": list(examples[at].input_ids), "labels": list(examples[at].labels)} for at in batch]
        for batch in chosen
    ]


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One turn of a side.

    Raises:
        SystemExit: it ended with an error.
    """
    given, measured = Path(job["folder"], "job.json"), Path(job["folder"], "result.json")
    given.write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.training_side", str(given), str(measured)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{job['side']} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(measured.read_text(encoding="utf-8"))
    return result


def check_losses(found: dict[str, list[dict[str, Any]]]) -> None:
    """Refuse to compare sides that have not trained the same.

    Raises:
        SystemExit: a loss differs by more than LOSSES_AGREE, relatively.
    """
    first = next(iter(found.values()))[0]["losses"]
    for side, turns in found.items():
        for turn in turns:
            apart = max(abs(one - other) / abs(other) for one, other in zip(turn["losses"], first, strict=True))
            if apart > LOSSES_AGREE:
                raise SystemExit(f"{side} has other losses (apart by {apart:.1e}): {turn['losses']} against {first}")


def table(result: dict[str, Any]) -> list[str]:
    """The figures of ``compare`` as lines of Markdown."""
    mark = result["sides"].get(MARK)
    title = f"| {result['work']}, {result['tokens_a_step']:,.0f} tokens a step"
    if result.get("computed", 1.0) < 1.0:
        title += f", {result['computed']:.0%} of them computed where beginnings are shared"
    lines = [
        f"{title} | CPU-s a step (least - most) | to the mark | first step, CPU-s | peak GiB |",
        "|---|---|---|---|---|",
    ]
    for side, found in result["sides"].items():
        ratio = f"{mark['seconds'] / found['seconds']:.2f}x" if mark else ""
        lines.append(
            f"| {side} | {found['seconds']:.2f} ({found['least']:.2f} - {found['most']:.2f}) | {ratio} "
            f"| {found['first_cpu']:.1f} | {found['peak'] / 2**30:.2f} |"
        )
    return lines


def conditions(results: Sequence[dict[str, Any]]) -> str:
    """On what, with what and how the figures were measured."""
    names = ("torch", "transformers", "peft", "trl")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    first = results[0]
    return (
        f"Llama architecture of {first['scale']} parameters with random weights, LoRA r 16 on q, k, v, o, float32, "
        f"batches of {first['batch_size']}, one thread of {platform.machine()} ({_processor()}); {first['rounds']} "
        f"turns of {first['steps']} steps each in processes of their own, medians of the steps after the first; losses "
        f"of all sides equal to {LOSSES_AGREE:g}. The mark is the hand-written loop without padding "
        "(`benchmarks/loops.py`). "
        f"Python {platform.python_version()}, {versions}."
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def publish(results: Sequence[dict[str, Any]]) -> None:
    """Write RESULTS.md, and the same tables between the marks of the README."""
    tables = "\n\n".join("\n".join(table(result)) for result in results)
    text = f"{conditions(results)}\n\n{tables}\n"
    RESULTS.write_text(
        f"# Training steps\n\nWritten by `python -m benchmarks training --publish`.\n\n{text}", encoding="utf-8"
    )
    page = README.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if begin and end:
        README.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", encoding="utf-8")
