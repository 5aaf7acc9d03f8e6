"""The table of the zoo: which architectures can be trained in which way, and what is refused with which words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.zoo.cells import CELLS, Cell

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
_MARKS = {"ok": "yes", "refused": "refused", "crash": "CRASH"}
_INTRODUCTION = """# Architectures

Each row is a tiny model with random weights of that architecture, built from the installed transformers ({version}) and
run on a CPU as anybody's run is (`python -m benchmarks zoo --publish` writes this page). Adapters sit on `all-linear`.
`padded`, `unpadded` and `packed` are layouts of training batches, `4-bit` is QLoRA with NF4, `full` trains all weights,
`merge` is a merge that was proven, `generation` compares answers side by side, which end one after the other, with the
library's own `generate` one by one, and `reload` opens the adapter in plain PEFT. `reached` is the share of the weights
under an adapter. A dash is a run that was not made. Refusals are listed below the table, in the words that a user of
the first gets.
"""

LITTLE, WORTH_A_WORD = 0.8, 0.05
"""Share of the weights under an adapter below which it is explained, and share of a part that is worth a word."""

REASONS = {
    "would see each other": "Layers with a state (Mamba, linear attention, short convolutions) hand it on from "
    "token to token through the whole row. The kernels that begin anew with each example need a GPU, and where they "
    "are missing such rows would be trained wrong; padded batches are right. A few architectures (openai-gpt) make "
    "their mask by themselves and cannot be told where an example begins.",
    "takes no positions": "The model numbers the tokens of a row by itself, so it cannot be told where an example "
    "begins.",
    "cannot take several": "The model's own code fails on such a row.",
    "where the examples of a row begin": "The model's layers keep from their attention what is said of the row; where "
    "such rows are asked for, a dense mask does instead if it can.",
    "plain PEFT loses": "PEFT renames an adapter's tensors as the base's files are renamed, and on this architecture "
    "the pattern fits names of the model itself as well. tunesmith puts every tensor in its place, and a merged model "
    "has no adapter; saving such an adapter says so.",
    "than alone": "The model counts tokens from the beginning of the row, or its factors follow the row's length, so "
    "an example behind another one would be another example.",
}
"""Part of a refusal -> why it is right."""


def lines(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The table as Markdown."""
    head = ["architecture", *CELLS, "reached"]
    found = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, result in results.items():
        marks = [_mark(result["cells"].get(cell)) for cell in CELLS]
        found.append("| " + " | ".join([name, *marks, _reached(result["coverage"])]) + " |")
    return found


