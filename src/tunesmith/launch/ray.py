"""The same run on a Ray cluster: Ray Train starts the processes, watches them, and starts them again after a death.

Each worker runs ``train/run.train`` with the ranks that Ray gives it, as it would under torchrun. Metrics and complete
checkpoints are reported through Ray's own API, where they lie: the run folder is on storage that every machine sees.
What happens is told to the process that the user started, which shows it. Nothing heavy is imported here, because the
processes that Ray needs for itself import this module too.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import notices
from tunesmith.config.permissions import permissions_of
from tunesmith.config.resolve import Resolved, from_values
from tunesmith.errors import ConfigError, ModelError, StorageError, TunesmithError
from tunesmith.imports import lean_imports
from tunesmith.launch.interruption import interruptible
from tunesmith.launch.processes import launched, planned
from tunesmith.train.processes import num_processes, rank
from tunesmith.train.result import TrainResult, read_result
from tunesmith.train.setup import set_up
from tunesmith.train.signals import going_on

if TYPE_CHECKING:
    from tunesmith.train.callbacks import Listener

OBJECT_STORE_BYTES = 128 * 2**20
"""Memory of a local cluster's object store: no data goes through it."""
POLL_SECONDS = 0.2
"""Ray's controller takes one report a worker and poll, and a report waits for the one before it."""
BOOKKEEPING = ("checkpoint_manager_snapshot.json", ".validate_storage_marker")
"""What Ray notes in a run folder; a run is continued from its own checkpoints, so notes of an earlier start mislead."""
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(POLL_SECONDS),
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # training is what the machine is for
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # its reports of deaths go to standard output; ours are one line
}
"""What Ray reads from the environment; what is set there already stays."""


class WorkerError(TunesmithError):
    """An error of a worker, told across processes with its lines and exit code."""

    def __init__(self, lines: Sequence[str], exit_code: int) -> None:
        super().__init__(" | ".join(lines))
        self._lines = list(lines)
        self.exit_code = exit_code

    def lines(self) -> list[str]:
        return self._lines


def train_on_ray(resolved: Resolved, *, command: Sequence[str], listener: Listener) -> TrainResult:
    """Run a configuration to its end on the cluster of RAY_ADDRESS, or else on one that is started here.

    ``launch.num_processes`` workers train, unset one for each GPU of the cluster. After a worker's death all of them
    are started again from the newest complete checkpoint, up to ``launch.max_restarts`` times.

    Raises:
        ModelError: Ray is not installed, its cluster does not answer, or a worker died once too often.
        ConfigError: another launcher has started this process, or the run folder holds another run.
        StorageError: the run folder cannot be written.
        WorkerError: what went wrong in a worker, with its exit code.
        Interrupted: a signal stopped the run.
    """
    if launched():
        raise ConfigError(
            "launch.engine is ray, and another launcher has started this process",
            where=resolved.origins["launch.engine"],
            remedy="start one plain process; Ray starts the workers",
        )
    launch, folder = resolved.config.launch, Path(resolved.config.training.output_dir).absolute()
    set_up(resolved, planned(resolved), only=["folder"])
    go_on = f"go on with: {going_on(command)}"
    with cluster(launch.num_processes or 1), interruptible("training", remedy=go_on):
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        num_workers = launch.num_processes or num_gpus or 1
        _mention_waiting(num_workers, "GPU" if num_gpus else "CPU")
        events = ray.remote(num_cpus=0)(EventLog).remote()
        job = {
            "events": events,
            "folder": str(Path.cwd()),
            "values": resolved.values(),
            "origins": resolved.origins,
            "command": list(command),
        }
        trainer = TorchTrainer(
            work,
            train_loop_config=job,
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=num_gpus > 0),
            run_config=RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                failure_config=FailureConfig(max_failures=launch.max_restarts),
            ),
        )
        _remove_bookkeeping(folder)
        try:
            fit(trainer, events, listener)
        finally:
            _remove_bookkeeping(folder)
    return read_result(resolved)


