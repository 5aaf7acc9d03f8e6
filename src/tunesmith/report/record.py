"""``run.json``: everything needed to know what a run did and to do it again."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunesmith import notices
from tunesmith.config.draft import shown
from tunesmith.config.recorded import STARTED_IN, in_place, problem_of, started_in
from tunesmith.config.resolve import Resolved, from_values
from tunesmith.errors import ConfigError, StorageError
from tunesmith.installed import version_of
from tunesmith.program import named
from tunesmith.report.folder import read_json, write_json
from tunesmith.secrets import redacted_values

RECORD = "run.json"
TASK_FUNCTION = "evaluation.task_function"
LIBRARIES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "safetensors",
    "tokenizers",
)


@dataclass(frozen=True, slots=True)
class Record:
    """A run folder as it describes itself."""

    folder: Path
    resolved: Resolved
    facts: dict[str, Any]


def versions() -> dict[str, str]:
    """Versions of Python, tunesmith and the libraries under it."""
    found = {name: version_of(name) for name in ("tunesmith", *LIBRARIES)}
    return {"python": platform.python_version()} | {name: version for name, version in found.items() if version}


def begin(folder: Path, resolved: Resolved, command: Sequence[str], facts: dict[str, Any]) -> None:
    """Write the record of a run that is about to train."""
    write_json(
        folder / RECORD,
        redacted_values(
            {
                "status": "running",
                "started": now(),
                "command": shlex.join(_as_written(word) for word in command),
                STARTED_IN: started_in(folder),
                "settings": resolved.values(),
                "origins": resolved.origins,
                "settings_fingerprint": resolved.fingerprint(),
                "versions": versions(),
                **facts,
                "notices": notices.collected(details=False),
            }
        ),
    )


def add(folder: Path, facts: dict[str, Any]) -> None:
    """Add to the record what the run has found by now."""
    added = redacted_values({**facts, "notices": notices.collected(details=False)})
    write_json(folder / RECORD, read_json(folder / RECORD) | added)


def close(folder: Path, status: str, facts: dict[str, Any]) -> None:
    """Add to the record how the run ended and what it found."""
    add(folder, {"status": status, "finished": now(), **facts})


def read_record(folder: str | Path) -> Record:
    """Read a run folder's record.

    What the run was permitted is left out of the settings (``facts`` still names it): whoever reads a record must not
    run code because of it.

    Raises:
        StorageError: the folder is not a run folder of ours, or its record is damaged.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    try:
        resolved = from_values(in_place(facts["settings"], facts, folder), facts.get("origins"))
    except ConfigError as error:
        raise StorageError(f"the run's record cannot be used ({error})", where=str(folder / RECORD)) from error
    return Record(folder, resolved, facts)


def read_facts(folder: Path) -> dict[str, Any]:
    """What stands in a run folder's record, whether or not its settings are still valid ones.

    Raises:
        StorageError: the folder is not a run folder of ours, or its record is damaged.
    """
    if not (folder / RECORD).is_file():
        remedy = named("`tunesmith runs` lists those below a folder")
        raise StorageError(f"no {RECORD} there, so this is no run folder", where=str(folder), remedy=remedy)
    facts: dict[str, Any] = read_json(folder / RECORD)
    problem = problem_of(facts)
    if problem is not None:
        raise StorageError(f"the run's record cannot be used ({problem})", where=str(folder / RECORD))
    return facts


def _as_written(word: str) -> str:
    """A word of a command; a path below the working directory as one that is relative to it."""
    return shown(word) if word.startswith("/") and not word.startswith("//") else word


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
