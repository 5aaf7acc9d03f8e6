"""Trackers that need more than a name in ``report_to``: TensorBoard and Weights & Biases."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from tunesmith import notices
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ModelError


def callbacks(resolved: Resolved) -> list[Any]:
    """Callbacks for TensorBoard; and a W&B run begun with our settings, which transformers' callback then uses.

    Raises:
        ModelError: a tracker was asked for and its package is not installed.
    """
    names = resolved.config.tracking.trackers()
    found: list[Any] = []
    if "tensorboard" in names:
        found.append(_tensorboard(Path(resolved.config.training.output_dir)))
    if "wandb" in names:
        _begin_wandb(resolved)
    for name in set(names) - {"tensorboard", "wandb"}:
        _require(name)
    return found


def _require(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise ModelError(
            f"report_to {name}: the package is not installed", remedy=f"pip install 'tunesmith[{name}]'"
        ) from None


def _tensorboard(output_dir: Path) -> Any:
    _require("tensorboard")
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(log_dir=str(output_dir / "tensorboard")))


def _begin_wandb(resolved: Resolved) -> None:
    wandb = _require("wandb")
    tracking, training = resolved.config.tracking, resolved.config.training
    output_dir = Path(training.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    mode = os.environ.get("WANDB_MODE")
    if mode is None and not wandb.api.api_key:
        mode = "offline"
        notices.say(
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
        dir=str(output_dir),
        settings=wandb.Settings(disable_git=True, disable_code=True, console="off", silent=True),
    )


def finish() -> None:
    """Close what ``callbacks`` opened, so that a process can train again."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()
