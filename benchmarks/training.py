"""Steps of LoRA training: tunesmith against hand-written loops, transformers' Trainer and TRL, on the same batches.

Every side trains in a process of its own with one thread, in turn, and the losses of all sides must agree before any
time is compared. What is measured is processor time between optimizer steps (the machine may have other work) and the
most memory; how long the first step takes to come is another comparison (``start``), in which all sides read the rows.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.training_side import LORA, adapted, settings
from benchmarks.turns import alternating, take
from benchmarks.works import WORKS

MARK, OURS = "loop unpadded", "tunesmith"
LOSSES_AGREE = 1e-4
METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "QLoRA": {
        "load_in_4bit": True,
        "settings": {
            "quantization.load_in_4bit": True, "quantization.bnb_4bit_quant_type": "nf4",
            "quantization.bnb_4bit_use_double_quant": True,
        },
    },
    "full": {"full": True, "settings": {"adapter.use_lora": False}},
}  # fmt: skip
"""What is trained -> what a job says of it."""
TRAINED = {
    "LoRA": "LoRA r 16 on q, k, v, o",
    "QLoRA": "LoRA r 16 on q, k, v, o over NF4 with double quantization",
    "full": "all weights trained",
}
"""The same in words."""
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
    method: str = "LoRA",
    kept: Path | None = None,
    write: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Medians over all steps but the first, of all rounds.

    Args:
        work: a name of ``WORKS``.
        sides: names of ``SIDES`` and ``PEERS``; the first one's losses are what the others must have.
        rounds: turns of each side.
        steps: optimizer steps of each turn; the first is not counted.
        tokenizer: folder of the tokenizer.
        scale: size of the model, a name of ``SCALES``.
        group_by_prefix: whether rows that begin alike are kept in one batch, for all sides.
        method: a name of ``METHODS``.
        kept: file to which each turn is added when it has ended; turns that are in it are not taken again.
        write: told of each turn.

    Raises:
        SystemExit: the sides' losses differ, a side ended with an error, or a peer is not installed or cannot take
            part.
    """
    from tunesmith.data.collate import sharing

    theirs = [side for side in sides if side in peers.PEERS]
    if theirs and method != "LoRA":
        raise SystemExit(f"{', '.join(theirs)}: compared with LoRA alone")
    for side in theirs:
        peers.python_of(side)  # which says what is missing
    with tempfile.TemporaryDirectory() as name:
        job = prepare(Path(name), work, steps, tokenizer, scale, group_by_prefix=group_by_prefix, method=method)
        if theirs:
            job |= {"adapter": _draw_adapter(job), "lora": LORA}
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for number, side in alternating(sides, rounds):
            key = f"{work} {scale} {steps} {group_by_prefix} {method} {number} {side}"
            found[side].append(_kept_or_run(kept, key, job | {"side": side}))
            write(f"  {side}: {statistics.median(found[side][-1]['seconds']):.2f} CPU-s a step")
        check_losses(found)
        found_shared = [sharing(batch) for batch in job["batches"]]
        tokens, computed = (sum(counts) for counts in zip(*found_shared, strict=True))
    return {
        "work": work + (", rows that begin alike together" if group_by_prefix else "")
        + (f", {method}" if method != "LoRA" else "") + (f", beside {' and '.join(theirs)}" if theirs else ""),
        "method": method, "steps": steps,
        "rounds": rounds, "scale": scale, "tokens_a_step": tokens / steps, "computed": computed / tokens,
        "batch_size": job["batch_size"],
        "sides": {side: summary(turns) for side, turns in found.items()},
    }  # fmt: skip


def _kept_or_run(kept: Path | None, key: str, job: dict[str, Any]) -> dict[str, Any]:
    """A turn, from the file of those that have ended if it is there."""
    if kept is not None and kept.exists():
        for line in kept.read_text(encoding="utf-8").splitlines():
            earlier: dict[str, Any] = json.loads(line)
            if earlier["key"] == key:
                return earlier
    result = run(job)
    if kept is not None:
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result | {"key": key}) + "\n")
    return result


def summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of a side's turns, and the least and the most of them."""
    by_turn = [statistics.median(turn["seconds"]) for turn in turns]
    peak = statistics.median(turn["peak"] for turn in turns)
    return {"seconds": statistics.median(by_turn), "least": min(by_turn), "most": max(by_turn), "peak": peak}


def prepare(
    folder: Path,
    work: str,
    steps: int,
    tokenizer: str,
    scale: str,
    *,
    group_by_prefix: bool = False,
    method: str = "LoRA",
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
        "max_length": 2048 if work == "long" else 512,
    } | METHODS[method]  # fmt: skip
    return job | {"batches": batches_of(job)}


def _draw_adapter(job: dict[str, Any]) -> str:
    """The adapter that all sides draw, for those that cannot draw it alike: its folder."""
    folder = Path(job["folder"]) / "adapter"
    adapted(job).save_pretrained(folder)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": job["model"], "bias": "none"}
    # no more than this, for peers have older versions of PEFT
    (folder / "adapter_config.json").write_text(json.dumps(config | LORA), encoding="utf-8")
    return str(folder)


def batches_of(job: dict[str, Any]) -> list[list[dict[str, Any]]]:
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
    side = job["side"]
    module = "benchmarks.peer_side" if side in peers.PEERS else "benchmarks.training_side"
    return take(module, job, peers.python_of(side)).result


def check_losses(found: dict[str, list[dict[str, Any]]], agree: float = LOSSES_AGREE) -> None:
    """Refuse to compare sides that have not trained the same.

    Raises:
        SystemExit: a loss differs by more than ``agree``, relatively.
    """
    first = next(iter(found.values()))[0]["losses"]
    for side, turns in found.items():
        for turn in turns:
            apart = max(abs(one - other) / abs(other) for one, other in zip(turn["losses"], first, strict=True))
            if apart > agree:
                raise SystemExit(f"{side} has other losses (apart by {apart:.1e}): {turn['losses']} against {first}")


def table(result: dict[str, Any]) -> list[str]:
    """The figures of ``compare`` as lines of Markdown."""
    mark, ours = result["sides"].get(MARK), result["sides"].get(OURS)
    title = f"| {result['work']}, {result['tokens_a_step']:,.0f} tokens a step"
    if result.get("computed", 1.0) < 1.0:
        title += f", {result['computed']:.0%} of them computed where beginnings are shared"
    lines = [
        f"{title} | CPU-s a step (least - most) | against the mark | {OURS} is faster | peak GiB |",
        "|---|---|---|---|---|",
    ]
    for side, found in result["sides"].items():
        against = f"{mark['seconds'] / found['seconds']:.2f}x" if mark else ""
        faster = f"{found['seconds'] / ours['seconds']:.2f}x" if ours and side != OURS else ""
        lines.append(
            f"| {side} | {found['seconds']:.2f} ({found['least']:.2f} - {found['most']:.2f}) | {against} | {faster} "
            f"| {found['peak'] / 2**30:.2f} |"
        )
    return lines


def how(result: dict[str, Any]) -> str:
    """What the figures are, in words."""
    return (
        f"Llama architecture of {result['scale']} parameters with random weights, {TRAINED[result['method']]}, "
        f"float32, batches of {result['batch_size']}; {result['rounds']} turns of {result['steps']} steps each in "
        "processes of their own, medians of the steps after the first; losses of all sides equal to "
        f"{LOSSES_AGREE:g}. The mark is the hand-written loop without padding (`benchmarks/loops.py`). Peaks are those "
        "of whole processes; tunesmith's includes writing the finished run, which the others do not do."
    ) + peers.versions(result["sides"])
