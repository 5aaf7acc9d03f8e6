"""Reader of Hydra configurations (document 4): ``model``, ``train`` and what stands at the top.

Hydra composes (``hydra_compose.py``); this module says which key is which setting and which ``_target_`` is known. A
``_target_`` is a word that is looked up: nothing named in a file is imported or called.
"""

from __future__ import annotations

import importlib.metadata
import typing
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from tunesmith.config.draft import Draft, Setting, apart, dialect_defaults, shown
from tunesmith.config.names import Spelling, is_mapping, leaf_type, unknown_name, unset_is_zero
from tunesmith.config.overrides import parse_value
from tunesmith.config.readers.hydra_compose import Composition, compose
from tunesmith.config.readers.hydra_names import HOMES, NAMES, SPELLINGS
from tunesmith.config.schema import SECTIONS
from tunesmith.errors import ConfigError, UnsafeError

DIALECT = "hydra"
ENTRY_POINTS = "tunesmith.models"
"""Entry point group in which an installed package offers classes of its own for ``model._target_``."""

TARGETS: dict[str, tuple[str, ...]] = {
    "model": ("ragfit.models.hf.HFTrain", "tunesmith.models.HFTrain"),
    "model.lora": ("peft.LoraConfig", "peft.tuners.lora.LoraConfig"),
    "model.quantization_config": (
        "transformers.BitsAndBytesConfig",
        "transformers.utils.quantization_config.BitsAndBytesConfig",
    ),
    "train": ("transformers.TrainingArguments", "trl.SFTConfig"),
}
"""Where a ``_target_`` may stand -> the names it may have there. All mean what tunesmith does there."""

_OTHER_CALL_KEYS = ("_partial_", "_args_", "_recursive_", "_convert_")
"""Hydra's other words for creating objects; tunesmith creates none."""


__all__ = ["DEFAULTS", "DIALECT", "NAMES", "SPELLINGS", "draft", "read"]

DEFAULTS: dict[str, Any] = {
    "adapter.use_lora": False,
    "data.format": "rag",
    "data.too_long": "truncate_prompt",
    "model.max_sequence_len": 4000,
    "model.lora.r": 16,
    "model.lora.lora_alpha": 16,
    "model.lora.lora_dropout": 0.1,
    "model.lora.use_rslora": True,
    "train.output_dir": "./trained_models/",
    "train.gradient_accumulation_steps": 2,
    "train.learning_rate": 1e-4,
    "train.lr_scheduler_type": "cosine",
    "train.num_train_epochs": 1,
    "train.per_device_train_batch_size": 1,
    "train.optim": "paged_adamw_8bit",
    "train.save_steps": 20000,
    "train.save_total_limit": 1,
    "train.warmup_ratio": 0.03,
    "train.weight_decay": 0.001,
}
"""What document 4 takes for granted where a file is silent. What depends on the model (``target_modules``,
``completion_start``) or on the device (``load_in_8bit``) has no default, and adapters are trained when ``model.lora``
describes them."""


