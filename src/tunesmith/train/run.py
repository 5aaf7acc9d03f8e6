"""The recipe of a training run, from a checked configuration to a finished run folder, in the order it happens.

Everything that can be checked without weights is checked before weights are loaded.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
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
from tunesmith.errors import TunesmithError
from tunesmith.evaluate.generate import default_stop_token_ids
from tunesmith.evaluate.prompts import questions_for
from tunesmith.evaluate.subject import EVALUATION
from tunesmith.export import hub, inference
from tunesmith.export.card import CARD, write_card
from tunesmith.export.inference import Contract, chat_template, make_contract
from tunesmith.export.merge import merge
from tunesmith.export.proof import PROOF
from tunesmith.export.save import save_model
from tunesmith.model.adapters import ADAPTER_CONFIG, read_adapter
from tunesmith.model.load import load_model, trainable_parameters
from tunesmith.model.precision import Precision, choose_precision
from tunesmith.model.segments import keep_examples_apart
from tunesmith.model.tokenizer import check_vocabulary, load_tokenizer
from tunesmith.report import record
from tunesmith.report.folder import write_json
from tunesmith.report.plots import CURVES, draw_curves
from tunesmith.train import checkpoint, trackers
from tunesmith.train.arguments import eval_interval, sft_keywords
from tunesmith.train.callbacks import METRICS, EarlyStopping, Listener, RunLog, Silent, keep_metrics_until
from tunesmith.train.judging import Judge, make_judge
from tunesmith.train.plan import Plan, make_plan
from tunesmith.train.prepare import PreparedData, prepare_data, prepare_stream
from tunesmith.train.processes import is_main_process, leave_old_store, num_processes, process_seed
from tunesmith.train.result import TrainResult, model_folder_of
from tunesmith.train.samples import make_samples
from tunesmith.train.start import check_agreement, check_batches, starting_point
from tunesmith.train.strategy import (
    check_precision,
    check_processes,
    check_strategy,
    check_tied,
    forget,
    gathered_weights,
    take_over,
)
from tunesmith.train.trainer import Trainer

OWN_FILES = (record.RECORD, METRICS, "ledger.json", EVALUATION, "gen_results", CURVES, "inference.json", CARD, PROOF)
"""What a run leaves in its folder beside the model; replaced with ``overwrite_output_dir``."""


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
    leave_old_store()
    strategy = check_strategy(resolved)
    check_processes(resolved, strategy)
    take_over()
    folder = Path(training.output_dir)
    resume = starting_point(resolved)
    tokenizer = load_tokenizer(resolved.config.model)
    data = prepare(resolved, tokenizer)
    judge = make_judge(resolved, tokenizer, data)
    precision = choose_precision(resolved)
    samples = make_samples(resolved, tokenizer, data, precision)
    rows, eval_rows = to_dataset(data.train, resolved), to_dataset(data.evaluation, resolved, evaluation=True)
    plan = make_plan(resolved, num_batch_rows(rows), num_processes())
    check_precision(resolved, strategy, precision)
    if resume is not None:
        check_batches(resume, resolved, plan, strategy)
    set_seed(training.seed)
    model = load_model(resolved, precision, strategy)
    check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings)
    check_tied(strategy, model)
    contract = promise(resolved, model, data)
    tokenizer.chat_template = chat_template(data.builder, data.first_row) or tokenizer.chat_template
    trainer = build_trainer(
        resolved,
        model,
        tokenizer,
        precision,
        plan,
        judge,
        rows,
        eval_rows,
        contract,
        resuming=resume is not None,
        strategy=strategy,
    )
    check_agreement(resume)
    facts = describe(resolved, model, precision, plan, data, trainer, strategy)
    trainer.add_callback(RunLog(folder, listener))
    if samples is not None:
        samples.show_in(trainer.callback_handler.callbacks)
        trainer.add_callback(samples)
    if is_main_process():
        begin_folder(folder, resolved, command, facts, data, resume)
        listener.started(facts)
    set_seed(process_seed(training.seed))
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
    model_folder = finish_folder(resolved, trainer, tokenizer, precision, folder, contract)
    seconds = time.perf_counter() - started
    best = best_evaluation(trainer)
    metrics = final_metrics(trainer, best)
    if is_main_process():
        draw(folder, best)
        result = {"steps": trainer.state.global_step, "seconds": round(seconds, 1), "metrics": metrics}
        kept = {"best": best, "best_checkpoint": _name(trainer.state.best_model_checkpoint)}
        kept |= adapter_record(folder, adapter_folder_of(resolved, model_folder))
        record.finish(folder, "finished", {"result": result, **kept})
        write_cards(resolved, folder, model_folder)
        if resolved.config.training.push_to_hub:
            push_finished(resolved, folder)
    return TrainResult(folder, model_folder, trainer.state.global_step, seconds, metrics)


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


def promise(resolved: Resolved, model: Any, data: PreparedData) -> Contract:
    """How the finished model will want to be asked, and where its answers end."""
    builder, row = data.builder, data.first_row
    stops = dict.fromkeys([*builder.stop_token_ids(row), *default_stop_token_ids(model, builder.tokenizer)])
    return make_contract(builder, row, resolved.config.evaluation, model.generation_config, list(stops))


def build_trainer(
    resolved: Resolved,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    precision: Precision,
    plan: Plan,
    judge: Judge | None,
    rows: Dataset,
    eval_rows: Dataset | None,
    contract: Contract,
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
        generation_metrics=judge,
        generate_every=resolved.config.evaluation.generate_every,
        keep_checkpoints=training.save_total_limit,
        loraplus_lr_ratio=resolved.config.adapter.loraplus_lr_ratio,
        complete_checkpoint=lambda saved: inference.write(saved, contract),
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
        "plan": asdict(plan) | {"strategy": strategy.name, "strategy_origin": strategy.origin},
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
        for later in (folder / EVALUATION).glob("step-*"):
            if int(later.name.partition("-")[2]) > resume.step:
                shutil.rmtree(later)
        facts = facts | {"resumed_from": {"checkpoint": resume.path.name, "step": resume.step}}
    write_ledger(folder, data)
    record.begin(folder, resolved, command, facts)


def write_ledger(folder: Path, data: PreparedData) -> None:
    """The account of all rows; of a stream, of those that were reached by now."""
    training = data.train.ledger if isinstance(data.train, ExampleStream) else data.train_ledger
    evaluation = data.eval_ledger.to_dict() if data.eval_rows else None
    write_json(folder / "ledger.json", {"training": training.to_dict(), "evaluation": evaluation})


def finish_folder(
    resolved: Resolved,
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    precision: Precision,
    folder: Path,
    contract: Contract,
) -> Path:
    """Write the finished model and return its folder."""
    model_folder = model_folder_of(resolved)
    adapter_folder = adapter_folder_of(resolved, model_folder)
    model = trainer.accelerator.unwrap_model(trainer.model)
    whole = gathered_weights(model)
    forget()
    if is_main_process():
        save_model(model, tokenizer, adapter_folder, resolved.config.model, state_dict=whole, contract=contract)
        if adapter_folder != model_folder:
            stage = model_folder / ".merged"
            shutil.rmtree(stage, ignore_errors=True)
            merge(adapter_folder, stage, dtype=precision.dtype, questions=questions_for(adapter_folder))
            for file in stage.iterdir():
                file.replace(model_folder / file.name)
            stage.rmdir()
    trainer.accelerator.wait_for_everyone()
    return model_folder


def best_evaluation(trainer: Trainer) -> dict[str, Any] | None:
    """``step``, ``metric`` and ``value`` of the best evaluation; None where nothing depends on which one it is."""
    metric = trainer.args.metric_for_best_model
    # what is measured before the first step is not in the running: no checkpoint holds it
    values = [
        (entry[metric], entry["step"]) for entry in trainer.state.log_history if entry["step"] and metric in entry
    ]
    finite = [value for value in values if math.isfinite(value[0])]
    if not finite:
        return None
    value, step = (max if trainer.args.greater_is_better else min)(finite, key=lambda pair: pair[0])
    return {"step": step, "metric": metric, "value": value}


def draw(folder: Path, best: dict[str, Any] | None) -> None:
    """Draw the curves of the run; a finished run is not lost because its picture is."""
    try:
        draw_curves(folder, best)
    except Exception as error:  # matplotlib has many ways to fail, and none of them concerns the model
        notices.say(f"{CURVES} could not be drawn ({type(error).__name__}: {error})")


def adapter_folder_of(resolved: Resolved, model_folder: Path) -> Path:
    """Where the adapter goes: beside the merged model into a folder of its own."""
    merged_too = resolved.config.training.save_merged_model and resolved.config.adapter.use_lora
    return model_folder / "lora_weights" if merged_too else model_folder


def adapter_record(folder: Path, adapter_folder: Path) -> dict[str, Any]:
    """What ``run.json`` says of the saved adapter, so that a later change of it is noticed; nothing without one."""
    if not (adapter_folder / ADAPTER_CONFIG).is_file():
        return {}
    place = adapter_folder.relative_to(folder).as_posix()
    return {"adapter": {"folder": place, "checksum": read_adapter(adapter_folder).checksum}}


def write_cards(resolved: Resolved, folder: Path, model_folder: Path) -> None:
    """The model card beside each model of the run."""
    adapter_folder = adapter_folder_of(resolved, model_folder)
    if not resolved.config.adapter.use_lora:
        write_card(folder, model_folder, "full")
        return
    write_card(folder, adapter_folder, "adapter")
    if adapter_folder != model_folder:
        write_card(folder, model_folder, "merged")


def push_finished(resolved: Resolved, folder: Path) -> None:
    """Upload the finished model; the run is finished whether or not that succeeds.

    Raises:
        StorageError: the hub could not be reached or refused.
    """
    training = resolved.config.training
    repository = str(training.hub_model_id)
    address = hub.push(folder, repository, hub.uploads(folder), private=training.hub_private_repo)
    notices.say(f"the model was uploaded to {address}")


def final_metrics(trainer: Trainer, best: dict[str, Any] | None) -> dict[str, Any]:
    """The last training loss, and the metrics of the last evaluation or, where the best model is kept, of that one."""
    step = best["step"] if best is not None and trainer.args.load_best_model_at_end else None
    metrics: dict[str, Any] = {}
    for entry in trainer.state.log_history:
        if "loss" in entry:
            metrics["loss"] = entry["loss"]
        if "eval_loss" in entry and step in (None, entry["step"]):
            metrics |= {key: value for key, value in entry.items() if key.startswith("eval_") and key != "eval_runtime"}
    return metrics


def _name(path: str | None) -> str | None:
    return Path(path).name if path else None
