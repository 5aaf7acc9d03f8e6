"""Composition of a Hydra configuration: Hydra parses and merges, and every value keeps the place where it was written.

What comes out is plain data. Nothing that a file names is imported, no environment variable that may be a secret is
read, and Hydra's own folders, logging, launchers and callbacks are never used. Which key means what is
``hydra_yaml.py``'s.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tunesmith import notices
from tunesmith.config.draft import COMMAND_LINE, shown
from tunesmith.config.environment import variable
from tunesmith.config.readers.hydra_names import NAMES
from tunesmith.config.readers.yaml_lines import read_yaml
from tunesmith.errors import ConfigError, TunesmithError, UnsafeError, did_you_mean
from tunesmith.program import named

if TYPE_CHECKING:
    from omegaconf import DictConfig

_HYDRAS_OWN_TARGETS = frozenset(
    {
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    }
)

Path_ = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Composition:
    """A composed configuration.

    ``tree`` is resolved plain data without the ``hydra`` key; ``text`` the same as YAML with interpolations as written;
    ``hydra_text`` is Hydra's own part. ``sweep`` are the parameters that the files ask to sweep over.
    """

    tree: dict[str, Any]
    text: str
    hydra_text: str
    sweep: dict[str, str]
    origins: dict[Path_, str]

    def where(self, path: Sequence[str]) -> str:
        """The place that set the value at ``path``: ``file:line``, or the command line; of the nearest key above it."""
        whole = tuple(path)
        while whole and whole not in self.origins:
            whole = whole[:-1]
        return self.origins.get(whole, COMMAND_LINE)


def compose(
    config_dir: str | Path, config_name: str, overrides: Sequence[str] = (), *, extra_dir: str | Path | None = None
) -> Composition:
    """Compose ``config_name`` of ``config_dir`` with overrides in Hydra's grammar.

    Args:
        config_dir: folder on top of Hydra's search path.
        config_name: primary configuration, with or without its suffix.
        overrides: ``key=value``, ``+key=value``, ``++key=value``, ``~key``, ``group=option``.
        extra_dir: a further folder of the search path.

    Raises:
        ConfigError: Hydra refuses the files or the overrides, or a value is missing.
        UnsafeError: something asks for an import or for an environment variable that may be secret.
    """
    folder = Path(config_dir).absolute()
    name = config_name.removesuffix(".yaml").removesuffix(".yml") if config_name else config_name
    if not folder.is_dir():
        raise ConfigError("no such configuration folder", where=shown(folder), remedy="give another one with -cp")
    primary = _primary_file(folder, extra_dir, name)
    _check_search_path(primary, overrides)
    given = list(overrides)
    if extra_dir is not None:
        extra = Path(extra_dir).absolute()
        if not extra.is_dir():
            raise ConfigError("no such configuration folder", where=shown(extra), remedy="give another one with -cd")
        given.append(f"hydra.searchpath=['file://{extra}']")
    with _hydra(folder) as loader, _guarded_environment(), _in_our_words(primary), _warnings_as_notices():
        config, files, origins = _load(loader, name, given)
        _check_hydra_part(config, files)
        return Composition(_resolve(config, origins), _as_yaml(config), _hydra_as_yaml(config), _sweep(config), origins)


def split_sweep(overrides: Sequence[str], params: Mapping[str, str]) -> list[list[str]]:
    """The jobs of a sweep, each as its overrides; ``params`` are swept over unless an override names the same key.

    Raises:
        ConfigError: an override is not in Hydra's grammar or cannot be swept over.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with _in_our_words(None):
        swept = [f"{key}={text}" for key, text in params.items()]
        parsed = OverridesParser.create().parse_overrides([*swept, *overrides])
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
        return [list(job) for job in jobs]


def _primary_file(folder: Path, extra_dir: str | Path | None, name: str) -> Path:
    for place in (folder, *([Path(extra_dir).absolute()] if extra_dir else [])):
        file = place / f"{name}.yaml"
        if file.is_file():
            read_yaml(file)  # says what is wrong with the file, and in which line, better than Hydra does
            return file
    there = sorted(path.stem for path in folder.glob("*.yaml"))
    remedy = f"there are {', '.join(there)}" if there else "the folder has no .yaml file"
    raise ConfigError(f"no configuration named {name!r}", where=shown(folder), remedy=remedy)


def _check_search_path(primary: Path, overrides: Sequence[str]) -> None:
    """Hydra imports the package of a ``pkg://`` entry while it composes, so entries are looked at before that."""
    document = read_yaml(primary)
    hydra = document.value.get("hydra") if isinstance(document.value, dict) else None
    entries = hydra.get("searchpath") if isinstance(hydra, dict) else None
    written = [(str(entry), document.where("hydra", "searchpath")) for entry in entries or ()]
    written += [(text, COMMAND_LINE) for text in overrides if text.lstrip("+~").startswith("hydra.searchpath")]
    for text, where in written:
        if "${" in text or "://" in text.replace("file://", ""):
            raise UnsafeError(
                f"hydra.searchpath {text!r} is not a plain folder", where=where, remedy="packages are not imported"
            )


@contextmanager
def _hydra(folder: Path) -> Iterator[Any]:
    """Hydra's loader for ``folder``, without anything that Hydra does around a job."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(folder), job_name="training", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        yield hydra.config_loader


@contextmanager
def _guarded_environment() -> Iterator[None]:
    """Let ``${oc.env:NAME}`` read no variable that may be a secret: settings are stored and shown."""
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    OmegaConf.register_new_resolver("oc.env", lambda name, *default: variable(name, None, *default), replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


@contextmanager
def _warnings_as_notices() -> Iterator[None]:
    """Say what Hydra warns of, each on one line and without the place in its source."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        notices.notify(" ".join(str(warning.message).split()))


