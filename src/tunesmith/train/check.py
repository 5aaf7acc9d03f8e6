"""Everything short of training: each step of a run up to the weights, with what goes wrong collected on the way.

The run's own functions are called in the run's order. No weights are loaded, and nothing is left in the run folder.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedTokenizerBase, get_scheduler

from tunesmith.config.resolve import Resolved
from tunesmith.config.strategy import ALONE
from tunesmith.data.batching import items
from tunesmith.data.collate import Collator
from tunesmith.data.masking import IGNORE_INDEX
from tunesmith.data.stream import ExampleStream
from tunesmith.errors import DataError, ModelError, StorageError, TunesmithError
from tunesmith.model import memory, source
from tunesmith.model.attention import choose_attention
from tunesmith.model.device import CPU, Device, here
from tunesmith.model.memory import GIB, BatchShape, Memory
from tunesmith.model.precision import Precision, choose_precision
from tunesmith.model.tokenizer import check_vocabulary, load_tokenizer
from tunesmith.train import checkpoint
from tunesmith.train.arguments import check_optimizer, eval_interval, sft_keywords
from tunesmith.train.evaluator import make_evaluator
from tunesmith.train.plan import Plan, make_plan
from tunesmith.train.prepare import PreparedData, prepare
from tunesmith.train.processes import num_processes
from tunesmith.train.samples import make_samples
from tunesmith.train.start import check_batches, starting_point
from tunesmith.train.strategy import check_strategy
from tunesmith.train.trainer import Arguments

MOST_STEPS = 20_000
"""Steps for which the learning rate is computed one after the other; longer schedules are shown by their peak alone."""

T = TypeVar("T")


@dataclass(slots=True)
class Report:
    """What a check found; a part is None where what comes before it went wrong."""

    problems: list[TunesmithError] = field(default_factory=list)
    ledger: dict[str, Any] | None = None
    ledger_lines: list[str] = field(default_factory=list)
    template: list[str] = field(default_factory=list)
    steps: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None

    @property
    def exit_code(self) -> int:
        """What training would have ended with: the first problem's."""
        return self.problems[0].exit_code if self.problems else 0

    def attempt(self, action: Callable[[], T]) -> T | None:
        """The result of ``action``, or None and one more problem."""
        try:
            return action()
        except TunesmithError as problem:
            self.problems.append(problem)
        except Exception as error:  # a library's own kind of refusal; training would end with it too
            self.problems.append(TunesmithError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))
        return None


def check(resolved: Resolved, gpu: str | None = None) -> Report:
    """Check a run.

    Args:
        resolved: the checked configuration.
        gpu: a device to plan for (``24GB``), which need not be here; None plans for this machine.

    Raises:
        ConfigError: ``gpu`` names nothing known.
    """
    elsewhere = None if gpu is None else replace(CPU, kind="cuda", name=gpu, memory=memory.device_memory(gpu))
    report = Report()
    strategy = report.attempt(lambda: check_strategy(resolved)) or ALONE
    device = elsewhere or report.attempt(lambda: here(resolved, strategy))
    resume = report.attempt(lambda: _starting_point(resolved))
    tokenizer = report.attempt(lambda: load_tokenizer(resolved.config.model))
    data = report.attempt(lambda: prepare(resolved, tokenizer)) if tokenizer is not None else None
    plan = None
    if data is not None and tokenizer is not None:
        _describe_data(report, resolved, tokenizer, data)
        plan = report.attempt(lambda: make_plan(resolved, _num_batch_rows(resolved, data), num_processes()))
    if plan is not None:
        report.steps = _steps(resolved, plan)
        if resume is not None:
            report.attempt(lambda: check_batches(resume, resolved, plan, strategy))
    if device is None:
        return report
    precision = memory.precision_elsewhere(resolved)
    if gpu is None:
        here_precision = report.attempt(lambda: choose_precision(resolved, device))
        if here_precision is None:
            return report
        precision = here_precision
    report.attempt(lambda: source.locate(resolved.config.model.model_name_or_path, resolved.config.model.revision))
    if gpu is None:
        report.attempt(lambda: choose_attention(resolved, precision, device))
        report.attempt(lambda: check_optimizer(resolved, device))
        if plan is not None:
            report.attempt(lambda: _check_arguments(resolved, precision, device, plan))
    report.attempt(lambda: _check_trackers(resolved))
    batch = _largest_batch(resolved, data, tokenizer)
    found = report.attempt(lambda: _model(resolved, precision, batch, tokenizer, device))
    if found is not None:
        report.memory = _memory(found, batch, precision, device)
        report.attempt(lambda: _check_fit(resolved, found, batch, precision, device))
        report.memory["disk"] = _disk(resolved, found, plan)
        report.attempt(lambda: _check_disk(resolved, report.memory["disk"] if report.memory else {}))
    return report


