"""Job files for clusters: a run as SLURM, Kubernetes or SkyPilot would start it, for a person to read and to submit.

Nothing is submitted and no cluster is asked. A file holds everything but secrets, which come from where it runs.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from tunesmith.config.convert import convert
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ConfigError
from tunesmith.report.templates import environment

PORT = 29500
"""Where the machines of one run meet; each job has a network address of its own."""
RESTARTS = 3
"""How often the machines that are left start again together when one of them was lost and came back."""
MOUNT = "/workspace"
"""Where a volume appears in the container; the run works there, so its relative paths lead into the volume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a cluster must know of a run besides its settings.

    Attributes:
        name: name of the job; letters, digits and dashes.
        nodes: machines.
        processes: processes on each of them, one GPU each.
        gpu_type: kind of GPU, as the cluster calls it (``h100``); ``none`` for processors alone; None for any.
        cpus: processor cores for each process.
        memory: main memory of each machine, in GiB.
        time: longest duration, ``HH:MM:SS`` or ``D-HH:MM:SS``.
        image: container image with tunesmith in it.
        volume: Kubernetes: claim of a volume that all machines can write; SkyPilot: URL of a bucket.
        partition: SLURM's partition.
        account: SLURM's account.
    """

    name: str
    nodes: int = 1
    processes: int = 1
    gpu_type: str | None = None
    cpus: int = 8
    memory: int = 64
    time: str | None = None
    image: str | None = None
    volume: str | None = None
    partition: str | None = None
    account: str | None = None

    @property
    def gpus(self) -> int:
        """GPUs of each machine."""
        return 0 if self.gpu_type == "none" else self.processes


def job_file(engine: str, job: Job, resolved: Resolved, command: Sequence[str]) -> str:
    """The text of a job file.

    Args:
        engine: ``slurm``, ``kubernetes`` or ``skypilot``.
        job: what the cluster must know.
        resolved: the run's checked configuration.
        command: configuration file and settings as they were written, what follows ``tunesmith train``.

    Raises:
        ConfigError: the engine needs something that the job does not say, or has no use for something it says.
    """
    _check(engine, job)
    return _ENGINES[engine](job, resolved, command)


def job_name(text: str) -> str:
    """``text`` as every engine accepts a name: lower case, digits and dashes, at most 40 characters."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-")
    return plain if re.match("[a-z]", plain) else f"run-{plain}".strip("-")


def _slurm(job: Job, resolved: Resolved, command: Sequence[str]) -> str:
    """One task for each process; tunesmith notices its rank in SLURM's variables."""
    kind = f"gpu:{job.gpu_type}:{job.gpus}" if job.gpu_type else f"gpu:{job.gpus}"
    return _render("slurm.sh", job, gres=kind, command=_shell(["tunesmith", "train", *command, *_going_on(resolved)]))


def _kubernetes(job: Job, resolved: Resolved, command: Sequence[str]) -> str:
    """An indexed Job, whose machines meet at the first one's name in a headless Service."""
    arguments = ["tunesmith", "train", "/config/run.yaml", *_going_on(resolved), "--num_processes", str(job.processes)]
    if job.nodes > 1:
        meeting = f"{job.name}-0.{job.name}:{PORT}"
        arguments += ["--nodes", str(job.nodes), "--node_rank", "$(JOB_COMPLETION_INDEX)", "--rendezvous", meeting]
        arguments += ["--max_restarts", str(RESTARTS)]
    seconds = None if job.time is None else _seconds(job.time)
    return _render("kubernetes.yaml", job, arguments=arguments, config=_own(resolved, command), seconds=seconds)


def _skypilot(job: Job, resolved: Resolved, command: Sequence[str]) -> str:
    """A task that runs once on every machine; SkyPilot says which one it is."""
    arguments = ["tunesmith", "train", "run.yaml", *_going_on(resolved), "--num_processes", str(job.processes)]
    if job.volume:
        arguments += ["--output_dir", f"/outputs/{job.name}"]
    shell = _shell(arguments)
    if job.nodes > 1:
        shell += ' \\\n    --nodes "$SKYPILOT_NUM_NODES" --node_rank "$SKYPILOT_NODE_RANK"'
        shell += f' \\\n    --rendezvous "$(head -n 1 <<< "$SKYPILOT_NODE_IPS"):{PORT}" --max_restarts {RESTARTS}'
    return _render("skypilot.yaml", job, shell=shell, config=_own(resolved, command))


