"""What in a run folder belongs to a run, and the only place that takes such things away.

A run writes under the names of ``NAMES`` and no others, and it begins only where nothing of somebody else stands under
one of them. So all that is found there belongs to a run while it is unfinished; a finished one lists its files in
``run.json``, and what came later is somebody else's again. Of trackers that keep each run in a folder of its own, those
that the record names go with the run.

A run that is replaced is set aside in the folder (``.replaced``, its record last) and removed when the new one has
something to show: a complete checkpoint or an end. Whatever happens before puts it back.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tunesmith.config.paths import inside
from tunesmith.config.recorded import problem_of
from tunesmith.errors import StorageError, UnsafeError
from tunesmith.report.folder import read_json, write_json
from tunesmith.report.record import RECORD

LOCK = ".run.lock"
REPLACED = ".replaced"
_REMOVING = ".removing"
FILES = "files"
"""Key of the list in ``run.json``."""
TRACKED = "tracker_folders"
"""Another: folders of trackers, relative to the run folder, each of them this run's alone."""
TENSORBOARD = "tensorboard"
LORA_WEIGHTS = "lora_weights"
"""Folder of a run's adapter, where its model is the merged one."""
_TRACKERS = ("wandb",)
"""Where such folders lie."""
_MARK = ".set-aside"
"""Says of a folder that it was made by ``set_aside``."""
_UNFINISHED = {
    "running": "it runs, or was killed",
    "failed": "it failed",
    "interrupted": "it was interrupted",
}
"""Status of a run that has no finished model -> in words."""
NAMES = (
    RECORD, "metrics.jsonl", "ledger.json", "evaluation", "gen_results", "curves.png", "report.html", "inference.json",
    "proof.json", "README.md", LORA_WEIGHTS, "checkpoint-[0-9]*", "abandoned-[0-9]*", "training_args.bin",
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json",
    "tokenizer.*", "tokenizer_config.json", "*.model", "special_tokens_map.json", "added_tokens.json", "vocab.*",
    "merges.txt", "chat_template*", "additional_chat_templates", "adapter_model.bin", "pytorch_model*.bin",
    TENSORBOARD, ".saving", ".merged", ".*.part", REPLACED, _REMOVING,
)  # fmt: skip
"""Patterns of all that a run writes directly into its folder; a ``final_subdir`` comes on top."""


def is_record(path: Path) -> bool:
    """Whether a file is the record of a run of ours."""
    try:
        facts = read_json(path)
    except StorageError:
        return False
    return problem_of(facts) is None and "settings_fingerprint" in facts


def is_finished(folder: Path) -> bool:
    """Whether a folder's record says that its run came to its end."""
    return is_record(folder / RECORD) and read_json(folder / RECORD).get("status") == "finished"


def check_finished(folder: Path) -> None:
    """Refuse the model of a run that has not come to its end, and a checkpoint that was not written to its end.

    What lies in such a folder may be the model of an earlier end, or half of one. A complete checkpoint is whole
    whatever became of its run.

    Args:
        folder: a run folder, a folder in one, or any other, about which nothing is known.

    Raises:
        StorageError: with the checkpoint that can be used in its place.
    """
    if not folder.is_dir():
        return
    run = folder if (folder / RECORD).is_file() else folder.absolute().parent
    if not is_record(run / RECORD):
        return
    if fnmatchcase(folder.name, "checkpoint-[0-9]*") and run != folder:
        if not _is_manifest(folder / "manifest.json"):
            raise StorageError("this checkpoint was not written to its end", where=str(folder), remedy=_instead(run))
        return
    status = read_json(run / RECORD).get("status")
    if status in _UNFINISHED:
        raise StorageError(
            f"the run there is not finished ({_UNFINISHED[status]})",
            where=str(run),
            remedy=f"let it end (--resume_from_checkpoint latest), or {_instead(run)}",
        )


def _instead(run: Path) -> str:
    complete = [path.parent for path in run.glob("checkpoint-*/manifest.json") if _is_manifest(path)]
    newest = max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return f"name a checkpoint: {newest}" if newest else "train again: it has no complete checkpoint"


def found(folder: Path, final_subdir: str | None = None) -> list[str]:
    """Every file (and link) under a name of a run, relative to the folder; what was set aside is left out."""
    patterns = NAMES + tuple(map(glob.escape, Path(final_subdir or "").parts[:1]))
    names = [path for path in _entries(folder) if any(fnmatchcase(path.name, pattern) for pattern in patterns)]
    names = [path for path in names if path.name not in (REPLACED, _REMOVING)]
    return sorted(file.relative_to(folder).as_posix() for path in names for file in _files(path))


