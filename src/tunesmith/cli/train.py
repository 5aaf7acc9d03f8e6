"""``tunesmith train``: check everything, fine-tune, save, and say where the run is."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.cli import early, environment
from tunesmith.cli.arguments import VerbParser, of_a_run
from tunesmith.cli.output import say, say_json, tell
from tunesmith.config.load import DIALECTS, load
from tunesmith.config.resolve import Resolved
from tunesmith.imports import lean_imports
from tunesmith.program import command
from tunesmith.train.signals import going_on, watching

if TYPE_CHECKING:
    from tunesmith.train.result import TrainResult


def run(argv: Sequence[str]) -> int:
    """Train from a configuration file of any dialect, or from settings alone."""
    parser = VerbParser("train", "Fine-tune a model.", help_ends=of_a_run("train"))
    parser.add_argument("file", nargs="?", help="configuration file")
    parser.add_argument("--config", dest="config", help="the same, as an option")
    parser.add_argument("--dialect", choices=sorted(DIALECTS), help="dialect of the file; detected when left out")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options, settings = parser.split(argv)
    resolved = load(options.file or options.config, settings, dialect=options.dialect)
    return train_resolved(resolved, ["-m", "tunesmith", "train", *argv], as_json=options.json)


def train_resolved(resolved: Resolved, program: Sequence[str], *, as_json: bool = False) -> int:
    """Run a checked configuration to its end, here or as the processes it asks for.

    Args:
        resolved: the configuration.
        program: what follows ``python`` on the command line that starts this run; kept in run.json, and repeated in
            every process when there are several.
        as_json: print the result as JSON.

    Returns:
        The exit code.
    """
    result = run_resolved(resolved, program, began=process_began())
    return show(result, resolved, as_json=as_json) if result is not None else 0


def process_began() -> float:
    """When this process began, by ``time.monotonic()``; now, where it has been doing something else before: commands
    come here with no library of training imported."""
    if "torch" in sys.modules:
        return time.monotonic()
    import psutil

    born: float = psutil.Process().create_time()
    return time.monotonic() - (time.time() - born)


def run_resolved(resolved: Resolved, program: Sequence[str], *, began: float | None = None) -> TrainResult | None:
    """Run a checked configuration to its end; of several processes the one that shows the result gets it.

    Args:
        resolved: the configuration.
        program: as in ``train_resolved``.
        began: ``time.monotonic()`` when the command began; None for now.

    Raises:
        TunesmithError: whatever prevents or ends the run.
    """
    with watching():
        return _train(resolved, program, time.monotonic() if began is None else began)


def _train(resolved: Resolved, program: Sequence[str], began: float) -> TrainResult | None:
    launch = resolved.config.launch
    environment.prepare(resolved)
    from tunesmith.launch import processes

    processes.die_with_agent()
    if not processes.launched():
        early.check_run(resolved)
    if launch.engine == "ray":
        return _train_on_ray(resolved, program)
    environment.adopt_slurm_ranks(launch.nodes)
    processes.check_launcher(resolved)
    wanted = processes.processes_wanted(resolved)
    if not processes.launched() and (wanted > 1 or launch.nodes > 1 or launch.max_restarts):
        return _train_in_ranks(resolved, program, wanted)
    from tunesmith.cli.progress import Plain, make_listener

    with lean_imports():
        from tunesmith.train.callbacks import Silent
        from tunesmith.train.processes import is_main_process
        from tunesmith.train.run import train

    main = is_main_process()
    listener: Silent | Plain | object = make_listener() if main else Silent()
    result = train(resolved, command=["python", *program], listener=listener, began=began)  # type: ignore[arg-type]
    return result if main and not processes.has_agent() else None


def _train_in_ranks(resolved: Resolved, program: Sequence[str], num_processes: int) -> TrainResult | None:
    """Start the ranks of this machine, wait for them, and read the result where rank 0 ran."""
    from tunesmith.launch.torchrun import launch
    from tunesmith.model.device import check_count, seen
    from tunesmith.train.result import read_result
    from tunesmith.train.stopping import way_on_told

    check_count(num_processes, seen(count_only=True))
    with way_on_told(Path(resolved.config.training.output_dir), going_on(["python", *program])):
        launch(resolved, program, num_processes)
    return read_result(resolved) if not resolved.config.launch.node_rank else None


def _train_on_ray(resolved: Resolved, program: Sequence[str]) -> TrainResult:
    """Let Ray start the ranks, and show what they tell."""
    from tunesmith.cli.progress import make_listener
    from tunesmith.launch.ray import train_on_ray

    return train_on_ray(resolved, command=["python", *program], listener=make_listener())


def show(result: TrainResult, resolved: Resolved, *, as_json: bool) -> int:
    """Print what a run came to and what to type next; returns the exit code."""
    if as_json:
        facts = {"run": str(result.folder), "steps": result.steps, "metrics": result.metrics}
        say_json(facts | ({"stopped": result.stopped} if result.stopped else {}))
        return 0
    if result.stopped:
        tell(f"stopped   {result.stopped}")
        return 0
    figures = "  ".join(f"{name} {value:.4g}" for name, value in result.metrics.items() if isinstance(value, float))
    tell(f"done      {result.steps:,} steps in {result.seconds:.0f} s  {figures}")
    if result.first_step is not None:
        tell(f"          {first_step_told(result.first_step)}")
    tell("\n".join(["next", *(f"  {command}" for command in next_commands(result, resolved))]))
    say(f"{result.model_folder}")
    return 0


def first_step_told(figures: Mapping[str, Any]) -> str:
    """How long the first step took to come, and what for, in a line."""
    parts = ", ".join(f"{name.replace('_', ' ')} {seconds:.1f}" for name, seconds in figures["parts"].items())
    return f"first step after {figures['seconds']:.1f} s: {parts}"


def next_commands(result: TrainResult, resolved: Resolved) -> list[str]:
    """What makes sense after a run that has ended, as it is typed: judging, merging, talking."""
    config = resolved.config
    run, model = str(result.folder), str(result.model_folder)
    commands = []
    data = config.data
    held = data.eval_data or data.eval_split or data.dev_split
    continues = data.format == "tokenized" or (data.format == "text" and data.loss_on == "all")  # nothing is asked
    if held and config.evaluation.task != "none" and not continues:
        commands.append(command("tunesmith", "evaluate", run, "--baseline"))
    if config.adapter.use_lora and not config.training.save_merged_model:
        commands.append(command("tunesmith", "merge", model, f"{run}-merged"))
    return [*commands, command("tunesmith", "chat", run), command("tunesmith", "report", run)]
