"""The recipe of a training run, from a checked configuration to a finished run folder, in the order it happens.

Everything that can be checked without weights is checked before weights are loaded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, set_seed

from tunesmith.config.resolve import Resolved
from tunesmith.data.collate import Collator
from tunesmith.data.stream import ExampleStream
from tunesmith.errors import Interrupted, TunesmithError
from tunesmith.evaluate.generate import default_stop_token_ids
from tunesmith.export import inference
from tunesmith.export.inference import Contract, chat_template, make_contract
from tunesmith.export.save import make_portable
from tunesmith.model.freed_memory import freed_memory_kept
from tunesmith.model.fresh import coverage_of
from tunesmith.model.head import Head, inspect_head
from tunesmith.model.internals import attention_of
from tunesmith.model.layout import Layout, expected_layout, settle_layout
from tunesmith.model.lean_lora import add_updates_in_place
from tunesmith.model.load import load_model
from tunesmith.model.new_tokens import new_token_ids, num_embeddings
from tunesmith.model.parameters import trainable_parameters
from tunesmith.model.products import multiply_quickly
from tunesmith.model.spread import loads_in_pieces
from tunesmith.model.tokenizer import check_vocabulary
from tunesmith.notices import notify
from tunesmith.report import belongings, record
from tunesmith.train import trackers
from tunesmith.train.arguments import eval_interval, strategy_keywords
from tunesmith.train.balance import tell_unused
from tunesmith.train.callbacks import EarlyStopping, Listener, RunLog, Silent
from tunesmith.train.checkpoint import is_of
from tunesmith.train.first_step import FirstStep
from tunesmith.train.folder import (
    adapter_folder_of,
    adapter_record,
    begin_folder,
    best_evaluation,
    close_folder,
    draw,
    final_metrics,
    push_finished,
    record_end,
    save_models,
    write_cards,
    write_ledger,
    write_page,
)
from tunesmith.train.garbage import nothing_old_collected
from tunesmith.train.lock import held
from tunesmith.train.optimization import check_optimization, make_arguments
from tunesmith.train.out_of_memory import memory_explained
from tunesmith.train.processes import (
    connect_with_itself,
    connected,
    disconnect,
    is_main_process,
    leave_sums_to_gloo,
    process_seed,
    running,
    use_fresh_store,
)
from tunesmith.train.result import TrainResult, model_folder_of
from tunesmith.train.resuming import check_trainer_state
from tunesmith.train.setup import Setup, set_up
from tunesmith.train.signals import Halt, Signals, going_on, watching
from tunesmith.train.space import check_before_training, storage_faults
from tunesmith.train.start import check_agreement, check_writable, completed
from tunesmith.train.stopping import Stopping, TimeIsUp, way_on_told
from tunesmith.train.strategy import check_tied, claim_deepspeed_fields, gathered_weights, release_zero3
from tunesmith.train.trainer import Arguments, Trainer
from tunesmith.train.workers import deaths_explained


def train(
    resolved: Resolved, *, command: Sequence[str], listener: Listener | None = None, began: float | None = None
) -> TrainResult:
    """Run a configuration to its end.

    Args:
        resolved: the checked configuration.
        command: the command line that started the run, for ``run.json``.
        listener: whoever shows progress.
        began: ``time.monotonic()`` when the command began, from which the time to the first step counts; None for now.

    Returns:
        The result; of a run whose time was up, with ``stopped``.

    Raises:
        Interrupted: a signal stopped the run; ``run.json`` then says "interrupted" and how to go on.
        TunesmithError: with the exit code of what went wrong; ``run.json`` then says "failed" and why, unless the run
            had nothing to show yet and the one that it was to replace is back in its place.
    """
    folder = Path(resolved.config.training.output_dir)
    first = FirstStep(folder if is_main_process() else None, began)
    check_writable(folder)
    with held(folder) if is_main_process() else nullcontext():
        if is_main_process():
            belongings.heal(folder)
        complete = completed(resolved)
        if complete:
            if resolved.config.training.push_to_hub and is_main_process():
                push_finished(resolved)
            return complete
        with watching() as signals, nothing_old_collected():
            result = _train(resolved, command, listener or Silent(), signals, first)
    return replace(result, first_step=first.figures())


def _train(
    resolved: Resolved, command: Sequence[str], listener: Listener, signals: Signals, first: FirstStep
) -> TrainResult:
    """``train``, in a folder that nobody else uses."""
    started, clock = time.perf_counter(), time.monotonic()
    joined = connected()
    use_fresh_store()
    setup = set_up(resolved, running(), made_part=first.made)
    claim_deepspeed_fields()
    arguments = trainer_arguments(setup)
    set_seed(resolved.config.training.seed)
    tokens = new_token_ids(setup.tokenizer, resolved.config.data)
    first.lap("checks")
    with memory_explained(setup, "while the weights were loaded"):
        model = load_model(resolved, setup.precision, setup.device, setup.strategy, tokens)
    first.lap("model")
    check_vocabulary(setup.tokenizer, num_embeddings(model))
    check_tied(setup.strategy, model)
    contract = inference_contract(setup, model)
    trainer = build_trainer(setup, model, contract, arguments)
    trainer.add_callback(first)
    check_agreement(setup.resume, setup.data.train_fingerprint)
    if setup.resume:
        check_trainer_state(setup.resume.path)
    go_on = going_on(command)
    with signals.waiting(f"the newest complete checkpoint is whole; go on with: {go_on}"):
        try:
            steps(setup, trainer, command, listener, stopping_of(resolved, trainer, signals, clock, go_on))
        except TimeIsUp as up:
            return TrainResult(
                Path(resolved.config.training.output_dir), model_folder_of(resolved), trainer.state.global_step,
                time.perf_counter() - started, {}, stopped=up.line(),
            )  # fmt: skip
        # what follows is whole or not there; a first signal finds it nearly done, a second one need not wait
        return ending(setup, trainer, contract, started, joined=joined)


def ending(setup: Setup, trainer: Trainer, contract: Contract, started: float, *, joined: bool) -> TrainResult:
    """What follows the last step: the processes part, and the main one writes the finished run.

    Args:
        joined: whether somebody else connected the processes, who then parts them as well.
    """
    folder = Path(setup.resolved.config.training.output_dir)
    with failure_recorded(folder), storage_faults(folder, "the finished model"):
        if is_main_process() and isinstance(setup.data.train, ExampleStream):
            setup.data.train.catch_up(trainer.state.global_step * setup.plan.global_batch_size)
            write_ledger(folder, setup.data)
        weights = gathered_weights(trainer.accelerator.unwrap_model(trainer.model))
        release_zero3()
        if not joined:
            disconnect()
        return finalize(setup, trainer, contract, started, weights)


@contextmanager
def failure_recorded(folder: Path) -> Iterator[None]:
    """What ends the run after its steps is recorded in its folder."""
    try:
        yield
    except BaseException as error:
        if is_main_process():
            record_end(folder, *end_of(error))
        raise


def steps(setup: Setup, trainer: Trainer, command: Sequence[str], listener: Listener, stopping: Stopping) -> None:
    """Begin the run folder and take every step, or those until the run is to stop."""
    begin(setup, trainer, command, listener)
    trainer.add_callback(stopping)
    set_seed(process_seed(setup.resolved.config.training.seed))
    try:
        with (
            recorded_end(setup, trainer, listener),
            way_on_told(Path(setup.resolved.config.training.output_dir), going_on(command)),
            memory_explained(setup, trainer=trainer),
            deaths_explained(going_on(command)),
            freed_memory_kept(setup.device.kind),
        ):
            trainer.train(resume_from_checkpoint=str(setup.resume.path) if setup.resume else None)
            trainer.finish_weights()
            trackers.tell_losses(trainer.callback_handler.callbacks)
    except Interrupted:
        trainer.accelerator.wait_for_everyone()  # a launcher ends all processes once the first one has left
        raise


def stopping_of(resolved: Resolved, trainer: Trainer, signals: Signals, clock: float, go_on: str) -> Stopping:
    """The callback that stops a run which began when ``time.monotonic()`` was ``clock``."""
    limit = resolved.config.training.time_limit
    return Stopping(signals, trainer.accelerator, None if limit is None else clock + limit, go_on)


def inference_contract(setup: Setup, model: Any) -> Contract:
    """How the finished model will want to be asked, and where its answers end."""
    builder, row = setup.data.builder, setup.data.first_row
    stops = dict.fromkeys([*builder.stop_token_ids(row), *default_stop_token_ids(model, builder.tokenizer)])
    return make_contract(builder, row, setup.resolved.config.evaluation, model.generation_config, list(stops))


def trainer_arguments(setup: Setup) -> Arguments:
    """The trainer's configuration. Making it connects the processes, among which weights may be spread while they
    load."""
    if setup.strategy.uses_deepspeed:
        if setup.device.kind == "cpu":
            leave_sums_to_gloo()
        connect_with_itself()
    in_pieces = loads_in_pieces(setup.resolved, setup.strategy, setup.processes.total)
    keywords = setup.arguments | strategy_keywords(setup.strategy, in_pieces=in_pieces)
    arguments = make_arguments(setup.resolved, keywords)
    check_optimization(setup.resolved, arguments, setup.device, setup.plan)
    return arguments


def build_trainer(setup: Setup, model: Any, contract: Contract, arguments: Arguments) -> Trainer:
    """The trainer with everything that the configuration asks for."""
    resolved, tokenizer = setup.resolved, setup.tokenizer
    training = resolved.config.training
    if not (setup.strategy.uses_deepspeed or setup.strategy.shards_parameters):
        add_updates_in_place(model)
        multiply_quickly(model)
    layout, head = layout_and_head(setup, model, arguments.device)
    pad_token_id = tokenizer.pad_token_id
    tokenizer.chat_template = chat_template(setup.data.builder, setup.data.first_row) or tokenizer.chat_template
    trainer = Trainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=setup.rows,
        eval_dataset=setup.eval_rows,
        data_collator=Collator(layout.batching, pad_token_id, boundaries=layout.boundaries, predicting=True),
        eval_collator=Collator("padded", pad_token_id),
        generation_metrics=setup.evaluator,
        generate_every=resolved.config.evaluation.generate_every,
        keep_checkpoints=training.save_total_limit,
        loraplus_lr_ratio=resolved.config.adapter.loraplus_lr_ratio,
        router_aux_loss_coef=training.router_aux_loss_coef,
        complete_checkpoint=lambda saved: _complete(setup, model, contract, saved),
        callbacks=list(_callbacks(setup)),
    )
    trainer.layout, trainer.head = layout, head
    tell_unused(trainer.accelerator.unwrap_model(trainer.model), training.router_aux_loss_coef)
    trainer.resumed, trainer.rescheduled = setup.resume, setup.continuation.rescheduled
    trainer.remove_callback(PrinterCallback)
    trainer.check_strategy(setup.strategy)
    return trainer


def layout_and_head(setup: Setup, model: Any, device: torch.device) -> tuple[Layout, Head | None]:
    """How batches lie and how the head is asked, of the model itself; another package's class is asked for nothing that
    nobody set.

    Raises:
        ModelError: the layout that is set cannot be had.
    """
    wanted = setup.resolved.config.training.batching
    if setup.resolved.config.model.model_class is not None:
        layout = expected_layout(setup.resolved)
        return layout if wanted == "auto" else settle_layout(wanted, model, setup.precision, device), None
    return settle_layout(wanted, model, setup.precision, device), inspect_head(model, setup.precision, device)


def _complete(setup: Setup, model: Any, contract: Contract, saved: Path) -> None:
    """Add to a checkpoint how its model wants to be asked, and on what terms it may be continued."""
    make_portable(model, saved, setup.resolved.config.model)
    inference.write(saved, contract)
    setup.terms.write(saved, setup.continuation.accepted)


def _callbacks(setup: Setup) -> Iterator[TrainerCallback]:
    """What accompanies every step; the trackers' come before those of ``begin``, which show things in them."""
    training = setup.resolved.config.training
    if training.early_stopping_patience is not None and eval_interval(setup.resolved)[0] != "no":
        yield EarlyStopping(training.early_stopping_patience, training.early_stopping_threshold)
    if is_main_process():
        goes_on = setup.resume is not None and is_of(Path(training.output_dir), setup.resume)
        resumed_at = setup.resume.step if goes_on else None
        yield from trackers.callbacks(setup.resolved, setup.trackers, resumed_at=resumed_at)


