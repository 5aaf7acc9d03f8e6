"""Mistakes that show without a library of training: found before one is imported, which takes many seconds.

Whoever runs a verb looks at the same things again; here they are only looked at first, by the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from tunesmith.config.evaluation import evaluates
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ModelError, TunesmithError
from tunesmith.export.token import hub_token
from tunesmith.model.source import ADAPTER_CONFIG, check_there
from tunesmith.report import belongings
from tunesmith.report.record import RECORD

INPUTS = frozenset({"model", "train_data", "eval_data"})
"""What nothing else can be said without."""


def check_run(resolved: Resolved) -> None:
    """Look for the model, the local data files, the run folder, and what the run reports and is uploaded with.

    Raises:
        ConfigError: the run folder holds another run.
        StorageError: it cannot be written, or there is no token for the upload.
        ModelError: there is no such model, or a tracker is not installed.
        DataError: a data file is not there.
    """
    training = resolved.config.training
    if training.resume_from_checkpoint and belongings.is_finished(Path(training.output_dir)):
        return  # there may be nothing to do
    for look in (_beside(resolved) | _inputs(resolved)).values():
        look()


def check_inputs(resolved: Resolved) -> None:
    """Look for the model, as far as that needs no weights, and the local data files.

    Raises:
        ModelError: there is no such model.
        DataError: a data file is not there.
    """
    for name, look in _inputs(resolved).items():
        if name != "weights":
            look()


def problems(resolved: Resolved) -> dict[str, TunesmithError]:
    """Everything that ``check_run`` would find, by what it concerns; nothing is left in the run folder."""
    from tunesmith.train.start import nothing_left

    found = {}
    with nothing_left(Path(resolved.config.training.output_dir)):
        for name, look in (_beside(resolved) | _inputs(resolved)).items():
            try:
                look()
            except TunesmithError as error:
                found[name] = error
    return found


def check_trials(trials: Iterable[Resolved]) -> None:
    """Look for all that any trial of a sweep needs, besides its folder, before the first one starts.

    Raises:
        StorageError, ModelError, DataError: as ``check_run`` does.
    """
    asked = set()
    for resolved in trials:
        model, data = resolved.config.model, resolved.config.data
        needs = (model.model_name_or_path, model.revision, data.train_data, data.eval_data, resolved.config.tracking)
        if str(needs) not in asked:
            asked.add(str(needs))
            for name, look in (_beside(resolved) | _inputs(resolved)).items():
                if name != "folder":
                    look()


def _beside(resolved: Resolved) -> dict[str, Callable[[], object]]:
    """What a run needs besides its inputs -> how it is looked for."""
    from tunesmith.train.tracker_packages import check_installed

    training = resolved.config.training
    looks: dict[str, Callable[[], object]] = {"folder": partial(_check_folder, resolved, Path(training.output_dir))}
    if training.push_to_hub and training.hub_model_id:
        advice = "set HF_TOKEN, here or in .env, or leave push_to_hub out"
        looks["token"] = partial(hub_token, training.hub_model_id, advice)
    return looks | {"trackers": partial(check_installed, resolved)}


def _inputs(resolved: Resolved) -> dict[str, Callable[[], object]]:
    """Likewise what a run reads; of a model that is there, whether its ``weights`` are."""
    model, data = resolved.config.model, resolved.config.data
    there = Path(model.model_name_or_path).expanduser().is_dir()
    looks: dict[str, Callable[[], object]] = {
        "weights" if there else "model": partial(check_there, model.model_name_or_path, model.revision),
        "train_data": partial(check_data, data.train_data, data.train_split),
    }
    if data.eval_data is not None and evaluates(resolved):
        looks["eval_data"] = partial(check_data, data.eval_data, data.eval_split or "validation")
    return looks


def _check_folder(resolved: Resolved, folder: Path) -> None:
    from tunesmith.train.lock import is_held
    from tunesmith.train.start import check_folder

    if not is_held(folder) and not (folder / belongings.REPLACED).exists():  # whoever takes it sorts these out
        check_folder(resolved)


def check_data(names: str | Sequence[str] | None, split: str | None = None) -> None:
    """Look for local data files.

    Raises:
        DataError: a name looks like a path and nothing is there.
    """
    from tunesmith.data.files import local_files
    from tunesmith.data.remote import is_url

    for name in [names] if isinstance(names, str) else names or ():
        if not is_url(name):
            local_files(name, split)


def check_named(*names: str) -> None:
    """Look for the models that a verb names: runs, folders in them, adapters, models.

    Raises:
        ModelError: there is none of that name.
        UnsafeError: its weights are pickles.
    """
    for name in names:
        folder = Path(name)
        known = (folder / RECORD, folder.absolute().parent / RECORD, folder / ADAPTER_CONFIG)
        if not (folder.is_dir() and any(file.is_file() for file in known)):
            check_there(name)


def check_source_folder(name: str) -> None:
    """Look for the folder that a verb reads.

    Raises:
        ModelError: there is none.
    """
    if not Path(name).is_dir():
        raise ModelError("there is no such folder", where=name, remedy="name a run folder, or a folder with a model")
