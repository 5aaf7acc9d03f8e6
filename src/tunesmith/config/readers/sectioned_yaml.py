"""Reader of YAML files in sections (document 5): ``model``, ``dataset`` and ``training``, or the schema's own sections.

A name is accepted in the section it belongs to and nowhere else. What values mean together is not looked at here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.config.draft import Draft, Setting, apart, dialect_defaults
from tunesmith.config.names import (
    ANSWERED,
    Convert,
    NameTable,
    Spelling,
    UnknownName,
    in_sections,
    modules,
    unknown_name,
    unset_is_empty,
)
from tunesmith.config.readers.yaml_lines import Lines, read_yaml
from tunesmith.config.schema import SECTIONS as SCHEMA_SECTIONS
from tunesmith.errors import ConfigError

DIALECT = "yaml"


def renamed_column(expected: str) -> Convert:
    """Conversion of ``question_column``: one entry of ``data.columns``, left out when the column has the usual name."""

    def convert(value: Any, current: Any) -> Any:
        if value is not None and not isinstance(value, str):
            return value  # validation says what is wrong with it
        others = {name: given for name, given in (current or {}).items() if name != expected}
        return others if value in (None, expected) else others | {expected: value}

    return convert


SPELLINGS: dict[str, Spelling] = {
    "model.path": Spelling("model.model_name_or_path"),
    "model.max_seq_length": Spelling("data.max_length"),
    "model.load_in_4bit": Spelling("quantization.load_in_4bit"),
    "model.load_in_8bit": Spelling("quantization.load_in_8bit"),
    "model.use_lora": Spelling("adapter.use_lora"),
    "model.lora_config.r": Spelling("adapter.lora_r"),
    "model.lora_config.lora_alpha": Spelling("adapter.lora_alpha"),
    "model.lora_config.target_modules": Spelling("adapter.target_modules", modules),
    "model.lora_config.target_parameters": Spelling("adapter.target_parameters", modules),
    "model.lora_config.exclude_modules": Spelling("adapter.exclude_modules", modules),
    "model.lora_config.rank_pattern": Spelling("adapter.rank_pattern", unset_is_empty),
    "model.lora_config.alpha_pattern": Spelling("adapter.alpha_pattern", unset_is_empty),
    "model.lora_config.lora_dropout": Spelling("adapter.lora_dropout"),
    "model.lora_config.bias": Spelling("adapter.bias"),
    "model.lora_config.task_type": Spelling("adapter.task_type"),
    "model.lora_config.peft_type": Spelling("adapter.peft_type"),
    "model.lora_config.fan_in_fan_out": Spelling("adapter.fan_in_fan_out"),
    "model.lora_config.modules_to_save": Spelling("adapter.modules_to_save"),
    "model.lora_config.use_rslora": Spelling("adapter.use_rslora"),
    "model.lora_config.use_dora": Spelling("adapter.use_dora"),
    "model.lora_config.init_lora_weights": Spelling("adapter.init_lora_weights"),
    "model.lora_config.layers_pattern": Spelling("adapter.layers_pattern"),
    "model.lora_config.layers_to_transform": Spelling("adapter.layers_to_transform"),
    "dataset.name": Spelling("data.train_data"),
    "dataset.subset": Spelling("data.subset"),
    "dataset.split": Spelling("data.train_split"),
    "dataset.question_column": Spelling("data.columns", renamed_column("question"), str | None, part="entry"),
    "dataset.answer_column": Spelling("data.columns", renamed_column("answer"), str | None, part="entry"),
    "training.epochs": Spelling("training.num_train_epochs"),
}
"""Names of this dialect, each with its section; the rest are the schema's names and those of ``config/names.py``."""

DEFAULTS: dict[str, Any] = {
    "model.use_lora": False,
    "model.lora_config.r": 16,
    "model.lora_config.lora_alpha": 32,
    "model.lora_config.target_modules": ["q_proj", "v_proj"],
    "model.lora_config.lora_dropout": 0.1,
    "model.lora_config.bias": "none",
    "model.lora_config.task_type": "CAUSAL_LM",
    "dataset.split": "train",
    "data.too_long": "drop",
    "training.save_merged_model": True,
}
"""What document 5 takes for granted where a file is silent."""

