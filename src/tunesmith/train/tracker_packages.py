"""Whether the trackers of a run are installed; asked before anything heavy is imported."""

from __future__ import annotations

from tunesmith.config.resolve import Resolved
from tunesmith.errors import ModelError
from tunesmith.installed import is_importable


def check_installed(resolved: Resolved) -> tuple[str, ...]:
    """Names of the trackers that a run reports to.

    Raises:
        ModelError: packages of some are not installed.
    """
    names = tuple(resolved.config.tracking.trackers())
    absent = [name for name in names if not is_importable(name)]
    if absent:
        setting = "use_wandb" if absent == ["wandb"] and resolved.config.tracking.use_wandb else "report_to"
        raise ModelError(
            f"{setting}: {' and '.join(absent)} {'are' if absent[1:] else 'is'} not installed",
            where=resolved.origins[f"tracking.{setting}"],
            remedy=f"pip install 'tunesmith[{','.join(absent)}]', or leave {'them' if absent[1:] else 'it'} out",
        )
    return names
