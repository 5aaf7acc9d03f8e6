"""``tunesmith VERB``: finds the verb, runs it, and turns errors into one line and an exit code.

Verbs are imported only when they are called, so that help and configuration errors answer at once.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tunesmith.cli.output import say, tell
from tunesmith.errors import understood
from tunesmith.notices import VERBOSITY
from tunesmith.program import named
from tunesmith.secrets import redacted
from tunesmith.train import processes
from tunesmith.visible import one_line

VERBS: dict[str, str] = {
    "init": "propose a configuration for your own rows, or lay a working copy of a recipe",
    "config": "show the settings of a run with the origin of each value",
    "preview": "show what is trained, token by token, before training",
    "check": "check everything short of training: settings, data, steps, memory, disk",
    "train": "fine-tune a model",
    "sweep": "train with several settings and compare",
    "evaluate": "judge a model by the answers it writes",
    "report": "write one page about a run, or about several side by side",
    "watch": "show the page of a run in a browser while it goes on",
    "predict": "write a model's answer beside every row of a file",
    "chat": "talk with a model in the terminal",
    "serve": "answer over HTTP, as OpenAI's API does",
    "doctor": "look at this machine and installation: what is missing to train, and what to do",
    "data": "make, prepare and download data",
    "runs": "list runs, compare them, remove one",
    "merge": "merge an adapter into its base model, and prove that it answers as before",
    "push": "upload a finished model to the hub",
    "completion": "print a script that completes verbs and settings in bash, zsh or fish",
    "launch": "write a job file for SLURM, Kubernetes or SkyPilot",
}
"""Verb -> what it does, in the order of the help."""


MOST_SHOWN = 8_000
"""Characters of one error."""


def usage() -> str:
    """The text of ``tunesmith --help``."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items())
    return f"""usage: tunesmith VERB [options] [settings]

Supervised fine-tuning of causal language models that shows its work.

verbs:
{verbs}

Settings are written --name value, --flag, --no_flag or section.name=value on every verb that reads a configuration;
`tunesmith config --list` names them all. `tunesmith VERB --help` explains a verb.
Exit codes: 0 done, 2 settings, 3 data, 4 model or environment, 5 numerics, 6 storage, 7 refused as unsafe,
130/143/138 interrupted (SIGINT, SIGTERM, SIGUSR1) after saving. --debug shows tracebacks, --version the version;
--quiet says results and errors alone, --verbose lets the libraries talk; NO_COLOR is respected."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with _verbosity(arguments):
        return _run(arguments)


@contextmanager
def _verbosity(arguments: Sequence[str]) -> Iterator[None]:
    """Say as much as the command line asks for, here and in the processes that this one starts."""
    before = os.environ.get(VERBOSITY)
    for option in ("verbose", "quiet"):
        if f"--{option}" in arguments:
            os.environ[VERBOSITY] = option
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VERBOSITY, None)
        else:
            os.environ[VERBOSITY] = before


def _run(arguments: list[str]) -> int:
    while arguments and arguments[0] in ("--quiet", "--verbose"):
        del arguments[0]
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        say(named(usage()))
        return 0
    if arguments[0] == "--version":
        from tunesmith import __version__

        say(f"tunesmith {__version__}")
        return 0
    verb = arguments.pop(0)
    return guarded(lambda: _verb(verb)(arguments), debug="--debug" in arguments)


def guarded(action: Callable[[], int], *, debug: bool = False) -> int:
    """Run ``action``; print what goes wrong as one line a problem and return the exit code."""
    # at exit Python takes half a million objects of the libraries apart, for seconds of a core, and the system frees
    # their memory anyway; frozen ones are left alone
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    try:
        return action()
    except KeyboardInterrupt:
        tell("interrupted", always=True)
        return 130
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the reader is gone; nothing more may be written at exit
        return 0
    except Exception as error:
        if debug:
            tell(traceback.format_exc(), always=True)
        told = understood(error)
        _report(told.lines(), told.exit_code)
        if processes.num_processes() == 1:
            for note in getattr(error, "__notes__", ()):
                tell(note, always=True)
        return told.exit_code


def _report(problems: Sequence[str], exit_code: int) -> None:
    """Print each problem on a line, of several processes with the rank; and leave them where torch's agent looks."""
    rank = f"rank {processes.rank()}: " if processes.num_processes() > 1 else ""
    for problem in problems:
        tell(f"error: {rank}{_bounded(problem)}", always=True)
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        end = {"message": redacted("\n".join(problems)), "timestamp": int(time.time()), "exit_code": exit_code}
        Path(file).write_text(json.dumps(end))


def _bounded(text: str) -> str:
    """``text`` on one line, without its middle where nobody would read it."""
    text = one_line(text)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN // 2]} ... {text[-MOST_SHOWN // 4 :]}"


def _verb(verb: str) -> Callable[[Sequence[str]], int]:
    if verb not in VERBS:
        from tunesmith.errors import ConfigError, did_you_mean

        remedy = did_you_mean(verb, VERBS, f"verbs are {', '.join(VERBS)}")
        raise ConfigError(f"unknown verb {verb!r}", where="command line", remedy=remedy)
    run: Callable[[Sequence[str]], int] = importlib.import_module(f"tunesmith.cli.{verb}").run
    return run


def entry_point() -> None:
    """Entry point of the installed command."""
    sys.exit(main())
