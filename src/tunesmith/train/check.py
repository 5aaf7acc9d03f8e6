"""Everything short of training: each step of a run up to its weights, with what goes wrong collected on the way.

The steps are those of ``setup.py``. No weights are loaded, and nothing is left in the run folder.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import get_scheduler

from tunesmith.config.resolve import Resolved
from tunesmith.data.batching import BatchRows
from tunesmith.data.collate import Collator, sharing
from tunesmith.data.masking import IGNORE_INDEX
from tunesmith.data.stream import ExampleStream
from tunesmith.errors import DataError, ModelError, StorageError, TunesmithError
from tunesmith.model import memory
from tunesmith.model.attention import choose_attention
from tunesmith.model.device import Machine, check_count, seen
from tunesmith.model.fresh import coverage_of
from tunesmith.model.layout import Layout, expected_layout
from tunesmith.model.memory import GIB, BatchShape, HostMemory, Memory
from tunesmith.model.precision import tell_of_slow_bfloat16
from tunesmith.model.quantize import is_quantized
from tunesmith.model.spread import loads_in_pieces
from tunesmith.model.tokenizer import check_vocabulary
from tunesmith.train.arguments import eval_interval
from tunesmith.train.optimization import check_optimization, make_arguments
from tunesmith.train.order import batches
from tunesmith.train.plan import Plan
from tunesmith.train.processes import Processes, running
from tunesmith.train.setup import Problems, Setup, set_up
from tunesmith.train.start import nothing_left

MOST_STEPS = 20_000
"""Steps for which the learning rate is computed one after the other; longer schedules are shown by their peak alone."""

SHARING_BATCHES = 100
"""Batches of which is counted how much they share."""

T = TypeVar("T")


@dataclass(slots=True)
class Report:
    """What a check found; a part is None where what comes before it went wrong."""

    problems: Problems = field(default_factory=Problems)
    ledger: dict[str, Any] | None = None
    ledger_lines: list[str] = field(default_factory=list)
    template: list[str] = field(default_factory=list)
    coverage: list[dict[str, Any]] | None = None
    layout: dict[str, Any] | None = None
    steps: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None

    @property
    def exit_code(self) -> int:
        """What training would have ended with: the first problem's."""
        return self.problems[0].exit_code if self.problems else 0

    def attempt(self, action: Callable[[], T]) -> T | None:
        """The result of ``action``, or None and one more problem."""
        return self.problems.attempt(action)


def check(
    resolved: Resolved,
    gpu: str | None = None,
    processes: Processes | None = None,
    known: Iterable[TunesmithError] = (),
) -> Report:
    """Check a run.

    Args:
        resolved: the checked configuration.
        gpu: devices to plan for (``24GB``), which need not be here, one for each process; None plans for this machine.
        processes: who would share the run; None for whoever shares this process's.
        known: problems that were met already.

    Raises:
        ConfigError: ``gpu`` names nothing known.
    """
    processes = processes or running()
    machine = machine_of(resolved, gpu, processes) if gpu is not None else None
    report = Report(Problems(known))
    if gpu is None and processes != running():
        report.attempt(lambda: check_count(processes.per_machine, seen(count_only=True)))
    with nothing_left(Path(resolved.config.training.output_dir)):
        setup = set_up(resolved, processes, machine=machine, problems=report.problems)
    if setup.has("data"):
        _describe_data(report, setup)
    if setup.has("plan"):
        report.steps = report.attempt(lambda: _steps(resolved, setup.plan)) if _optimizes(report, setup, gpu) else None
    if gpu is None and setup.has("precision"):
        report.attempt(lambda: choose_attention(resolved, setup.precision, setup.device))
    layout = report.attempt(lambda: expected_layout(resolved))
    if layout is not None:
        report.layout = {"batching": layout.batching, "reason": layout.reason} | _sharing(setup, layout)
    if setup.has("precision") and layout is not None:
        if resolved.config.adapter.use_lora and resolved.config.model.model_class is None:
            report.coverage = report.attempt(lambda: coverage_of(memory.skeleton(resolved, setup.precision)))
        _check_memory(report, setup, layout, elsewhere=gpu is not None)
    return report


