"""How this program is called where a reader is told to type something: what is printed can be pasted.

A fresh installation lies in a virtual environment that nobody has activated, so ``tunesmith`` alone may be unknown to
the shell, or be another one.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

NAME = "tunesmith"


def command(*words: str, seen_from: Path | None = None) -> str:
    """A command line of this program, or of another one of its environment (``python``, ``accelerate``).

    Args:
        words: the program's plain name and its arguments.
        seen_from: the folder in which it will be typed; the working directory when left out.
    """
    name, *arguments = words
    return shlex.join([*_called(name, seen_from or Path.cwd()), *arguments])


def named(text: str) -> str:
    """A sentence of ours, without words of others, in which each `` `tunesmith ...` `` is called as it is here."""
    return re.sub(rf"`{NAME}(?= )", lambda _: f"`{command(NAME)}", text)


def _called(name: str, folder: Path) -> list[str]:
    """The words with which a program of this environment is started in ``folder``."""
    own = _own(name)
    if own is None:
        return [*_called("python", folder), "-m", NAME] if name == NAME else [name]
    return [name] if _is_first_on_path(name, own) else [_way(own, folder)]


def _own(name: str) -> Path | None:
    """Where the program lies that belongs to this interpreter."""
    interpreter = Path(sys.executable)
    started = [Path(sys.argv[0])] if Path(sys.argv[0]).name == name else []
    last = [interpreter] if name == "python" else []
    candidates = [interpreter.with_name(name), *started, *last]
    return next((one.absolute() for one in candidates if one.is_file() and os.access(one, os.X_OK)), None)


def _is_first_on_path(name: str, own: Path) -> bool:
    """Whether the shell finds this very program by its name. A virtual environment's ``python`` is a link to one that
    does not know the environment, so of interpreters the folder counts."""
    found = shutil.which(name)
    if found is None:
        return False
    same_folder = Path(found).parent.resolve() == own.parent.resolve()
    return same_folder or (name != "python" and Path(found).resolve() == own.resolve())


def _way(file: Path, folder: Path) -> str:
    """The way to ``file`` from ``folder``: a relative one where the file lies below the working directory."""
    if not file.is_relative_to(Path.cwd()):
        return str(file)
    way = os.path.relpath(file, folder)
    return way if os.sep in way else os.path.join(os.curdir, way)
