"""``tunesmith launch``: the job file with which a cluster would start a run. It is printed, never submitted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.cli.arguments import VerbParser
from tunesmith.cli.output import say_file, tell
from tunesmith.config.load import load
from tunesmith.errors import ConfigError
from tunesmith.launch.cluster import ENGINES, Job, job_file, job_name


def run(argv: Sequence[str]) -> int:
    """Check a configuration and print a job file for it."""
    parser = VerbParser("launch", "Print the job file of a run for a cluster; submitting it is up to you.")
    parser.add_argument("file", nargs="?", help="configuration file")
    parser.add_argument("--config", help="the same, as an option")
    parser.add_argument("--on", choices=ENGINES, required=True, help="the cluster's engine")
    parser.add_argument("--name", help="name of the job; made from the output folder when left out")
    parser.add_argument("--nodes", type=int, help="machines (1)")
    parser.add_argument("--num_processes", type=int, help="processes on each machine, one GPU each (1)")
    parser.add_argument("--gpu_type", help="kind of GPU as the cluster calls it; `none` for processors alone")
    parser.add_argument("--cpus", type=int, default=8, help="processor cores for each process (%(default)s)")
    parser.add_argument("--memory", type=int, default=64, help="main memory of each machine in GiB (%(default)s)")
    parser.add_argument("--time", metavar="HH:MM:SS", help="longest duration (slurm, kubernetes)")
    parser.add_argument("--image", help="container image with tunesmith in it (kubernetes, skypilot)")
    parser.add_argument("--volume", help="claim of a shared volume (kubernetes), or URL of a bucket (skypilot)")
    parser.add_argument("--partition", help="partition (slurm)")
    parser.add_argument("--account", help="account (slurm)")
    parser.add_argument("--output", metavar="FILE", help="write the file there instead of printing it")
    options, settings = parser.split(argv)
    path = options.file or options.config
    if path is None:
        parser.error("give a configuration file")
    resolved = load(path, settings)
    launch = resolved.config.launch
    job = Job(
        name=job_name(options.name or resolved.config.tracking.run_name or resolved.config.training.output_dir),
        nodes=_count(parser, "nodes", options.nodes, launch.nodes),
        processes=_count(parser, "num_processes", options.num_processes, launch.num_processes or 1),
        gpu_type=options.gpu_type,
        cpus=_count(parser, "cpus", options.cpus),
        memory=_count(parser, "memory", options.memory),
        time=options.time,
        image=options.image,
        volume=options.volume,
        partition=options.partition,
        account=options.account,
    )
    text = job_file(options.on, job, resolved, [path, *settings])
    if options.output is None:
        say_file(text)
        return 0
    target = Path(options.output)
    if target.exists():
        raise ConfigError("is there already", where=options.output, remedy="remove it or name another file")
    target.write_text(text, encoding="utf-8")
    tell(f"written to {options.output}; nothing was submitted")
    return 0


def _count(parser: VerbParser, name: str, asked: int | None, otherwise: int = 1) -> int:
    value = otherwise if asked is None else asked
    if value < 1:
        parser.error(f"--{name} {value} is no number of things")
    return value
