"""A sweep: one configuration trained with different settings, each trial an ordinary run in a process of its own.

``sweep.json`` in the sweep's folder says what is tried and how each trial ended. It is written at every change, so the
same command continues a sweep: finished trials stay, all others go on from their newest complete checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunesmith.config.draft import COMMAND_LINE, Draft
from tunesmith.config.evaluation import evaluates, is_of_tokens
from tunesmith.config.load import resolve_draft
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ConfigError, Interrupted, StorageError, did_you_mean
from tunesmith.launch.interruption import interruptible
from tunesmith.launch.processes import AGENT
from tunesmith.launch.search import Range, Space, grid, parse_param, suggest
from tunesmith.report import record
from tunesmith.report.folder import read_json, write_json, write_text
from tunesmith.train import checkpoint
from tunesmith.train.arguments import eval_interval, smaller_is_better

STATE = "sweep.json"
COMPARISON = "comparison"
GO_ON = "the same command continues it"
Status = Literal["running", "finished", "failed"]


@dataclass(frozen=True, slots=True)
class Request:
    """What is swept: a configuration as its command line gives it, the parameters, and what decides."""

    draft: Draft
    arguments: tuple[str, ...]
    """What follows ``tunesmith train`` on the command line of every trial: the file, the dialect."""
    settings: tuple[str, ...]
    params: tuple[str, ...]
    metric: str
    mode: str | None = None
    trials: int | None = None
    seed: int = 0


@dataclass(slots=True)
class Trial:
    """One trial: its settings, and once it has run, what came of it."""

    number: int
    settings: dict[str, str]
    status: Status = "running"
    value: float | None = None
    steps: int | None = None
    seconds: float | None = None
    error: str | None = None
    exit_code: int = 0

    @property
    def name(self) -> str:
        """The name of the trial's run folder."""
        return f"trial-{self.number:04}"

    def overrides(self) -> list[str]:
        """The trial's settings as they stand on a command line."""
        return [f"--{name}={value}" for name, value in self.settings.items()]


@dataclass(slots=True)
class Sweep:
    """A checked sweep and its trials so far; every change is on disk before the next step."""

    folder: Path
    request: Request
    space: Space
    metric: str
    mode: str
    total: int
    sampled: bool
    """Whether Optuna chooses; otherwise this is a grid."""
    checked: list[Resolved]
    """The configuration of every combination, of ranges with their ends."""
    fingerprint: str
    stop_on_error: bool
    trials: list[Trial] = field(default_factory=list)
    problem: ConfigError | None = None
    """Why no other trial makes sense."""
    _asked: set[int] = field(default_factory=set)

    def next(self) -> Trial | None:
        """The trial to run now: first those that an earlier start left unfinished; None when no other is wanted."""
        failed_now = any(trial.status == "failed" and trial.number in self._asked for trial in self.trials)
        if self.problem or (self.stop_on_error and failed_now):
            return None
        waiting = [trial for trial in self.trials if trial.status != "finished" and trial.number not in self._asked]
        if waiting:
            trial = waiting[0]
        elif len(self.trials) < self.total:
            trial = Trial(len(self.trials) + 1, self._settings_of(len(self.trials) + 1))
            self.trials.append(trial)
        else:
            return None
        trial.status, trial.error, trial.exit_code = "running", None, 0
        self._asked.add(trial.number)
        self._write()
        return trial

    def _settings_of(self, number: int) -> dict[str, str]:
        if not self.sampled:
            return grid(self.space)[number - 1]
        results = [(trial.settings, trial.value) for trial in self.trials if trial.value is not None]
        under_way = [
            trial.settings for trial in self.trials if trial.number in self._asked and trial.status == "running"
        ]
        return suggest(self.space, results, number, seed=self.request.seed, mode=self.mode, under_way=under_way)

    def job(self, trial: Trial) -> dict[str, Any]:
        """What ``run_trial`` needs, as plain data."""
        return {
            "folder": str((self.folder / trial.name).absolute()),
            "arguments": [*self.request.arguments, *self.request.settings, *trial.overrides()],
            "metric": self.metric,
            "directory": str(Path.cwd()),
        }

    def settle(self, trial: Trial, outcome: dict[str, Any]) -> None:
        """Keep what came of a trial."""
        for name, value in outcome.items():
            if name != "logged":
                setattr(trial, name, value)
        if "logged" in outcome:
            self.problem = _no_such_metric(self.metric, outcome["logged"], f"{self.folder / trial.name}")
        self._write()

    def _write(self) -> None:
        state = {
            "fingerprint": self.fingerprint,
            "command": shlex.join(["tunesmith", "train", *self.request.arguments, *self.request.settings]),
            "params": list(self.request.params),
            "metric": self.metric,
            "mode": self.mode,
            "seed": self.request.seed if self.sampled else None,
            "total": self.total,
            "trials": [asdict(trial) for trial in self.trials],
        }
        write_json(self.folder / STATE, state)

    def comparison(self) -> dict[str, Any]:
        """All trials, the best first and failed ones last, and the command that runs the best settings again."""
        sign = 1 if self.mode == "min" else -1
        ranked = sorted(self.trials, key=lambda trial: (trial.value is None, sign * (trial.value or 0.0), trial.number))
        best = ranked[0] if ranked and ranked[0].value is not None else None
        command = ["tunesmith", "train", *self.request.arguments, *self.request.settings]
        return {
            "metric": self.metric,
            "mode": self.mode,
            "best": str(self.folder / best.name) if best else None,
            "command": shlex.join([*command, *best.overrides()]) if best else None,
            "trials": [{"path": str(self.folder / trial.name), **asdict(trial)} for trial in ranked],
        }


