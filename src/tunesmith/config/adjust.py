"""Where a default gives way: to what somebody wrote, to a run without evaluation, to the model's positions.

What somebody wrote is never changed here, except that document 3's checkpoints are aligned with its evaluations, aloud.
"""

from __future__ import annotations

from typing import Any

from tunesmith import notices
from tunesmith.config.draft import DEFAULT
from tunesmith.config.model_facts import max_positions

YIELDING_DEFAULTS: tuple[tuple[str, str, bool], ...] = (
    ("training.fp16", "training.bf16", True),
    ("training.bf16", "training.fp16", True),
    ("quantization.load_in_4bit", "quantization.load_in_8bit", True),
    ("quantization.load_in_8bit", "quantization.load_in_4bit", True),
    ("quantization.load_in_4bit", "adapter.use_lora", False),
    ("quantization.load_in_8bit", "adapter.use_lora", False),
)
"""(a switch, another path, its value): a dialect's default for the switch ends where somebody wrote that value."""


def adjust_defaults(values: dict[str, Any], origins: dict[str, str]) -> None:
    """Change the defaults that do not fit the rest of the configuration; each change is in its origin."""
    _defaults_give_way(values, origins)
    _defaults_need_evaluation(values, origins)
    _default_length_fits(values, origins)


def _defaults_give_way(values: dict[str, Any], origins: dict[str, str]) -> None:
    """A dialect's default does not contradict what somebody wrote: ``--bf16`` is enough where fp16 is a default."""
    for path, other, value in YIELDING_DEFAULTS:
        is_default, is_written = origins[path].startswith(DEFAULT), not origins[other].startswith(DEFAULT)
        if values[path] is True and is_default and is_written and values[other] is value:
            name, written = path.partition(".")[2], f"{other.partition('.')[2]} {str(value).lower()}"
            notices.notify(f"{name} is only a {origins[path]} and gives way to {written} ({origins[other]})")
            origins[path] += f" (gives way to {written})"
            values[path] = False


def align_saves(values: dict[str, Any], origins: dict[str, str]) -> None:
    """Document 3 saves every 500 steps, evaluates every 200 and wants the best model: save at the next multiple."""
    save_steps, eval_steps = values["training.save_steps"], values["training.eval_steps"]
    by_steps = values["training.save_strategy"] == "steps" and values["training.eval_strategy"] in ("auto", "steps")
    wanted = values["training.load_best_model_at_end"] and has_evaluation(values) and by_steps
    if not wanted or not isinstance(save_steps, int) or not isinstance(eval_steps, int) or eval_steps <= 0:
        return
    aligned = -(-save_steps // eval_steps) * eval_steps
    if aligned != save_steps:
        notices.notify(f"save_steps {save_steps} becomes {aligned}, a multiple of eval_steps {eval_steps}: "
                    "only evaluated checkpoints can be the best one")  # fmt: skip
        origins["training.save_steps"] += f" ({save_steps}, aligned with eval_steps)"
        values["training.save_steps"] = aligned


NEEDS_EVALUATION: dict[str, Any] = {
    "training.load_best_model_at_end": False,
    "training.early_stopping_patience": None,
}
"""Settings whose defaults end where nothing is evaluated, and what they then are."""


def has_evaluation(values: dict[str, Any]) -> bool:
    """Whether there are evaluation rows, and a strategy that uses them."""
    rows = values["data.eval_data"] or values["data.eval_split"] or values["data.dev_split"]
    return bool(rows) and values["training.eval_strategy"] != "no"


def evaluation_is_optional(values: dict[str, Any], origins: dict[str, str]) -> None:
    """Document 3 calls evaluation optional: early stopping that somebody wrote ends without evaluation rows, aloud."""
    if has_evaluation(values):
        return
    for path, off in NEEDS_EVALUATION.items():
        if values[path] not in (off, None):
            notices.notify(
                f"no evaluation rows, so {path.partition('.')[2]} ({origins[path]}) has nothing to watch: off"
            )
            values[path] = off
            origins[path] += " (off: no evaluation)"


def _defaults_need_evaluation(values: dict[str, Any], origins: dict[str, str]) -> None:
    """A dialect's early stopping and best model wait for evaluation rows: without them nothing can be chosen."""
    if has_evaluation(values):
        return
    for path, off in NEEDS_EVALUATION.items():
        if values[path] not in (off, None) and origins[path].startswith(DEFAULT):
            values[path] = off
            origins[path] += " (off: no evaluation)"


def _default_length_fits(values: dict[str, Any], origins: dict[str, str]) -> None:
    """A default length beyond the positions of a local model becomes their number."""
    path, name = "data.max_length", values["model.model_name_or_path"]
    positions = max_positions(name) if isinstance(name, str) else None
    if positions is None or not origins[path].startswith(DEFAULT) or values[path] <= positions:
        return
    origins[path] += f" ({values[path]}, cut to the model's positions)"
    values[path] = positions