# folder and arguments -------------------------------------------------------------------------------------------------


def _starting_point(resolved: Resolved) -> checkpoint.Checkpoint | None:
    """As training finds it, and afterwards the folder is as it was."""
    folder = Path(resolved.config.training.output_dir)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        return starting_point(resolved)
    finally:
        for path in missing:
            if path.is_dir():
                path.rmdir()


def _check_arguments(resolved: Resolved, precision: Precision, device: Device, plan: Plan) -> None:
    """Build the trainer's arguments, which refuse some settings by themselves."""
    keywords = sft_keywords(
        resolved,
        bf16=precision.bf16,
        fp16=precision.fp16,
        device=device,
        warmup_steps=plan.warmup_steps,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        resuming=False,
        strategy=ALONE,  # others would set up processes
    )
    Arguments(**keywords | {"report_to": "none"})


def _check_trackers(resolved: Resolved) -> None:
    for name in resolved.config.tracking.trackers():
        if importlib.util.find_spec(name) is None:
            raise ModelError(
                f"report_to {name}: the package is not installed", remedy=f"pip install 'tunesmith[{name}]'"
            )


# data -----------------------------------------------------------------------------------------------------------------


def _describe_data(report: Report, resolved: Resolved, tokenizer: PreTrainedTokenizerBase, data: PreparedData) -> None:
    evaluation = data.eval_ledger.to_dict() if data.eval_rows else None
    report.ledger = {"training": data.train_ledger.to_dict(), "evaluation": evaluation}
    if isinstance(data.train, ExampleStream):
        report.ledger_lines = ["the data is streamed: rows are counted while training reaches them"]
    else:
        report.ledger_lines = data.train_ledger.table()
    if data.eval_rows:
        report.ledger_lines += ["evaluation:", *data.eval_ledger.table()]
    report.attempt(lambda: make_evaluator(resolved, data))
    report.attempt(lambda: make_samples(resolved, tokenizer, data, Precision("float32", "nothing is generated here")))
    report.template = report.attempt(lambda: _template(tokenizer, data)) or []


def _template(tokenizer: PreTrainedTokenizerBase, data: PreparedData) -> list[str]:
    """What holds of the first row's template.

    Raises:
        DataError: inference would feed another prompt than training saw.
    """
    row = data.first_row
    example = data.builder.example(row)
    lines = [f"{row.where}: read as {data.builder.format_of(row)}"]
    if example is None:
        return [*lines, "it is dropped"]
    prompt = data.builder.prompt(row).input_ids
    if example.cut is None and example.input_ids[: len(prompt)] != prompt:
        raise DataError("the prompt of inference is not the beginning of the training row", where=row.where)
    last = example.input_ids[-1]
    begins = sum(number == tokenizer.bos_token_id for number in example.input_ids[:2])
    stops = data.builder.stop_token_ids(row)
    lines.append(f"the prompt of inference ({len(prompt)} tokens) is the beginning of the training row")
    lines.append(f"begin tokens: {begins}; {example.num_trained_tokens} of {len(example.input_ids)} tokens are trained")
    trained = example.labels[-1] == last
    ends = f"ends with {tokenizer.convert_ids_to_tokens(last)!r}, {'trained' if trained else 'not trained'}"
    lines.append(ends + ("" if last in stops else "; generation does not stop there"))
    return lines