def read(path: str | Path, overrides: Sequence[str] = ()) -> Draft:
    """Compose the configuration file ``path`` and return its settings.

    Args:
        path: primary configuration; the folder it lies in is Hydra's search path.
        overrides: in Hydra's grammar.

    Raises:
        ConfigError: the file or an override is wrong.
        UnsafeError: a ``_target_`` is not in the table, or an environment variable may be secret.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError("no such configuration file", where=shown(file))
    if file.suffix != ".yaml":
        raise ConfigError("Hydra reads files that end in .yaml", where=shown(file), remedy="rename it")
    return draft(compose(file.absolute().parent, file.stem, overrides), file.absolute().parent)


def draft(composition: Composition, folder: Path) -> Draft:
    """The settings of a composed configuration.

    Args:
        composition: what Hydra composed.
        folder: the configuration's folder; prompt files are looked for there too, and in the folders above it.
    """
    refuse_targets(composition)
    settings, problems = apart(_settings(composition, (), composition.tree))
    defaults = dialect_defaults(DEFAULTS, NAMES, "Hydra configs (document 4)")
    written = yaml.safe_load(composition.text)
    at_home = tuple(_at_home(_typed(setting, _at(written, setting.name)), folder) for setting in settings)
    return Draft(DIALECT, at_home, defaults, NAMES, problems=problems)


def _typed(setting: Setting, written: Any) -> Setting:
    """A variable of the environment is text; where a number or a switch is wanted, it is read as on a command line."""
    if not isinstance(setting.value, str) or "${oc.env:" not in str(written):
        return setting
    return replace(setting, value=parse_value(setting.value, setting.spelling))


def _at(tree: Any, name: str) -> Any:
    for part in name.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def allowed_targets(place: str) -> tuple[str, ...]:
    """The names that ``_target_`` may have at ``place``, those of installed packages included."""
    return (*TARGETS.get(place, ()), *(plugins() if place == "model" else ()))


def plugins() -> dict[str, str]:
    """Names under which installed packages offer model classes -> name of the entry point. None of them is imported."""
    found: dict[str, str] = {}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        found |= {entry.name: entry.name, entry.value.replace(":", "."): entry.name}
    return found


def refuse_targets(composition: Composition) -> None:
    """Look every ``_target_`` up.

    Raises:
        UnsafeError: it is not in the table, or another of Hydra's words for creating objects is used.
    """
    for path, value in _mappings((), composition.tree):
        place = ".".join(path)
        for key in _OTHER_CALL_KEYS:
            if key in value:
                raise UnsafeError(
                    f"{key} in {place or 'the configuration'}: no object is created from a configuration",
                    where=composition.where((*path, key)),
                    remedy="leave it out",
                )
        if "_target_" not in value:
            continue
        allowed = allowed_targets(place)
        if value["_target_"] not in allowed:
            known = f"allowed here: {', '.join(allowed)}" if allowed else f"it may stand in {', '.join(TARGETS)} only"
            raise UnsafeError(
                f"_target_ {value['_target_']!r} in {place or 'the configuration'} is not in the table of known names, "
                "and nothing that a file names is imported",
                where=composition.where((*path, "_target_")),
                remedy=known,
            )


def _mappings(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    if isinstance(value, dict):
        yield path, value
        for key, inside in value.items():
            yield from _mappings((*path, str(key)), inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _mappings(path, inside)


def _settings(
    composition: Composition, above: tuple[str, ...], tree: dict[str, Any]
) -> Iterator[Setting | ConfigError]:
    for key, value in tree.items():
        path = (*above, str(key))
        name, where = ".".join(path), composition.where(path)
        if name == "model" and isinstance(value, dict):
            if "lora" in value and "use_lora" not in (tree.get("adapter") or {}):
                yield Setting("model.lora", value["lora"] is not None, composition.where((*path, "lora")), _USE_LORA)
            yield from _settings(composition, path, value)
        elif key == "_target_":
            if value in plugins():
                yield Setting(name, plugins()[value], where, Spelling("model.model_class"))
        elif name == "hfhub_tag":
            if value is not None:
                yield Setting(name, value, where, Spelling("training.hub_model_id"))
                yield Setting(name, True, where, Spelling("training.push_to_hub"))
        elif isinstance(value, dict) and not (name in NAMES and is_mapping(NAMES.find(name, where).path)):
            yield from _settings(composition, path, value)
        elif name in NAMES:
            spelling = NAMES.find(name, where)
            if value is not None or _says_something(spelling):
                yield Setting(name, value, where, spelling)
        elif value is not None or name not in _SECTIONS:
            yield unknown_name(name, NAMES.table, where)


_USE_LORA = Spelling("adapter.use_lora")
_DEFAULT_PATHS = frozenset(NAMES.find(name, name).path for name in DEFAULTS)
_SECTIONS = frozenset({*TARGETS, *HOMES, *SECTIONS})


def _says_something(spelling: Spelling) -> bool:
    """Whether a key left empty is more than a setting that nobody made: it takes a documented default back."""
    if spelling.convert is unset_is_zero:
        return True
    return spelling.path in _DEFAULT_PATHS and type(None) in typing.get_args(leaf_type(spelling.path))


def _at_home(setting: Setting, folder: Path) -> Setting:
    """A prompt file that is not in the working directory is the one of the recipe that the configuration belongs to."""
    if setting.spelling.path not in ("data.instruction", "data.template") or not isinstance(setting.value, str):
        return setting
    name = Path(setting.value)
    if name.is_absolute() or "\n" in setting.value or len(setting.value) > 1024 or name.exists():
        return setting
    for home in (folder, *folder.parents):
        if (home / name).is_file():
            return Setting(setting.name, shown(home / name), setting.origin, setting.spelling)
    return setting
