"""Reader of Python configuration files (documents 1 and 2): module-level names are settings.

The file is code, which whoever names it trusts. Still it runs in a child process with limits on time, memory, output
and processes, which sees no secret of the environment, and only plain data comes back. A file in a folder of somebody
else's (a model, a checkpoint, a download) is not run at all. Lines are found by reading the source.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith import notices
from tunesmith.config.draft import Draft, Setting, dialect_defaults, shown
from tunesmith.config.environment import passed_on
from tunesmith.config.files import parse_json, read_bytes
from tunesmith.config.foreign import foreign_folder, is_foreign
from tunesmith.config.names import NameTable, Spelling, unknown_name
from tunesmith.config.readers import contained
from tunesmith.errors import ConfigError, UnsafeError

DIALECT = "python"
TIME_LIMIT_S = 10.0
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Libraries that a file may import start no more threads than the child may have."""
MOST_SAID = 2_000
"""Characters of what a file prints that are told."""

SPELLINGS: dict[str, Spelling] = {
    "model_id": Spelling("model.model_name_or_path"),
    "gpu_id": Spelling("launch.gpu_id"),
}
"""Names of this dialect that no other has; the rest stands in ``config/names.py``."""

DEFAULTS: dict[str, Any] = {"load_in_4bit": True, "max_length": 512, "too_long": "drop"}
"""What document 2 takes for granted and no configuration file of its kind spells out."""

DOCUMENT_NAMES = (
    "model_id", "train_data", "eval_data", "output_dir", "seed",
    "lora_r", "lora_alpha", "lora_dropout", "target_modules",
    "num_epochs", "max_seq_length", "batch_size", "grad_accumulation_steps", "learning_rate", "lr_scheduler",
    "warmup_ratio", "warmup_steps", "weight_decay", "max_grad_norm", "optim",
    "logging_steps", "eval_steps", "save_steps", "save_total_limit", "early_stopping_patience",
    "use_wandb", "wandb_project", "wandb_name", "wandb_run_id",
    "use_packing", "gradient_checkpointing", "resume_from_checkpoint", "gpu_id", "distributed_training",
)  # fmt: skip
"""The names that documents 1 and 2 give to settings."""

NAMES = NameTable(SPELLINGS)


class LoadError(ConfigError):
    """The file cannot be run to its end: missing, broken, failing or endless. Names and values are another matter."""


def read(path: str | Path) -> Draft:
    """Run a Python configuration file in a child process and return its settings with file and line.

    A name that begins with an underscore, or that no setting has and the file itself reads, is a helper: passed over.
    What is not plain data, and other names that no setting has, are problems of the draft.

    Raises:
        LoadError: the file is missing, fails or takes too long.
        UnsafeError: it lies in a folder of a model, a run or a download.
    """
    file = Path(path)
    if not file.exists():
        raise LoadError("no such configuration file", where=shown(file))
    try:
        read_bytes(file)
    except OSError as error:
        raise LoadError(f"cannot read: {error.strerror or error}", where=shown(file)) from error
    theirs = foreign_folder(file)
    if theirs is not None:
        raise UnsafeError(
            f"is a Python file in {shown(theirs)}, a folder of a model, a run or a download, and is not run",
            where=shown(file),
            remedy="read it; if you trust it, copy it to a folder of yours",
        )
    roots = _import_roots(file)
    values, odd = _run(file, roots)
    found = _assignments(file, roots, {})
    settings: list[Setting] = []
    problems: list[ConfigError] = []
    helpers: list[str] = []
    for name in (*values, *odd):
        origin = _origin(found.get(name), file)
        if name.startswith("_") or (name not in NAMES and name in _read_again(file, roots)):
            helpers.append(name)
        elif name in odd:
            problems.append(_not_plain(name, odd[name], origin))
        elif name in NAMES:
            settings.append(Setting(name, values[name], origin, NAMES.find(name, origin)))
        else:
            problems.append(unknown_name(name, NAMES.table, origin))
    if helpers:
        are = "is no setting" if len(helpers) == 1 else "are no settings"
        notices.notify(f"{shown(file)}: {', '.join(helpers)} {are} but the file's own, and passed over")
    defaults = dialect_defaults(DEFAULTS, NAMES, "Python configs (document 2)")
    return Draft(DIALECT, tuple(settings), defaults, NAMES, problems=tuple(problems))


