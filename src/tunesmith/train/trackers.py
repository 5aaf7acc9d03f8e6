"""Trackers, where they need more than a name in ``report_to``: how a run begins in them, and how they show text."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tunesmith import notices
from tunesmith.config.resolve import Resolved
from tunesmith.config.schema import TrainingSection
from tunesmith.errors import ModelError
from tunesmith.report.belongings import TENSORBOARD
from tunesmith.report.folder import read_json
from tunesmith.report.record import RECORD

PROBE_SECONDS = 3.0
"""How long W&B may take to say that it knows the key."""
INIT_SECONDS = 15.0
"""How long it may take to begin a run, once it has."""
FAILURES = 3
"""Failures in a row after which a tracker is given up."""


def installed(resolved: Resolved) -> tuple[str, ...]:
    """Names of the trackers that a run reports to.

    Raises:
        ModelError: the package of one is not installed.
    """
    names = tuple(resolved.config.tracking.trackers())
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ModelError(
                f"report_to {name}: the package is not installed", remedy=f"pip install 'tunesmith[{name}]'"
            )
    return names


class Guarded(TrainerCallback):
    """A tracker's callback whose failures are counted and end nothing; after three in a row it is not asked again."""

    def __init__(self, callback: TrainerCallback) -> None:
        self.callback = callback
        self.name = type(callback).__name__.removesuffix("Callback")
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
            result = report(*args, **keywords)
        except Exception as error:  # trackers have many ways to fail, and none of them concerns the model
            self.lost += 1
            self._in_a_row += 1
            what = " ".join(str(error).split())[:200]
            notices.notify(f"the tracker {self.name} failed ({type(error).__name__}: {what}); training goes on")
            return None
        self._in_a_row = 0
        return result


def guard(callbacks: Sequence[TrainerCallback]) -> list[TrainerCallback]:
    """The callbacks, with those of trackers guarded."""
    return [Guarded(one) if type(one).__module__.startswith("transformers.integrations") else one for one in callbacks]


def tell_losses(callbacks: Sequence[TrainerCallback]) -> None:
    """Say how many reports trackers have lost; all of them stand in ``metrics.jsonl``."""
    for callback in callbacks:
        if isinstance(callback, Guarded) and callback.lost:
            notices.notify(f"the tracker {callback.name} lost {callback.lost} reports; metrics.jsonl holds all of them")


def callbacks(resolved: Resolved, names: Sequence[str], *, resuming: bool = False) -> list[Any]:
    """Callbacks for TensorBoard; and a W&B run begun with our settings, which transformers' callback then uses.

    Args:
        resolved: the run's configuration.
        names: the trackers.
        resuming: whether the run in ``output_dir`` goes on; then its run at W&B does, too.
    """
    if "wandb" in names:
        _begin_wandb(resolved, resuming=resuming)
    return [_tensorboard(Path(resolved.config.training.output_dir))] if "tensorboard" in names else []


def _tensorboard(output_dir: Path) -> Any:
    """A callback that opens its files when training begins: by then the run that is replaced has left the folder."""
    from transformers.integrations import TensorBoardCallback

    callback = TensorBoardCallback()
    callback.logging_dir = str(output_dir / TENSORBOARD)
    return callback


def _begin_wandb(resolved: Resolved, *, resuming: bool) -> None:
    import wandb

    tracking, training = resolved.config.tracking, resolved.config.training
    folder = Path(os.environ.get("WANDB_DIR") or training.output_dir).absolute()
    run_id = tracking.wandb_run_id or os.environ.get("WANDB_RUN_ID") or (_earlier_id(training) if resuming else None)
    model = Path(resolved.config.model.model_name_or_path).name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        wandb.init(
            mode=_mode(folder),
            project=tracking.wandb_project or os.environ.get("WANDB_PROJECT") or "tunesmith",
            entity=tracking.wandb_entity,
            name=tracking.run_name or os.environ.get("WANDB_NAME") or f"{model}-{datetime.now(UTC):%Y%m%d-%H%M%S}",
            group=tracking.experiment,
            id=run_id,
            resume="allow" if run_id else None,
            config=resolved.values(),
            dir=str(folder),  # W&B's own process may have started in another working directory
            settings=wandb.Settings(
                disable_git=True, disable_code=True, console="off", silent=True, init_timeout=INIT_SECONDS
            ),
        )
    except Exception as error:  # the network, the disk, W&B's own process: the run does not depend on them
        notices.notify(f"W&B could not begin ({type(error).__name__}: {error}); training goes on without it")
        wandb.init(mode="disabled")  # or transformers' callback would begin one of its own


def _earlier_id(training: TrainingSection) -> str | None:
    """Id at W&B of the run in ``output_dir``."""
    path = Path(training.output_dir, RECORD)
    found = read_json(path).get("trackers") if path.is_file() else None
    return found.get("wandb") if isinstance(found, dict) else None


def run_ids() -> dict[str, str]:
    """Tracker -> id of the open run there, for ``run.json``: a run that is resumed goes on under it."""
    wandb = sys.modules.get("wandb")
    return {} if wandb is None or wandb.run is None or wandb.run.disabled else {"wandb": wandb.run.id}


def run_folders(output_dir: Path) -> list[str]:
    """Folders below the run folder, relative to it, that trackers keep the open run in under names of their own."""
    wandb = sys.modules.get("wandb")
    if not run_ids() or wandb is None:
        return []
    place = Path(wandb.run.dir).absolute().parent
    home = output_dir.absolute()
    return [place.relative_to(home).as_posix()] if place.is_relative_to(home) else []


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


def show_samples(callbacks: Sequence[Any], step: int, samples: Sequence[dict[str, Any]]) -> None:
    """Show sample answers in every open tracker: a table at W&B and trackio, text at TensorBoard and MLflow.

    Args:
        callbacks: the trainer's callbacks, among which those of the trackers are.
        step: the optimizer step after which the samples were generated.
        samples: objects with the same keys, one a question.
    """
    from transformers import integrations

    names = list(dict.fromkeys(name for sample in samples for name in sample))
    cells = [[str(sample.get(name, "")) for name in names] for sample in samples]

    def show(callback: Any) -> None:
        if isinstance(callback, integrations.TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_text("samples", _markdown(names, cells), step)
            callback.tb_writer.flush()
        elif isinstance(callback, integrations.WandbCallback | integrations.TrackioCallback):
            package = sys.modules["wandb" if isinstance(callback, integrations.WandbCallback) else "trackio"]
            table = package.Table(columns=["step", *names], data=[[step, *row] for row in cells])
            package.log({"samples": table, "train/global_step": step})
        elif isinstance(callback, integrations.MLflowCallback):
            sys.modules["mlflow"].log_text(_markdown(names, cells), f"samples/step-{step}.md")

    for callback in callbacks:
        if isinstance(callback, Guarded):
            callback.attempt(show, callback.callback)


def _markdown(names: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table; what models write may hold anything, so it stands there as code."""
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in cells:
        shown = (" ".join(cell.split()).replace("`", "'").replace("|", "\\|") for cell in row)
        lines.append("| " + " | ".join(f"`{text}`" if text else "" for text in shown) + " |")
    return "\n".join(lines)


def close() -> None:
    """Close what ``callbacks`` opened, so that a process can train again."""
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return
    try:
        wandb.finish()
    except Exception as error:  # its process may be gone, or the disk full
        notices.notify(f"W&B could not finish ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
