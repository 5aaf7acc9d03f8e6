"""Where a run may not write: folders that are somebody's or something else's. Reads names of files, and no file."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from tunesmith.config.resolve import Resolved
from tunesmith.config.rule import Problem, Rules

RULES = Rules()
_ROOTS = ("/", "/home", "/mnt", "/media", "/opt", "/run", "/srv", "/tmp", "/var", "/var/lib", "/var/log", "/var/tmp",  # noqa: S108 - refused
          "/usr", "/usr/local", "/usr/src", "/dev", "/dev/shm")  # fmt: skip # noqa: S108
"""Folders of the system that are nobody's own, while those in them may be."""
_TREES = ("/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/sbin", "/usr/bin", "/usr/lib", "/usr/sbin",
          "/usr/share")  # fmt: skip
"""Folders of the system in which nothing of a user's stands."""


_IN_A_RUN = re.compile(r"checkpoint-\d+|abandoned-\d+|evaluation|\.replaced|\.removing|\.saving|\.merged")


@RULES.rule
def safe_output_dir(resolved: Resolved) -> Problem | None:
    named = resolved.config.training.output_dir
    reason = _unusable(named) or _somebodys(Path(named).absolute().resolve(), resolved)
    if reason is None:
        return None
    return Problem(("training.output_dir",), f"output_dir {named!r} {reason}", "name a new folder")


def _unusable(named: str) -> str | None:
    if re.search(r"[\x00-\x1f\x7f]", named):
        return "has a control character in its name"
    try:
        Path(named).absolute().resolve()
    except (OSError, RuntimeError):  # a loop of links is a RuntimeError up to Python 3.12
        return "leads into a loop of links"
    return None


def _somebodys(output: Path, resolved: Resolved) -> str | None:
    if output == Path.cwd().resolve() or str(output) in _ROOTS:
        return "is no folder of its own"
    if output in map(_real, _homes()) or output.parent == Path("/home"):
        return "is a home folder"
    if any(output.is_relative_to(tree) for tree in _TREES):
        return "is a folder of the system"
    if any(_IN_A_RUN.fullmatch(place.name) and _is_run(place.parent) for place in (output, *output.parents)):
        return "lies in what another run writes, and removes again"
    model, data = resolved.config.model, resolved.config.data
    for name in filter(None, (model.model_name_or_path, model.tokenizer_name_or_path)):
        if os.path.exists(name) and _real(name) == output:
            return "is the model's own folder"
        if os.path.exists(name) and output in _real(name).parents:
            return f"holds the model {name}"
    for name in _named(data.train_data, data.eval_data):
        path = _real(name)
        if os.path.exists(path) and (path == output or output in path.parents):
            return f"holds the data {name}"
    return None


def _is_run(folder: Path) -> bool:
    """Whether a folder is, or was, one of a run."""
    return (folder / "run.json").is_file()


def _named(*settings: str | list[str] | None) -> Iterator[str]:
    """Places of data: of a pattern, the folder in which it begins."""
    for setting in settings:
        for name in [setting] if isinstance(setting, str) else setting or []:
            if glob.has_magic(name) and not os.path.exists(name):
                yield os.path.dirname(re.split(r"[*?\[]", name)[0]) or "."
            elif name:
                yield name


def _homes() -> Iterator[str]:
    home = os.path.expanduser("~")
    if home != "~":
        yield home
    yield "/root"


def _real(name: str) -> Path:
    try:
        return Path(name).absolute().resolve()
    except (OSError, RuntimeError, ValueError):
        return Path(name)