def begin(setup: Setup, trainer: Trainer, command: Sequence[str], listener: Listener) -> None:
    """Tell everybody that the first step follows, and begin the run folder."""
    folder = Path(setup.resolved.config.training.output_dir)
    facts = describe(setup, trainer) | {"trackers": trackers.run_ids(trainer.callback_handler.callbacks)}
    facts[belongings.TRACKED] = trackers.run_folders(folder)
    if setup.continuation.accepted:
        facts["accepted_changes"] = list(setup.continuation.accepted)
    trainer.add_callback(RunLog(folder, listener))
    if setup.samples is not None:
        setup.samples.show_in(trainer.callback_handler.callbacks, listener)
        trainer.add_callback(setup.samples)
    trainer.check_callbacks()
    if is_main_process():
        check_before_training(trainer, folder, setup.plan.total_steps, setup.resolved)
        begin_folder(folder, setup.resolved, command, facts, setup.data, setup.resume)
        listener.on_start(facts)


def end_of(error: BaseException) -> tuple[str, dict[str, Any]]:
    """Status and facts that ``run.json`` keeps of a run that did not reach its end."""
    what = error.line() if isinstance(error, TunesmithError) else f"{type(error).__name__}: {error}"
    if isinstance(error, Interrupted | Halt | KeyboardInterrupt):
        return "interrupted", {"stopped": what}
    return "failed", {"error": what}