def _num_batch_rows(resolved: Resolved, data: PreparedData) -> int:
    if isinstance(data.train, ExampleStream):
        return len(data.train)
    return len(items(data.train, resolved.config.training.batching, resolved.config.data.max_length))


def _largest_batch(
    resolved: Resolved, data: PreparedData | None, tokenizer: PreTrainedTokenizerBase | None
) -> BatchShape:
    """The batch of the longest rows; without data, rows of ``max_length`` of which every token is trained."""
    training, longest = resolved.config.training, resolved.config.data.max_length
    size = training.per_device_train_batch_size
    if data is None or tokenizer is None or isinstance(data.train, ExampleStream):
        rows = size if training.batching in ("padded", "length_grouped") else 1
        return BatchShape(rows, longest * size // rows, longest * size // rows)
    rows_of_batches = items(data.train, training.batching, longest)
    order = sorted(range(len(rows_of_batches)), key=lambda index: -rows_of_batches.lengths[index])[:size]
    batch = Collator(training.batching, tokenizer.pad_token_id)([rows_of_batches[index] for index in order])
    labelled = int((batch["labels"][:, 1:] != IGNORE_INDEX).any(dim=0).sum())
    return BatchShape(*batch["input_ids"].shape, labelled)


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


def _model(
    resolved: Resolved,
    precision: Precision,
    batch: BatchShape,
    tokenizer: PreTrainedTokenizerBase | None,
    device: Device,
) -> Memory:
    if resolved.config.model.model_class is not None:
        raise ModelError(
            "the memory of a model class of another package cannot be estimated", where="model.model_class"
        )
    if tokenizer is not None:
        embeddings = memory.skeleton(resolved, precision).get_input_embeddings()
        check_vocabulary(tokenizer, embeddings.num_embeddings)
    return memory.estimate(resolved, precision, batch, cuda=device.kind == "cuda", num_processes=num_processes())


def _memory(found: Memory, batch: BatchShape, precision: Precision, device: Device) -> dict[str, Any]:
    size = memory.usable(device)
    return asdict(found) | {
        "batch": asdict(batch),
        "precision": precision.dtype,
        "device": device.name,
        "available": size,
        "fits": found.peak <= size,
    }


def _check_fit(resolved: Resolved, found: Memory, batch: BatchShape, precision: Precision, device: Device) -> None:
    size = memory.usable(device)
    if found.peak <= size:
        return

    def fits(changed: Resolved, shape: BatchShape) -> bool:
        cuda, number = device.kind == "cuda", num_processes()
        return memory.estimate(changed, precision, shape, cuda=cuda, num_processes=number).peak <= size

    changes = memory.remedies(resolved, batch, fits, bitsandbytes=device.kind != "mps")
    raise ModelError(
        f"the run needs about {found.peak / GIB:.1f} GiB at its peak, {device.name} has {size / GIB:.1f} GiB",
        remedy=f"set {', '.join(changes)}" if changes else "take a smaller model or a larger device",
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
        "free": shutil.disk_usage(existing).free,
        "folder": training.output_dir,
    }


def _check_disk(resolved: Resolved, disk: dict[str, Any]) -> None:
    if disk["needed"] > disk["free"]:
        raise StorageError(
            f"the run writes about {disk['needed'] / GIB:.1f} GiB, {disk['free'] / GIB:.1f} GiB are free",
            where=disk["folder"],
            remedy="set save_total_limit, save_strategy: no, or another output_dir",
        )
