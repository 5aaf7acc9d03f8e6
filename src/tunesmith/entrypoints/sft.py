"""The front door of document 5: ``accelerate launch sft.py --config FILE``, or ``python sft.py`` with its default file.

What a key means is the reader's, training is the engine's. Under a launcher every process comes through this door and
the first one alone talks and writes.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from tunesmith import notices
from tunesmith.cli.arguments import VerbParser
from tunesmith.cli.main import guarded
from tunesmith.cli.train import train_resolved
from tunesmith.config.load import load

DEFAULT_CONFIG = "default_train_config.yaml"

DESCRIPTION = f"""Fine-tune a language model on questions and answers, as a YAML file describes it.

Without --config the file is {DEFAULT_CONFIG} beside this script. Any setting may follow: --learning_rate 1e-4,
--gen_questions_file questions.txt, model.path=..., dataset.name=..., training.epochs=2."""


def main(recipe: str | Path, argv: Sequence[str] | None = None) -> int:
    """Run one command of ``sft.py`` and return its exit code.

    Args:
        recipe: folder of ``sft.py``, where its default configuration lies.
        argv: what follows the script's name.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not is_first_process():
        notices.listen(lambda text: None)
    return guarded(lambda: _run(Path(recipe), arguments), debug="--debug" in arguments)


def is_first_process() -> bool:
    """Whether this process is the only one, or the first of those that a launcher started."""
    return int(os.environ.get("RANK", "0")) == 0


def _run(recipe: Path, arguments: list[str]) -> int:
    options, settings = _parse(arguments)
    resolved = load(options.config or recipe / DEFAULT_CONFIG, settings, dialect="yaml")
    return train_resolved(resolved, [sys.argv[0], *arguments], as_json=options.json)


def _parse(arguments: list[str]) -> tuple[Namespace, list[str]]:
    parser = VerbParser("train", DESCRIPTION)
    parser.prog = "python sft.py"
    parser.add_argument("--config", metavar="FILE", help=f"configuration file ({DEFAULT_CONFIG} of the recipe)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser.split(arguments)
