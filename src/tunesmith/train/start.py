"""From where a run starts: an empty folder, a checkpoint, or the run itself after its processes were started again.

Reads the run folder and changes nothing in it. Loads no weights, so that a launcher can ask as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith import notices
from tunesmith.config.resolve import Resolved
from tunesmith.config.strategy import Strategy
from tunesmith.errors import ConfigError, DataError, StorageError
from tunesmith.report import belongings, record
from tunesmith.report.folder import read_json
from tunesmith.train import checkpoint
from tunesmith.train.once import once_per_machine
from tunesmith.train.plan import Plan
from tunesmith.train.result import TrainResult, read_result


def starting_point(resolved: Resolved) -> checkpoint.Checkpoint | None:
    """The checkpoint from which the run continues, or None for a start from the beginning.

    A run that is being repeated (see ``repeats``) continues from its newest complete checkpoint, whatever
    ``resume_from_checkpoint`` says; before its first one it starts as it did. So does an unfinished run of which the
    ``latest`` checkpoint is asked for.

    Raises:
        ConfigError: the folder holds a run, and nothing says what to do with it.
        StorageError: the folder cannot be written, or the checkpoint cannot be trusted.
        UnsafeError: the checkpoint holds a pickle that could run code.
    """
    folder, asked = Path(resolved.config.training.output_dir), resolved.config.training.resume_from_checkpoint
    check_writable(folder)
    repeated = repeats(resolved)
    stamps: dict[Path, checkpoint.Stamps] = {}
    problem = partial(problem_here, folder, stamps=stamps)
    newest = checkpoint.find(folder, "latest", problem) if repeated else None
    found = newest or checkpoint.find(folder, asked, problem)
    own = found is not None and checkpoint.is_of(folder, found)
    unfinished = found is None and checkpoint.is_newest(asked) and belongings.is_record(folder / record.RECORD)
    unfinished = unfinished and not belongings.is_finished(folder) and not belongings.foreign(folder)
    if not own and not repeated and not unfinished:
        check_free(resolved)
    if found is None:
        return None
    from tunesmith.train.pickles import check_pickles  # torch, which who only looks at folders need not wait for

    check_pickles(found.path)
    return replace(found, stamps=stamps[found.path])


def completed(resolved: Resolved) -> TrainResult | None:
    """The result of the run in ``output_dir``, where it is finished and is the one that is to be continued; else None.

    Job files say ``--resume auto`` and are started again and again; a run at its end must not train on. Where its
    weights are gone or its newest checkpoint is damaged, it is not complete and goes on from an earlier one.
    """
    folder, asked = Path(resolved.config.training.output_dir), resolved.config.training.resume_from_checkpoint
    if not checkpoint.is_newest(asked) or not belongings.is_finished(folder):
        return None
    facts = read_json(folder / record.RECORD)
    files = facts.get(belongings.FILES) or []
    if _what_is_run(facts["settings"]) != _what_is_run(resolved.values()) or "result" not in facts:
        return None
    if not all((folder / name).is_file() for name in files if name.endswith(".safetensors") and "/" not in name):
        return None
    newest = checkpoint.list_checkpoints(folder)[-1:]
    if newest and problem_here(folder, newest[0].path, {}):
        return None
    notices.notify(f"the run in {folder} is complete, so there is nothing to do")
    return read_result(resolved)


def problem_here(run: Path, found: Path, stamps: dict[Path, checkpoint.Stamps]) -> str | None:
    """``checkpoint.problem``, whose hashes one process reads on each machine.

    Args:
        run: the run folder.
        found: the checkpoint.
        stamps: gets what its files were like before their hashes were read.
    """
    manifest = found / checkpoint.MANIFEST
    written = manifest.stat().st_mtime_ns if manifest.is_file() else None
    name = f"checkpoint {found.absolute()} {written}"

    def compute() -> list[Any]:
        before = checkpoint.stamps_of(found)
        return [checkpoint.problem(found), before]

    problem: str | None
    problem, stamps[found] = once_per_machine(run, name, compute)
    return problem


def check_folder(resolved: Resolved) -> Path:
    """The run folder, once it can be written and holds no other run; what can be said without reading checkpoints.

    Machines beside the first one may find a run there: the one that the first has just begun.

    Raises:
        ConfigError: the folder holds a run, and nothing says what to do with it.
        StorageError: the folder cannot be written.
    """
    folder, section = Path(resolved.config.training.output_dir), resolved.config.launch
    check_writable(folder)
    continues = belongings.is_record(folder / record.RECORD) or belongings.has_checkpoint(folder)
    continues = continues and bool(resolved.config.training.resume_from_checkpoint)
    if not (section.node_rank or continues or repeats(resolved)):
        check_free(resolved)
    return folder


def repeats(resolved: Resolved) -> bool:
    """Whether this start goes on with the unfinished run in ``output_dir``: one of the same settings, where processes
    are started again after a death (``max_restarts``, or ``--max-restarts`` of torchrun and accelerate).

    It depends on the folder and on nothing that differs between processes, so that all of them agree: a machine that
    comes back starts its processes for the first time while those of the others start again.
    """
    allowed = os.environ.get("TORCHELASTIC_MAX_RESTARTS") or resolved.config.launch.max_restarts
    path = Path(resolved.config.training.output_dir, record.RECORD)
    if not int(allowed) or not belongings.is_record(path):
        return False
    found = read_json(path)
    return found["status"] != "finished" and _what_is_run(found["settings"]) == _what_is_run(resolved.values())


def recorded_date(resolved: Resolved) -> str | None:
    """The day that templates wrote in the run that this one continues; None where it continues none, or wrote none."""
    asked, folder = resolved.config.training.resume_from_checkpoint, Path(resolved.config.training.output_dir)
    if asked is None and not repeats(resolved):
        return None
    places = [folder] if asked is None or checkpoint.is_newest(asked) else [Path(asked).parent, folder]
    path = next((place / record.RECORD for place in places if belongings.is_record(place / record.RECORD)), None)
    data = read_json(path).get("data") if path is not None else None
    return data.get("template_date") if isinstance(data, dict) else None


def _what_is_run(values: dict[str, object]) -> dict[str, object]:
    beside = ("training.resume_from_checkpoint", "training.overwrite_output_dir")
    return {path: value for path, value in values.items() if not path.startswith("launch.") and path not in beside}


def check_writable(folder: Path) -> None:
    """Make the run folder and write into it.

    Raises:
        StorageError: that is not possible.
    """
    if folder.exists() and not folder.is_dir():
        raise StorageError("is a file, not a folder", where=str(folder), remedy="choose another output_dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise StorageError(f"cannot write there: {error.strerror or error}", where=str(folder)) from error


@contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """Afterwards the folders that were made to see whether they can be made are gone again."""
    missing = [path for path in (folder, *folder.parents) if path.name != ".." and not path.exists()]
    try:
        yield
    finally:
        for path in missing:
            with suppress(OSError):  # somebody has put something there meanwhile
                path.rmdir()


def check_free(resolved: Resolved) -> None:
    """Refuse a folder that holds another run, unless it may be replaced, or files of somebody else in a run's places.

    Raises:
        ConfigError: it holds something, and overwriting was not asked for or would take what no run has written.
    """
    training = resolved.config.training
    folder = Path(training.output_dir)
    strange = belongings.foreign(folder, training.final_subdir)
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise ConfigError(
            f"output_dir {folder} holds what no run has written, in the places of a run's own files: "
            f"{', '.join(strange[:3])}{more}",
            where=resolved.origins["training.output_dir"],
            remedy="choose another output_dir, or move these away",
        )
    if belongings.belonging(folder) and not training.overwrite_output_dir:
        raise ConfigError(
            f"output_dir {folder} holds a run already",
            where=resolved.origins["training.output_dir"],
            remedy="choose another output_dir, or --resume_from_checkpoint latest, or --overwrite_output_dir",
        )


def check_batches(found: checkpoint.Checkpoint, resolved: Resolved, plan: Plan, strategy: Strategy) -> None:
    """Refuse to continue with other rows in a step than the checkpoint's: its place in the data would be another.

    The number of processes may change as long as the rows of a step stay the same, and each process holds all states.

    Raises:
        ConfigError: with the numbers on both sides.
    """
    training = resolved.config.training
    written = checkpoint.batches_of(found)
    rows = training.per_device_train_batch_size
    if written.global_batch_size != plan.global_batch_size:
        accumulation, rest = divmod(written.global_batch_size, plan.num_processes * rows)
        if rest:
            remedy = f"choose processes and batches whose product divides {written.global_batch_size}"
        elif training.global_batch_size is not None:
            remedy = f"set global_batch_size {written.global_batch_size}"
        else:
            remedy = f"set gradient_accumulation_steps {accumulation}"
        raise ConfigError(
            f"{found.path.name} was written with {written.global_batch_size} rows a step "
            f"({_count(written.num_processes)} x {written.per_device_train_batch_size} rows), and this run takes "
            f"{plan.global_batch_size} ({_count(plan.num_processes)} x {rows} rows x "
            f"{plan.gradient_accumulation_steps} passes), so it cannot continue",
            where=resolved.origins["training.resume_from_checkpoint"],
            remedy=remedy,
        )
    orders = "group_by_prefix" if training.group_by_prefix else "length_grouped"
    ordered = training.group_by_prefix or training.batching == "length_grouped"
    if ordered and written.per_device_train_batch_size != rows:
        raise ConfigError(
            f"{found.path.name} was written with batches of {written.per_device_train_batch_size} rows, which decide "
            f"the order of {orders}, and this run has batches of {rows}",
            where=resolved.origins["training.per_device_train_batch_size"],
            remedy=f"set per_device_train_batch_size {written.per_device_train_batch_size}",
        )
    if strategy.name != "ddp" and written.num_processes != plan.num_processes:
        raise ConfigError(
            f"{found.path.name} holds the states of {_count(written.num_processes)}, and under {strategy.name} "
            f"{_count(plan.num_processes)} cannot be relied on to read them",
            where=strategy.origin,
            remedy=f"continue with {_count(written.num_processes)}, or train with strategy ddp",
        )
    if written.num_processes != plan.num_processes:
        notices.notify(
            f"{found.path.name} was written by {_count(written.num_processes)} and {_count(plan.num_processes)} "
            "continue: rows and steps stay the same; dropout draws from new streams"
        )


def check_agreement(found: checkpoint.Checkpoint | None, fingerprint: str | None) -> None:
    """Refuse to train when the processes would not start from the same step, or with other rows. All of them must call
    this.

    Args:
        found: the checkpoint from which this process continues.
        fingerprint: that of its training data.

    Raises:
        StorageError: machines see different run folders.
        DataError: they see different data.
    """
    from accelerate.utils import gather_object

    said = gather_object([(0 if found is None else found.step, fingerprint)])
    if len({fingerprint for _, fingerprint in said}) > 1:
        raise DataError(
            "the processes have read different training data",
            remedy="its files must be the same on every machine, and stay as they are while the run starts",
        )
    steps = [step for step, _ in said]
    if len(set(steps)) > 1:
        raise StorageError(
            f"the processes would continue from different steps: {', '.join(map(str, steps))}",
            remedy="output_dir must be on storage that every machine sees",
        )


def _count(num_processes: int) -> str:
    return f"{num_processes} process{'es' if num_processes > 1 else ''}"