@contextmanager
def recorded_end(setup: Setup, trainer: Trainer, listener: Listener) -> Iterator[None]:
    """Whatever ends the steps meanwhile: trackers are closed, the listener hears of it, a failure is recorded."""
    failed = True
    try:
        yield
        failed = False
    except BaseException as error:
        if is_main_process():
            listener.on_end()
            record_end(Path(setup.resolved.config.training.output_dir), *end_of(error))
        raise
    finally:
        trackers.close(trainer.callback_handler.callbacks, failed=failed)
    listener.on_end()


def describe(setup: Setup, trainer: Trainer) -> dict[str, Any]:
    """Facts about a run that is about to start, for people and for ``run.json``."""
    resolved, data, precision = setup.resolved, setup.data, setup.precision
    trainable, total = trainable_parameters(trainer.model)
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
            "attention": attention_of(trainer.model),
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
            "template_date": data.builder.template_date,
        },
        "coverage": coverage_of(trainer.accelerator.unwrap_model(trainer.model)),
        "layout": {"batching": trainer.layout.batching, "reason": trainer.layout.reason},
        "plan": asdict(setup.plan),
        "strategy": {"name": setup.strategy.name, "origin": setup.strategy.origin},
        "seeds": {"seed": trainer.args.seed, "data_seed": trainer.args.data_seed},
    }


