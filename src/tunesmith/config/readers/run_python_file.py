"""The child process of the Python reader: runs one configuration file and writes its plain names as JSON.

Started as a script by its path, isolated (``python -I``); it imports nothing of tunesmith.
"""

import json
import os
import pathlib
import resource
import runpy
import sys
import traceback
import types

MEMORY_BYTES = 4 * 2**30
OUTPUT_BYTES = 4 * 2**20
PROCESSES = 32
"""Processes and threads that a file may have at a time, besides those that its user has already. Root's are not limited
by the system; they end with the others."""
CPU_SECONDS = 20


def limit() -> None:
    """Take no more memory and write no more than a file that sets names can need."""
    for kind, most in (
        (resource.RLIMIT_DATA, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, OUTPUT_BYTES),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_NPROC, tasks() + PROCESSES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def tasks() -> int:
    """Processes and threads of this user now."""
    number = 0
    for entry in os.scandir("/proc") if os.path.isdir("/proc") else ():
        try:
            if entry.name.isdigit() and entry.stat().st_uid == os.getuid():
                number += len(os.listdir(f"/proc/{entry.name}/task"))
        except OSError:  # it has ended meanwhile
            continue
    return number or 4096


def plain(value: object) -> bool:
    """Whether ``value`` is data that JSON can carry."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def as_data(value: object) -> object:
    """A path as its text; everything else as it is."""
    return str(value) if isinstance(value, pathlib.PurePath) else value


def is_setting(name: str, value: object) -> bool:
    """Whether a name may be a setting: no dunder, and neither code nor a mark of ``from __future__``."""
    kinds = types.ModuleType | types.FunctionType | types.BuiltinFunctionType | type
    return not name.startswith("__") and not isinstance(value, kinds) and type(value).__module__ != "__future__"


def failure(error: BaseException, file: str, folders: list[str]) -> dict[str, object]:
    """What went wrong, with the innermost line that lies in the configuration or a file it imports."""
    if isinstance(error, SyntaxError):
        return {"error": f"SyntaxError: {error.msg}", "file": error.filename or file, "line": error.lineno}
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file or os.path.dirname(frame.filename) in folders
    ]
    place = frames[-1] if frames else None
    if isinstance(error, KeyError) and os.path.basename(error_file(error)) in ("os.py", "<frozen os>"):
        text = f"the environment variable {error} is not there"
        remedy = "a configuration file sees few variables, and no secret; give such a value on the command line"
    elif isinstance(error, SystemExit):
        text, remedy = f"called sys.exit({error.code!r})", "a configuration file only sets names"
    else:
        text, remedy = f"{type(error).__name__}: {error}", None
    return {
        "error": text,
        "file": place.filename if place else file,
        "line": place.lineno if place else None,
        "remedy": remedy,
    }


def error_file(error: BaseException) -> str:
    """The file in which an error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].filename if frames else ""


def main() -> None:
    file, roots = sys.argv[1], json.loads(sys.argv[2])
    result_stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    limit()
    os.dup2(2, 1)  # what the file prints must not mix with the result
    sys.path[:0] = roots
    sys.dont_write_bytecode = True
    sys.argv = [file]
    try:
        names = runpy.run_path(file)
    except BaseException as error:
        result = failure(error, file, roots)
    else:
        public = {name: as_data(value) for name, value in names.items() if is_setting(name, value)}
        result = {
            "values": {name: value for name, value in public.items() if plain(value)},
            "not_plain": {name: type(value).__name__ for name, value in public.items() if not plain(value)},
        }
    with result_stream:
        json.dump(result, result_stream)


if __name__ == "__main__":
    main()
