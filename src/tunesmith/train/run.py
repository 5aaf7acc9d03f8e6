"""The recipe of a training run, from a checked configuration to a finished run folder, in the order it happens.

Everything that can be checked without weights is checked before weights are loaded.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PrinterCallback, set_seed

from tunesmith.config.resolve import Resolved
from tunesmith.config.strategy import ALONE, Strategy
from tunesmith.data.collate import Collator
from tunesmith.data.stream import ExampleStream
from tunesmith.errors import TunesmithError
from tunesmith.evaluate.generate import default_stop_token_ids
from tunesmith.export import inference
from tunesmith.export.inference import Contract, chat_template, make_contract
from tunesmith.model.device import here
from tunesmith.model.load import load_model
from tunesmith.model.parameters import trainable_parameters
from tunesmith.model.precision import Precision, choose_precision
from tunesmith.model.segments import keep_examples_apart
from tunesmith.model.tokenizer import check_vocabulary, load_tokenizer
from tunesmith.report import record
from tunesmith.train import trackers
from tunesmith.train.arguments import check_optimizer, eval_interval, sft_keywords
from tunesmith.train.callbacks import EarlyStopping, Listener, RunLog, Silent
from tunesmith.train.dataset import num_batch_rows, to_dataset
from tunesmith.train.evaluator import Evaluator, make_evaluator
from tunesmith.train.folder import (
    adapter_record,
    begin_folder,
    best_evaluation,
    draw,
    final_metrics,
    push_finished,
    save_models,
    write_cards,
    write_ledger,
)
from tunesmith.train.plan import Plan, make_plan
from tunesmith.train.prepare import PreparedData, prepare
from tunesmith.train.processes import (
    connected,
    disconnect,
    is_main_process,
    num_processes,
    process_seed,
    use_fresh_store,
)
from tunesmith.train.result import TrainResult, model_folder_of
from tunesmith.train.samples import make_samples
from tunesmith.train.start import check_agreement, check_batches, starting_point
from tunesmith.train.strategy import (
    check_precision,
    check_processes,
    check_strategy,
    check_tied,
    claim_deepspeed_fields,
    gathered_weights,
    release_zero3,
)
from tunesmith.train.trainer import Arguments, Trainer


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
    use_fresh_store()
    joined = connected()
    strategy = check_strategy(resolved)
    check_processes(resolved, strategy)
    claim_deepspeed_fields()
    folder = Path(training.output_dir)
    resume = starting_point(resolved)
    tokenizer = load_tokenizer(resolved.config.model)
    data = prepare(resolved, tokenizer)
    evaluator = make_evaluator(resolved, data)
    device = here(resolved, strategy)
    precision = choose_precision(resolved, device)
    samples = make_samples(resolved, tokenizer, data, precision)
    rows, eval_rows = to_dataset(data.train, resolved), to_dataset(data.evaluation, resolved, evaluation=True)
    plan = make_plan(resolved, num_batch_rows(rows), num_processes())
    check_precision(resolved, strategy, precision)
    check_optimizer(resolved, device)
    if resume is not None:
        check_batches(resume, resolved, plan, strategy)
    keywords = sft_keywords(
        resolved,
        bf16=precision.bf16,
        fp16=precision.fp16,
        device=device,
        warmup_steps=plan.warmup_steps,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        resuming=resume is not None,
        strategy=strategy,
    )
    arguments = Arguments(**keywords)  # connects the processes, among which weights may be spread while they load
    set_seed(training.seed)
    model = load_model(resolved, precision, device, strategy)
    check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings)
    check_tied(strategy, model)
    contract = inference_contract(resolved, model, data)
    tokenizer.chat_template = chat_template(data.builder, data.first_row) or tokenizer.chat_template
    trainer = build_trainer(
        resolved,
        model,
        tokenizer,
        precision,
        arguments,
        evaluator,
        rows,
        eval_rows,
        contract,
        strategy=strategy,
    )
    check_agreement(resume, data.train_fingerprint)
    facts = describe(resolved, model, precision, plan, data, trainer, strategy)
    trainer.add_callback(RunLog(folder, listener))
    if samples is not None:
        samples.show_in(trainer.callback_handler.callbacks)
        trainer.add_callback(samples)
    if is_main_process():
        begin_folder(folder, resolved, command, facts, data, resume)
        listener.on_start(facts)
    set_seed(process_seed(training.seed))
    try:
        trainer.train(resume_from_checkpoint=str(resume.path) if resume else None)
    except BaseException as error:
        if is_main_process():
            listener.on_end()
            what = error.line() if isinstance(error, TunesmithError) else f"{type(error).__name__}: {error}"
            record.close(folder, "failed", {"error": what})
        raise
    finally:
        trackers.close()
    listener.on_end()
    if is_main_process() and isinstance(data.train, ExampleStream):
        write_ledger(folder, data)
    weights = gathered_weights(trainer.accelerator.unwrap_model(trainer.model))
    release_zero3()
    if not joined:
        disconnect()
    return finalize(resolved, trainer, tokenizer, precision, contract, started, weights)


def inference_contract(resolved: Resolved, model: Any, data: PreparedData) -> Contract:
    """How the finished model will want to be asked, and where its answers end."""
    builder, row = data.builder, data.first_row
    stops = dict.fromkeys([*builder.stop_token_ids(row), *default_stop_token_ids(model, builder.tokenizer)])
    return make_contract(builder, row, resolved.config.evaluation, model.generation_config, list(stops))


def build_trainer(
    resolved: Resolved,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    precision: Precision,
    arguments: Arguments,
    evaluator: Evaluator | None,
    rows: Dataset,
    eval_rows: Dataset | None,
    contract: Contract,
    *,
    strategy: Strategy = ALONE,
) -> Trainer:
    """The trainer with everything that the configuration asks for."""
    training = resolved.config.training
    callbacks = []
    if training.early_stopping_patience is not None and eval_interval(resolved)[0] != "no":
        callbacks.append(EarlyStopping(training.early_stopping_patience, training.early_stopping_threshold))
    if is_main_process():
        callbacks.extend(trackers.callbacks(resolved))
    trainer = Trainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=rows,
        eval_dataset=eval_rows,
        data_collator=training_collator(resolved, model, tokenizer, precision, arguments.device),
        eval_collator=Collator("padded", tokenizer.pad_token_id),
        generation_metrics=evaluator,
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
    resolved: Resolved, model: Any, tokenizer: PreTrainedTokenizerBase, precision: Precision, device: torch.device
) -> Collator:
    """The collator of training batches; where a row holds several examples, the model is made to keep them apart.

    Raises:
        ModelError: the model cannot keep them apart.
    """
    batching = resolved.config.training.batching
    if batching in ("padded", "length_grouped"):
        return Collator(batching, tokenizer.pad_token_id)
    return Collator(batching, tokenizer.pad_token_id, boundaries=keep_examples_apart(model, precision, device))


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


def finalize(
    resolved: Resolved,
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    precision: Precision,
    contract: Contract,
    started: float,
    weights: Mapping[str, torch.Tensor] | None,
) -> TrainResult:
    """Write the finished model and all that is known of it.

    The main process alone has something to do, and the others do not wait for it: merging and proving take as long as
    they take, and no collective with a time limit may stand behind them.

    Args:
        started: ``time.perf_counter()`` at the start of the run.
        weights: the gathered weights of a model that is spread over processes.
    """
    training, state = resolved.config.training, trainer.state
    folder = Path(training.output_dir)
    if is_main_process():
        model = trainer.accelerator.unwrap_model(trainer.model)
        save_models(resolved, model, tokenizer, precision, contract, state_dict=weights)
    seconds = time.perf_counter() - started
    best = best_evaluation(
        state.log_history, trainer.args.metric_for_best_model, greater_is_better=bool(trainer.args.greater_is_better)
    )
    metrics = final_metrics(state.log_history, best["step"] if best and training.load_best_model_at_end else None)
    if is_main_process():
        draw(folder, best)
        result = {"steps": state.global_step, "seconds": round(seconds, 1), "metrics": metrics}
        best_checkpoint = Path(state.best_model_checkpoint).name if state.best_model_checkpoint else None
        kept = {"best": best, "best_checkpoint": best_checkpoint} | adapter_record(resolved)
        record.close(folder, "finished", {"result": result, **kept})
        write_cards(resolved)
        if training.push_to_hub:
            push_finished(resolved)
    return TrainResult(folder, model_folder_of(resolved), state.global_step, seconds, metrics)