def finalize(
    setup: Setup,
    trainer: Trainer,
    contract: Contract,
    started: float,
    weights: Mapping[str, torch.Tensor] | None,
) -> TrainResult:
    """Write the finished model and all that is known of it.

    The main process alone has something to do, and the others do not wait for it: merging and proving take as long as
    they take, and no collective with a time limit may stand behind them.

    Args:
        setup: what the run was made of.
        trainer: the trainer, after its last step.
        contract: how the finished model wants to be asked.
        started: ``time.perf_counter()`` at the start of the run.
        weights: the gathered weights of a model that is spread over processes.
    """
    resolved, state = setup.resolved, trainer.state
    training = resolved.config.training
    folder = Path(training.output_dir)
    refused: TunesmithError | None = None
    if is_main_process():
        model = trainer.accelerator.unwrap_model(trainer.model)
        refused = save_models(resolved, model, setup.tokenizer, setup.precision, contract, state_dict=weights)
    seconds = time.perf_counter() - started
    best = best_evaluation(
        state.log_history, trainer.args.metric_for_best_model, greater_is_better=bool(trainer.args.greater_is_better)
    )
    metrics = final_metrics(state.log_history, best["step"] if best and training.load_best_model_at_end else None)
    if is_main_process():
        trainer.rotate_checkpoints()
        draw(folder, best)
        result = {"steps": state.global_step, "seconds": round(seconds, 1), "metrics": metrics}
        best_checkpoint = Path(state.best_model_checkpoint).name if state.best_model_checkpoint else None
        kept = {"best": best, "best_checkpoint": best_checkpoint} | adapter_record(resolved)
        kept |= {"merge_refused": refused.line()} if refused is not None else {}
        record.add(folder, {"result": result, "finished": record.now(), **kept})
        write_cards(resolved)
        write_page(folder)
        close_folder(folder)
        if refused is not None:
            where = f"the run is finished and its adapter lies in {adapter_folder_of(resolved)}"
            notify(f"{where}; there is no merged model beside it")
            raise refused
        if training.push_to_hub:
            push_finished(resolved)
    return TrainResult(folder, model_folder_of(resolved), state.global_step, seconds, metrics)
