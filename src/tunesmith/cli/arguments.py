"""Splits a verb's own options from the settings that follow them, and explains both."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from tunesmith.errors import ConfigError


class VerbParser(argparse.ArgumentParser):
    """An argument parser that leaves settings (``--learning_rate 1e-4``, ``training.seed=1``) to whoever reads the
    configuration, and reports mistakes as ConfigError."""

    def __init__(self, verb: str, description: str, *, takes_settings: bool = True) -> None:
        self._values_of: dict[str, bool] = {}
        self._num_positionals = 0
        usage = f"tunesmith {verb} [options]" + (" [settings]" if takes_settings else "")
        epilog = (
            "Every setting of the schema may follow: `tunesmith config --list` names them." if takes_settings else None
        )
        super().__init__(
            prog=f"tunesmith {verb}", usage=None, description=description, epilog=epilog, allow_abbrev=False
        )
        self._short_usage = usage
        self.add_argument("--debug", action="store_true", help="show tracebacks")

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        action = super().add_argument(*names, **options)
        for option in action.option_strings:
            self._values_of[option] = action.nargs != 0
        if not action.option_strings:
            self._num_positionals += 1
        return action

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
            dashed = name.replace("_", "-") if name.startswith("--") else name
            known = next(
                (option for option in (name, dashed, name.replace("-", "_")) if option in self._values_of), None
            )
            if known is None and name.startswith("--"):
                known = next(
                    (option for option in self._values_of if option.replace("-", "_") == name.replace("-", "_")), None
                )
            if known is not None:
                own.append(known + token[len(name) :])
                if self._values_of[known] and not equals and rest:
                    own.append(rest.pop(0))
            elif (
                not token.startswith("-") and not settings and positionals < self._num_positionals and "=" not in token
            ):
                own.append(token)
                positionals += 1
            else:
                settings.append(token)
        return self.parse_args(own), settings

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, where="command line", remedy=f"`{self.prog} --help` explains")


def yes_no(text: str) -> bool:
    """An argparse type for switches that take a value (``--json true``)."""
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
