"""A Python that has its imports behind it, for tests that start real commands.

Most of what a short command costs is importing torch, transformers, PEFT and TRL: ten seconds of a core, in each of its
processes. Here one process (``server.py``) imports them once a session and forks for every command; programs of the
folder ``ready_python.start`` makes (``python``, ``torchrun``, ``accelerate``, ``deepspeed``, ``tunesmith``) ask it to.
What runs is the command itself, in a process of its own: arguments, streams, folder, environment, signals and exit code
are its own. Not its own are its parent and its process group, and hash seeds are those of the server.

Whatever the server cannot stand in for (``-c``, ``-I``, other variables that libraries read while they are imported)
runs in the real Python.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = "TUNESMITH_TESTS_READY"
"""Variable that holds the folder of this session's programs, shared by all workers of pytest."""
PROGRAMS = ("torchrun", "accelerate", "deepspeed", "tunesmith")


def prepare() -> None:
    """Make the folder of programs; the server starts when the first of them is used. Once a session, before workers."""
    if FOLDER in os.environ or sys.platform != "linux":
        return
    folder = Path(tempfile.mkdtemp(prefix="tunesmith-ready-"))
    real = Path(sys.executable)
    for name in ("python", "python3"):
        _program(folder / name, f'exec {real} -ISE {HERE / "client.py"} {folder} {os.getpid()} {real} "$@"')
    for name in PROGRAMS:
        _program(folder / name, f'exec {folder / "python"} {real.with_name(name)} "$@"')
    os.environ[FOLDER] = str(folder)
    (folder / "environment").write_text(json.dumps(dict(os.environ)), encoding="utf-8")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def python() -> str:
    """What stands in for ``sys.executable`` in the commands of a test."""
    return str(_folder() / "python") if FOLDER in os.environ else sys.executable


def program(name: str) -> str:
    """What stands in for a program of this environment."""
    folder = _folder() if FOLDER in os.environ else Path(sys.executable).parent
    return str(folder / name)


def environment(**more: str) -> dict[str, str]:
    """The environment for a command: its programs first, and what torch's launchers start is ready, too."""
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if FOLDER not in os.environ:
        return os.environ | {"PATH": binaries} | more
    return os.environ | {"PATH": f"{_folder()}{os.pathsep}{binaries}", "PYTHON_EXEC": python()} | more


def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` with captured text, where ``python`` and programs are the ready ones."""
    given = {"capture_output": True, "text": True, "timeout": 300, "check": False, "env": environment()}
    return subprocess.run(command, **given | options)  # type: ignore[call-overload,no-any-return]


def _folder() -> Path:
    return Path(os.environ[FOLDER])


def _program(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
