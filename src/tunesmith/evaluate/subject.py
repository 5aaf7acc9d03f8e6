"""Who is judged: a name becomes a model, the settings it is judged under, and the place of the result.

It finds and loads; what is generated and how it is scored stands elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.draft import Draft, Setting
from tunesmith.config.load import resolve_draft
from tunesmith.config.names import NameTable
from tunesmith.config.overrides import parse_overrides
from tunesmith.config.paths import expand
from tunesmith.config.permissions import PERMISSIONS, permissions_of
from tunesmith.config.resolve import Resolved, from_values
from tunesmith.errors import ConfigError, UnsafeError
from tunesmith.report.belongings import LORA_WEIGHTS, check_finished, check_no_link
from tunesmith.report.record import RECORD, TASK_FUNCTION, Record, read_record

if TYPE_CHECKING:
    from tunesmith.model.load import Inference

EVALUATION = "evaluation"
_OF_THIS_MACHINE = ("model.device_map", "model.model_name_or_path")
"""Settings of the section model that a trained model leaves open: where it answers, and where its base is now."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that is to be judged.

    Attributes:
        name: what the user calls it.
        resolved: the settings it is judged under.
        load: loads it.
        folder: where its files are; a hub name is no folder.
        home: where its result is kept when nobody names a place; None for nowhere.
        untrained: the model that training began with; None where that is not known.
        tokenizer: where its tokenizer is, if the settings name another place than its folder.
        base: where its base is now, if somebody says that it is not where the record has it.
    """

    name: str
    resolved: Resolved
    load: Callable[[], Inference]
    folder: str
    home: Path | None = None
    untrained: Subject | None = None
    tokenizer: str | None = None
    base: str | None = None


def find_subject(name: str | Path, settings: Sequence[str] = ()) -> Subject:
    """The model that a name stands for.

    A run folder and a folder in one (a checkpoint, a merged model) are judged under the settings of the run's record.
    Any other model is judged under the settings of its ``inference.json``, where it has one, and the defaults.

    Args:
        name: run folder, a folder in one, adapter folder, model folder, hub name, or ``nano-mistral``.
        settings: settings as on a command line. For a model that was trained here and for an adapter those of the
            sections data and evaluation, ``device_map``, what lets code run, and ``base_model``, the place where its
            base is now; any for other models.

    Raises:
        ConfigError: a setting is wrong, or cannot be changed after training.
        StorageError: a record cannot be read, or the run or checkpoint is not finished.
        ModelError: there is no such model.
        UnsafeError: it would run code, or open a pickle, that nobody allowed.
    """
    from tunesmith.model.source import ADAPTER_CONFIG

    path = Path(name)
    for home in (path, path.absolute().parent) if path.is_dir() else ():
        if (home / RECORD).is_file():
            return _of_run(str(name), path, home, settings)
    if (path / ADAPTER_CONFIG).is_file():
        return _of_adapter(str(name), path, settings)
    return of_configuration(_plain(str(name), path, settings))


def of_configuration(resolved: Resolved) -> Subject:
    """The model that a configuration starts from."""

    def load() -> Inference:
        from tunesmith.model.device import here
        from tunesmith.model.load import Inference, inference_device, load_base
        from tunesmith.model.precision import align_types, choose_precision

        section, device = resolved.config.model, here(resolved)
        precision = choose_precision(resolved, device)
        model = load_base(resolved, precision, inference_device(resolved, precision, device))
        align_types(model)
        return Inference(
            model.eval(), precision, resolved, section.tokenizer_name_or_path or section.model_name_or_path
        )

    name = resolved.config.model.model_name_or_path
    return Subject(name, resolved, load, name, tokenizer=resolved.config.model.tokenizer_name_or_path)


def _of_run(name: str, path: Path, home: Path, settings: Sequence[str]) -> Subject:
    from tunesmith.export.inference import settings_of

    record = read_record(home)
    check_finished(path)
    resolved = record.resolved
    final = resolved.config.training.final_subdir
    folder = home / final if home == path and final else path
    if record.facts.get("merge_refused") and home == path:
        folder = folder / LORA_WEIGHTS
    part = "" if folder in (home, home / final if final else home) else path.name
    check_no_link(home, f"{EVALUATION}/{part}")
    # what lies beside the model are texts, while the record may name files that are not on this machine
    told = settings_of(folder)
    resolved = from_values(resolved.values() | told, resolved.origins)
    resolved, said = _with_settings(resolved, settings)
    if not told:
        _refuse_recorded_files(record, resolved, settings)
    _refuse_recorded_function(record, resolved)
    return _trained(name, folder, resolved, said, home / EVALUATION / part)


def _refuse_recorded_files(record: Record, resolved: Resolved, settings: Sequence[str]) -> None:
    """A record names files whose text was put into prompts; without the text beside the model, none of them is read,
    since a record of somebody else could name any file of this machine.

    Raises:
        UnsafeError: one of them is here, and the command line of today does not name it.
    """
    given = {setting.spelling.path for setting in parse_overrides(settings, NameTable())}
    for path, named in (
        ("data.instruction", resolved.config.data.instruction),
        ("data.template", resolved.config.data.template),
    ):
        if named and path not in given and "\n" not in named and "{query}" not in named and _is_file(named):
            raise UnsafeError(
                f"the record names the file {named}, which would be read into the prompt",
                where=str(record.folder / RECORD),
                remedy=f"give --{path.rpartition('.')[2]} {named} if that is what you want",
            )


def _is_file(name: str) -> bool:
    try:
        return Path(name).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):  # too long for a name, no home folder, a NUL
        return False


def _refuse_recorded_function(record: Record, resolved: Resolved) -> None:
    """A record names a task function; it is run only when the command line of today names one as well.

    Raises:
        UnsafeError: the run was scored by a function, and nobody says how to score it now.
    """
    recorded = record.facts["settings"].get(TASK_FUNCTION)
    evaluation = resolved.config.evaluation
    if recorded and evaluation.task_function is None and evaluation.task == "auto":
        raise UnsafeError(
            f"this run was scored by a function of a file, {recorded}, which a record may not run",
            where=str(record.folder / RECORD),
            remedy=f"give --task_function {recorded} if you trust that file, or --task",
        )


def _of_adapter(name: str, path: Path, settings: Sequence[str]) -> Subject:
    from tunesmith.export.inference import settings_of
    from tunesmith.model.adapter_config import read_lora_config

    # a name that is missing is no fault of the settings: ``model_spec`` refuses it, unless they give one
    named = read_lora_config(path).base_model_name_or_path or "unknown"
    base = {"model.model_name_or_path": named}
    return _trained(name, path, *_with_settings(from_values(base | settings_of(path)), settings), None)


def _trained(name: str, folder: Path, resolved: Resolved, said: set[str], home: Path | None) -> Subject:
    """A model that training left, beside the one it began with; ``said`` are the settings that the user gave now."""
    section = resolved.config.model
    device_map = section.device_map if "model.device_map" in said else None
    base = section.model_name_or_path if "model.model_name_or_path" in said else None

    def load(*, trained: bool = True) -> Inference:
        from tunesmith.model.load import load_for_inference

        permissions = permissions_of(resolved.values())
        return load_for_inference(folder, base=base, device_map=device_map, trained=trained, permissions=permissions)

    before = f"{section.model_name_or_path} (untrained)"
    untrained = Subject(before, resolved, lambda: load(trained=False), str(folder), base=base)
    return Subject(name, resolved, load, str(folder), home, untrained, base=base)


def _plain(name: str, path: Path, settings: Sequence[str]) -> Resolved:
    from tunesmith.export.inference import settings_of
    from tunesmith.model import source

    source.locate(name)
    names = NameTable()
    told = settings_of(path) if path.is_dir() else {}
    values = {"model.model_name_or_path": name} | told
    written = tuple(Setting(key, value, name, names.find(key, name)) for key, value in values.items())
    return resolve_draft(Draft(name, written), settings)


def _with_settings(resolved: Resolved, tokens: Sequence[str]) -> tuple[Resolved, set[str]]:
    """The settings with those of ``tokens`` put in, and the paths of the latter."""
    values, origins = resolved.values(), dict(resolved.origins)
    said = set()
    for setting in parse_overrides(tokens, NameTable()):
        path, convert = setting.spelling.path, setting.spelling.convert
        may_change = path in _OF_THIS_MACHINE or path in PERMISSIONS
        if path.split(".")[0] not in ("evaluation", "data") and not may_change:
            raise ConfigError(
                f"{setting.name} cannot be changed for a model that is trained",
                where=setting.origin,
                remedy="settings of the sections evaluation and data can, device_map, what lets code run, and "
                "base_model where it moved",
            )
        value = convert(setting.value, values[path]) if convert else setting.value
        values[path] = expand(path, value, setting.origin)
        origins[path] = setting.origin
        said.add(path)
    return from_values(values, origins, permissions=permissions_of(values)), said
