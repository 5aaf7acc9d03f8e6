"""Everything of a run that is known before its weights are loaded, made by one list of steps.

``train`` ends at the first problem, ``check`` goes on and collects them, ``preview`` and the launchers ask for a part.
Each step imports what it needs when it is reached, so that whoever stops early waits for no library of training.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunesmith.config.resolve import Resolved
from tunesmith.errors import TunesmithError, understood
from tunesmith.train.processes import Processes, environment_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from tunesmith.config.strategy import Strategy
    from tunesmith.model.device import Device, Machine
    from tunesmith.model.precision import Precision
    from tunesmith.train.checkpoint import Checkpoint
    from tunesmith.train.contract import Continuation, RunTerms
    from tunesmith.train.evaluator import Evaluator
    from tunesmith.train.plan import Plan
    from tunesmith.train.prepare import PreparedData
    from tunesmith.train.samples import Samples

T = TypeVar("T")


class NotMade:
    """Stands for a part that nobody asked for, or that could not be made."""

    def __repr__(self) -> str:
        return "NOT_MADE"


NOT_MADE: Any = NotMade()


@dataclass(frozen=True, slots=True)
class Setup:
    """A run up to its weights. Parts that were not asked for, or could not be made, are ``NOT_MADE``.

    Attributes:
        resolved: the checked configuration.
        processes: who shares the run.
        machine: the accelerators of each machine.
        strategy: how the processes share the run.
        folder: the run folder, which can be written.
        checkpoint: the checkpoint that was found to continue from; None starts at the beginning.
        tokenizer: the run's tokenizer.
        data: its examples, and the rows behind them.
        evaluator: generates and scores answers at evaluations, or None.
        device: where a process computes.
        precision: the run's arithmetic.
        samples: the callback that answers questions while training goes on, or None.
        rows: what the trainer draws its batches from.
        eval_rows: the same for evaluations, or None.
        plan: how many steps that makes.
        resume: ``checkpoint``, once it is sure that this run can continue it.
        trackers: names of the trackers that the run reports to.
        weights: where the model's weights are, which are whole as far as their headers tell.
        terms: all that decides what the run ends with; checkpoints carry it.
        continuation: how the run differs from the one that wrote ``resume``.
        arguments: keywords of the trainer's configuration, but for the strategy's.
    """

    resolved: Resolved
    processes: Processes
    machine: Machine = NOT_MADE
    strategy: Strategy = NOT_MADE
    folder: Path = NOT_MADE
    checkpoint: Checkpoint | None = NOT_MADE
    tokenizer: PreTrainedTokenizerBase = NOT_MADE
    data: PreparedData = NOT_MADE
    evaluator: Evaluator | None = NOT_MADE
    device: Device = NOT_MADE
    precision: Precision = NOT_MADE
    samples: Samples | None = NOT_MADE
    rows: Dataset = NOT_MADE
    eval_rows: Dataset | None = NOT_MADE
    plan: Plan = NOT_MADE
    resume: Checkpoint | None = NOT_MADE
    trackers: tuple[str, ...] = NOT_MADE
    weights: str = NOT_MADE
    terms: RunTerms = NOT_MADE
    continuation: Continuation = NOT_MADE
    arguments: dict[str, Any] = NOT_MADE

    def has(self, *names: str) -> bool:
        """Whether all these parts were made."""
        return not any(isinstance(getattr(self, name), NotMade) for name in names)


class Problems(list[TunesmithError]):
    """What went wrong, in the order in which it was met."""

    def attempt(self, action: Callable[[], T], otherwise: T | None = None) -> T | None:
        """The result of ``action``, or ``otherwise`` and one more problem, unless an earlier one says the same."""
        try:
            return action()
        except Exception as error:  # a library's own kind of refusal; training would end with it too
            problem = understood(error)
            if problem.lines() not in [known.lines() for known in self]:
                self.append(problem)
        return otherwise


def set_up(
    resolved: Resolved,
    processes: Processes,
    *,
    machine: Machine | None = None,
    only: Collection[str] | None = None,
    problems: Problems | None = None,
    made_part: Callable[[str], None] = lambda name: None,
) -> Setup:
    """Make the parts of a run, in the order of ``STEPS``.

    Args:
        resolved: the checked configuration.
        processes: who shares the run: the processes that are running, or those that are planned.
        machine: the accelerators of each machine, where it is not this one.
        only: parts that are wanted, besides those that they need; None makes all.
        problems: where problems are added while steps that do not need the failed one go on; None raises the first.
        made_part: told the name of each part that a step was asked for, when the step has ended.

    Raises:
        TunesmithError: the first problem, with its exit code.
    """
    wanted = set(STEPS) if only is None else _with_needs(only)
    made: dict[str, Any] = {"resolved": resolved, "processes": processes}
    if machine is not None:
        made["machine"] = machine
    for name, step in STEPS.items():
        needs = _needs(step)
        if name in made or name not in wanted or not needs <= made.keys():
            continue
        values = {need: made[need] for need in needs}
        part = step(**values) if problems is None else problems.attempt(lambda: step(**values), NOT_MADE)  # noqa: B023
        if part is not NOT_MADE:
            made[name] = part
        made_part(name)
    return Setup(**made)


def _needs(step: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(step).parameters)


def _with_needs(only: Collection[str]) -> set[str]:
    wanted = set(only)
    for name in reversed(list(STEPS)):
        if name in wanted:
            wanted |= _needs(STEPS[name])
    return wanted


# steps ----------------------------------------------------------------------------------------------------------------
# A step's parameters are the parts that it needs, by name.


def _machine() -> Machine:
    from tunesmith.model.device import seen

    return seen()


def _strategy(resolved: Resolved, processes: Processes) -> Strategy:
    from tunesmith.train.strategy import choose_strategy

    return choose_strategy(resolved, processes.total)


def _folder(resolved: Resolved) -> Path:
    from tunesmith.train.start import check_folder

    return check_folder(resolved)


def _checkpoint(resolved: Resolved, folder: Path) -> Checkpoint | None:
    from tunesmith.train.start import starting_point

    return starting_point(resolved)


def _tokenizer(resolved: Resolved) -> PreTrainedTokenizerBase:
    from tunesmith.model.tokenizer import load_tokenizer

    return load_tokenizer(resolved.config.model, resolved.config.data)


def _data(resolved: Resolved, tokenizer: PreTrainedTokenizerBase, processes: Processes) -> PreparedData:
    from tunesmith.train.prepare import prepare

    return prepare(resolved, tokenizer, processes.total)


def _evaluator(resolved: Resolved, data: PreparedData, strategy: Strategy) -> Evaluator | None:
    from tunesmith.train.evaluator import make_evaluator

    return make_evaluator(resolved, data, strategy)


def _device(resolved: Resolved, machine: Machine, processes: Processes, strategy: Strategy) -> Device:
    from tunesmith.model.device import choose

    return choose(resolved, machine, environment_of(processes), strategy)


def _precision(resolved: Resolved, device: Device, strategy: Strategy) -> Precision:
    from tunesmith.model.precision import choose_precision
    from tunesmith.train.strategy import check_precision

    precision = choose_precision(resolved, device)
    check_precision(resolved, strategy, precision)
    return precision


def _samples(
    resolved: Resolved,
    tokenizer: PreTrainedTokenizerBase,
    data: PreparedData,
    precision: Precision,
    strategy: Strategy,
) -> Samples | None:
    from tunesmith.train.samples import make_samples

    return make_samples(resolved, tokenizer, data, precision, strategy)


def _rows(resolved: Resolved, data: PreparedData, processes: Processes) -> Dataset:
    from tunesmith.train.dataset import training_rows

    return training_rows(data.train, resolved, processes.total)


def _eval_rows(data: PreparedData) -> Dataset | None:
    from tunesmith.train.dataset import evaluation_rows

    return evaluation_rows(data.evaluation)


def _plan(resolved: Resolved, rows: Dataset, processes: Processes) -> Plan:
    from tunesmith.train.dataset import num_batch_rows
    from tunesmith.train.plan import make_plan

    return make_plan(resolved, num_batch_rows(rows), processes.total)


def _resume(resolved: Resolved, checkpoint: Checkpoint | None, plan: Plan, strategy: Strategy) -> Checkpoint | None:
    from tunesmith.train.start import check_batches

    if checkpoint is not None:
        check_batches(checkpoint, resolved, plan, strategy)
    return checkpoint


def _trackers(resolved: Resolved) -> tuple[str, ...]:
    from tunesmith.train.tracker_packages import check_installed

    return check_installed(resolved)


def _weights(resolved: Resolved) -> str:
    from tunesmith.model.source import locate
    from tunesmith.model.whole import open_checked

    section = resolved.config.model
    if section.model_class is not None:  # another package opens it
        return locate(section.model_name_or_path, section.revision)
    return open_checked(section, read_weights=False).located


def _terms(
    resolved: Resolved, data: PreparedData, plan: Plan, strategy: Strategy, device: Device, precision: Precision
) -> RunTerms:
    from tunesmith.train.contract import RunTerms

    return RunTerms(resolved, data, plan, strategy, device, precision)


def _continuation(resume: Checkpoint | None, terms: RunTerms) -> Continuation:
    from tunesmith.train.contract import Continuation, continuation

    return Continuation() if resume is None else continuation(resume, terms)


def _arguments(
    resolved: Resolved, device: Device, precision: Precision, plan: Plan, resume: Checkpoint | None
) -> dict[str, Any]:
    from tunesmith.train.arguments import check_optimizer, sft_keywords

    check_optimizer(resolved, device)
    return sft_keywords(resolved, device, precision, plan, resuming=resume is not None)


STEPS: Mapping[str, Callable[..., Any]] = {
    "machine": _machine,
    "strategy": _strategy,
    "folder": _folder,
    "checkpoint": _checkpoint,
    "tokenizer": _tokenizer,
    "data": _data,
    "evaluator": _evaluator,
    "device": _device,
    "precision": _precision,
    "samples": _samples,
    "rows": _rows,
    "eval_rows": _eval_rows,
    "plan": _plan,
    "resume": _resume,
    "trackers": _trackers,
    "weights": _weights,
    "terms": _terms,
    "continuation": _continuation,
    "arguments": _arguments,
}
"""Part of a ``Setup`` -> what makes it, in order."""
