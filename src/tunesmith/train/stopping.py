"""Stops a run between two steps: at a signal, or when its time is up. All processes stop after the same step."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from tunesmith import notices
from tunesmith.errors import Interrupted
from tunesmith.train.checkpoint import list_checkpoints
from tunesmith.train.signals import Signals

_TIME_IS_UP = 1
"""Stands where a signal's number would; smaller than those that are handled, so that a signal counts more."""


@contextmanager
def way_on_told(folder: Path, go_on: str) -> Iterator[None]:
    """A failure of a run that has a checkpoint brings, as a note, the command that goes on from there.

    Args:
        folder: the run folder.
        go_on: the command that continues the run.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, Interrupted) and go_on not in str(error) and list_checkpoints(folder):
            error.add_note(f"once that is mended, go on with: {go_on}")
        raise


class TimeIsUp(Interrupted):
    """The time that a run was given is over; it has saved, and nothing is wrong."""

    def __init__(self, what: str, *, remedy: str) -> None:
        super().__init__(what, signal_number=0, remedy=remedy)
        self.exit_code = 0


class Stopping(TrainerCallback):
    """Looks after every step, evaluation and save whether to stop; saves what is not saved, and raises.

    A run that has taken its last step is not stopped: what is left to do is to write it down. This must be the last
    callback: the others have seen the checkpoint by then.

    Args:
        signals: what has reached this process.
        accelerator: asks the other processes.
        deadline: when the time is up, by ``time.monotonic()``; None never.
        go_on: the command that continues the run.
    """

    def __init__(self, signals: Signals, accelerator: Accelerator, deadline: float | None, go_on: str) -> None:
        self._signals = signals
        self._accelerator = accelerator
        self._deadline = deadline
        self._go_on = go_on
        self._reason = 0

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._save_if_stopping(control)

    @override
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step:
            self._save_if_stopping(control)
        elif self._agree():
            raise self._interrupted("before the first step")

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._agree() and not control.should_training_stop:
            raise self._interrupted(f"after step {state.global_step}, with checkpoint-{state.global_step}")

    def _save_if_stopping(self, control: TrainerControl) -> None:
        if self._agree():
            control.should_save = True
            then = "this was the last step, so the run ends" if control.should_training_stop else "then the run stops"
            notices.notify(f"{self._name()}: a checkpoint is saved, {then}; a second signal stops it now")

    def _agree(self) -> int:
        """Why to stop: the strongest reason that any process has; 0 for none. All processes ask at the same places."""
        if not self._reason:
            late = self._deadline is not None and time.monotonic() >= self._deadline
            reason = self._signals.number or (_TIME_IS_UP if late else 0)
            if self._accelerator.num_processes > 1:
                said = torch.tensor([reason], device=self._accelerator.device)
                reason = int(self._accelerator.gather(said).max())
            self._reason = reason
        return self._reason

    def _name(self) -> str:
        return "the time limit" if self._reason == _TIME_IS_UP else signal.Signals(self._reason).name

    def _interrupted(self, when: str) -> Interrupted:
        remedy = f"go on with: {self._go_on}"
        if self._reason == _TIME_IS_UP:
            return TimeIsUp(f"the time limit was reached: stopped {when}", remedy=remedy)
        return Interrupted(f"{self._name()}: stopped {when}", signal_number=self._reason, remedy=remedy)
