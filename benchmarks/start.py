"""From the start of a command to the end of its first step: ``tunesmith train`` against a hand-written loop and TRL.

Every side is a process of its own with one thread and takes its turn, from the same model folder and the same file of
rows. What counts is processor time, that of the kernel and of child processes included; the clock is shown beside it.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.training import MARK, OURS, check_losses, prepare
from benchmarks.turns import Turn, alternating, take

FIGURES = ("first_cpu", "first_wall", "after_cpu", "after_wall", "whole_cpu")
IN_OUR_ORDER = (OURS, MARK)
"""Sides that train on the engine's batches; the others' losses are those of other rows."""


def compare(
    work: str,
    sides: Sequence[str],
    *,
    rounds: int,
    steps: int,
    tokenizer: str,
    scale: str = "25M",
    write: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Medians of all rounds: CPU-seconds and seconds up to the end of the first step, and after that of the last.

    Args:
        work: a name of ``WORKS``.
        sides: names of ``start_side.SIDES``.
        rounds: turns of each side.
        steps: optimizer steps of each turn.
        tokenizer: folder of the tokenizer.
        scale: size of the model, a name of ``SCALES``.
        write: told of each turn.

    Raises:
        SystemExit: the sides' losses differ, or a side ended with an error.
    """
    with tempfile.TemporaryDirectory() as name:
        job = prepare(Path(name), work, steps, tokenizer, scale, group_by_prefix=False)
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for _, side in alternating(sides, rounds):
            found[side].append(figures(take("benchmarks.start_side", job | {"side": side})))
            write(f"  {side}: first step after {found[side][-1]['first_cpu']:.1f} CPU-s")
        check_losses({side: turns for side, turns in found.items() if side in IN_OUR_ORDER})
    return {
        "work": work, "rounds": rounds, "steps": steps, "scale": scale, "batch_size": job["batch_size"],
        "sides": {side: summary(turns) for side, turns in found.items()},
    }  # fmt: skip


def figures(turn: Turn) -> dict[str, Any]:
    """Losses of a turn, and seconds up to its first step and after its last."""
    first, last = turn.result["first"], turn.result["last"]
    return {
        "losses": turn.result["losses"],
        "first_cpu": first["cpu"],
        "first_wall": first["at"] - turn.began,
        "after_cpu": turn.cpu - last["cpu"],
        "after_wall": turn.ended - last["at"],
        "whole_cpu": turn.cpu,
    }


def summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of a side's turns, and the least and the most of its first steps."""
    first = [turn["first_cpu"] for turn in turns]
    medians = {name: statistics.median(turn[name] for turn in turns) for name in FIGURES}
    return medians | {"least": min(first), "most": max(first)}


def table(result: dict[str, Any]) -> list[str]:
    """The figures of ``compare`` as lines of Markdown."""
    mark = result["sides"].get(MARK)
    lines = [
        f"| {result['work']} | first step after CPU-s (least - most) | against the mark | first step after s "
        f"| after the last step, CPU-s | s | whole command of {result['steps']} steps, CPU-s |",
        "|---|---|---|---|---|---|---|",
    ]
    for side, found in result["sides"].items():
        against = f"{found['first_cpu'] / mark['first_cpu']:.2f}x" if mark else ""
        lines.append(
            f"| {side} | {found['first_cpu']:.1f} ({found['least']:.1f} - {found['most']:.1f}) | {against} "
            f"| {found['first_wall']:.1f} | {found['after_cpu']:.1f} | {found['after_wall']:.1f} "
            f"| {found['whole_cpu']:.1f} |"
        )
    return lines


def how(result: dict[str, Any]) -> str:
    """What the figures are, in words."""
    return (
        f"From the start of a process to the end of its first step, and from the end of step {result['steps']} to that "
        f"of the process: Llama architecture of {result['scale']} parameters with random weights, LoRA r 16 on q, k, "
        f"v, o, float32, batches of {result['batch_size']}; {result['rounds']} turns, medians. Every side loads the "
        "tokenizer, reads and tokenises all rows and loads the model; the mark is the hand-written loop without "
        "padding, which checks, records and saves nothing. Losses of tunesmith and the mark are equal to 0.0001. "
        "In all rows of nli the end of the prompt and the answer would be merged by this tokenizer: tunesmith keeps "
        "them apart, so that inference feeds what was trained, and TRL does not. The rows are prepared anew in every "
        "turn; a second start would find them in tunesmith's cache, which is turned off here."
    )