_ENGINES: dict[str, Callable[[Job, Resolved, Sequence[str]], str]] = {
    "slurm": _slurm,
    "kubernetes": _kubernetes,
    "skypilot": _skypilot,
}
ENGINES = tuple(_ENGINES)
"""The clusters that job files can be written for."""

_ONLY: dict[str, tuple[str, ...]] = {
    "partition": ("slurm",),
    "account": ("slurm",),
    "image": ("kubernetes", "skypilot"),
    "volume": ("kubernetes", "skypilot"),
    "time": ("slurm", "kubernetes"),
}
"""Parts of a job -> the engines that have a use for them."""


def _check(engine: str, job: Job) -> None:
    for part, engines in _ONLY.items():
        if getattr(job, part) is not None and engine not in engines:
            raise ConfigError(
                f"--{part} has no meaning for {engine}", where="command line", remedy=f"it is for {', '.join(engines)}"
            )
    if engine in _ONLY["image"] and job.image is None:
        raise ConfigError(
            f"{engine} runs containers, and --image does not say which",
            where="command line",
            remedy="build one (docker build -t NAME .), push it where the cluster can pull it, and give --image NAME",
        )
    if engine == "skypilot" and job.gpu_type is None:
        raise ConfigError(
            "SkyPilot looks for machines by their GPU, and --gpu_type does not say which",
            where="command line",
            remedy="give --gpu_type H100 (`sky show-gpus` lists them), or none for processors alone",
        )
    if engine == "kubernetes" and job.volume is None:
        raise ConfigError(
            "a pod's own disk is lost with it, and --volume names no other",
            where="command line",
            remedy="give --volume CLAIM, a claim that all machines can write (ReadWriteMany for several)",
        )
    if job.time is not None:
        _seconds(job.time)


def _seconds(text: str) -> int:
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if match is None:
        raise ConfigError(f"--time {text!r} is no duration", where="command line", remedy="write HH:MM:SS")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _going_on(resolved: Resolved) -> list[str]:
    """A job that was stopped is started again with the same file, so it goes on where it was unless told otherwise."""
    asked = resolved.config.training.resume_from_checkpoint is not None
    return [] if asked else ["--resume_from_checkpoint", "latest"]


def _own(resolved: Resolved, command: Sequence[str]) -> str:
    """The whole configuration in one file, so that the job needs no other."""
    source = f"{command[0]} and {len(command) - 1} words of the command line" if command[1:] else command[0]
    return convert(resolved, "yaml", source).rstrip()


def _shell(words: Sequence[str]) -> str:
    """A command for a shell, one option a line where there are many."""
    lines, line = [], _quoted(words[0])
    for word in words[1:]:
        if word.startswith("--") and len(line) > 60:
            lines.append(line)
            line = "   "
        line += f" {_quoted(word)}"
    return " \\\n".join([*lines, line])


def _quoted(word: str) -> str:
    """A word for bash; one with a line end or another control character in bash's own escapes, so that no part of it
    looks like a line of the file."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = word.encode("unicode_escape").decode().replace("'", "\\'")
    return f"$'{escaped}'"


def _render(template: str, job: Job, **values: Any) -> str:
    # shell and YAML: every value is quoted by the filter of its language
    templates = environment("tunesmith.launch", "templates", autoescape=False, keep_trailing_newline=True)
    templates.filters |= {"yaml": _yaml_scalar, "shell": _quoted}
    return templates.get_template(f"{template}.jinja").render(job=job, mount=MOUNT, restarts=RESTARTS, **values)


def _yaml_scalar(value: Any) -> str:
    """A value as YAML writes it, quoted where it must be; JSON is YAML, so quotes are JSON's."""
    text = str(value)
    plain = isinstance(value, str) and yaml.safe_load(text) == value and not re.search(r"[:#{}\[\],&*!|>'\"%@`$]", text)
    return text if plain else json.dumps(value, ensure_ascii=False)
