"""What a sweep tries: lists of values as a grid, ranges by suggestions of Optuna's TPE sampler.

Values are texts, as somebody would write them on a command line. Which trials have run is ``sweep.py``'s business; a
suggestion follows from the seed, the trial's number and the results so far, so an interrupted sweep needs no other
state.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.config.draft import COMMAND_LINE
from tunesmith.config.names import NameTable
from tunesmith.config.overrides import accepted_types
from tunesmith.errors import ConfigError, ModelError

RUN_FOLDER_SETTINGS = ("training.output_dir", "training.overwrite_output_dir", "training.resume_from_checkpoint")
"""Settings that every trial gets from the sweep."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting and the values that it takes."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """A setting and the numbers between which it lies, both included; ``log``: evenly in its logarithm."""

    name: str
    low: float
    high: float
    log: bool
    whole: bool


Space = Sequence[Choice | Range]


def parse_param(text: str, names: NameTable) -> Choice | Range:
    """``NAME=VALUE,VALUE`` or ``NAME=LOW..HIGH`` or ``NAME=LOW..HIGH:log``; a value in brackets may hold commas.

    Raises:
        ConfigError: the name is unknown, belongs to the sweep itself, or the values make no sense.
    """
    name, equals, written = text.partition("=")
    name = name.strip().replace("-", "_")
    spelling = names.find(name, COMMAND_LINE)
    if spelling.path in RUN_FOLDER_SETTINGS:
        raise ConfigError(f"{name} is what the sweep itself decides", where=COMMAND_LINE)
    if not equals or not written.strip():
        raise ConfigError(
            f"--param {text} has no values", where=COMMAND_LINE, remedy=f"write --param {name}=VALUE,VALUE"
        )
    ends = _ends(written)
    if ends is None:
        values = [value.strip() for value in re.split(r",(?![^\[]*\])", written)]
        if len(set(values)) != len(values) or "" in values:
            raise ConfigError(f"--param {text} has an empty value, or one twice", where=COMMAND_LINE)
        return Choice(name, tuple(values))
    low, high, log = ends
    types = accepted_types(spelling)
    if not types & {int, float}:
        raise ConfigError(f"{name} is no number, so it has no range", where=COMMAND_LINE, remedy="list its values")
    if low >= high or (log and low <= 0):
        raise ConfigError(
            f"--param {text} is no range", where=COMMAND_LINE, remedy="write LOW..HIGH, above 0 with :log"
        )
    return Range(name, low, high, log, whole=float not in types)


def _ends(written: str) -> tuple[float, float, bool] | None:
    """Both ends of a range and whether it is logarithmic; None when this is no range."""
    low, dots, rest = written.partition("..")
    high, _, scale = rest.partition(":")
    if dots and scale in ("", "log"):
        with contextlib.suppress(ValueError):
            return float(low), float(high), scale == "log"
    return None


def grid(space: Space) -> list[dict[str, str]]:
    """Every combination, the last parameter changing fastest; of a range, its two ends."""
    columns = [
        param.values if isinstance(param, Choice) else (_text(param, param.low), _text(param, param.high))
        for param in space
    ]
    return [dict(zip([param.name for param in space], values, strict=True)) for values in itertools.product(*columns)]


def suggest(
    space: Space,
    results: Sequence[tuple[dict[str, str], float]],
    number: int,
    *,
    seed: int,
    mode: str,
    under_way: Sequence[dict[str, str]] = (),
) -> dict[str, str]:
    """What to try next, given the metric of what was tried and what is being tried meanwhile.

    Args:
        space: the parameters.
        results: settings and metric of the finished trials, in their order.
        number: the trial's number, from 1.
        seed: the sweep's seed.
        mode: ``min`` or ``max``.
        under_way: settings of trials that have no result yet, whose neighbourhood is avoided.

    Raises:
        ModelError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ModelError(
            "ranges need Optuna, which is not installed", remedy="pip install 'tunesmith[sweep]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {param.name: _distribution(param) for param in space}
    # a seed for each trial: a sampler that starts again with the sweep's would suggest its first trials once more
    trial_seed = random.Random(f"{seed}/{number}").getrandbits(32)
    sampler = optuna.samplers.TPESampler(seed=trial_seed, constant_liar=True)
    study = optuna.create_study(direction="minimize" if mode == "min" else "maximize", sampler=sampler)
    running = optuna.trial.TrialState.RUNNING
    told: list[tuple[Mapping[str, Any], dict[str, Any]]] = [
        *((settings, {"value": value}) for settings, value in results),
        *((settings, {"state": running}) for settings in under_way),
    ]
    for settings, known in told:
        params = {param.name: _value(param, settings[param.name]) for param in space}
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, **known))
    suggested = study.ask(distributions).params
    return {param.name: _text(param, suggested[param.name]) for param in space}


def _distribution(param: Choice | Range) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(param, Choice):
        return CategoricalDistribution(param.values)
    if param.whole:
        return IntDistribution(int(param.low), int(param.high), log=param.log)
    return FloatDistribution(param.low, param.high, log=param.log)


def _value(param: Choice | Range, text: str) -> str | int | float:
    if isinstance(param, Choice):
        return text
    return int(text) if param.whole else float(text)


def _text(param: Choice | Range, value: Any) -> str:
    """A value as one would write it: four digits of a number are enough to try."""
    if isinstance(param, Choice):
        return str(value)
    if param.whole:
        return str(int(value))
    return repr(min(max(float(f"{value:.4g}"), param.low), param.high))
