"""``python -m benchmarks``: every comparison in turn, as tables on standard output."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import (
    generation,
    gpu,
    layouts,
    load,
    peers,
    prepare,
    record,
    start,
    start_side,
    training,
    training_side,
)

IN_README = ("nli", "reasoning")
"""Works whose LoRA steps and first steps README shows; RESULTS.md has all."""
GROWTH = (1_000, 10_000, 100_000)
"""Rows of the files with which the comparison prepare shows that memory does not grow."""


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _training(options: argparse.Namespace, tokenizer: str) -> list[dict[str, Any]]:
    """The comparison of training steps, for each work that was asked for."""
    found = []
    everybody = [*training_side.SIDES, *(peers.installed() if options.method == "LoRA" else ())]
    sides = [options.side or everybody, options.side or [training.MARK, training.OURS, "Trainer"]]
    for work in options.work or ["synthetic"]:
        for together in (False, True) if options.together else (False,):
            _note(f"training steps: {work}{', rows that begin alike together' if together else ''}")
            result = training.compare(
                work, sides[-1] if together else sides[0], rounds=options.rounds, steps=options.steps,
                tokenizer=tokenizer, scale=options.scale, group_by_prefix=together, method=options.method,
                kept=options.earlier, write=_note,
            )  # fmt: skip
            found.append(result)
            print("Training steps", *training.table(result), "", sep="\n", flush=True)
            if options.publish:
                title = f"Training steps: {result['work']}"
                shown = work in IN_README and options.method == "LoRA"
                record.publish(title, [training.table(result)], training.how(result), result, in_readme=shown)
    return found


def _start(options: argparse.Namespace, tokenizer: str) -> list[dict[str, Any]]:
    """The comparison of first steps, for each work that was asked for."""
    found = []
    for work in options.work or ["synthetic"]:
        _note(f"first step: {work}")
        sides = [side for side in options.side or start_side.SIDES if side in start_side.SIDES]
        result = start.compare(
            work, sides, rounds=options.rounds, steps=options.steps, tokenizer=tokenizer, scale=options.scale,
            write=_note,
        )  # fmt: skip
        found.append(result)
        print("First step", *start.table(result), "", sep="\n", flush=True)
        if options.publish:
            title, shown = f"First step: {work}", work in IN_README
            record.publish(title, [start.table(result)], start.how(result), result, in_readme=shown)
    return found


def _prepare(options: argparse.Namespace, tokenizer: str) -> dict[str, Any]:
    """Preparation of rows against SFTTrainer's, and of files that grow."""
    _note("preparing rows")
    compared = prepare.compare(options.rows, options.rounds, tokenizer, _note)
    _note("preparing more and more rows")
    grown = prepare.growth(GROWTH, tokenizer)
    tables = [prepare.table(compared), prepare.table_of_growth(grown)]
    for lines in tables:
        print("Rows of a file to tokenised examples", *lines, "", sep="\n", flush=True)
    result = compared | {"growth": grown}
    if options.publish:
        record.publish("Preparation of rows", tables, prepare.HOW, result)
    return result


def _generation(options: argparse.Namespace, model: str) -> dict[str, Any]:
    """Answers to many prompts against one by one, without and with a beginning that all prompts share."""
    found, tables = {}, []
    for shared in (0, 150):
        _note(f"answers to 128 prompts, {shared} tokens shared")
        result = generation.compare(model, 128, shared, options.rounds, not shared, _note)
        found[f"generation_{shared}"] = result
        tables.append(generation.table(result))
        print("Answers to prompts of mixed length", *tables[-1], "", sep="\n", flush=True)
    if options.publish:
        record.publish("Answers to prompts", tables, generation.how(found["generation_0"], options.rounds), found)
    return found


def _gpu(options: argparse.Namespace) -> dict[str, Any]:
    """Steps of a model of real size on a GPU; asked for by name, since elsewhere it shows only that it runs."""
    result = gpu.compare(rounds=options.rounds, steps=options.steps, layers=options.layers, write=_note)
    print("Steps on a GPU", *gpu.table(result), "", sep="\n", flush=True)
    if options.publish:
        record.publish("Steps on a GPU", [gpu.table(result)], gpu.how(result), result)
    return result


