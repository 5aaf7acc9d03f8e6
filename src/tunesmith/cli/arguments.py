"""Splits a verb's own options from the settings that follow them, and explains both."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from tunesmith.config.permissions import PERMISSIONS
from tunesmith.errors import ConfigError
from tunesmith.program import command, named

STREAM = "-"
"""Stands for standard input or output in the place of a file."""
COMMON = """
settings that are common:
  model and rows  --model_name_or_path NAME  --train_data FILE
                  --columns prompt=text,completion=label  --output_dir DIR
                  --eval_data FILE, or --dev_split 0.1 to hold rows out
  steps           --num_train_epochs N, or --max_steps N  --learning_rate 2e-4
                  --per_device_train_batch_size N  --max_length N
  weights         --lora_r N  --target_modules all-linear  --load_in_4bit,
                  or --no_use_lora to train all of them
  evaluation      --eval_strategy epoch, or --eval_steps N
                  --generate --task classification
  going on        --resume_from_checkpoint latest  --overwrite_output_dir
"""
"""Of the verbs that read the configuration of a run."""
EXAMPLES = """
examples:
  {verb} config.yaml
  {verb} config.yaml --learning_rate 1e-4 --max_steps 50
  {verb} --model_name_or_path nano-mistral --train_data rows.jsonl
"""


def of_a_run(verb: str, *, examples: bool = True) -> str:
    """The end of the help of a verb that reads the configuration of a run: common settings, and examples."""
    return COMMON + (EXAMPLES.format(verb=command("tunesmith", verb)) if examples else "")


class VerbParser(argparse.ArgumentParser):
    """An argument parser that leaves settings (``--learning_rate 1e-4``, ``training.seed=1``) to whoever reads the
    configuration, and reports mistakes as ConfigError."""

    def __init__(self, verb: str, description: str, *, takes_settings: bool = True, help_ends: str = "") -> None:
        self._help_ends = help_ends
        self._values_of: dict[str, bool] = {}
        self._num_positionals: float = 0
        more = named("Every setting may follow: `tunesmith config --list` names them.") if takes_settings else None
        super().__init__(prog=f"tunesmith {verb}", description=description, epilog=more, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show tracebacks")
        self.add_argument("--quiet", action="store_true", help="say nothing but results and errors")
        self.add_argument("--verbose", action="store_true", help="let the libraries talk as well")

    def format_help(self) -> str:
        return super().format_help() + self._help_ends

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        action = super().add_argument(*names, **options)
        for option in action.option_strings:
            self._values_of[option] = action.nargs != 0
        if not action.option_strings:
            self._num_positionals += math.inf if action.nargs in ("*", "+") else 1
        return action

    def add_permissions(self) -> None:
        """Add the flags that let a model's own code run, to a verb that takes no settings."""
        for path in _model_permissions():
            self.add_argument(
                f"--{_flat(path)}", action="store_true", help=named(f"{path}, see `tunesmith config --list`")
            )

    def split(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The verb's own options, and the settings as they were written.

        Positional arguments come before the first setting.
        """
        own: list[str] = []
        settings: list[str] = []
        positionals = 0
        rest = list(argv)
        while rest:
            token = rest.pop(0)
            name, equals, _ = token.partition("=")
            known = next((option for option in self._values_of if _plain(option) == _plain(name)), None)
            if known is not None:
                own.append(known + token[len(name) :])
                if self._values_of[known] and not equals and rest:
                    own.append(rest.pop(0))
            elif (
                (not token.startswith("-") or token == STREAM)
                and not settings
                and positionals < self._num_positionals
                and "=" not in token
            ):
                own.append(token)
                positionals += 1
            else:
                settings.append(token)
        return self.parse_args(own), settings

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        """The options of a verb that takes no settings.

        Raises:
            ConfigError: something is left over.
        """
        options, rest = self.split(argv)
        if rest:
            self.error(f"do not know what to do with {rest[0]!r}")
        return options

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, where="command line", remedy=named(f"`{self.prog} --help` explains"))


def permissions_in(options: argparse.Namespace) -> dict[str, Any]:
    """What ``VerbParser.add_permissions`` has read, by path."""
    return {path: getattr(options, _flat(path)) for path in _model_permissions()}


def _model_permissions() -> list[str]:
    return [path for path in PERMISSIONS if path.startswith("model.")]


def _flat(path: str) -> str:
    return path.rpartition(".")[2]


def _plain(option: str) -> str:
    """Dashes and underscores are the same inside an option's name."""
    return "--" + option[2:].replace("-", "_") if option.startswith("--") else option
