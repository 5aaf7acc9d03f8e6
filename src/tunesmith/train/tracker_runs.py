"""How a run begins at each tracker, with our settings, and goes on there when it is resumed.

Transformers' callbacks tell the rest.

Nothing here may end a run: whoever calls takes every failure for a tracker that is not told.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from transformers.integrations import MLflowCallback, TensorBoardCallback, TrackioCallback, WandbCallback
from typing_extensions import override

from tunesmith import notices
from tunesmith.config.resolve import Resolved
from tunesmith.report.belongings import TENSORBOARD, is_record
from tunesmith.report.folder import read_json
from tunesmith.report.record import RECORD

PROBE_SECONDS = 3.0
"""How long W&B may take to say that it knows the key."""
INIT_SECONDS = 15.0
"""How long it may take to begin a run, once it has."""
PROJECT = "tunesmith"
"""Where runs are filed that name no project."""
RUN_NAME = "run_name"
"""Key of the name that a run has at its trackers, beside their own keys in ``run.json``."""


@dataclass(frozen=True, slots=True)
class Start:
    """What every tracker is told at the beginning."""

    resolved: Resolved
    run_name: str
    earlier: Mapping[str, str]
    """Tracker -> the id there of the run that goes on; empty for a new one."""
    step: int
    """The step from which it goes on; 0 for a new one."""


def start_of(resolved: Resolved, resumed_at: int | None) -> Start:
    """How a run presents itself: under its old name and ids where it goes on in its own folder.

    Args:
        resolved: the run's configuration.
        resumed_at: the step of the checkpoint from which it goes on, if it does.
    """
    path = Path(resolved.config.training.output_dir, RECORD)
    # a record that was torn names no run to go on with; that is said where it is written anew
    recorded = read_json(path).get("trackers") if resumed_at is not None and is_record(path) else None
    earlier = recorded if isinstance(recorded, dict) else {}
    model = Path(resolved.config.model.model_name_or_path).name
    made = f"{model}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    name = resolved.config.tracking.run_name or earlier.get(RUN_NAME) or made
    return Start(resolved, name, earlier, resumed_at or 0)


class Tracker(Protocol):
    """A callback of transformers that begins a run our way when it is made, or when training begins."""

    def show(self, step: int, names: list[str], cells: list[list[str]]) -> None:
        """Show a table of samples that were taken after a step."""

    def end(self, *, failed: bool) -> None:
        """Close what is still open there: training has ended, one way or the other."""


def run_id(tracker: str) -> str | None:
    """The id of the run that is open at a tracker."""
    package = sys.modules.get(tracker)
    if tracker == "wandb" and package is not None and package.run is not None and not package.run.disabled:
        return str(package.run.id)
    if tracker == "mlflow" and package is not None and package.active_run() is not None:
        return str(package.active_run().info.run_id)
    return None


def markdown(names: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table; what models write may hold anything, so it stands there as code."""
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in cells:
        shown = (" ".join(cell.split()).replace("`", "'").replace("|", "\\|") for cell in row)
        lines.append("| " + " | ".join(f"`{text}`" if text else "" for text in shown) + " |")
    return "\n".join(lines)


# TensorBoard ----------------------------------------------------------------------------------------------------------


class TensorBoard(TensorBoardCallback):
    """Opens its files when training begins: by then the run that is replaced has left the folder.

    TensorBoard forgets what an earlier process of this run wrote of the steps that follow.
    """

    def __init__(self, start: Start) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._start = start
        self.logging_dir = str(Path(start.resolved.config.training.output_dir, TENSORBOARD))

    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter

        step = self._start.step
        self.tb_writer = SummaryWriter(log_dir=self.logging_dir, purge_step=step + 1 if step else 0)
        if not step:  # else what it says stands there
            super().on_train_begin(args, state, control, **keywords)  # type: ignore[no-untyped-call]
        settings = [[name, str(value)] for name, value in self._start.resolved.values().items()]
        self.tb_writer.add_text("settings", markdown(["setting", "value"], settings), step)

    def show(self, step: int, names: list[str], cells: list[list[str]]) -> None:
        """Samples as text."""
        self.tb_writer.add_text("samples", markdown(names, cells), step)
        self.tb_writer.flush()

    def end(self, *, failed: bool) -> None:
        """Write the rest."""
        if self.tb_writer is not None:
            self.tb_writer.close()


# Trackio --------------------------------------------------------------------------------------------------------------


class Trackio(TrackioCallback):
    """Begins a run of our name with our settings; a new one never goes on with a run of the same name."""

    def __init__(self, start: Start) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._start = start

    @override
    def setup(self, args: Any, state: Any, model: Any, **keywords: Any) -> None:
        import trackio

        tracking = self._start.resolved.config.tracking
        trackio.init(
            project=tracking.experiment or tracking.wandb_project or PROJECT,
            name=self._start.run_name,
            config=self._start.resolved.values(),
            resume="allow" if self._start.step else "never",
            embed=False,
        )
        self._initialized = True

    def show(self, step: int, names: list[str], cells: list[list[str]]) -> None:
        """Samples as a table."""
        import trackio

        table = trackio.Table(columns=["step", *names], data=[[step, *row] for row in cells])
        trackio.log({"samples": table, "train/global_step": step})

    def end(self, *, failed: bool) -> None:
        """Write the rest."""
        if self._initialized:
            import trackio

            trackio.finish()


