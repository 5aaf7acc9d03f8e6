"""Run folders side by side: what their records say of them, where they differ, and how one is taken away.

Records are read as anybody may have left them: what a record lacks is None here, and no library is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import ConfigError, StorageError, did_you_mean
from tunesmith.program import named
from tunesmith.report import belongings
from tunesmith.report.folder import read_json
from tunesmith.report.record import RECORD
from tunesmith.report.told import mapping, number, status_now

STATUSES = ("running", "finished", "failed", "interrupted", "killed")
"""What became of a run; ``killed`` is one whose record says that it runs although nobody holds its folder."""
COLUMNS = ("name", "status", "model", "method", "steps", "best", "seconds", "when")
PLACES = frozenset({"training.output_dir", "tracking.run_name", "tracking.wandb_run_id"})
"""Settings that only say which run it is."""
_DATA = ("train_rows", "eval_rows", "train_tokens", "train_fingerprint", "eval_fingerprint")
"""Facts of the data by which runs are compared."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A run as its record describes it.

    Attributes:
        folder: the run folder.
        status: one of ``STATUSES``, or whatever else the record says.
        model: name of the base model.
        method: what was trained: ``full``, ``LoRA r=16``, ``QLoRA 4-bit r=16``.
        steps: optimizer steps that a finished run made; those that were planned of any other.
        seconds: how long it took; None while it has not finished.
        when: when it began, ISO 8601 in UTC.
        best: ``step``, ``metric`` and ``value`` of the best evaluation.
        metrics: the figures of its end that are finite numbers.
        facts: the record itself.
    """

    folder: Path
    status: str
    model: str | None
    method: str
    steps: int | None
    seconds: float | None
    when: str | None
    best: dict[str, Any] | None
    metrics: dict[str, float]
    facts: dict[str, Any] = field(repr=False)

    def figure(self, name: str) -> float | None:
        """A metric, ``steps`` or ``seconds``; None where it has none that is a finite number."""
        return getattr(self, name) if name in ("steps", "seconds") else self.metrics.get(name)

    def leading(self) -> tuple[str, float] | None:
        """The figure that is shown of it: that of its best evaluation, else its last loss."""
        names = [self.best["metric"]] if self.best else []
        named = [name for name in (*names, "eval_loss", "loss") if name in self.metrics]
        return (named[0], self.metrics[named[0]]) if named else None

    def to_dict(self) -> dict[str, Any]:
        """The run as plain data, without its record."""
        shown = ("status", "model", "method", "steps", "seconds", "when", "best", "metrics")
        return {"folder": str(self.folder), **{name: getattr(self, name) for name in shown}}


def summary_of(folder: Path, is_held: Callable[[Path], bool]) -> Listed:
    """The run in a folder.

    Args:
        folder: a run folder.
        is_held: whether a process trains in a folder.

    Raises:
        StorageError: there is no run of ours, or its record cannot be used.
    """
    if not (folder / RECORD).is_file():
        remedy = named("`tunesmith runs` lists those below a folder")
        raise StorageError(f"no {RECORD} there, so this is no run folder", where=str(folder), remedy=remedy)
    if not belongings.is_record(folder / RECORD):
        raise StorageError(f"{RECORD} is no record of a run of ours, or is damaged", where=str(folder))
    facts = read_json(folder / RECORD)
    result, plan = facts.get("result") or {}, facts.get("plan") or {}
    best = _best(facts.get("best"))
    metrics = _numbers(result.get("metrics"))
    if best:
        metrics.setdefault(best["metric"], best["value"])
    return Listed(
        folder,
        status_now(is_held)(facts, folder),
        _text(facts["settings"].get("model.model_name_or_path")),
        _method(facts["settings"]),
        _whole(result.get("steps", plan.get("total_steps"))),
        _numbers(result).get("seconds"),
        _text(facts.get("started")),
        best,
        metrics,
        facts,
    )


def find_runs(top: Path, is_held: Callable[[Path], bool]) -> list[Listed]:
    """The runs at and below a folder, the newest first; hidden folders, checkpoints and links are not entered.

    Raises:
        StorageError: there is no such folder, or it cannot be read.
    """
    if not top.is_dir():
        raise StorageError("there is no such folder", where=str(top))
    found = []
    for folder in _folders(top):
        if belongings.is_record(folder / RECORD):
            with suppress(StorageError):  # it went away meanwhile
                found.append(summary_of(folder, is_held))
    return sorted(found, key=lambda run: run.when or "", reverse=True)


def _folders(top: Path) -> Iterator[Path]:
    """Folders that have a file with a record's name."""

    def unreadable(error: OSError) -> None:
        if error.filename == str(top):
            raise StorageError(f"cannot be read: {error.strerror}", where=str(top)) from error

    for folder, inner, files in os.walk(top, onerror=unreadable):
        inner[:] = sorted(name for name in inner if not name.startswith((".", "checkpoint-")))
        if RECORD in files:
            yield Path(folder)


