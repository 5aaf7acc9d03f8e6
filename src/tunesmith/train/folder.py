"""The run folder: what is cleared and written before step 1, and what is written when training has ended.

Files are written by ``report`` and ``export``; checkpoints are the trainer's. The main process alone comes here.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from tunesmith import notices
from tunesmith.config.permissions import permissions_of
from tunesmith.config.resolve import Resolved
from tunesmith.data.stream import ExampleStream
from tunesmith.errors import Interrupted, StorageError, TunesmithError
from tunesmith.evaluate.prompts import questions_for
from tunesmith.evaluate.subject import EVALUATION
from tunesmith.export import hub
from tunesmith.export.card import write_card
from tunesmith.export.inference import Contract
from tunesmith.export.merge import merge
from tunesmith.export.save import save_model
from tunesmith.model.adapter_file import read_adapter
from tunesmith.model.precision import Precision
from tunesmith.model.source import ADAPTER_CONFIG
from tunesmith.report import belongings, record
from tunesmith.report.folder import read_json, sync_folder, write_json
from tunesmith.report.page import refresh_report
from tunesmith.report.plots import CURVES, draw_curves
from tunesmith.train import checkpoint
from tunesmith.train.callbacks import keep_metrics_until
from tunesmith.train.prepare import PreparedData
from tunesmith.train.result import model_folder_of

PUSHED = "pushed"
"""Key of the record: the address that a finished run was uploaded to."""


def begin_folder(
    folder: Path,
    resolved: Resolved,
    command: Sequence[str],
    facts: dict[str, Any],
    data: PreparedData,
    resume: checkpoint.Checkpoint | None,
) -> None:
    """Take an earlier run out of the way (only now, when everything is checked) and write what is known before step 1.

    Raises:
        StorageError: that is not possible; the earlier run is then where it was.
    """
    if resume is None or not checkpoint.is_of(folder, resume):
        make_room(folder)
    else:
        belongings.check_links(folder)
        if (folder / record.RECORD).exists() and not belongings.is_record(folder / record.RECORD):
            notices.notify(f"{record.RECORD} cannot be read any more; it is written anew")
        checkpoint.leave_branch(folder, resume.step)
        keep_metrics_until(folder, resume.step)
        for later in (folder / EVALUATION).glob("step-*"):
            number = later.name.partition("-")[2]
            if number.isdecimal() and int(number) > resume.step and later.is_dir():
                shutil.rmtree(later)
        kept = belongings.tracked_folders(folder)
        facts = facts | {belongings.TRACKED: list(dict.fromkeys([*kept, *facts.get(belongings.TRACKED, [])]))}
    if resume is not None:
        facts = facts | {"resumed_from": {"checkpoint": resume.path.name, "step": resume.step}}
    try:
        write_ledger(folder, data)
        record.begin(folder, resolved, command, facts)
    except BaseException:
        belongings.put_back(folder)
        raise


def make_room(folder: Path) -> None:
    """Set an earlier run aside until the new one has something to show; one that never had is removed."""
    if not belongings.belonging(folder):
        return
    if belongings.is_finished(folder) or belongings.has_checkpoint(folder):
        belongings.set_aside(folder)
    else:
        belongings.remove(folder)


def record_end(folder: Path, status: str, facts: dict[str, Any]) -> None:
    """Write into the record how a run ended before its end; where it has nothing to show, the run comes back that it
    should replace.

    What cannot be written is said: the failure itself must reach the user.
    """
    try:
        if belongings.is_finished(folder):
            return  # what failed came after the run's end, as an upload does
        if not belongings.has_checkpoint(folder) and belongings.put_back(folder):
            notices.notify(f"the new run has no checkpoint, so the earlier run is in its place again in {folder}")
        else:
            record.close(folder, status, facts)
    except (OSError, StorageError) as error:
        notices.notify(f"{record.RECORD} does not say how the run ended ({error})")


def close_folder(folder: Path) -> None:
    """Declare the run finished, in one write with the list of its files, and remove the run that it replaces.

    Nothing of the run may be written after this: one that is killed before goes on, one that is killed after is whole.
    """
    record.close(folder, "finished", {belongings.FILES: belongings.written(folder)})
    belongings.drop_replaced(folder)


def write_ledger(folder: Path, data: PreparedData) -> None:
    """The account of all rows; of a stream, of those that were reached by now."""
    training = data.train.ledger if isinstance(data.train, ExampleStream) else data.train_ledger
    evaluation = data.eval_ledger.to_dict() if data.eval_rows else None
    write_json(folder / "ledger.json", {"training": training.to_dict(), "evaluation": evaluation})


def save_models(
    resolved: Resolved,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    precision: Precision,
    contract: Contract,
    *,
    state_dict: Mapping[str, torch.Tensor] | None,
) -> TunesmithError | None:
    """Write the finished model and, where that is asked for, the merged one beside it.

    Args:
        state_dict: the gathered weights of a model that is spread over processes.

    Returns:
        Why there is no merged model although one was asked for; the adapter is whole and the run is finished without.
    """
    model_folder = model_folder_of(resolved)
    adapter_folder = adapter_folder_of(resolved)
    save_model(model, tokenizer, adapter_folder, resolved.config.model, state_dict=state_dict, contract=contract)
    if adapter_folder == model_folder:
        return None
    stage = model_folder / ".merged"
    shutil.rmtree(stage, ignore_errors=True)
    try:
        permissions = permissions_of(resolved.values())
        questions = questions_for(adapter_folder, permissions=permissions)
        merge(adapter_folder, stage, dtype=precision.dtype, questions=questions, permissions=permissions)
        for file in stage.iterdir():
            file.replace(model_folder / file.name)
    except Interrupted:
        raise
    except TunesmithError as error:
        return error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    sync_folder(model_folder)
    return None


def adapter_folder_of(resolved: Resolved) -> Path:
    """Where the adapter goes: beside the merged model into a folder of its own."""
    merged_too = resolved.config.training.save_merged_model and resolved.config.adapter.use_lora
    return model_folder_of(resolved) / belongings.LORA_WEIGHTS if merged_too else model_folder_of(resolved)


def adapter_record(resolved: Resolved) -> dict[str, Any]:
    """What ``run.json`` says of the saved adapter, so that a later change of it is noticed; nothing without one."""
    folder = adapter_folder_of(resolved)
    if not (folder / ADAPTER_CONFIG).is_file():
        return {}
    place = folder.relative_to(resolved.config.training.output_dir).as_posix()
    return {"adapter": {"folder": place, "checksum": read_adapter(folder).checksum}}


def write_cards(resolved: Resolved) -> None:
    """The model card beside each model of the run."""
    folder, model_folder = Path(resolved.config.training.output_dir), model_folder_of(resolved)
    if not resolved.config.adapter.use_lora:
        write_card(folder, model_folder, "full")
        return
    write_card(folder, adapter_folder_of(resolved), "adapter")
    if adapter_folder_of(resolved) != model_folder:
        whole = any(model_folder.glob("*.safetensors"))
        write_card(folder, model_folder, "merged" if whole else "adapter")


def push_finished(resolved: Resolved) -> None:
    """Upload the finished model, unless that is done; the run is finished whether or not that succeeds.

    Raises:
        StorageError: the hub could not be reached or refused.
    """
    training, folder = resolved.config.training, Path(resolved.config.training.output_dir)
    if read_json(folder / record.RECORD).get(PUSHED):
        return
    repository = str(training.hub_model_id)
    address = hub.push(folder, repository, hub.uploads(folder), private=training.hub_private_repo)
    record.add(folder, {PUSHED: address})
    notices.notify(f"the model was uploaded to {address}")


def draw(folder: Path, best: dict[str, Any] | None) -> None:
    """Draw the curves of the run; a finished run is not lost because its picture is."""
    try:
        draw_curves(folder, best)
    except Exception as error:  # matplotlib has many ways to fail, and none of them concerns the model
        notices.notify(f"{CURVES} could not be drawn ({type(error).__name__}: {error})")


def write_page(folder: Path) -> None:
    """Write the page of a run that is about to be finished."""
    refresh_report(folder, status_of=lambda _facts, _folder: "finished")


def best_evaluation(
    history: Sequence[dict[str, Any]], metric: str | None, *, greater_is_better: bool
) -> dict[str, Any] | None:
    """``step``, ``metric`` and ``value`` of the best evaluation; None where nothing depends on which one it is."""
    # what is measured before the first step is not in the running: no checkpoint holds it
    values = [(entry[metric], entry["step"]) for entry in history if entry["step"] and metric in entry]
    finite = [value for value in values if math.isfinite(value[0])]
    if not finite:
        return None
    value, step = (max if greater_is_better else min)(finite, key=lambda pair: pair[0])
    return {"step": step, "metric": metric, "value": value}


def final_metrics(history: Sequence[dict[str, Any]], step: int | None) -> dict[str, Any]:
    """The last training loss, and the metrics of the evaluation after ``step``; None for the last one."""
    metrics: dict[str, Any] = {}
    for entry in history:
        if "loss" in entry:
            metrics["loss"] = entry["loss"]
        if "eval_loss" in entry and step in (None, entry["step"]):
            metrics |= {key: value for key, value in entry.items() if key.startswith("eval_") and key != "eval_runtime"}
    return metrics
