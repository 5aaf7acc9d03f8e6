"""Checkpoints: when one is complete, which one is the newest, and which may go.

A checkpoint is complete once its manifest, written last, names every file with its sha256. What stands inside a
checkpoint is the trainer's business.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunesmith import notices
from tunesmith.errors import StorageError
from tunesmith.report.folder import read_json, sync_folder, write_json

MANIFEST = "manifest.json"
SEAL = "sha256"
"""Key of the manifest that holds the hash of all the others."""
Stamps = dict[str, list[int]]
"""File -> inode, size and times, which change with every write to it and with whatever takes its place."""
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder, the optimizer step after which it was written, and what its files were like when their
    hashes were compared."""

    path: Path
    step: int
    stamps: Stamps | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Batches:
    """How many processes wrote a checkpoint, and the rows they took: of one pass each, and of a step together."""

    num_processes: int
    per_device_train_batch_size: int
    global_batch_size: int


def commit(folder: Path, batches: Batches) -> None:
    """Declare a checkpoint complete: hash its files, make them lasting, and then write the manifest.

    Raises:
        StorageError: that is not possible.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    try:
        hashes = {str(path.relative_to(folder)): _sha256(path, lasting=True) for path in files}
        for inner in sorted({path.parent for path in files} | {folder}, reverse=True):
            sync_folder(inner)
        sync_folder(folder.parent)
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror or error}", where=str(folder)) from error
    manifest = {"step": step_of(folder), "batches": asdict(batches), "files": hashes}
    write_json(folder / MANIFEST, manifest | {SEAL: _seal(manifest)})


def batches_of(checkpoint: Checkpoint) -> Batches:
    """The processes and batches that a complete checkpoint was written with."""
    return Batches(**read_json(checkpoint.path / MANIFEST)["batches"])


def problem(folder: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None when every file is there and unchanged."""
    if not folder.is_dir():
        return "no such folder"
    if not (folder / MANIFEST).is_file():
        return f"it was not finished ({MANIFEST} is missing)"
    try:
        manifest = read_json(folder / MANIFEST)
        seal = manifest.pop(SEAL)
        files, _ = manifest["files"], Batches(**manifest["batches"])
    except (StorageError, AttributeError, KeyError, TypeError):
        return f"{MANIFEST} is damaged"
    if seal != _seal(manifest):
        return f"{MANIFEST} has changed since it was written"
    for name, expected in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            return f"{MANIFEST} names a file outside of the checkpoint ({name})"
        if not path.is_file():
            return f"{name} is missing"
        if _sha256(path) != expected:
            return f"{name} has changed since it was written"
    return None


def stamps_of(folder: Path) -> Stamps:
    """What the files of a checkpoint are like now; taken before their hashes, a later comparison covers both."""
    found = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in found.items()}


def check_untouched(checkpoint: Checkpoint) -> None:
    """Refuse what was loaded from files that are not those that were checked.

    Raises:
        StorageError: a file was written or put in place in between.
    """
    if checkpoint.stamps is None:
        return
    now = stamps_of(checkpoint.path)
    touched = sorted(name for name in {**now, **checkpoint.stamps} if now.get(name) != checkpoint.stamps.get(name))
    if touched:
        raise StorageError(
            f"{', '.join(touched[:3])} changed while the checkpoint was being loaded",
            where=str(checkpoint.path),
            remedy="let nothing else write there, and start again",
        )