def _origin(place: tuple[Path, int] | None, file: Path) -> str:
    return f"{shown(place[0])}:{place[1]}" if place else shown(file)


def _not_plain(name: str, kind: str, origin: str) -> ConfigError:
    return ConfigError(
        f"{name} is a {kind}; a setting is a number, a text, true or false, None, a list or a dict",
        where=origin,
        remedy="begin the name with an underscore if it is only a helper",
    )


def _import_roots(file: Path) -> list[str]:
    """Folders from which ``from train.configs.default import *`` may resolve: the file's own, those above it, and the
    working directory; none of them somebody else's."""
    folders = [*(parent for parent in file.absolute().parents if parent != Path("/")), Path.cwd()]
    return [str(folder) for folder in folders if not is_foreign(folder)]


def _run(file: Path, roots: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The plain values that the file leaves, and the kinds of the others, by name."""
    child = Path(__file__).with_name("run_python_file.py")
    command = [sys.executable, "-I", str(child), str(file.absolute()), json.dumps(roots)]
    returncode, stdout, stderr = _ended(command, file)
    printed = stderr.decode(errors="replace").strip()
    try:
        result = parse_json(stdout)
    except ValueError:
        reason = printed.splitlines()[-1][:MOST_SAID] if printed else f"exit status {returncode}"
        raise LoadError(f"ended without a result: {reason}", where=shown(file)) from None
    if printed:
        notices.notify(f"{shown(file)} printed: {printed[:MOST_SAID]}")
    if "error" in result:
        where = shown(result["file"]) + (f":{result['line']}" if result["line"] else "")
        raise LoadError(result["error"], where=where, remedy=result.get("remedy"))
    return result["values"], result["not_plain"]


def _ended(command: list[str], file: Path) -> tuple[int, bytes, bytes]:
    """Exit status and output of the child, which ends in time and sees no secret."""
    environment = passed_on() | dict.fromkeys(_ONE_THREAD, "1")
    try:
        return contained.run(command, environment, TIME_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise LoadError(
            f"still running after {TIME_LIMIT_S:.0f} seconds",
            where=shown(file),
            remedy="a configuration file only sets names",
        ) from None


def _read_again(file: Path, roots: list[str]) -> set[str]:
    """The names that a file, or one whose names it takes over, uses somewhere besides giving them their own value."""
    files: dict[Path, ast.Module] = {}
    _assignments(file, roots, files)
    used: set[str] = set()
    for tree in files.values():
        waiting: list[ast.AST] = [tree]
        while waiting:
            node = waiting.pop()
            own = set(_assigned_names(node)) if isinstance(node, ast.stmt) else set()
            if own:
                used |= {name for name in _loaded(node) if name not in own}
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                used.add(node.id)
            if not own or isinstance(node, ast.For | ast.With):
                waiting.extend(ast.iter_child_nodes(node))
    return used


def _loaded(node: ast.AST) -> Iterator[str]:
    return (inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load))


def _assignments(file: Path, roots: list[str], seen: dict[Path, ast.Module]) -> dict[str, tuple[Path, int]]:
    """Where each module-level name was last assigned, star imports followed; ``seen`` gets the source of every file."""
    if file in seen or not file.is_file():
        return {}
    try:
        tree = seen[file] = ast.parse(read_bytes(file))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found: dict[str, tuple[Path, int]] = {}
    for statement in _module_level(tree):
        if isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            imported = _module_file(statement.module, roots)
            inside = _assignments(imported, roots, seen) if imported else {}
            for alias in statement.names:
                if alias.name == "*":
                    found |= inside
                elif alias.name in inside:
                    found[alias.asname or alias.name] = inside[alias.name]
        else:
            found |= dict.fromkeys(_assigned_names(statement), (file, statement.lineno))
    return found


def _module_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run at import, also those inside ``if``, ``for``, ``with`` and ``try``."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        statement = waiting.pop(0)
        yield statement
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            waiting[:0] = [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)]


def _assigned_names(statement: ast.AST) -> Iterator[str]:
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign | ast.For):
        targets = [statement.target]
    elif isinstance(statement, ast.With):
        targets = [item.optional_vars for item in statement.items if item.optional_vars is not None]
    for target in targets:
        for node in ast.walk(target):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id


def _module_file(module: str, roots: list[str]) -> Path | None:
    relative = Path(*module.split("."))
    for root in roots:
        for candidate in (Path(root) / relative.with_suffix(".py"), Path(root) / relative / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None