HOMES: dict[str, tuple[str, ...]] = {
    "model": ("model", "adapter", "quantization"),
    "dataset": ("data",),
    "training": ("training", "evaluation", "tracking", "launch"),
}
"""Section of the document -> the schema's sections whose settings may stand in it."""


def _section_table() -> dict[str, Spelling]:
    """Every ``section.name`` that a file may hold."""
    table = in_sections(HOMES | {section: (section,) for section in SCHEMA_SECTIONS if section not in HOMES})
    for section in ("model", "dataset", "training"):
        table |= {f"{section}.{name}": spelling for name, spelling in ANSWERED.items()}
    return table | SPELLINGS


_TABLE = _section_table()
NAMES = NameTable(_TABLE | {name.rpartition(".")[2]: SPELLINGS[name] for name in SPELLINGS if name.endswith("_column")})
"""The names for overrides on a command line; there the section may be left out where the rest says enough."""


def read(path: str | Path) -> Draft:
    """Read a file of sections.

    Raises:
        ConfigError: the file is not a mapping of sections.
        UnsafeError: a tag asks for a Python object.
    """
    document = read_yaml(path)
    if not isinstance(document.value, dict):
        raise ConfigError("no sections in this file", where=document.file, remedy="it begins with `model:`")
    sections = {name.partition(".")[0] for name in _TABLE}
    found: list[Setting | ConfigError] = []
    for section, inside in document.value.items():
        if section not in sections:
            found.append(unknown_section(section, document.where(section)))
        else:
            found.extend(_settings(document, (section,), inside))
    settings, problems = apart(found)
    defaults = dialect_defaults(DEFAULTS, NAMES, "YAML configs (document 5)")
    return Draft(DIALECT, settings, defaults, NAMES, problems=problems)


def unknown_section(name: str, where: str) -> ConfigError:
    """The error for a top-level key that is no section; a known setting there is told its place."""
    home = next((known for known in _TABLE if known.rpartition(".")[2] == name), None)
    if home is not None:
        return ConfigError(f"{name!r} stands outside of every section", where=where, remedy=f"write it as {home}")
    error = unknown_name(name, dict.fromkeys((*HOMES, *SCHEMA_SECTIONS)), where)
    known = ", ".join(dict.fromkeys((*HOMES, *SCHEMA_SECTIONS)))
    remedy = error.remedy if error.remedy and error.remedy.startswith("did") else f"sections are {known}"
    return ConfigError(f"unknown section {name!r}", where=where, remedy=remedy)


def _settings(document: Lines, above: tuple[str, ...], inside: Any) -> Iterator[Setting | ConfigError]:
    """The settings below one section, ``lora_config`` included."""
    if inside is None:
        return
    if not isinstance(inside, dict):
        name = ".".join(above)
        yield ConfigError(
            f"{name} holds a value, not settings", where=document.where(*above), remedy=f"write `{above[-1]}:` and "
            "its settings indented below it"
        )  # fmt: skip
        return
    for key, value in inside.items():
        path = (*above, key)
        name, where = ".".join(path), document.where(*path)
        if name in _TABLE:
            yield Setting(name, value, where, _TABLE[name])
        elif any(known.startswith(f"{name}.") for known in _TABLE):
            yield from _settings(document, path, value)
        else:
            yield _misplaced(name, where)


def _misplaced(name: str, where: str) -> ConfigError:
    """The error for an unknown name, or for a known one in the wrong section."""
    key = name.rpartition(".")[2]
    homes = [known for known in _TABLE if known.rpartition(".")[2] == key]
    if homes:
        return ConfigError(f"{name!r} is in the wrong section", where=where, remedy=f"write it as {homes[0]}")
    near = unknown_name(key, {known.rpartition(".")[2]: spelling for known, spelling in _TABLE.items()}, where)
    return UnknownName(name, where, near.remedy or "", near.meant)