@contextmanager
def cluster(num_cpus: int) -> Iterator[None]:
    """A connection to Ray: one that is there already, the cluster of RAY_ADDRESS, or a quiet local one.

    Args:
        num_cpus: CPUs that a local cluster must be able to lend; they are places, not cores.

    Raises:
        ModelError: Ray is not installed, or there is no cluster at RAY_ADDRESS.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ModelError("Ray is not installed", remedy="pip install 'tunesmith[ray]'") from error
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    local: dict[str, Any] = {
        "num_cpus": max(num_cpus, os.cpu_count() or 1),
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **(local if address == "local" else {}))
    except (ConnectionError, ValueError) as error:
        raise ModelError(f"no Ray cluster answers: {error}", where=f"RAY_ADDRESS={address}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _mention_waiting(num_workers: int, kind: str) -> None:
    """Say so when the cluster has to grow before training can begin: Ray waits in silence."""
    import ray

    there = int(ray.cluster_resources().get(kind, 0))
    if there < num_workers:
        notices.notify(f"the cluster has {there} {kind}s, and training waits until it has {num_workers}")


def _remove_bookkeeping(folder: Path) -> None:
    for name in BOOKKEEPING:
        (folder / name).unlink(missing_ok=True)


class EventLog:
    """Where workers tell what happens and the starting process reads it; it lives in a Ray actor."""

    def __init__(self) -> None:
        self._events: list[tuple[str, Any]] = []
        self._starts = 0
        self._failed = False

    def begin(self) -> tuple[int, bool]:
        """Earlier starts of rank 0, and whether an error that a new start cannot mend has been told."""
        self._starts += 1
        return self._starts - 1, self._failed

    def tell(self, kind: str, what: Any) -> None:
        """Add an event."""
        self._failed = self._failed or kind == "failed"
        self._events.append((kind, what))

    def take(self) -> list[tuple[str, Any]]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events


class RayListener:
    """A listener in a worker: reports to Ray from every rank, which it demands, and to the event log from rank 0."""

    def __init__(self, events: Any) -> None:
        self._events = events
        self._latest: dict[str, Any] = {}

    def on_start(self, facts: dict[str, Any]) -> None:
        self.tell("on_start", facts)

    def stepped(self, step: int, total: int) -> None:
        self.tell("stepped", (step, total))

    def logged(self, entry: dict[str, Any]) -> None:
        import ray.train

        self.tell("logged", entry)
        self._latest |= entry
        ray.train.report(entry)

    def sampled(self, step: int, samples: Sequence[dict[str, Any]]) -> None:
        self.tell("sampled", (step, list(samples)))

    def saved(self, checkpoint: Path) -> None:
        import ray.train

        ray.train.report(
            dict(self._latest),  # Ray keeps the object
            checkpoint=ray.train.Checkpoint.from_directory(checkpoint.absolute()) if rank() == 0 else None,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )

    def on_end(self) -> None:
        self.tell("on_end", None)

    def tell(self, kind: str, what: Any) -> None:
        """Add to the event log, when this is rank 0."""
        if rank() == 0:
            self._events.tell.remote(kind, what)


def work(job: dict[str, Any]) -> None:
    """What one worker does; Ray has set its ranks and connected it to the others.

    Raises:
        RuntimeError: an error of ours; the event log holds it, with everything that the user must know.
    """
    import ray
    from ray.train.collective import broadcast_from_rank_zero

    events = job["events"]
    restarts, hopeless = broadcast_from_rank_zero(ray.get(events.begin.remote()) if rank() == 0 else (0, False))
    if hopeless:
        raise RuntimeError("an error that another start cannot mend")
    with lean_imports():
        from tunesmith.train.run import train

    ray_listener = RayListener(events)
    notices.clear()
    notices.listen(lambda text: ray_listener.tell("notice", text))
    if restarts:
        notices.notify(f"a worker died, and all of them were started again (restart {restarts})")
    try:
        _enter(job["folder"])
        train(_configuration(job), command=job["command"], listener=ray_listener)
    except TunesmithError as error:
        who = f"rank {rank()} on {socket.gethostname()}: " if num_processes() > 1 else ""
        failure = {"lines": [f"{who}{line}" for line in error.lines()], "exit_code": error.exit_code}
        ray.get(events.tell.remote("failed", failure))
        raise RuntimeError(error.line()) from None


def _configuration(job: dict[str, Any]) -> Resolved:
    """What the driver was told, permissions of its command line included."""
    return from_values(job["values"], job["origins"], permissions=permissions_of(job["values"]))


def _enter(folder: str) -> None:
    """Work where the command was given, so that relative paths mean the same on every machine."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise StorageError(
            f"the working directory is not on this machine: {error.strerror}",
            where=folder,
            remedy="start from a folder that all machines of the cluster share",
        ) from error


def fit(trainer: Any, events: Any, listener: Listener) -> None:
    """Run a trainer of Ray's to its end while showing what the workers tell.

    Raises:
        TunesmithError: a worker failed.
    """
    errors: list[Exception] = []

    def run() -> None:
        try:
            trainer.fit()
        except Exception as error:
            errors.append(error)

    fitting = threading.Thread(target=run, daemon=True)
    fitting.start()
    failures: list[dict[str, Any]] = []
    while fitting.is_alive():
        fitting.join(POLL_SECONDS)
        failures += _show(events, listener)
    failures += _show(events, listener)
    if failures or errors:
        listener.on_end()
    if failures:
        raise WorkerError(**failures[0])
    if errors:
        raise ModelError(_cause(errors[0])) from errors[0]


def _show(events: Any, listener: Listener) -> list[dict[str, Any]]:
    """Pass new events on to the listener; returns the failures among them."""
    import ray

    failures = []
    for kind, what in ray.get(events.take.remote()):
        if kind == "failed":
            failures.append(what)
        elif kind == "notice":
            notices.notify(what)
        elif kind in ("stepped", "sampled"):
            getattr(listener, kind)(*what)
        elif kind == "on_end":
            listener.on_end()
        else:
            getattr(listener, kind)(what)
    return failures


def _cause(error: Exception) -> str:
    """The first worker's failure in one sentence."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if not failures:
        return f"Ray could not run the workers: {error}"
    number, failure = min(failures.items())
    return f"rank {number} failed: {failure}"
