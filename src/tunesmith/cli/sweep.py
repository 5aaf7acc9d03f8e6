"""``tunesmith sweep``: train with several settings, compare, and say which was best."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tunesmith.cli import early, environment
from tunesmith.cli.arguments import VerbParser, of_a_run
from tunesmith.cli.output import say, say_json, tell
from tunesmith.config.draft import Draft
from tunesmith.config.load import DIALECTS, read
from tunesmith.config.names import NameTable
from tunesmith.errors import Interrupted
from tunesmith.program import command

if TYPE_CHECKING:
    from tunesmith.launch.sweep import Sweep, Trial

DESCRIPTION = """Train with several settings and compare.

Lists (--param learning_rate=1e-4,2e-4) are combined to a grid; ranges (--param learning_rate=1e-5..1e-3:log, --param
lora_r=4..64) are searched by Optuna, --trials times. Each trial is an ordinary run. The same command continues an
interrupted sweep and tries failed trials again. The metric is that of the model in the run folder: of the best
evaluation with load_best_model_at_end, of the last one otherwise."""


def run(argv: Sequence[str]) -> int:
    """Run a sweep; the exit code is 0 when every trial finished, else that of the first failed one."""
    parser = _parser()
    options, settings = parser.split(argv)
    file = options.file or options.config
    if options.trials is not None and options.trials < 1:
        parser.error("--trials is at least 1")
    environment.prepare()
    from tunesmith.launch.sweep import Request, open_sweep, run_here, write_comparison

    request = Request(
        draft=read(file, options.dialect) if file else Draft("command line", (), names=NameTable()),
        arguments=(*([file] if file else []), *(["--dialect", options.dialect] if options.dialect else [])),
        settings=tuple(settings),
        params=tuple(options.param),
        metric=options.metric,
        mode=options.mode,
        trials=options.trials,
        seed=options.seed or 0,
    )
    sweep = open_sweep(request, options.output, samples=options.engine == "optuna", stop_on_error=options.stop_on_error)
    if options.seed is not None and not sweep.sampled:
        parser.error("--seed is of Optuna's choices, and a grid has none; the training's is training.seed=N")
    if options.engine == "sequential" and sweep.sampled:
        parser.error("ranges are searched by Optuna: --engine optuna, or ray")
    kept = sum(trial.status == "finished" for trial in sweep.trials)
    if kept < sweep.total:
        early.check_trials(sweep.checked)
    tell(
        f"sweep     {sweep.total} trials in {sweep.folder}, by {sweep.metric} ({sweep.mode})"
        + (f"; {kept} of them finished earlier" if kept else "")
    )
    try:
        with following(sweep) as (began, settled):
            if options.engine == "ray":
                from tunesmith.launch.tune import run_on_ray

                run_on_ray(sweep, settled)
            else:
                run_here(sweep, settled, began)
    except Interrupted:
        write_comparison(sweep)
        raise
    comparison = write_comparison(sweep)
    if sweep.problem:
        raise sweep.problem
    if options.json:
        say_json(comparison)
    else:
        say("\n".join(describe(comparison)))
    return next((trial.exit_code or 1 for trial in sweep.trials if trial.status == "failed"), 0)


def _parser() -> VerbParser:
    parser = VerbParser("sweep", DESCRIPTION, help_ends=of_a_run("sweep", examples=False))
    parser.add_argument("file", nargs="?", help="configuration file")
    parser.add_argument("--config", dest="config", help="the same, as an option")
    parser.add_argument("--dialect", choices=sorted(DIALECTS), help="dialect of the file; detected when left out")
    parser.add_argument("--param", action="append", default=[], help="NAME=VALUE,VALUE or NAME=LOW..HIGH[:log]")
    parser.add_argument("--metric", required=True, help="what decides: loss, eval_loss, eval_macro_f1 ...")
    parser.add_argument("--mode", choices=("max", "min"), help="direction; unset, min for losses and max for others")
    parser.add_argument("--trials", type=int, help="how many settings Optuna tries")
    parser.add_argument("--seed", type=int, help="seed of Optuna's choices (of training: training.seed=N)")
    parser.add_argument("--engine", choices=("sequential", "optuna", "ray"), help="optuna where there are ranges")
    parser.add_argument("--output", help="folder of the sweep; OUTPUT_DIR-sweep when left out")
    parser.add_argument("--stop_on_error", action="store_true", help="start no other trial after one has failed")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    return parser


def show(trial: Trial) -> None:
    """One line for a trial that has ended."""
    known = trial.value is not None and trial.seconds is not None
    ended = f"{trial.value:.6g}  {trial.seconds:,.0f} s" if known else f"failed: {trial.error}"
    tell(f"{trial.name}  {_settings(trial)}  {ended}")


def _settings(trial: Trial) -> str:
    return "  ".join(f"{name} {value}" for name, value in trial.settings.items())


@contextmanager
def following(sweep: Sweep) -> Iterator[tuple[Callable[[Trial], None], Callable[[Trial], None]]]:
    """Show how far a sweep is; yields what is to be called when a trial begins, and when it has ended.

    On a terminal there is a bar, and below it the trial under way and the metric of those that have finished.
    """
    from tunesmith.cli.progress import follow, row_of_bars

    under_way: list[str] = []

    def below(width: int) -> Iterator[str]:
        yield from under_way
        values = [trial.value for trial in sweep.trials if trial.value is not None]
        if len(values) > 1:
            best = min(values) if sweep.mode == "min" else max(values)
            yield f"{sweep.metric}  {row_of_bars(values, 24)}  best {best:.6g}"

    with follow("sweep", below) as move:

        def began(trial: Trial) -> None:
            under_way[:] = [f"{trial.name}  {_settings(trial)}"]

        def settled(trial: Trial) -> None:
            under_way.clear()
            show(trial)
            move(sum(one.status != "running" for one in sweep.trials), sweep.total)

        move(sum(one.status == "finished" for one in sweep.trials), sweep.total)
        yield began, settled


def describe(comparison: dict[str, Any]) -> list[str]:
    """The comparison as aligned lines, and how to run the best settings again."""
    from tunesmith.launch.sweep import table

    rows = table(comparison)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = []
    for first, *cells, remark in rows:
        figures = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *figures, remark]).rstrip())
    if comparison["command"]:
        lines += ["", f"again: {command(*shlex.split(comparison['command']))}"]
    return lines
