"""The front door of the NLI recipe: ``train_sft.py [--config FILE] [--strict_config] [settings]``.

Reading and falling back is ``config/nli_door``'s; training is ``cli/train``'s.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith import notices
from tunesmith.cli.arguments import VerbParser
from tunesmith.cli.main import guarded
from tunesmith.config.nli_door import Opened, flat, open_config


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


def _show(default: Path, arguments: list[str]) -> int:
    options, settings = _parser("config_loader.py", "Show the settings of a run as JSON.").split(arguments)
    print(json.dumps(load_config(options.config, settings, default=default, strict=options.strict_config), indent=2))
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
        print(bar, file=sys.stderr)
        notices.notify(opened.fallback)  # on stderr, and into run.json
        print(bar, file=sys.stderr)
    return opened