def _optimizes(report: Report, setup: Setup, gpu: str | None) -> bool:
    """Whether this run's optimizer and schedule can be made; where the device is elsewhere, only the schedule."""
    if not setup.has("arguments"):
        return setup.has("plan")
    keywords = dict(setup.arguments)
    if gpu is not None:  # what the device there can do is not known here
        keywords |= {"bf16": False, "fp16": False, "tf32": None, "use_cpu": True}
    problems = len(report.problems)
    arguments = report.attempt(lambda: make_arguments(setup.resolved, keywords))
    if arguments is not None:
        report.attempt(lambda: check_optimization(setup.resolved, arguments, setup.device, setup.plan))
    return len(report.problems) == problems


def machine_of(resolved: Resolved, gpu: str, processes: Processes) -> Machine:
    """A machine that has a device of this size or name for each of its processes, and the one that the settings choose.

    Raises:
        ConfigError: neither a size nor a known model.
    """
    _, _, index = resolved.config.model.device_map.partition(":")
    chosen = max(int(index) if index.isdigit() else 0, resolved.config.launch.gpu_id or 0)
    count = max(processes.per_machine, chosen + 1)
    return Machine(count, True, (memory.device_memory(gpu),) * count, (gpu,) * count)


# data -----------------------------------------------------------------------------------------------------------------


def _describe_data(report: Report, setup: Setup) -> None:
    data = setup.data
    evaluation = data.eval_ledger.to_dict() if data.eval_rows else None
    report.ledger = {"training": data.train_ledger.to_dict(), "evaluation": evaluation}
    if isinstance(data.train, ExampleStream):
        report.ledger_lines = ["the data is streamed: rows are counted while training reaches them"]
    else:
        report.ledger_lines = data.train_ledger.table()
    if data.eval_rows:
        report.ledger_lines += ["evaluation:", *data.eval_ledger.table()]
    report.template = report.attempt(lambda: _template(setup)) or []


def _template(setup: Setup) -> list[str]:
    """What holds of the first row's template.

    Raises:
        DataError: inference would feed another prompt than training saw.
    """
    tokenizer, data = setup.tokenizer, setup.data
    row = data.first_row
    example = data.builder.example(row)
    lines = [f"{row.where}: read as {data.builder.format_of(row)}"]
    if example is None:
        return [*lines, "it is dropped"]
    prompt = data.builder.prompt(row).input_ids
    begins = example.input_ids[: len(prompt)] == prompt
    goes_on = prompt[: example.num_prompt_tokens] == example.input_ids[: example.num_prompt_tokens]
    if example.cut is None and not begins and not (goes_on and len(prompt) > len(example.input_ids)):
        raise DataError("the prompt of inference is not the beginning of the training row", where=row.where)
    last = example.input_ids[-1]
    num_begins = sum(number == tokenizer.bos_token_id for number in example.input_ids[:2])
    stops = data.builder.stop_token_ids(row)
    said = "is the beginning of" if begins else "asks on after"
    lines.append(f"the prompt of inference ({len(prompt)} tokens) {said} the training row")
    lines.append(
        f"begin tokens: {num_begins}; {example.num_trained_tokens} of {len(example.input_ids)} tokens are trained"
    )
    trained = example.labels[-1] == last
    ends = f"ends with {tokenizer.convert_ids_to_tokens(last)!r}, {'trained' if trained else 'not trained'}"
    lines.append(ends + ("" if last in stops else "; generation does not stop there"))
    return lines


