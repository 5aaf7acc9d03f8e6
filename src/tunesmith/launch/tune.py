"""A sweep on a Ray cluster: Ray Tune places the trials where there is room, several at once.

What is tried next, what is finished and where it lies is the sweep's own; Tune keeps nothing that outlives the call.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

from tunesmith.errors import Interrupted
from tunesmith.launch.interruption import interruptible
from tunesmith.launch.ray import cluster
from tunesmith.launch.sweep import GO_ON, Sweep, Trial, run_trial


def run_on_ray(sweep: Sweep, settled: Callable[[Trial], None]) -> None:
    """Run the trials on the cluster of RAY_ADDRESS, or on one that is started here.

    A trial takes as many CPUs, and GPUs where the cluster has them, as it starts processes. The sweep's folder, the
    data and the working directory are on storage that every machine sees.

    Args:
        sweep: the sweep.
        settled: called after each trial.

    Raises:
        ModelError: Ray is not installed.
        Interrupted: a signal stopped the sweep; the same command continues it.
    """
    launch = sweep.checked[0].config.launch
    num_processes = launch.num_processes or 1  # a worker shows its trial the devices that it got
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    with cluster(num_processes), interruptible("the sweep", remedy=GO_ON):  # Ray sets handlers of its own at first
        import ray
        from ray import tune

        from tunesmith.launch.tune_searcher import SweepSearcher  # a subclass of Ray's, which need not be installed

        num_gpus = num_processes if ray.cluster_resources().get("GPU") else 0
        resources = {"CPU": float(num_processes), "GPU": float(num_gpus)}
        notes = (sweep.folder / ".ray").absolute()
        tuner = tune.Tuner(
            tune.with_resources(tell_trial, resources),
            tune_config=tune.TuneConfig(search_alg=SweepSearcher(sweep, settled), num_samples=sweep.total),
            run_config=tune.RunConfig(name="tune", storage_path=str(notes), verbose=0),
        )
        try:
            with redirect_stdout(io.StringIO()):  # Tune prints tables of its own, whatever ``verbose`` says
                tuner.fit()
        finally:
            shutil.rmtree(notes, ignore_errors=True)


def tell_trial(job: dict[str, Any]) -> None:
    """Run a trial in a worker and report what came of it."""
    from ray import tune

    try:
        outcome = run_trial(job)
    except Interrupted as error:
        outcome = {"status": "failed", "error": error.line(), "exit_code": error.exit_code}
    tune.report({"outcome": json.dumps(outcome)})  # Tune would take a nested result apart