def sort_runs(runs: Sequence[Listed], by: str) -> list[Listed]:
    """Runs in the order of a figure, the best first: small losses and times, large scores. Who lacks it comes last.

    Raises:
        ConfigError: no run has such a figure.
    """
    known = sorted({"steps", "seconds", *(name for run in runs for name in run.metrics)})
    if runs and by not in known:
        remedy = did_you_mean(by, known, f"there are {', '.join(known)}")
        raise ConfigError(f"no run has a figure {by!r}", where="--sort", remedy=remedy)
    sign = 1 if by.endswith(("loss", "seconds", "runtime", "perplexity", "steps")) else -1
    having = [run for run in runs if run.figure(by) is not None]
    lacking = [run for run in runs if run.figure(by) is None]
    return sorted(having, key=lambda run: sign * (run.figure(by) or 0.0)) + lacking


def differences(runs: Sequence[Listed]) -> dict[str, dict[str, list[Any]]]:
    """What differs between runs: part (``settings``, ``data``, ``versions``, ``metrics``) -> name -> value of each run.

    A value that a run does not have is None. What only says which run it is (``PLACES``) is left out.
    """
    parts: dict[str, list[Mapping[str, Any]]] = {
        "settings": [{k: v for k, v in run.facts["settings"].items() if k not in PLACES} for run in runs],
        "data": [{name: (run.facts.get("data") or {}).get(name) for name in _DATA} for run in runs],
        "versions": [run.facts.get("versions") or {} for run in runs],
        "metrics": [run.to_dict()["metrics"] | {"steps": run.steps, "seconds": run.seconds} for run in runs],
    }
    return {part: _differing(columns) for part, columns in parts.items()}


def _differing(columns: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for column in columns for name in column)
    rows = {name: [column.get(name) for column in columns] for name in names}
    return {name: values for name, values in rows.items() if any(value != values[0] for value in values)}


def remove_run(folder: Path) -> tuple[int, list[str]]:
    """Remove what the run in a folder wrote, and the folder where nothing else is left in it; the caller holds it.

    Where the run was about to replace an earlier one that still waits, the earlier one is there again.

    Returns:
        how many files went, and the names of what stays in the folder.

    Raises:
        StorageError: there is no run of ours.
    """
    belongings.heal(folder)
    if not belongings.is_record(folder / RECORD):
        raise StorageError("there is no run of ours", where=str(folder))
    names = belongings.everything(folder)
    if (folder / belongings.REPLACED).exists():  # the launcher's logs tell of both
        names = [name for name in names if not name.startswith("logs/")]
        belongings.remove(folder)
        belongings.heal(folder)
    else:
        belongings.remove_all(folder)
    return len(names), left_in(folder)


def left_in(folder: Path) -> list[str]:
    """Names of what lies in a folder, but for its lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != belongings.LOCK)


def _best(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict) or not isinstance(value.get("metric"), str):
        return None
    found = number(value.get("value"))
    return None if found is None else {"step": value.get("step"), "metric": value["metric"], "value": found}


def _method(settings: Mapping[str, Any]) -> str:
    """What was trained, in a word."""
    if not settings.get("adapter.use_lora"):
        return "full"
    rank = f" r={settings['adapter.lora_r']}" if settings.get("adapter.lora_r") else ""
    for bits in (4, 8):
        if settings.get(f"quantization.load_in_{bits}bit"):
            return f"QLoRA {bits}-bit{rank}"
    return f"LoRA{rank}"


def _numbers(value: Any) -> dict[str, float]:
    named = ((name, number(one)) for name, one in mapping(value).items())
    return {name: found for name, found in named if found is not None}


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