# MLflow ---------------------------------------------------------------------------------------------------------------


class MLflow(MLflowCallback):
    """Begins a run of our name with our settings, unless one is open already; ends what it has begun."""

    def __init__(self, start: Start) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        import mlflow

        self._begun = mlflow.active_run() is None
        if self._begun:
            if not any(name in os.environ for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")):
                mlflow.set_experiment(start.resolved.config.tracking.experiment or PROJECT)
            known = None if "MLFLOW_RUN_ID" in os.environ else start.earlier.get("mlflow")
            mlflow.start_run(run_id=known, run_name=start.run_name)
        try:
            told = mlflow.get_run(mlflow.active_run().info.run_id).data.params  # none of which can change
            mlflow.log_params({name: value for name, value in start.resolved.values().items() if name not in told})
        except Exception:
            self.end(failed=True)
            raise

    def show(self, step: int, names: list[str], cells: list[list[str]]) -> None:
        """Samples as an artifact."""
        import mlflow

        mlflow.log_text(markdown(names, cells), f"samples/step-{step}.md")

    def end(self, *, failed: bool) -> None:
        """End the run, where it is this one's and still open."""
        import mlflow

        if self._begun and mlflow.active_run() is not None:
            mlflow.end_run("FAILED" if failed else "FINISHED")


# W&B ------------------------------------------------------------------------------------------------------------------


class WandB(WandbCallback):
    """Begins a run of our name with our settings, offline where W&B cannot be reached."""

    def __init__(self, start: Start) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        import wandb

        tracking, training = start.resolved.config.tracking, start.resolved.config.training
        folder = Path(os.environ.get("WANDB_DIR") or training.output_dir).absolute()
        known = tracking.wandb_run_id or os.environ.get("WANDB_RUN_ID") or start.earlier.get("wandb")
        folder.mkdir(parents=True, exist_ok=True)
        wandb.init(
            mode=_mode(folder),
            project=tracking.wandb_project or os.environ.get("WANDB_PROJECT") or PROJECT,
            entity=tracking.wandb_entity,
            name=tracking.run_name or os.environ.get("WANDB_NAME") or start.run_name,
            group=tracking.experiment,
            id=known,
            resume="allow" if known else None,
            config=start.resolved.values(),
            dir=str(folder),  # W&B's own process may have started in another working directory
            settings=wandb.Settings(
                disable_git=True, disable_code=True, console="off", silent=True, init_timeout=INIT_SECONDS
            ),
        )

    def show(self, step: int, names: list[str], cells: list[list[str]]) -> None:
        """Samples as a table."""
        import wandb

        table = wandb.Table(columns=["step", *names], data=[[step, *row] for row in cells])
        wandb.log({"samples": table, "train/global_step": step})

    def end(self, *, failed: bool) -> None:
        """Close the run, so that a process can train again."""
        import wandb

        if wandb.run is not None:
            wandb.finish(exit_code=1 if failed else None)


def _mode(folder: Path) -> Any:
    """How W&B works: as WANDB_MODE says, else offline from the start where it cannot be reached or knows no key.

    W&B itself would try for a minute and a half, and then end the run.
    """
    import wandb

    asked: Any = os.environ.get("WANDB_MODE")
    if asked not in (None, "online", "shared"):
        return asked  # W&B refuses what it does not know
    key = wandb.api.api_key
    reason = _refusal(str(wandb.Settings().base_url), key) if key else "no WANDB_API_KEY"
    if reason is None:
        return asked
    notices.notify(f"{reason}, so W&B keeps the run offline in {folder / 'wandb'}; `wandb sync` uploads it")
    return "offline"


def _refusal(address: str, key: str) -> str | None:
    """Why W&B cannot be used: no answer within the time, or another than that it knows the key; None where it can.

    A name look-up cannot be given a time limit, so the question is asked beside the main thread.
    """
    answer: list[str | None] = []

    def ask() -> None:
        question = json.dumps({"query": "query { viewer { id } }"}).encode()
        login = base64.b64encode(f"api:{key}".encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/graphql", question, headers)  # noqa: S310 - the user's server
        try:
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as response:  # noqa: S310
                known = (json.load(response).get("data") or {}).get("viewer")
            answer.append(None if known else "W&B does not know the key")
        except urllib.error.HTTPError as error:
            answer.append(f"W&B refuses the key ({error.code})" if error.code in (401, 403) else None)
        except Exception as error:  # every kind of network trouble
            answer.append(f"W&B is out of reach ({type(error).__name__})")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return answer[0] if answer else f"W&B does not answer within {PROBE_SECONDS:g} s"


TRACKERS: Mapping[str, Callable[[Start], Tracker]] = {
    "wandb": WandB,
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "mlflow": MLflow,
}
"""Tracker -> the callback that has begun a run there, or will when training begins."""