def sums(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What holds over the whole table, a line each."""
    cells = [cell for result in results.values() for cell in result["cells"].values()]
    rows = [row for result in results.values() for row in result["coverage"] or ()]
    trained = [r["cells"] for r in results.values() if "padded" in r["cells"] and r["cells"]["padded"].state == "ok"]
    merged = sum(cells["merge"].state == "ok" for cells in trained if "merge" in cells)
    silent = [f"{name} ({len(result['silent'])})" for name, result in results.items() if result.get("silent")]
    looked_at = sum(result.get("silent") is not None for result in results.values())
    routers = sum(row["adapted"] and row["part"] == "router" for row in rows)
    halves, without = _halves(results), _without_experts(results)
    return [
        f"- {len(results)} architectures, {len(cells)} runs: {_count(cells, 'ok')} done, {_count(cells, 'refused')} "
        f"refused, {_count(cells, 'crash')} crashed.",
        f"- {len(trained)} trained with adapters; {merged} of them merged with proof.",
        f"- Adapters that no gradient has reached, of {looked_at} architectures looked at: "
        f"{', '.join(silent) or 'none'}.",
        f"- Routers adapted without asking: {routers}.",
        f"- Models of which experts are reached and shared experts are not, or the other way round: "
        f"{', '.join(halves) or 'none'}.",
        f"- Models of which no expert is reached: {', '.join(without) or 'none'}.",
    ]


def refusals(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every kind of refusal and every crash: the runs that met it, the words of the first of them, and why."""
    met: dict[str, dict[str, list[str]]] = {}
    words: dict[str, str] = {}
    for name, result in results.items():
        for cell, outcome in result["cells"].items():
            if outcome.state != "ok":
                said = f"{_MARKS[outcome.state]}: {outcome.said}"
                kind = next((part for part in REASONS if part in said and outcome.state == "refused"), said)
                met.setdefault(kind, {}).setdefault(name, []).append(cell)
                words.setdefault(kind, said)
    found = []
    for kind, runs in sorted(met.items(), key=lambda one: -len(one[1])):
        cells = list(dict.fromkeys(cell for of_one in runs.values() for cell in of_one))
        found += [f"- {', '.join(runs)} ({', '.join(cells)}): {words[kind]}"]
        found += [f"  {REASONS[kind]}"] if kind in REASONS else []
    return found


def least_reached(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Architectures of which little is reached, and why the greatest parts of the rest are not."""
    found = []
    for name, result in results.items():
        rows = [row for row in result["coverage"] or () if not row["adapted"] and row["share"] >= WORTH_A_WORD]
        if rows and (reached := _share_reached(result["coverage"])) < LITTLE:
            left = ", ".join(f"{row['part']} {row['share']:.0%} ({row['reason']})" for row in rows)
            found.append(f"- {name}, {reached:.0%} reached: {left}")
    return found


def plain(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The results as JSON has them."""
    return {
        name: {**result, "cells": {cell: asdict(found) for cell, found in result["cells"].items()}}
        for name, result in results.items()
    }


def write(results: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Keep the results, so that another run can go on from them."""
    file.write_text(json.dumps(plain(results), indent=1) + "\n", encoding="utf-8")


def read(file: Path) -> dict[str, Any]:
    """What ``write`` kept; nothing where there is no such file."""
    if not file.is_file():
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for result in found.values():
        result["cells"] = {cell: Cell(**outcome) for cell, outcome in result["cells"].items()}
    return dict(sorted(found.items()))


def publish(results: Mapping[str, Mapping[str, Any]], page: Path = PAGE) -> None:
    """Write the page."""
    import transformers

    parts = [
        _INTRODUCTION.format(version=transformers.__version__), "\n".join(sums(results)), "\n".join(lines(results)),
        "## What is refused, and why", "\n".join(refusals(results)) or "Nothing.",
        "## Where little is reached, and why", "\n".join(least_reached(results)) or "Nowhere.",
    ]  # fmt: skip
    page.write_text("\n\n".join(part.strip() for part in parts if part) + "\n", encoding="utf-8")


def _mark(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return _MARKS[cell.state]


def _reached(coverage: Sequence[Mapping[str, Any]] | None) -> str:
    return f"{_share_reached(coverage):.0%}" if coverage else "-"


def _share_reached(coverage: Sequence[Mapping[str, Any]]) -> float:
    return sum(row["share"] for row in coverage if row["adapted"])


def _count(cells: Sequence[Cell], state: str) -> int:
    return sum(cell.state == state for cell in cells)


def _halves(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Models of which one kind of experts has adapters and the other has none."""
    found = []
    for name, result in results.items():
        reached = _experts(result)
        if len(set(reached.values())) > 1:
            found.append(name)
    return found


def _without_experts(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Models none of whose experts has an adapter, with the reason."""
    found = []
    for name, result in results.items():
        reached = _experts(result)
        if reached and not any(reached.values()):
            why = next(row["reason"] for row in result["coverage"] if row["part"] in reached)
            found.append(f"{name} ({why})")
    return found


def _experts(result: Mapping[str, Any]) -> dict[str, bool]:
    """Each kind of experts that a model has -> whether some of them have adapters."""
    reached: dict[str, bool] = {}
    for row in result["coverage"] or ():
        if row["part"] in ("experts", "shared_experts"):
            reached[row["part"]] = reached.get(row["part"], False) or row["adapted"]
    return reached