def open_sweep(request: Request, output: str | None, *, samples: bool = False, stop_on_error: bool = False) -> Sweep:
    """Check every combination, and find what an earlier start of the same sweep has done.

    Args:
        request: what is swept.
        output: the sweep's folder; None is the configuration's ``output_dir`` with ``-sweep`` behind it.
        samples: let Optuna choose among listed values too, ``request.trials`` times.
        stop_on_error: start no other trial after one has failed.

    Raises:
        ConfigError: a parameter or a combination is wrong, the metric will not be logged, or the folder holds something
            else.
    """
    space = _space(request)
    sampled = samples or any(isinstance(param, Range) for param in space)
    total = _number_of_trials(request, space, sampled)
    metric = request.metric if request.metric == "loss" else f"eval_{request.metric.removeprefix('eval_')}"
    mode = request.mode or ("min" if smaller_is_better(metric) else "max")
    checked = _check_all(request, space, metric)
    first = checked[0]
    folder = Path(output or f"{first.config.training.output_dir}-sweep")
    decides = [first.fingerprint(), list(request.params), metric, mode, request.seed if sampled else None]
    fingerprint = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
    sweep = Sweep(folder, request, space, metric, mode, total, sampled, checked, fingerprint, stop_on_error)
    sweep.trials = _earlier_trials(sweep)
    return sweep


def _space(request: Request) -> Space:
    names = request.draft.names
    space = [parse_param(text, names) for text in request.params]
    if not space:
        raise ConfigError("nothing to sweep", where=COMMAND_LINE, remedy="give --param NAME=VALUE,VALUE")
    paths = [names.find(param.name, COMMAND_LINE).path for param in space]
    for param, path in zip(space, paths, strict=True):
        if paths.count(path) > 1:
            raise ConfigError(f"--param {param.name} is given twice", where=COMMAND_LINE, remedy="list all its values")
    return space


def _number_of_trials(request: Request, space: Space, sampled: bool) -> int:
    if not sampled and request.trials is None:
        return len(grid(space))
    if not sampled:
        raise ConfigError(
            f"a grid has its {len(grid(space))} combinations, so --trials says nothing",
            where=COMMAND_LINE,
            remedy="leave it out, give a range (LOW..HIGH), or let Optuna choose: --engine optuna",
        )
    if request.trials is None:
        raise ConfigError("a search by Optuna has no end of its own", where=COMMAND_LINE, remedy="give --trials N")
    return request.trials


def _check_all(request: Request, space: Space, metric: str) -> list[Resolved]:
    """Check every combination, of ranges their ends."""
    checked = []
    for settings in grid(space):
        overrides = [f"--{name}={value}" for name, value in settings.items()]
        checked.append(resolve_draft(request.draft, [*request.settings, *overrides]))
        _check_metric(metric, checked[-1])
    return checked


def _earlier_trials(sweep: Sweep) -> list[Trial]:
    folder, path = sweep.folder, sweep.folder / STATE
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} holds something, and no sweep", remedy="choose another --output")
        return []
    state = read_json(path)
    try:
        trials = [Trial(**trial) for trial in state["trials"]]
        same = state["fingerprint"] == sweep.fingerprint
    except (KeyError, TypeError) as error:
        raise StorageError(f"is damaged: {error}", where=str(path), remedy="choose another --output") from error
    if not same:
        raise ConfigError(
            f"{folder} holds another sweep: {' '.join(state['params'])} by {state['metric']} of `{state['command']}`",
            where=str(path),
            remedy="repeat that one's command to continue it, or choose another --output",
        )
    return trials


def _check_metric(metric: str, resolved: Resolved) -> None:
    """Refuse a metric that no trial will log."""
    if metric == "loss":
        return
    if not evaluates(resolved):
        raise ConfigError(f"{metric} needs evaluation, and there is none", where=COMMAND_LINE, remedy="give eval_data")
    strategy, every = eval_interval(resolved)
    steps = resolved.config.training.max_steps
    if strategy == "steps" and 0 < steps < every:
        raise ConfigError(
            f"{metric} needs an evaluation, and there is one every {every} steps of {steps}",
            where=resolved.origins["training.eval_steps"],
            remedy="set eval_steps",
        )
    if not is_of_tokens(metric) and not resolved.config.evaluation.generate:
        raise ConfigError(
            f"{metric} comes from generated answers, and evaluation.generate is off",
            where=COMMAND_LINE,
            remedy="add --generate, or take eval_loss or eval_token_accuracy",
        )


