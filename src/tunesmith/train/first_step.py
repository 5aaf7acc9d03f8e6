"""How long a run takes up to the end of its first step, and what for: ``run.json`` keeps it, the end of a run shows it.

Times are by the clock of the process that writes the run folder. Processes that a launcher starts count from their own
start.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from tunesmith.report import record

FIRST_STEP = "first_step"
"""Key of the record, and the part that is the step itself."""
PARTS_OF_SETUP = {"tokenizer": "data", "data": "data", "rows": "data", "eval_rows": "data"}
"""Part of a ``Setup`` -> what the time goes to that it takes; ``checks`` for all others."""


class FirstStep(TrainerCallback):
    """A clock that is told what has just been done; as a callback, it sees the first step end.

    Args:
        folder: the run folder, whose record gets the times; None in processes that write none.
        began: ``time.monotonic()`` when it began, up to now to import ``libraries``; None for now.
    """

    def __init__(self, folder: Path | None, began: float | None = None) -> None:
        self._folder = folder
        self._last = time.monotonic() if began is None else began
        self._parts: dict[str, float] = {}
        self._over = False
        self.lap("libraries")

    def lap(self, part: str) -> None:
        """What was done since the last call is a ``part`` of the time; parts of one name are added up."""
        now = time.monotonic()
        self._parts[part] = self._parts.get(part, 0.0) + now - self._last
        self._last = now

    def made(self, name: str) -> None:
        """A part of a ``Setup`` was made."""
        self.lap(PARTS_OF_SETUP.get(name, "checks"))

    def figures(self) -> dict[str, Any] | None:
        """Seconds in all and of each part; None before the step has ended."""
        if not self._over:
            return None
        parts = {name: round(seconds, 2) for name, seconds in self._parts.items()}
        return {"seconds": round(sum(self._parts.values()), 2), "parts": parts}

    @override
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not self._over:  # of the model as it is before the first step
            self.lap("evaluation")

    @override
    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not self._over:
            self.lap("checks")

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._over:
            return
        self.lap(FIRST_STEP)
        self._over = True
        if self._folder is not None:
            record.add(self._folder, {FIRST_STEP: self.figures()})