def belonging(folder: Path) -> list[str]:
    """The files of the run in a folder; none where no run of ours is."""
    if not is_record(folder / RECORD):
        return []
    facts = read_json(folder / RECORD)
    present = [name for name in found(folder, _final_subdir(facts)) if not (folder / name).is_symlink()]
    listed = facts.get(FILES)
    if facts.get("status") != "finished" or not isinstance(listed, list):
        return present
    return sorted({RECORD} | (set(present) & {name for name in listed if isinstance(name, str)}))


def tracked_folders(folder: Path) -> list[str]:
    """Folders of trackers that the record in a folder names, as far as they are there."""
    facts = read_json(folder / RECORD) if is_record(folder / RECORD) else {}
    named = facts.get(TRACKED)
    return [name for name in named if _is_tracked(folder, name)] if isinstance(named, list) else []


def _is_tracked(folder: Path, name: Any) -> bool:
    """Whether a record may name this: a folder of a tracker's run, reached without links."""
    parts = Path(name).parts if isinstance(name, str) else ()
    places = [folder.joinpath(*parts[: number + 1]) for number in range(len(parts))]
    inside = len(parts) > 1 and parts[0] in _TRACKERS and ".." not in parts
    return inside and all(place.is_dir() and not place.is_symlink() for place in places)


def _all_of(folder: Path) -> list[str]:
    """The files of the run in a folder, and those that trackers keep of it."""
    kept = [file for name in tracked_folders(folder) for file in _files(folder / name)]
    return belonging(folder) + [file.relative_to(folder).as_posix() for file in kept]


def foreign(folder: Path, final_subdir: str | None = None) -> list[str]:
    """What stands under a name of a run, or of the run that is planned, and belongs to none."""
    if not folder.is_dir():
        return []
    own = set(belonging(folder))
    names = [name for name in found(folder, final_subdir) if name not in own]
    aside = [name for name in (REPLACED, _REMOVING) if os.path.lexists(folder / name) and not _is_ours(folder / name)]
    logs = [path for path in folder.glob("logs/rank-*.log") if not _is_rank_log(path)]
    return names + aside + [path.relative_to(folder).as_posix() for path in logs]


def check_links(folder: Path) -> None:
    """Refuse to write through links in the places of a run's files, which no run makes; a checkpoint may be one.

    Raises:
        UnsafeError: there is a link, and what is written there would lie elsewhere.
    """
    facts = read_json(folder / RECORD) if is_record(folder / RECORD) else {"settings": {}}
    names = [name for name in found(folder, _final_subdir(facts)) if (folder / name).is_symlink()]
    check_no_link(folder, *(name for name in names if not fnmatchcase(name, "checkpoint-[0-9]*")))


def check_no_link(folder: Path, *names: str) -> None:
    """Refuse names below a run folder of which a part is a link: somebody else may have put it there.

    Raises:
        UnsafeError: one is.
    """
    for name in names:
        place = folder
        for part in Path(name).parts:
            place = place / part
            if place.is_symlink():
                raise UnsafeError(
                    "is a link, and no run makes one there",
                    where=str(place),
                    remedy="put the files themselves there, or remove it",
                )


def written(folder: Path) -> list[str]:
    """The files of a run at its end, for its record: what comes later is somebody else's."""
    return found(folder, _final_subdir(read_json(folder / RECORD)))


def add_files(folder: Path, *files: Path) -> None:
    """Add files that a verb has written to the list of a finished run; nothing where there is no such list."""
    if not is_finished(folder):
        return
    facts = read_json(folder / RECORD)
    names = {file.relative_to(folder).as_posix() for file in files}
    if isinstance(facts.get(FILES), list) and not names <= set(facts[FILES]):
        write_json(folder / RECORD, facts | {FILES: sorted({*facts[FILES], *names})})


def set_aside(folder: Path) -> None:
    """Move the run of a folder out of the way, so that nothing of it is seen and all of it can come back.

    Where a replaced run waits already, the one in the folder has nothing to show and is removed.
    """
    if (folder / REPLACED).exists():
        remove(folder)
        return
    _move(folder, folder / REPLACED, _all_of(folder))
    _mark(folder / REPLACED)


def put_back(folder: Path) -> bool:
    """Remove the new run and put the one back that it should have replaced; whether there was one."""
    aside = folder / REPLACED
    if not is_record(aside / RECORD):
        return False
    remove(folder, open_trackers=True)
    _restore(folder)
    return True