def _no_such_metric(metric: str, logged: Sequence[str], where: str) -> ConfigError:
    remedy = did_you_mean(metric, logged, f"it has {', '.join(logged)}")
    return ConfigError(f"the trial has no {metric}", where=where, remedy=remedy)


def run_trial(job: dict[str, Any]) -> dict[str, Any]:
    """Train one trial as ``tunesmith train`` in a process of its own, or find that it is finished.

    The metric is that of the model in the run folder: of the best evaluation with ``load_best_model_at_end``, of the
    last one otherwise.

    Args:
        job: what ``Sweep.job`` gives.

    Returns:
        The fields of ``Trial`` that are known now, and where the metric is missing, those there are as ``logged``.

    Raises:
        Interrupted: a signal stopped the trial.
    """
    folder = Path(job["folder"])
    if not _is_finished(folder):
        log = folder.with_name(f"{folder.name}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tunesmith", "train", *job["arguments"], *_where_to_begin(folder)]
        code = _call(command, log, job["directory"])
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise Interrupted(f"{folder.name} was interrupted", signal_number=code - 128)
        if code:
            return {"status": "failed", "error": _last_error(log), "exit_code": code}
    result = read_json(folder / record.RECORD)["result"]
    value = result["metrics"].get(job["metric"])
    facts = {"steps": result["steps"], "seconds": result["seconds"]}
    if value is None:
        error = f"the trial has no {job['metric']}"
        return facts | {"status": "failed", "error": error, "exit_code": 2, "logged": sorted(result["metrics"])}
    if not isinstance(value, int | float) or not math.isfinite(value):
        return facts | {"status": "failed", "error": f"{job['metric']} is {value}", "exit_code": 5}
    return facts | {"status": "finished", "value": value}


def _is_finished(folder: Path) -> bool:
    path = folder / record.RECORD
    return path.is_file() and read_json(path)["status"] == "finished"


def _where_to_begin(folder: Path) -> list[str]:
    """Options with which a trial goes on from its newest complete checkpoint, or begins (again) without one."""
    output = f"--output_dir={folder}"
    if any(checkpoint.problem(found.path) is None for found in checkpoint.list_checkpoints(folder)):
        return [output, "--resume_from_checkpoint=latest"]
    return [output, "--overwrite_output_dir"]


def _call(command: Sequence[str], log: Path, directory: str) -> int:
    """Run a command with its output in a file; it ends when this process does, however that happens.

    Returns:
        The exit code, 128 and the signal's number where a signal ended it.
    """
    ours = os.environ | {AGENT: str(os.getpid())}
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, cwd=directory, env=ours)
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    return code if code >= 0 else 128 - code


def _last_error(log: Path) -> str:
    """What a trial said went wrong: its error lines, or its last line."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return "; ".join(errors) or (lines[-1].strip() if lines else "it ended without a word")


def run_here(
    sweep: Sweep, settled: Callable[[Trial], None], began: Callable[[Trial], None] = lambda trial: None
) -> None:
    """Run the trials one after another on this machine.

    Args:
        sweep: the sweep.
        settled: called after each trial.
        began: called before it.

    Raises:
        Interrupted: a signal stopped the sweep; the same command continues it.
    """
    with interruptible("the sweep", remedy=GO_ON):
        while (trial := sweep.next()) is not None:
            began(trial)
            sweep.settle(trial, run_trial(sweep.job(trial)))
            settled(trial)


def write_comparison(sweep: Sweep) -> dict[str, Any]:
    """Write ``comparison.json`` and ``comparison.md`` into the sweep's folder; returns what the former holds."""
    comparison = sweep.comparison()
    write_json(sweep.folder / f"{COMPARISON}.json", comparison)
    header, *rows = table(comparison)
    lines = [" | ".join(cells) for cells in (header, ["---"] * len(header), *rows)]
    text = "".join(f"| {line} |\n" for line in lines)
    if comparison["command"]:
        text += f"\nThe best again:\n\n```bash\n{comparison['command']}\n```\n"
    write_text(sweep.folder / f"{COMPARISON}.md", text)
    return comparison


def table(comparison: dict[str, Any]) -> list[list[str]]:
    """A comparison as rows of cells, the header first; long errors are cut short."""
    names = list(dict.fromkeys(name for trial in comparison["trials"] for name in trial["settings"]))
    rows = [["run", *names, comparison["metric"], "steps", "seconds", ""]]
    for trial in comparison["trials"]:
        value = f"{trial['value']:.6g}" if trial["value"] is not None else "-"
        failed = textwrap.shorten(f"failed: {trial['error']}", 72, placeholder=" ...") if trial["error"] else ""
        remark = "best" if trial["path"] == comparison["best"] else failed
        figures = [value, *("-" if trial[name] is None else f"{trial[name]:,}" for name in ("steps", "seconds"))]
        rows.append([trial["path"], *(trial["settings"][name] for name in names), *figures, remark])
    return rows
