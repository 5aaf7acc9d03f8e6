"""The recipe of a training run, from a checked configuration to a finished run folder, in the order it happens.

Everything that can be checked without weights is checked before weights are loaded.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PrinterCallback, set_seed
from trl import SFTConfig

from tunesmith import notices
from tunesmith.config.resolve import Resolved
from tunesmith.config.strategy import ALONE, Strategy
from tunesmith.data.batching import BatchRows, filler, items, joined
from tunesmith.data.collate import Collator
from tunesmith.data.masking import Example
from tunesmith.data.stream import ExampleStream
from tunesmith.errors import ConfigError, StorageError, TunesmithError
from tunesmith.evaluate.generate import generate
from tunesmith.evaluate.run import evaluate_rows, scalar_metrics
from tunesmith.evaluate.tasks import choose_task
from tunesmith.export.merge import merge
from tunesmith.export.save import save_model
from tunesmith.model.load import load_model, trainable_parameters
from tunesmith.model.precision import Precision, choose_precision
from tunesmith.model.segments import keep_examples_apart
from tunesmith.model.tokenizer import check_vocabulary, load_tokenizer
from tunesmith.report import record
from tunesmith.report.folder import write_json
from tunesmith.train import checkpoint, trackers
from tunesmith.train.arguments import eval_interval, sft_keywords
from tunesmith.train.callbacks import METRICS, EarlyStopping, Listener, RunLog, Silent, keep_metrics_until
from tunesmith.train.generation import generate_share
from tunesmith.train.plan import Plan, make_plan
from tunesmith.train.prepare import PreparedData, prepare_data, prepare_stream
from tunesmith.train.processes import is_main_process, num_processes
from tunesmith.train.samples import make_samples
from tunesmith.train.strategy import (
    check_precision,
    check_processes,
    check_strategy,
    check_tied,
    forget,
    gathered_weights,
    take_over,
)
from tunesmith.train.trainer import GenerationMetrics, Trainer

OWN_FILES = (record.RECORD, METRICS, "ledger.json", "evaluation", "gen_results", "inference.json")
"""What a run leaves in its folder beside the model; replaced with ``overwrite_output_dir``."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished run."""

    folder: Path
    model_folder: Path
    steps: int
    seconds: float
    metrics: dict[str, Any]


def train(resolved: Resolved, *, command: Sequence[str], listener: Listener | None = None) -> TrainResult:
    """Run a configuration to its end.

    Args:
        resolved: the checked configuration.
        command: the command line that started the run, for ``run.json``.
        listener: whoever shows progress.

    Raises:
        TunesmithError: with the exit code of what went wrong; ``run.json`` then says "failed" and why.
    """
    listener = listener or Silent()
    started = time.perf_counter()
    training = resolved.config.training
    strategy = check_strategy(resolved)
    check_processes(resolved, strategy)
    take_over()
    folder = Path(training.output_dir)
    resume = checkpoint.find(folder, training.resume_from_checkpoint)
    check_folder(folder, resolved, resuming=resume is not None)
    tokenizer = load_tokenizer(resolved.config.model)
    data = prepare(resolved, tokenizer)
    samples = make_samples(resolved, tokenizer, data.builder, data.first_row)
    rows, eval_rows = to_dataset(data.train, resolved), to_dataset(data.evaluation, resolved, evaluation=True)
    plan = make_plan(resolved, num_batch_rows(rows), num_processes())
    precision = choose_precision(resolved)
    check_precision(resolved, strategy, precision)
    set_seed(training.seed)
    model = load_model(resolved, precision, strategy)
    check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings)
    check_tied(strategy, model)
    trainer = build_trainer(
        resolved,
        model,
        tokenizer,
        precision,
        plan,
        data,
        rows,
        eval_rows,
        resuming=resume is not None,
        strategy=strategy,
    )
    facts = describe(resolved, model, precision, plan, data, trainer, strategy)
    trainer.add_callback(RunLog(folder, listener))
    if samples is not None:
        trainer.add_callback(samples)
    if is_main_process():
        begin_folder(folder, resolved, command, facts, data, resume)
        listener.started(facts)
    try:
        trainer.train(resume_from_checkpoint=str(resume.path) if resume else None)
    except BaseException as error:
        if is_main_process():
            listener.finished()
            what = error.line() if isinstance(error, TunesmithError) else f"{type(error).__name__}: {error}"
            record.finish(folder, "failed", {"error": what})
        raise
    finally:
        trackers.finish()
    listener.finished()
    if is_main_process() and isinstance(data.train, ExampleStream):
        write_ledger(folder, data)
    model_folder = finish_folder(resolved, trainer, tokenizer, precision, folder)
    seconds = time.perf_counter() - started
    metrics = final_metrics(trainer)
    if is_main_process():
        result = {"steps": trainer.state.global_step, "seconds": round(seconds, 1), "metrics": metrics}
        record.finish(
            folder, "finished", {"result": result, "best_checkpoint": _name(trainer.state.best_model_checkpoint)}
        )
    return TrainResult(folder, model_folder, trainer.state.global_step, seconds, metrics)