def _largest_batch(setup: Setup, layout: Layout) -> BatchShape:
    """The batch of the longest rows; without data, rows of ``max_length`` of which every token is trained."""
    training, longest = setup.resolved.config.training, setup.resolved.config.data.max_length
    size = training.per_device_train_batch_size
    if not setup.has("data") or isinstance(setup.data.train, ExampleStream):
        rows = size if layout.batching in ("padded", "length_grouped") else 1
        return BatchShape(rows, longest * size // rows, longest * size // rows)
    rows_of_batches = BatchRows(setup.data.train, layout.batching, longest)
    order = sorted(range(len(rows_of_batches)), key=lambda index: -rows_of_batches.lengths[index])[:size]
    # what rows share is counted for nothing: the longest ones need not be together
    batching = "unpadded" if layout.batching == "prefix_tree" else layout.batching
    collator = Collator(batching, setup.tokenizer.pad_token_id)
    batch = collator([rows_of_batches[index] for index in order])
    labelled = int((batch["labels"][:, 1:] != IGNORE_INDEX).any(dim=0).sum())
    return BatchShape(*batch["input_ids"].shape, labelled)


def _sharing(setup: Setup, layout: Layout) -> dict[str, int]:
    """Of the first batches in the trainer's order: their number, their tokens, and those that are computed."""
    if layout.batching != "prefix_tree" or not setup.has("data", "rows") or "length" not in setup.rows.column_names:
        return {}
    columns, rows = setup.rows.with_format(None), BatchRows(setup.data.train, "padded", 0)
    related = list(columns["family"])[: len(rows)] if "family" in columns.column_names else None
    first = batches(setup.resolved, rows.lengths, related=related)[:SHARING_BATCHES]
    found = [sharing([rows[at] for at in batch]) for batch in first]
    return {"batches": len(found), "tokens": sum(a for a, _ in found), "computed": sum(b for _, b in found)}


# steps ----------------------------------------------------------------------------------------------------------------


def _steps(resolved: Resolved, plan: Plan) -> dict[str, Any]:
    """The plan, when it evaluates and saves, and the learning rate on its way."""
    training = resolved.config.training
    strategy, eval_steps = eval_interval(resolved)
    epochs = plan.total_steps / plan.steps_per_epoch
    evaluations = {"no": 0, "steps": plan.total_steps // eval_steps, "epoch": math.ceil(epochs)}[strategy]
    return asdict(plan) | {
        "epochs": round(epochs, 3),
        "evaluations": evaluations,
        "checkpoints": num_checkpoints(resolved, plan),
        "lr_scheduler_type": training.lr_scheduler_type,
        "learning_rate": _learning_rates(resolved, plan),
    }


def num_checkpoints(resolved: Resolved, plan: Plan) -> int:
    """Checkpoints that a run writes, rotated ones included."""
    training = resolved.config.training
    if training.save_strategy == "no":
        return 0
    if training.save_strategy == "best":  # at most one for each evaluation
        by, every = eval_interval(resolved)
        return plan.total_steps // every if by == "steps" else math.ceil(plan.total_steps / plan.steps_per_epoch)
    if training.save_strategy == "epoch":
        return math.ceil(plan.total_steps / plan.steps_per_epoch)
    return plan.total_steps // training.save_steps + bool(plan.total_steps % training.save_steps)


def _learning_rates(resolved: Resolved, plan: Plan) -> dict[int, float]:
    """Learning rate at the first step, after warmup, half way and at the last step, by the library's own scheduler."""
    training = resolved.config.training
    if plan.total_steps > MOST_STEPS or training.lr_scheduler_type == "reduce_lr_on_plateau":
        return {plan.warmup_steps + 1: training.learning_rate}
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=training.learning_rate)
    scheduler = get_scheduler(
        training.lr_scheduler_type,
        optimizer,
        num_warmup_steps=plan.warmup_steps,
        num_training_steps=plan.total_steps,
        scheduler_specific_kwargs=training.lr_scheduler_kwargs or None,
    )
    wanted = sorted({1, plan.warmup_steps + 1, (plan.total_steps + 1) // 2, plan.total_steps})
    rates: dict[int, float] = {}
    for step in range(1, plan.total_steps + 1):
        if step in wanted:
            rates[step] = float(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


# memory and disk ------------------------------------------------------------------------------------------------------


def _check_memory(report: Report, setup: Setup, layout: Layout, *, elsewhere: bool) -> None:
    """What a device, a machine and the disk have to hold; ``elsewhere``: the main memory there is not known."""
    batch = _largest_batch(setup, layout)
    found = report.attempt(lambda: _estimate(setup, batch))
    if found is None:
        return
    device, processes = setup.device, setup.processes.per_machine
    tell_of_slow_bfloat16(setup.precision, device, found.parameters)
    free = memory.host_memory()
    size = free // processes if device.memory is None else device.memory  # processes on the cpu share it
    in_pieces = loads_in_pieces(setup.resolved, setup.strategy, setup.processes.total)
    host = memory.on_host(found, device, processes, in_pieces=in_pieces)
    if setup.resolved.config.adapter.use_lora:
        quantized = is_quantized(setup.resolved.config.quantization)
        host = replace(host, merging=memory.while_merging(found, quantized=quantized, on_cpu=device.kind == "cpu"))
    report.memory = asdict(found) | {
        "batch": asdict(batch),
        "precision": setup.precision.dtype,
        "device": device.name,
        "available": size,
        "fits": found.peak <= size,
        "host": asdict(host) | {"available": free, "fits": host.peak <= free},
    }
    report.attempt(lambda: _check_fit(setup, found, batch, size))
    if elsewhere:
        report.memory["host"] |= {"available": None, "fits": None}
    elif found.peak <= size:
        report.attempt(lambda: _check_host(host, free))
    report.memory["disk"] = disk = _disk(setup.resolved, found, setup.plan if setup.has("plan") else None)
    report.attempt(lambda: _check_disk(disk))


def _estimate(setup: Setup, batch: BatchShape) -> Memory:
    resolved, precision = setup.resolved, setup.precision
    if resolved.config.model.model_class is not None:
        raise ModelError(
            "the memory of a model class of another package cannot be estimated", where="model.model_class"
        )
    if setup.has("tokenizer"):
        embeddings: Any = memory.skeleton(resolved, precision).get_input_embeddings()
        new = len(resolved.config.data.new_tokens) + len(resolved.config.data.new_special_tokens)
        check_vocabulary(setup.tokenizer, int(embeddings.num_embeddings) + new)
    return memory.estimate(
        resolved, precision, batch, cuda=setup.device.kind == "cuda", num_processes=setup.processes.total,
        spread=setup.device.spread,
    )  # fmt: skip


def _check_fit(setup: Setup, found: Memory, batch: BatchShape, size: int) -> None:
    if found.peak <= size:
        return
    device, number = setup.device, setup.processes.total

    def fits(changed: Resolved, shape: BatchShape) -> bool:
        cuda = device.kind == "cuda"
        found = memory.estimate(changed, setup.precision, shape, cuda=cuda, num_processes=number, spread=device.spread)
        return found.peak <= size

    changes = memory.remedies(setup.resolved, batch, fits, bitsandbytes=device.kind != "mps")
    raise ModelError(
        f"the run needs about {found.peak / GIB:.1f} GiB at its peak, {device.name} has {size / GIB:.1f} GiB",
        remedy=f"set {', '.join(changes)}" if changes else "take a smaller model or a larger device",
    )


def _check_host(host: HostMemory, free: int) -> None:
    if host.peak > free:
        raise ModelError(
            f"{host.processes} processes need about {host.peak / GIB:.1f} GiB of main memory, the machine has "
            f"{free / GIB:.1f} GiB",
            remedy="start fewer processes on each machine, or take more memory",
        )


def _disk(resolved: Resolved, found: Memory, plan: Plan | None) -> dict[str, Any]:
    """Bytes that checkpoints and the finished model take, against what is free where they go."""
    training = resolved.config.training
    written = num_checkpoints(resolved, plan) if plan is not None else 1
    limit = training.save_total_limit
    # the new one is complete before the oldest goes, and the best one stays
    kept = min(written, limit + 1 + training.load_best_model_at_end) if limit else written
    merged = 4 * found.parameters if training.save_merged_model and resolved.config.adapter.use_lora else 0
    folder = Path(training.output_dir).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return {
        "checkpoints": kept,
        "checkpoint_bytes": found.checkpoint,
        "model_bytes": found.trained_bytes + merged,
        "needed": kept * found.checkpoint + found.trained_bytes + merged,
        "merged_bytes": 2 * found.parameters if resolved.config.adapter.use_lora else 0,
        "free": shutil.disk_usage(existing).free,
        "folder": training.output_dir,
    }


def _check_disk(disk: dict[str, Any]) -> None:
    if disk["needed"] > disk["free"]:
        raise StorageError(
            f"the run writes about {disk['needed'] / GIB:.1f} GiB, {disk['free'] / GIB:.1f} GiB are free",
            where=disk["folder"],
            remedy="set save_total_limit, save_strategy: no, or another output_dir",
        )
