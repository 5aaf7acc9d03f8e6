"""Trackers: which a run reports to, guarded so that none can end it, and how they show text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tunesmith import notices
from tunesmith.config.resolve import Resolved
from tunesmith.train.tracker_runs import RUN_NAME, TRACKERS, run_id, start_of

FAILURES = 3
"""Failures in a row after which a tracker is given up."""
TITLES = {"wandb": "W&B", "tensorboard": "TensorBoard", "trackio": "Trackio", "mlflow": "MLflow"}


class Guarded(TrainerCallback):
    """A tracker's callback whose failures are counted and end nothing; after three in a row it is not asked again.

    What it prints goes to standard error: standard output is ours.
    """

    def __init__(self, callback: Any, name: str, run_name: str) -> None:
        self.callback = callback
        self.name = name
        self.run_name = run_name
        self.lost = 0
        self._in_a_row = 0
        for event in dir(TrainerCallback):
            if event.startswith("on_"):
                setattr(self, event, partial(self.attempt, getattr(callback, event)))

    def attempt(self, report: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        """Call ``report``; None where it fails, or where the tracker was given up."""
        if self._in_a_row >= FAILURES:
            self.lost += 1
            return None
        try:
            with redirect_stdout(sys.stderr):
                result = report(*args, **keywords)
        except Exception as error:  # trackers have many ways to fail, and none of them concerns the model
            self.lost += 1
            self._in_a_row += 1
            notices.notify(f"the tracker {TITLES[self.name]} failed ({_words(error)}); training goes on")
            return None
        self._in_a_row = 0
        return result


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def callbacks(resolved: Resolved, names: Sequence[str], *, resumed_at: int | None = None) -> Iterator[Guarded]:
    """A guarded callback for each tracker that can be reached.

    Args:
        resolved: the run's configuration.
        names: the trackers.
        resumed_at: the step from which the run in ``output_dir`` goes on, if it does; then its runs there do, too.
    """
    start = start_of(resolved, resumed_at)
    for name in names:
        try:
            with redirect_stdout(sys.stderr):
                callback = TRACKERS[name](start)
        except Exception as error:  # the network, the disk, a process of its own: the run does not depend on them
            notices.notify(f"{TITLES[name]} could not begin ({_words(error)}); training goes on without it")
        else:
            yield Guarded(callback, name, start.run_name)


def _trackers(callbacks: Sequence[TrainerCallback]) -> Iterator[Guarded]:
    return (callback for callback in callbacks if isinstance(callback, Guarded))


def tell_losses(callbacks: Sequence[TrainerCallback]) -> None:
    """Say how many reports trackers have lost; all of them stand in ``metrics.jsonl``."""
    for callback in _trackers(callbacks):
        if callback.lost:
            notices.notify(
                f"the tracker {TITLES[callback.name]} lost {callback.lost} reports; metrics.jsonl holds all of them"
            )


def run_ids(callbacks: Sequence[TrainerCallback]) -> dict[str, str]:
    """The run's name at its trackers, and tracker -> its id there: a run that is resumed goes on under them."""
    found: dict[str, str] = {}
    for callback in _trackers(callbacks):
        found[RUN_NAME] = callback.run_name
        if (known := run_id(callback.name)) is not None:
            found[callback.name] = known
    return found


def run_folders(output_dir: Path) -> list[str]:
    """Folders below the run folder, relative to it, that trackers keep the open run in under names of their own."""
    wandb = sys.modules.get("wandb")
    if run_id("wandb") is None or wandb is None:
        return []
    place = Path(wandb.run.dir).absolute().parent
    home = output_dir.absolute()
    return [place.relative_to(home).as_posix()] if place.is_relative_to(home) else []


def show_samples(callbacks: Sequence[TrainerCallback], step: int, samples: Sequence[dict[str, Any]]) -> None:
    """Show sample answers in every open tracker: a table at W&B and Trackio, text at TensorBoard and MLflow.

    Args:
        callbacks: the trainer's callbacks, among which those of the trackers are.
        step: the optimizer step after which the samples were generated.
        samples: objects with the same keys, one a question.
    """
    names = list(dict.fromkeys(name for sample in samples for name in sample))
    cells = [[str(sample.get(name, "")) for name in names] for sample in samples]
    for callback in _trackers(callbacks):
        callback.attempt(callback.callback.show, step, names, cells)


def close(callbacks: Sequence[TrainerCallback], *, failed: bool) -> None:
    """Close what trackers still have open, so that a process can train again.

    Args:
        callbacks: the trainer's callbacks.
        failed: whether the run did not come to its end.
    """
    for callback in _trackers(callbacks):
        try:
            with redirect_stdout(sys.stderr):
                callback.callback.end(failed=failed)
        except Exception as error:  # its process may be gone, or the disk full
            notices.notify(f"{TITLES[callback.name]} could not finish ({_words(error)})")
