"""Mistakes that show without a library of training: found before one is imported, which takes many seconds.

Whoever runs a verb looks at the same things again; here they are only looked at first, by the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.config.evaluation import evaluates
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ModelError
from tunesmith.export.token import hub_token
from tunesmith.model.source import ADAPTER_CONFIG, check_there
from tunesmith.report import belongings
from tunesmith.report.record import RECORD


def check_run(resolved: Resolved, *, trains: bool = True) -> None:
    """Look for the model, the local data files and, of a run that trains, its folder and what its end needs.

    Raises:
        ConfigError: the run folder holds another run.
        StorageError: it cannot be written, or there is no token for the upload.
        ModelError: there is no such model.
        DataError: a data file is not there.
    """
    training, model, data = resolved.config.training, resolved.config.model, resolved.config.data
    folder = Path(training.output_dir)
    if training.resume_from_checkpoint and belongings.is_finished(folder):
        return  # there may be nothing to do
    if trains:
        _check_folder(resolved, folder)
        if training.push_to_hub and training.hub_model_id:
            hub_token(training.hub_model_id, "set HF_TOKEN, here or in .env, or leave push_to_hub out")
    if trains or not Path(model.model_name_or_path).expanduser().is_dir():  # rows need no weights
        check_there(model.model_name_or_path, model.revision)
    check_data(data.train_data, data.train_split)
    if data.eval_data is not None and evaluates(resolved):
        check_data(data.eval_data, data.eval_split or "validation")


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