def check_folder(folder: Path, resolved: Resolved, *, resuming: bool) -> None:
    """Refuse a folder that cannot be written or that holds another run.

    Raises:
        StorageError: the folder cannot be written.
        ConfigError: it holds something, and neither resuming nor overwriting was asked for.
    """
    if folder.exists() and not folder.is_dir():
        raise StorageError("is a file, not a folder", where=str(folder), remedy="choose another output_dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise StorageError(f"cannot write there: {error.strerror or error}", where=str(folder)) from error
    if resuming or resolved.config.training.overwrite_output_dir or not is_main_process():
        return
    held = [name for name in (record.RECORD, "config.json", "adapter_config.json") if (folder / name).exists()]
    if held or checkpoint.list_checkpoints(folder):
        raise ConfigError(
            f"output_dir {folder} holds a run already",
            where=resolved.origins["training.output_dir"],
            remedy="choose another output_dir, or --resume_from_checkpoint latest, or --overwrite_output_dir",
        )


def prepare(resolved: Resolved, tokenizer: PreTrainedTokenizerBase) -> PreparedData:
    """The data of the run: all of it made beforehand, or training rows as they are reached."""
    if not resolved.config.data.streaming:
        return prepare_data(resolved, tokenizer)
    # with as many rows as the steps take, every step has its full batches and one epoch is the whole run
    rows_per_step = make_plan(resolved, 1, num_processes()).global_batch_size
    return prepare_stream(resolved, tokenizer, resolved.config.training.max_steps * rows_per_step)


def to_dataset(
    examples: Sequence[Example] | ExampleStream, resolved: Resolved, *, evaluation: bool = False
) -> Dataset | None:
    """Examples as the data set that the trainer draws batches from; None when there are none.

    It holds numbers of examples; their tokens are read when a batch is made. Training rows are filled up with rows of
    no label and length 0 at the end, so that every process gets equally many full batches: accelerate would repeat the
    first rows instead, and they would count twice.
    """
    if not examples:
        return None
    if isinstance(examples, ExampleStream):
        return Dataset.from_dict({"row": range(len(examples))}).with_transform(ReadRows(examples))
    batching = "padded" if evaluation else resolved.config.training.batching
    rows = items(examples, batching, resolved.config.data.max_length)
    rows_of_a_pass = resolved.config.training.per_device_train_batch_size * num_processes()
    fillers = -len(rows) % rows_of_a_pass if num_processes() > 1 and not evaluation else 0
    table = Dataset.from_dict({"row": range(len(rows) + fillers), "length": [*rows.lengths, *[0] * fillers]})
    return table.with_transform(ReadRows(rows))


def num_batch_rows(rows: Dataset) -> int:
    """Rows that are trained on, without those that only fill batches up."""
    if "length" not in rows.column_names:
        return len(rows)
    return len(rows) - rows.with_format(None)["length"][:].count(0)


class ReadRows:
    """Numbers of batch rows to their tokens and labels; a class, so that worker processes can be given one."""

    def __init__(self, rows: BatchRows | ExampleStream) -> None:
        self.rows = rows

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadRows:
        return self

    def __call__(self, numbers: dict[str, list[int]]) -> dict[str, list[Any]]:
        chosen = [self._row(number) for number in numbers["row"]]
        return {name: [row[name] for row in chosen] for name in chosen[0]}

    def _row(self, number: int) -> dict[str, Any]:
        if isinstance(self.rows, BatchRows) and number >= len(self.rows):
            return filler(weighted=self.rows.weighted)
        row = self.rows[number]
        # whether a later row of a stream has weights is not known, so all of them bring theirs
        return joined([row], weighted=True) if isinstance(row, Example) else row


def build_trainer(
    resolved: Resolved,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    precision: Precision,
    plan: Plan,
    data: PreparedData,
    rows: Dataset,
    eval_rows: Dataset | None,
    *,
    resuming: bool,
    strategy: Strategy = ALONE,
) -> Trainer:
    """The trainer with everything that the configuration asks for."""
    training = resolved.config.training
    keywords = sft_keywords(
        resolved,
        bf16=precision.bf16,
        fp16=precision.fp16,
        use_cpu=not torch.cuda.is_available(),
        warmup_steps=plan.warmup_steps,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        resuming=resuming,
        strategy=strategy,
    )
    if training.optim.startswith("paged_") and not torch.cuda.is_available():
        notices.say(f"{training.optim}: there is no GPU memory to page, so the optimizer's states stay where they are")
    callbacks = []
    if training.early_stopping_patience is not None and eval_interval(resolved)[0] != "no":
        callbacks.append(EarlyStopping(training.early_stopping_patience, training.early_stopping_threshold))
    if is_main_process():
        callbacks.extend(trackers.callbacks(resolved))
    trainer = Trainer(
        model=model,
        args=SFTConfig(**keywords),
        processing_class=tokenizer,
        train_dataset=rows,
        eval_dataset=eval_rows,
        data_collator=training_collator(resolved, model, tokenizer, precision),
        eval_collator=Collator("padded", tokenizer.pad_token_id),
        generation_metrics=generation_metrics(resolved, tokenizer, data, strategy),
        generate_every=resolved.config.evaluation.generate_every,
        keep_checkpoints=training.save_total_limit,
        loraplus_lr_ratio=resolved.config.adapter.loraplus_lr_ratio,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.check_strategy(strategy)
    return trainer


def training_collator(
    resolved: Resolved, model: Any, tokenizer: PreTrainedTokenizerBase, precision: Precision
) -> Collator:
    """The collator of training batches; where a row holds several examples, the model is made to keep them apart.

    Raises:
        ModelError: the model cannot keep them apart.
    """
    batching = resolved.config.training.batching
    if batching in ("padded", "length_grouped"):
        return Collator(batching, tokenizer.pad_token_id)
    return Collator(batching, tokenizer.pad_token_id, boundaries=keep_examples_apart(model, precision))


def generation_metrics(
    resolved: Resolved, tokenizer: PreTrainedTokenizerBase, data: PreparedData, strategy: Strategy
) -> GenerationMetrics | None:
    """The function that scores generated answers at evaluations, or None when nobody asked for it."""
    evaluation = resolved.config.evaluation
    if not evaluation.generate or not data.eval_rows:
        return None
    rows = data.eval_rows[: evaluation.generate_limit]
    task = choose_task(evaluation.task, data.builder.format_of(rows[0]), rows)
    generator = generate if strategy.spreads_weights else generate_share

    def measure(model: torch.nn.Module) -> dict[str, float]:
        result = evaluate_rows(model, tokenizer, data.builder, rows, task, evaluation, generator=generator)
        return scalar_metrics(result.metrics)

    return measure


def describe(
    resolved: Resolved,
    model: Any,
    precision: Precision,
    plan: Plan,
    data: PreparedData,
    trainer: Trainer,
    strategy: Strategy,
) -> dict[str, Any]:
    """Facts about a run that is about to start, for people and for ``run.json``."""
    trainable, total = trainable_parameters(model)
    quantization = resolved.config.quantization
    held = "4-bit " + quantization.bnb_4bit_quant_type if quantization.load_in_4bit else None
    held = held or ("int8" if quantization.load_in_8bit else "full precision")
    account = data.train_ledger.total()
    return {
        "model": {
            "name": resolved.config.model.model_name_or_path,
            "trainable": trainable,
            "total": total,
            "held": held + (" with LoRA" if resolved.config.adapter.use_lora else ", every weight trained"),
            "precision": precision.dtype,
            "precision_reason": precision.reason,
            "attention": trainer.model.config._attn_implementation,
            "device": str(trainer.args.device),
        },
        "data": {
            "train_rows": len(data.train),
            "eval_rows": len(data.evaluation),
            "train_tokens": account.tokens,
            "trained_share": account.trained_tokens / account.tokens if account.tokens else None,
            "streaming": resolved.config.data.streaming,
            "dropped": sum(map(len, account.dropped.values())),
            "cut": sum(map(len, account.cut.values())),
            "train_fingerprint": data.train_fingerprint,
            "eval_fingerprint": data.eval_fingerprint,
        },
        "plan": asdict(plan),
        "strategy": {"name": strategy.name, "origin": strategy.origin},
        "seeds": {"seed": trainer.args.seed, "data_seed": trainer.args.data_seed},
    }


def begin_folder(
    folder: Path,
    resolved: Resolved,
    command: Sequence[str],
    facts: dict[str, Any],
    data: PreparedData,
    resume: checkpoint.Checkpoint | None,
) -> None:
    """Clear what an earlier run left (only now, when everything is checked) and write what is known before step 1."""
    if resume is None:
        for name in OWN_FILES:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for old in checkpoint.list_checkpoints(folder):
            shutil.rmtree(old.path)
    else:
        keep_metrics_until(folder, resume.step)
        facts = facts | {"resumed_from": {"checkpoint": resume.path.name, "step": resume.step}}
    write_ledger(folder, data)
    record.begin(folder, resolved, command, facts)


def write_ledger(folder: Path, data: PreparedData) -> None:
    """The account of all rows; of a stream, of those that were reached by now."""
    training = data.train.ledger if isinstance(data.train, ExampleStream) else data.train_ledger
    evaluation = data.eval_ledger.to_dict() if data.eval_rows else None
    write_json(folder / "ledger.json", {"training": training.to_dict(), "evaluation": evaluation})


def finish_folder(
    resolved: Resolved, trainer: Trainer, tokenizer: PreTrainedTokenizerBase, precision: Precision, folder: Path
) -> Path:
    """Write the finished model and return its folder."""
    training = resolved.config.training
    model_folder = folder / training.final_subdir if training.final_subdir else folder
    merged_too = training.save_merged_model and resolved.config.adapter.use_lora
    model = trainer.accelerator.unwrap_model(trainer.model)
    whole = gathered_weights(model)
    forget()
    if is_main_process():
        adapter_folder = model_folder / "lora_weights" if merged_too else model_folder
        save_model(model, tokenizer, adapter_folder, resolved.config.model, state_dict=whole)
        if merged_too:
            stage = model_folder / ".merged"
            shutil.rmtree(stage, ignore_errors=True)
            merge(adapter_folder, stage, dtype=precision.dtype)
            for file in stage.iterdir():
                file.replace(model_folder / file.name)
            stage.rmdir()
    trainer.accelerator.wait_for_everyone()
    return model_folder


def final_metrics(trainer: Trainer) -> dict[str, Any]:
    """The last training loss and the metrics of the last (or best) evaluation."""
    history = trainer.state.log_history
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    metrics: dict[str, Any] = {}
    for entry in history:
        if "loss" in entry:
            metrics["loss"] = entry["loss"]
        if "eval_loss" in entry and (best is None or entry["step"] == best):
            metrics |= {key: value for key, value in entry.items() if key.startswith("eval_") and key != "eval_runtime"}
    return metrics


def _name(path: str | None) -> str | None:
    return Path(path).name if path else None
