"""A sweep as Ray Tune asks for it: what to try next, and who is told what came of it. Needs Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from tunesmith.launch.sweep import Sweep, Trial


class SweepSearcher(Searcher):
    """Suggests the next trial of ``sweep``, and calls ``settled`` after each.

    Tune pickles its searcher beside the trials for a continuation that we never ask for: the sweep's folder continues
    it. What it pickles is empty, since ``settled`` may be anything.
    """

    def __init__(self, sweep: Sweep, settled: Callable[[Trial], None]) -> None:
        super().__init__()
        self._sweep, self._settled = sweep, settled
        self._trials: dict[str, Trial] = {}

    def suggest(self, trial_id: str) -> Any:  # a dict, or the text that says that there are no more
        trial = self._sweep.next()
        if trial is None:
            return Searcher.FINISHED
        self._trials[trial_id] = trial
        return self._sweep.job(trial)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        died = {"status": "failed", "error": "its Ray worker died", "exit_code": 1}
        trial = self._trials[trial_id]
        self._sweep.settle(trial, died if error or not result else json.loads(result["outcome"]))
        self._settled(trial)

    def save(self, checkpoint_path: str) -> None:
        return

    def restore(self, checkpoint_path: str) -> None:
        return

    def __getstate__(self) -> dict[str, Any]:
        return {}