def _zoo(options: argparse.Namespace) -> dict[str, Any]:
    """Every architecture in every way; asked for by name, since it takes its time."""
    import tempfile
    import time

    from benchmarks.zoo import apart, cells, models, table

    results: dict[str, Any] = table.read(options.earlier) if options.earlier else {}
    apart.warm()
    with tempfile.TemporaryDirectory() as home:
        for name in options.kind or [kind.name for kind in models.KINDS if kind.name not in results]:
            started = time.monotonic()
            results[name] = cells.run_kind(name, Path(home))
            states = ", ".join(f"{cell} {found.state}" for cell, found in results[name]["cells"].items())
            _note(f"{name}: {states} ({time.monotonic() - started:.0f} s)")
            if options.earlier:
                table.write(results, options.earlier)
    print(*table.lines(results), "", *table.sums(results), "", *table.refusals(results), sep="\n", flush=True)
    if options.publish:
        table.publish(results)
    return table.plain(results)


def main() -> None:
    """Run what was asked for, everything by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    comparisons = ("prepare", "large", "layouts", "generation", "load", "training", "start", "gpu", "zoo")
    parser.add_argument("what", nargs="*", choices=(*comparisons, []), help="comparisons to run (all)")
    parser.add_argument("--rows", type=int, default=30_000, help="rows that are prepared (30000)")
    parser.add_argument("--large", type=int, default=1_000_000, help="rows of the comparison large (1000000)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (3)")
    parser.add_argument("--millions", type=int, default=500, help="parameters of the comparison load (500)")
    parser.add_argument("--model", help="model folder of the comparison generation (nano-mistral)")
    parser.add_argument("--tokenizer", help="tokenizer folder (that of nano-mistral)")
    parser.add_argument(
        "--work", action="append", help=f"of training and start: {', '.join(training.WORKS)} (synthetic)"
    )
    parser.add_argument(
        "--side", action="append", choices=(*training_side.SIDES, *peers.PEERS), help="of training and start (all)"
    )
    parser.add_argument("--steps", type=int, default=6, help="of training, start and gpu: steps a turn (6)")
    parser.add_argument(
        "--scale", choices=tuple(training.SCALES), default="25M", help="of training and start: the model (25M)"
    )
    parser.add_argument(
        "--method", choices=tuple(training.METHODS), default="LoRA", help="of training: what is trained (LoRA)"
    )
    parser.add_argument("--layers", type=int, default=32, help="of gpu: layers of the model (32)")
    parser.add_argument("--together", action="store_true", help="of training: also with rows that begin alike together")
    parser.add_argument("--kind", action="append", help="of zoo: architectures, by their model_type (all)")
    parser.add_argument(
        "--earlier", type=Path, metavar="FILE", help="of zoo and training: keep results there, and go on"
    )
    parser.add_argument(
        "--publish", action="store_true", help="write what is published: RESULTS.md, README, docs/models.md"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument(
        "--install", action="append", choices=tuple(peers.PEERS),
        help="make an environment of its own for a peer, which is a side of training from then on; compares nothing",
    )  # fmt: skip
    options = parser.parse_args()
    if options.install:
        for name in options.install:
            peers.make(name, _note)
        return
    results: dict[str, Any] = {}
    from tunesmith.model.source import locate

    tokenizer = options.tokenizer or locate("nano-mistral", None)
    if not options.what or "prepare" in options.what:
        results["prepare"] = _prepare(options, tokenizer)
    if not options.what or "large" in options.what:
        _note("many rows")
        results["large"] = prepare.large(options.large, tokenizer)
        print("Many rows", *prepare.table_of_large(results["large"]), "", sep="\n", flush=True)
    if not options.what or "layouts" in options.what:
        _note("a packed row")
        results["layouts"] = layouts.compare([512] * 8, options.rounds, _note)
        print("Eight examples in one row", *layouts.table(results["layouts"]), "", sep="\n", flush=True)
    if not options.what or "generation" in options.what:
        results |= _generation(options, options.model or locate("nano-mistral", None))
    if not options.what or "load" in options.what:
        for dtype in ("float32", "bfloat16"):
            _note(f"a model that two processes load, file in {dtype}")
            results[f"load_{dtype}"] = load.compare(options.millions, dtype, load.STRATEGIES, _note)
            print("Memory while loading", *load.table(results[f"load_{dtype}"]), "", sep="\n", flush=True)
    if not options.what or "training" in options.what:
        results["training"] = _training(options, tokenizer)
    if not options.what or "start" in options.what:
        results["start"] = _start(options, tokenizer)
    if "gpu" in options.what:
        results["gpu"] = _gpu(options)
    if "zoo" in options.what:
        results["zoo"] = _zoo(options)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
