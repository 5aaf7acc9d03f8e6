"""Callbacks: the log of every metric, progress for whoever listens, early stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from tunesmith import notices
from tunesmith.model.memory.peak import peak_memory
from tunesmith.report.folder import append_jsonl, read_jsonl, repair_jsonl, write_jsonl
from tunesmith.report.plots import METRICS


class Listener(Protocol):
    """Whoever shows a run's progress; ``cli`` has one for terminals and one for plain lines."""

    def on_start(self, facts: dict[str, Any]) -> None:
        """Everything is checked and loaded; the first step follows."""

    def stepped(self, step: int, total: int) -> None:
        """An optimizer step is done."""

    def logged(self, entry: dict[str, Any]) -> None:
        """Metrics of a step or an evaluation; called in every process."""

    def sampled(self, step: int, samples: Sequence[dict[str, Any]]) -> None:
        """Questions were answered after a step; each sample has a ``question`` and an ``answer``."""

    def saved(self, checkpoint: Path) -> None:
        """A checkpoint is complete; called in every process."""

    def on_end(self) -> None:
        """No more steps follow."""


class Silent:
    """A listener that shows nothing."""

    def on_start(self, facts: dict[str, Any]) -> None: ...

    def stepped(self, step: int, total: int) -> None: ...

    def logged(self, entry: dict[str, Any]) -> None: ...

    def sampled(self, step: int, samples: Sequence[dict[str, Any]]) -> None: ...

    def saved(self, checkpoint: Path) -> None: ...

    def on_end(self) -> None: ...


def keep_metrics_until(folder: Path, step: int) -> None:
    """Forget metrics after ``step``, and lines that were torn: a resumed run logs those steps again."""
    path = folder / METRICS
    if path.is_file():
        torn = repair_jsonl(path)
        if torn:
            notices.notify(f"{METRICS} was torn: {torn:,} bytes that are no whole line were taken out")
        write_jsonl(path, [entry for entry in read_jsonl(path) if _step_of(entry) <= step])


def _step_of(entry: dict[str, Any]) -> int:
    step = entry.get("step", 0)
    return step if isinstance(step, int) else 0


class RunLog(TrainerCallback):
    """Writes every logged entry to ``metrics.jsonl`` and tells the listener; nothing is filtered."""

    def __init__(self, folder: Path, listener: Listener) -> None:
        self._path = folder / METRICS
        self._listener = listener
        self._last_time = time.perf_counter()

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._last_time = time.perf_counter()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True  # the last step's loss is never left out
        if state.is_world_process_zero:
            self._listener.stepped(state.global_step, state.max_steps)

    @override
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "train_runtime" in logs:
            return
        entry: dict[str, Any] = {"step": state.global_step, "epoch": state.epoch}
        entry |= {key: _finite(value) for key, value in logs.items() if key not in ("epoch", "total_flos")}
        if "loss" in logs:
            entry["peak_memory_gib"] = round(peak_memory(args.device) / 2**30, 3)
        if state.is_world_process_zero:
            append_jsonl(self._path, entry)
        self._listener.logged(entry)

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._listener.saved(self._path.parent / f"checkpoint-{state.global_step}")


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: those are written as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class EarlyStopping(EarlyStoppingCallback):
    """transformers' early stopping, without its advice: whether the best model is kept is the user's choice.

    An evaluation whose metric is not a number counts as one without improvement.
    """

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        return
