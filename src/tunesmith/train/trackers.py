"""Trackers, where they need more than a name in ``report_to``: how a run begins in them, and how they show text."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith import notices
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ModelError


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


def callbacks(resolved: Resolved, names: Sequence[str]) -> list[Any]:
    """Callbacks for TensorBoard; and a W&B run begun with our settings, which transformers' callback then uses."""
    if "wandb" in names:
        _begin_wandb(resolved)
    return [_tensorboard(Path(resolved.config.training.output_dir))] if "tensorboard" in names else []


def _tensorboard(output_dir: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(log_dir=str(output_dir / "tensorboard")))


def _begin_wandb(resolved: Resolved) -> None:
    import wandb

    tracking, training = resolved.config.tracking, resolved.config.training
    output_dir = Path(training.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    mode: Any = os.environ.get("WANDB_MODE")  # W&B refuses what it does not know
    if mode is None and not wandb.api.api_key:
        mode = "offline"
        notices.notify(
            f"no WANDB_API_KEY, so W&B keeps the run offline in {output_dir / 'wandb'}; `wandb sync` uploads it"
        )
    wandb.init(
        mode=mode,
        project=tracking.wandb_project or "tunesmith",
        entity=tracking.wandb_entity,
        name=tracking.run_name,
        group=tracking.experiment,
        id=tracking.wandb_run_id,
        resume="allow" if tracking.wandb_run_id else None,
        config=resolved.values(),
        dir=str(output_dir.absolute()),  # W&B's own process may have started in another working directory
        settings=wandb.Settings(disable_git=True, disable_code=True, console="off", silent=True),
    )


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
    for callback in callbacks:
        if isinstance(callback, integrations.TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_text("samples", _markdown(names, cells), step)
            callback.tb_writer.flush()
        elif isinstance(callback, integrations.WandbCallback | integrations.TrackioCallback):
            package = sys.modules["wandb" if isinstance(callback, integrations.WandbCallback) else "trackio"]
            table = package.Table(columns=["step", *names], data=[[step, *row] for row in cells])
            package.log({"samples": table, "train/global_step": step})
        elif isinstance(callback, integrations.MLflowCallback):
            sys.modules["mlflow"].log_text(_markdown(names, cells), f"samples/step-{step}.md")


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
    if wandb is not None and wandb.run is not None:
        wandb.finish()