def list_checkpoints(output_dir: Path) -> list[Checkpoint]:
    """All checkpoint folders of a run, oldest first by step; complete or not."""
    found = [Checkpoint(path, step_of(path)) for path in output_dir.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def find(output_dir: Path, asked: str | None, problem: Callable[[Path], str | None] = problem) -> Checkpoint | None:
    """The checkpoint to continue from.

    Args:
        output_dir: the run folder.
        asked: a checkpoint folder, ``latest`` (also ``true``), or None for a fresh start.
        problem: says why a checkpoint cannot be trusted.

    Returns:
        The checkpoint, or None for a fresh start: nothing was asked, or ``latest`` found none that was ever complete.

    Raises:
        StorageError: the folder asked for cannot be trusted, or none of the run's checkpoints can.
    """
    if asked is None or asked.lower() in ("false", "none", ""):
        return None
    if not is_newest(asked):
        folder = Path(asked)
        reason = problem(folder)
        if reason:
            raise StorageError(
                f"cannot resume: {reason}", where=asked, remedy="name a complete checkpoint, or `latest`"
            )
        return Checkpoint(folder, read_json(folder / MANIFEST)["step"])
    candidates = list_checkpoints(output_dir)
    if not any((candidate.path / MANIFEST).is_file() for candidate in candidates):
        notices.notify(f"no complete checkpoint in {output_dir} yet, so training starts from the beginning")
        return None
    reasons: list[str] = []
    for checkpoint in reversed(candidates):
        reason = problem(checkpoint.path)
        if reason is None:
            if reasons:
                notices.notify(f"{'; '.join(reasons)}: continuing from {checkpoint.path.name}")
            return checkpoint
        reasons.append(f"{checkpoint.path.name}: {reason}")
    raise StorageError(
        f"no checkpoint can be trusted ({'; '.join(reasons)})",
        where=str(output_dir),
        remedy="start again in another output_dir, or with --overwrite_output_dir",
    )


def is_newest(asked: str | None) -> bool:
    """Whether ``resume_from_checkpoint`` asks for whatever is the newest checkpoint of the run, and none by name."""
    return asked is not None and asked.lower() in ("latest", "true", "auto")


def is_of(output_dir: Path, found: Checkpoint) -> bool:
    """Whether a checkpoint is one of the run in a folder."""
    return found.path.resolve().parent == output_dir.resolve()


def rotate(output_dir: Path, limit: int | None, best: Path | None) -> None:
    """Remove the oldest checkpoints beyond ``limit``; the newest and the best one stay."""
    if limit is None:
        return
    checkpoints = list_checkpoints(output_dir)
    kept = {checkpoints[-1].path.name} if checkpoints else set()
    if best is not None:
        kept.add(best.name)
    for checkpoint in reversed(checkpoints):
        if len(kept) < limit:
            kept.add(checkpoint.path.name)
    for checkpoint in checkpoints:
        if checkpoint.path.name not in kept:
            remove(checkpoint.path)


def leave_branch(output_dir: Path, step: int) -> None:
    """Take the checkpoints after ``step`` out of the way of a run that continues there: they are of another branch.

    Those that were complete once are moved to ``abandoned-N``, so that nothing is lost; the others are removed.
    """
    later = [found for found in list_checkpoints(output_dir) if found.step > step]
    kept = [found for found in later if (found.path / MANIFEST).is_file()]
    for found in later:
        if found not in kept:
            remove(found.path)
    if kept:
        number = next(number for number in itertools.count(1) if not (output_dir / f"abandoned-{number}").exists())
        place = output_dir / f"abandoned-{number}"
        place.mkdir()
        for found in reversed(kept):  # the newest first: after a kill the rest still lies in a row
            found.path.rename(place / found.path.name)
        names = ", ".join(found.path.name for found in kept)
        notices.notify(f"{names}: of steps after {step}, moved to {place}, since training goes on from step {step}")


def remove(folder: Path) -> None:
    """Remove a checkpoint; a removal cut short leaves nothing half-valid. Of a link, the link alone goes."""
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink(missing_ok=True)
        return
    (folder / MANIFEST).unlink(missing_ok=True)  # without it a folder is no checkpoint any more
    shutil.rmtree(folder)


def step_of(folder: Path) -> int:
    """The optimizer step in a checkpoint folder's name; 0 for any other folder."""
    match = _NAME.fullmatch(folder.name)
    return int(match.group(1)) if match else 0


def _sha256(path: Path, *, lasting: bool = False) -> str:
    with path.open("rb") as stream:
        if lasting:
            os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _seal(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
