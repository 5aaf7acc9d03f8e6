"""``tunesmith check``: everything that can be known about a run before it trains."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.cli import early, environment
from tunesmith.cli.arguments import VerbParser, of_a_run
from tunesmith.cli.output import say, say_json, tell
from tunesmith.config import describe
from tunesmith.config.draft import COMMAND_LINE
from tunesmith.config.load import DIALECTS, load
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ConfigError, TunesmithError
from tunesmith.imports import lean_imports
from tunesmith.program import named

if TYPE_CHECKING:
    from tunesmith.train.check import Report

GIB = 2**30
PARTS = ("ledger", "coverage", "layout", "steps", "memory")
"""Parts of a report, by their names in it."""


def run(argv: Sequence[str]) -> int:
    """Check a configuration file of any dialect, or settings alone."""
    parser = VerbParser(
        "check",
        "Check everything short of training: settings, data, steps, memory and disk.",
        help_ends=of_a_run("check"),
    )
    parser.add_argument("file", nargs="?", help="configuration file")
    parser.add_argument("--config", help="the same, as an option")
    parser.add_argument("--dialect", choices=sorted(DIALECTS), help="dialect of the file; detected when left out")
    parser.add_argument("--gpu", metavar="SIZE", help="plan for devices of this memory (24GB) or name (RTX 3090)")
    parser.add_argument("--nodes", type=int, metavar="M", help="plan for M machines; how they meet need not be said")
    parser.add_argument(
        "--json", action="store_true", help='print {"ledger", "coverage", "layout", "steps", "memory", "problems"}'
    )
    options, settings = parser.split(argv)
    try:
        resolved = _load(options, settings)
    except TunesmithError as error:
        if options.json:
            say_json(dict.fromkeys(PARTS) | {"problems": error.lines()}, None)
        raise
    environment.prepare(resolved)
    known = early.problems(resolved)
    if known.keys() & early.INPUTS:
        return _end(resolved, None, list(known.values()), as_json=options.json)
    from tunesmith.launch.processes import planned

    with lean_imports():
        from tunesmith.train.check import check

    report = check(resolved, options.gpu, planned(resolved), known.values())
    return _end(resolved, report, report.problems, as_json=options.json)


def _end(resolved: Resolved, report: Report | None, problems: Sequence[TunesmithError], *, as_json: bool) -> int:
    """Print what was found, of a report that could not be begun its problems alone; returns the exit code."""
    said = [line for problem in problems for line in problem.lines()]
    if as_json:
        say_json({name: getattr(report, name, None) for name in PARTS} | {"problems": said})
    else:
        say("\n".join(lines(resolved, report)))
        number = f"problems: {len(said)}" if said else "no problems"
        say(f"\n{number}" if report is not None else f"\n{number}; the rest is looked at once model and rows are there")
    for line in said:
        tell(f"error: {line}")
    return problems[0].exit_code if problems else 0


def _load(options: Namespace, settings: list[str]) -> Resolved:
    """The configuration. A plan for several machines needs no rendezvous; where one is given, all of it is checked."""
    path, nodes = options.file or options.config, options.nodes
    if nodes is None:
        return load(path, settings, dialect=options.dialect)
    if nodes < 1:
        raise ConfigError(f"--nodes {nodes} is no number of machines", where=COMMAND_LINE)
    if any(name in setting for setting in settings for name in ("rendezvous", "node_rank", "node-rank")):
        return load(path, [*settings, f"--nodes={nodes}"], dialect=options.dialect)
    resolved = load(path, settings, dialect=options.dialect)
    launch = resolved.config.launch.model_copy(update={"nodes": nodes})
    return Resolved(
        resolved.config.model_copy(update={"launch": launch}), resolved.origins | {"launch.nodes": COMMAND_LINE}
    )


def lines(resolved: Resolved, report: Report | None) -> Iterator[str]:
    """The report for people, section by section."""
    yield named("SETTINGS that somebody wrote (`tunesmith config` shows all)")
    yield from describe.table(resolved, only_written=True)
    if report is None:
        return
    if report.ledger_lines:
        yield from ("", "DATA", *(f"  {line}" for line in report.ledger_lines))
    if report.template:
        yield from ("", "TEMPLATE", *(f"  {line}" for line in report.template))
    if report.layout is not None:
        yield from ("", "BATCHES", *_layout(report.layout))
    if report.coverage:
        from tunesmith.model.coverage import table

        yield from ("", "ADAPTERS", *(f"  {line}" for line in table(report.coverage)))
    if report.steps is not None:
        yield from ("", "STEPS", *_steps(report.steps))
    if report.memory is not None:
        yield from ("", "MEMORY", *_memory(report.memory))
        yield from ("", "DISK", *_disk(report.memory["disk"]))


def _layout(layout: dict[str, Any]) -> Iterator[str]:
    yield f"  {layout['batching']}: {layout['reason']}"
    if layout.get("tokens"):
        yield (
            f"  of {layout['tokens']:,} tokens in the first {layout['batches']} batches, {layout['computed']:,} are "
            f"computed (factor {layout['computed'] / layout['tokens']:.2f})"
        )


def _steps(steps: dict[str, Any]) -> Iterator[str]:
    yield (
        f"  {steps['total_steps']:,} steps of {steps['global_batch_size']} rows "
        f"({steps['steps_per_epoch']:,} an epoch, "
        f"{steps['epochs']:g} epochs), {steps['warmup_steps']} of them warmup"
    )
    if steps["num_processes"] > 1:
        yield f"  shared by {steps['num_processes']} processes"
    rates = ", ".join(f"step {step}: {rate:.2e}" for step, rate in steps["learning_rate"].items())
    yield f"  learning rate ({steps['lr_scheduler_type']}): {rates}"
    yield f"  {steps['evaluations']:,} evaluations, {steps['checkpoints']:,} checkpoints"


def _memory(memory: dict[str, Any]) -> Iterator[str]:
    share = memory["trainable"] / max(memory["parameters"], 1)
    batch = memory["batch"]
    yield f"  {memory['parameters']:,} parameters, {memory['trainable']:,} trained ({share:.2%}), {memory['precision']}"
    yield f"  largest batch: {batch['rows']} x {batch['length']} tokens, {batch['labelled']} positions with loss"
    for name in ("weights", "gradients", "optimizer", "activations", "loss", "overhead"):
        yield f"  {name:<12} {_size(memory[name]):>10}"
    verdict = "fits" if memory["fits"] else "does not fit"
    yield f"  {'peak':<12} {_size(memory['peak']):>10} of {_size(memory['available'])} on {memory['device']}: {verdict}"
    host = memory["host"]
    count = f"{host['processes']} process{'es' if host['processes'] > 1 else ''}"
    known = "" if host["available"] is None else f" of {_size(host['available'])}"
    verdict = "" if host["fits"] is None else f": {'fits' if host['fits'] else 'does not fit'}"
    yield f"  {'main memory':<12} {_size(host['peak']):>10}{known} for {count} of a machine{verdict}"
    merging = "" if host["merging"] is None else f", merging {_size(host['merging'])}"
    yield f"    loading {_size(host['loading'])}, saving {_size(host['saving'])}{merging}"


def _disk(disk: dict[str, Any]) -> Iterator[str]:
    yield (
        f"  {disk['checkpoints']} checkpoints of {_size(disk['checkpoint_bytes'])}, "
        f"model {_size(disk['model_bytes'])}: "
        f"{_size(disk['needed'])} of {_size(disk['free'])} free in {disk['folder']}"
    )
    if disk["merged_bytes"]:
        yield f"  a merged model takes {_size(disk['merged_bytes'])} more in bfloat16, twice that in float32"


def _size(count: int) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1024:,.1f} KiB"