def drop_replaced(folder: Path) -> None:
    """Remove the run that was set aside: the new one has something to show."""
    if (folder / REPLACED).exists():
        (folder / REPLACED).rename(folder / _REMOVING)  # in one step: half a run must never be put back
    shutil.rmtree(folder / _REMOVING, ignore_errors=True)


def heal(folder: Path) -> None:
    """Finish what a kill has cut short while a run was set aside, put back or dropped."""
    if (folder / _REMOVING).is_dir() and _is_ours(folder / _REMOVING):
        shutil.rmtree(folder / _REMOVING, ignore_errors=True)
    aside = folder / REPLACED
    if not aside.is_dir() or not _is_ours(aside):
        return
    if not (aside / RECORD).is_file() or not (folder / RECORD).is_file():
        _restore(folder)
    elif is_finished(folder) or has_checkpoint(folder):
        drop_replaced(folder)


def has_checkpoint(folder: Path) -> bool:
    """Whether a checkpoint of a run of ours in a folder was ever complete."""
    return any(map(_is_manifest, folder.glob("checkpoint-*/manifest.json")))


def _is_manifest(path: Path) -> bool:
    try:
        manifest = read_json(path)
    except StorageError:
        return False
    return isinstance(manifest, dict) and {"step", "files"} <= manifest.keys()


def remove(folder: Path, *, open_trackers: bool = False) -> None:
    """Remove the files of a run, the record last, and the folders that they leave empty.

    Args:
        open_trackers: whether trackers still write into theirs, which then stay.
    """
    for name in _record_last(belonging(folder) if open_trackers else _all_of(folder)):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            path.rmdir()  # an empty one
        else:
            path.unlink(missing_ok=True)
        _remove_empty(folder, path.parent)


def everything(folder: Path) -> list[str]:
    """All that the run in a folder has written: its files, what trackers keep of it, and the logs of its launcher."""
    return _all_of(folder) + [path.relative_to(folder).as_posix() for path in _rank_logs(folder)]


def remove_all(folder: Path) -> None:
    """Remove ``everything``, for good: nothing follows this run."""
    for log in _rank_logs(folder):
        log.unlink(missing_ok=True)
        _remove_empty(folder, log.parent)
    remove(folder)


def _rank_logs(folder: Path) -> list[Path]:
    """Logs that a launcher of ours wrote, reached without links."""
    if (folder / "logs").is_symlink():
        return []
    return [path for path in folder.glob("logs/rank-*.log") if not path.is_symlink() and _is_rank_log(path)]


def _final_subdir(facts: dict[str, Any]) -> str | None:
    """Where a record says that the finished model is, if that is a name inside the folder."""
    named = facts["settings"].get("training.final_subdir")
    try:
        return inside(named) if isinstance(named, str) else None
    except ValueError:
        return None


def _is_rank_log(path: Path) -> bool:
    """Whether a log is one that a launcher of ours has begun; it stays when a run is replaced, and grows."""
    with path.open("rb") as stream:
        return stream.read(9) in (b"", b"--- rank ")


def _restore(folder: Path) -> None:
    aside = folder / REPLACED
    names = [file.relative_to(aside).as_posix() for file in _files(aside)]
    _move(aside, folder, [name for name in names if name not in (_MARK, ".")])
    (aside / _MARK).unlink(missing_ok=True)
    _remove_empty(folder, aside)


def _mark(aside: Path) -> None:
    aside.mkdir(exist_ok=True)
    (aside / _MARK).touch()


def _is_ours(aside: Path) -> bool:
    return aside.is_dir() and not aside.is_symlink() and ((aside / _MARK).exists() or is_record(aside / RECORD))


def _move(source: Path, target: Path, names: list[str]) -> None:
    """Move files one by one, the record last: the side that holds it is the whole one."""
    if target.name == REPLACED:
        _mark(target)
    for name in _record_last(names):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir() and not (source / name).is_symlink():  # an empty one
            (source / name).rmdir()
            (target / name).mkdir(exist_ok=True)
        else:
            (source / name).replace(target / name)
        _remove_empty(source, (source / name).parent)


def _record_last(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: (name == RECORD, not name.endswith("manifest.json"), name))


def _remove_empty(top: Path, folder: Path) -> None:
    while folder != top and folder.is_relative_to(top):
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _files(path: Path) -> Iterator[Path]:
    """The files and links at or below a path; links are not followed. An empty folder stands for itself."""
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    below = list(path.iterdir())
    if not below:
        yield path
    for one in below:
        yield from _files(one)
