"""The front door of the NLI recipe: ``train_sft.py [--config FILE] [--strict_config] [settings]``.

The recipe's default file, the chosen file on top, the command line on top of both. Document 1 promises a fallback when
a file fails to load; it happens here and is said. Reading one file is ``config``'s, training is ``cli/train``'s.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import notices
from tunesmith.cli.arguments import VerbParser
from tunesmith.cli.main import guarded
from tunesmith.cli.output import say_json, tell
from tunesmith.config.draft import Draft, dialect_defaults, shown
from tunesmith.config.load import resolve_draft
from tunesmith.config.readers import python_file
from tunesmith.config.readers.python_file import LoadError
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ConfigError

MINIMAL_DEFAULTS: dict[str, Any] = {
    "model_id": "mistralai/Mistral-7B-v0.3",
    "train_data": "data/finetune/train_ft.jsonl",
    "eval_data": "data/finetune/eval_ft.jsonl",
    "output_dir": "models/mistral-7b-nli-cot-minimal-defaults",
    "num_epochs": 1,
    "batch_size": 1,
    "grad_accumulation_steps": 16,
    "learning_rate": 2e-4,
    "lr_scheduler": "cosine",
    "warmup_ratio": 0.03,
    "max_seq_length": 512,
    "gradient_checkpointing": True,
}
"""What a run gets when not even the default file can be loaded; the schema's defaults complete it."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A checked configuration and, where a file could not be loaded, what was used in its place."""

    resolved: Resolved
    fallback: str | None


def main(default: str | Path, argv: Sequence[str] | None = None) -> int:
    """Train from the command line of ``train_sft.py`` and return the exit code.

    Args:
        default: the recipe's default configuration file.
        argv: command line without the program's name; None takes the process's own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _train(Path(default), arguments), debug="--debug" in arguments)


def show_config(default: str | Path, argv: Sequence[str] | None = None) -> int:
    """Print the settings that ``train_sft.py`` would use with the same command line, as JSON."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _show(Path(default), arguments), debug="--debug" in arguments)


def load_config(
    path: str | Path | None = None, overrides: Sequence[str] = (), *, default: str | Path, strict: bool = False
) -> dict[str, Any]:
    """The settings of a run under the names of document 2; a fallback is said on stderr.

    Raises:
        ConfigError: see ``open_config``.
    """
    return flat(_open(path, overrides, Path(default), strict).resolved)


def open_config(
    path: str | Path | None, overrides: Sequence[str] = (), *, default: str | Path, strict: bool = False
) -> Opened:
    """The configuration of an NLI run.

    Args:
        path: the chosen file; None takes ``default`` alone.
        overrides: settings as written on the command line.
        default: the recipe's default file, on which every chosen file rests.
        strict: stop where the documented fallback would go on with other settings.

    Raises:
        LoadError: ``strict``, and a file fails to load.
        ConfigError: a name or a value is wrong; that is never a reason for the fallback.
    """
    default = Path(default)
    chosen = None if path is None or Path(path).resolve() == default.resolve() else Path(path)
    base, base_failure = _attempt(default)
    top, top_failure = (None, None) if chosen is None else _attempt(chosen)
    failures = [failure for failure in (top_failure, base_failure) if failure is not None]
    if strict and failures:
        raise failures[0]
    if base is None and top is None:
        used = "MINIMAL DEFAULTS ARE USED INSTEAD"
    elif top is None:
        used = f"{shown(default)} IS USED INSTEAD"
    else:
        used = f"{shown(chosen or default)} is used without it"
    draft = _merge([layer for layer in (base, top) if layer is not None])
    reasons = " | ".join(failure.line() for failure in failures)
    fallback = f"CONFIGURATION NOT LOADED ({reasons}). {used}. --strict_config stops here instead."
    return Opened(resolve_draft(draft, overrides), fallback if failures else None)


def flat(resolved: Resolved) -> dict[str, Any]:
    """The values under the names of document 2."""
    values = resolved.values()
    named = {name: values[python_file.NAMES.find(name, "document 2").path] for name in python_file.DOCUMENT_NAMES}
    named["use_packing"] = resolved.config.training.batching == "packed"
    named["use_wandb"] = "wandb" in resolved.config.tracking.trackers()
    return named


def _show(default: Path, arguments: list[str]) -> int:
    options, settings = _parser("config_loader.py", "Show the settings of a run as JSON.").split(arguments)
    say_json(load_config(options.config, settings, default=default, strict=options.strict_config))
    return 0


def _train(default: Path, arguments: list[str]) -> int:
    parser = _parser("train_sft.py", "Fine-tune a model on NLI chain-of-thought data.")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options, settings = parser.split(arguments)
    opened = _open(options.config, settings, default, options.strict_config)
    from tunesmith.cli.train import train_resolved

    return train_resolved(opened.resolved, [sys.argv[0], *arguments], as_json=options.json)


def _parser(program: str, description: str) -> VerbParser:
    parser = VerbParser("train", description)
    parser.prog = program
    parser.add_argument("--config", metavar="FILE", help="configuration file; train/configs/default.py when left out")
    parser.add_argument("--strict_config", action="store_true", help="stop when a configuration file fails to load")
    return parser


def _open(path: str | Path | None, settings: Sequence[str], default: Path, strict: bool) -> Opened:
    opened = open_config(path, settings, default=default, strict=strict)
    if opened.fallback is not None and os.environ.get("RANK", "0") == "0":
        bar = "!" * 100
        tell(bar)
        notices.notify(opened.fallback)  # on stderr, and into run.json
        tell(bar)
    return opened


def _attempt(file: Path) -> tuple[Draft | None, LoadError | None]:
    if file.exists() and file.suffix != ".py":
        raise ConfigError("configuration files of this recipe are Python files (.py)", where=shown(file))
    try:
        return python_file.read(file), None
    except LoadError as failure:
        return None, failure


def _merge(layers: list[Draft]) -> Draft:
    """The layers on top of each other; without any, the minimal defaults."""
    if layers:
        settings = tuple(setting for layer in layers for setting in layer.settings)
        problems = tuple(problem for layer in layers for problem in layer.problems)
        return Draft(python_file.DIALECT, settings, layers[0].defaults, python_file.NAMES, problems=problems)
    dialect = dialect_defaults(python_file.DEFAULTS, python_file.NAMES, "Python configs (document 2)")
    minimal = dialect_defaults(MINIMAL_DEFAULTS, python_file.NAMES, "last resort: no file could be loaded")
    return Draft(python_file.DIALECT, (), (*dialect, *minimal), python_file.NAMES)