@contextmanager
def _in_our_words(primary: Path | None) -> Iterator[None]:
    """Turn what Hydra, OmegaConf and the YAML reader raise into our errors, each on one line."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    where = shown(primary) if primary else COMMAND_LINE
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{shown(mark.name)}:{mark.line + 1}" if mark else where
        kind = UnsafeError if "python" in str(error.problem) else ConfigError
        raise kind(f"not valid YAML: {error.problem or error.context}", where=place) from None
    except TunesmithError as error:
        raise type(error)(error.what, where=error.where or where, remedy=error.remedy) from None
    except Exception as error:  # Hydra and OmegaConf raise whatever comes to them; the files and overrides are at fault
        chain = list(_causes(error))
        own = next((cause for cause in chain if isinstance(cause, TunesmithError)), None)
        if own is not None:
            raise type(own)(own.what, where=own.where or where, remedy=own.remedy) from None
        lines = dict.fromkeys(line.strip() for cause in chain[:2] for line in str(cause).splitlines())
        internal = ("full_key", "object_type", "reference_type")
        words = " ".join(line for line in lines if line and not line.startswith(internal))
        remedy = _known_key(words)
        if not isinstance(error, (HydraException, OmegaConfBaseException, AssertionError)):
            words = f"cannot be composed ({type(error).__name__}: {words})"
        raise ConfigError(words, where=COMMAND_LINE if remedy else where, remedy=remedy) from None


def _known_key(words: str) -> str | None:
    """What to do about an override of a key that the files do not hold, which Hydra refuses: it may be a setting."""
    refused = re.search(r"Could not (?:override|append|delete)[^']*'([^']+)'", words)
    if refused is None:
        return None
    key = refused[1]
    if key in NAMES:
        return f"the setting exists and no file has it yet: write +{key}=..."
    return did_you_mean(key, NAMES.table, named("see `tunesmith config --list`"))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _load(loader: Any, name: str, overrides: list[str]) -> tuple[DictConfig, list[Path], dict[Path_, str]]:
    """The merged configuration, the files that went into it in merge order, and where every key was set last."""
    from hydra.types import RunMode

    config = loader.load_configuration(config_name=name, overrides=overrides, run_mode=RunMode.RUN, from_shell=True)
    folders = [Path(source.path) for source in config.hydra.runtime.config_sources if source.schema == "file"]
    merged = loader.compute_defaults_list(config_name=name, overrides=overrides, run_mode=RunMode.RUN)
    files: list[Path] = []
    origins: dict[Path_, str] = {}
    for default in merged.defaults:
        relative = f"{str(default.config_path).removesuffix('.yaml')}.yaml"
        file = next((folder / relative for folder in folders if (folder / relative).is_file()), None)
        if file is None:
            continue  # one of Hydra's own
        files.append(file)
        document = read_yaml(file)
        package = tuple(default.package.split(".")) if default.package else ()
        for written, line in document.lines.items():
            origins[(*package, *map(str, written))] = f"{document.file}:{line}"
    for override in merged.config_overrides:
        if not override.is_delete():
            path = tuple(override.key_or_group.split("."))
            origins |= {(*path, *leaf): COMMAND_LINE for leaf in _leaves(override.value())}
    return config, files, origins


def _leaves(value: Any) -> Iterator[Path_]:
    if isinstance(value, Mapping) and value:
        for key, inside in value.items():
            for path in _leaves(inside):
                yield (str(key), *path)
    else:
        yield ()


def _check_hydra_part(config: DictConfig, files: list[Path]) -> None:
    """Hydra's part is never acted on; what would import a class, or copy the environment, is refused all the same."""
    from omegaconf import OmegaConf

    part = OmegaConf.to_container(config.hydra, resolve=False)
    place = ", ".join(dict.fromkeys(shown(file) for file in files))
    for target in _targets(part):
        if target not in _HYDRAS_OWN_TARGETS:
            raise UnsafeError(f"_target_ {target!r} under hydra is never created", where=place, remedy="leave it out")
    if config.hydra.job.env_copy:
        raise UnsafeError(
            "hydra.job.env_copy would bring the environment into the settings", where=place, remedy="leave it out"
        )


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield str(value["_target_"])
        for inside in value.values():
            yield from _targets(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _targets(inside)


def _resolve(config: DictConfig, origins: dict[Path_, str]) -> dict[str, Any]:
    """Plain data with every interpolation resolved."""
    from omegaconf import Container, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree: dict[str, Any] = {}
    for key in config:
        if key == "hydra":
            continue
        try:
            value = config[key]
            whole = isinstance(value, Container)
            tree[str(key)] = OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if whole else value
        except OmegaConfBaseException as error:
            path = tuple(str(error.full_key or str(key)).split("."))
            while path and path not in origins:
                path = path[:-1]
            own = next((cause for cause in _causes(error) if isinstance(cause, TunesmithError)), None)
            where = origins.get(path, COMMAND_LINE)
            if own is not None:
                raise type(own)(own.what, where=where, remedy=own.remedy) from None
            first = str(error).splitlines()[0]
            raise ConfigError(f"{error.full_key or str(key)}: {first}", where=where) from None
    return tree


def _as_yaml(config: DictConfig) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))


def _hydra_as_yaml(config: DictConfig) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.masked_copy(config, ["hydra"]))


def _sweep(config: DictConfig) -> dict[str, str]:
    params = config.hydra.sweeper.get("params") or {}
    return {str(key): str(value) for key, value in params.items()}
