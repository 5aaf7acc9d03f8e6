"""Reader of flat JSON files and TrainingConfig keywords (document 3): every key of one object is a setting.

It reads strict JSON and knows where each key stands; what the values mean is the schema's business.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from tunesmith.config.draft import Draft, Setting, dialect_defaults, shown
from tunesmith.config.files import read_bytes
from tunesmith.config.names import NameTable, Spelling
from tunesmith.config.schema import SECTIONS
from tunesmith.errors import ConfigError

DIALECT = "json"

SPELLINGS: dict[str, Spelling] = {
    "log_every_n_steps": Spelling("training.logging_steps"),
    "eval_every_n_steps": Spelling("training.eval_steps"),
    "save_every_n_steps": Spelling("training.save_steps"),
}
"""Names of this dialect that no other has; the rest stands in ``config/names.py``."""

DEFAULTS: dict[str, Any] = {
    # model and tokenizer
    "model_name_or_path": "mistralai/Mistral-7B-v0.1",
    "tokenizer_name_or_path": None,
    # adapter and quantization
    "use_lora": True,
    "load_in_4bit": True,
    "load_in_8bit": False,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    # data
    "max_seq_length": 2048,
    "add_bos": "if_known",
    "too_long": "drop",
    # optimization
    "output_dir": "checkpoints/mistral-7b-reasoning",
    "train_batch_size": 1,
    "eval_batch_size": 1,
    "gradient_accumulation_steps": 4,
    "num_train_epochs": 3,
    "learning_rate": 2e-5,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.01,
    "warmup_ratio": 0.03,
    "fp16": True,
    "bf16": False,
    "gradient_checkpointing": True,
    "deepspeed_config": None,
    "seed": 42,
    # logging, evaluation, checkpoints
    "log_every_n_steps": 10,
    "eval_every_n_steps": 200,
    "save_every_n_steps": 500,
    "save_total_limit": 3,
    "load_best_model_at_end": True,
    "early_stopping_patience": 5,
    "early_stopping_threshold": 0.01,
    "final_subdir": "final",
    # tracking
    "use_wandb": False,
    "wandb_project": "SimpleFoundation",
    "wandb_name": None,
}
"""What document 3 takes for granted where a file or a TrainingConfig is silent.

A program of this kind cuts long rows at their end; ``too_long`` drops and counts them instead, so that the end token is
never lost."""

NAMES = NameTable(SPELLINGS)


def read(path: str | Path) -> Draft:
    """The settings of a flat JSON file, each with file and line.

    Raises:
        ConfigError: the file is missing, is not strict JSON, holds something else than one object, or has a key twice.
    """
    file = shown(path)
    text = _read_text(Path(path), file)
    value = _parse(text, file)
    if not isinstance(value, dict):
        raise ConfigError(
            f"holds {_kind(value)}, not an object", where=file, remedy='write settings as {"learning_rate": 2e-5, ...}'
        )
    return _draft((name, value, f"{file}:{line}") for name, value, line in _top_level(text, file))


def from_keywords(values: Mapping[str, Any], origin: str = "TrainingConfig") -> Draft:
    """Settings that a program gave by name, as a draft of this dialect.

    Args:
        values: value by name, under any accepted spelling.
        origin: where they were written, as errors and run.json will say it.
    """
    return _draft((name, value, origin) for name, value in values.items())


def _draft(written: Iterator[tuple[str, Any, str]]) -> Draft:
    settings: list[Setting] = []
    problems: list[ConfigError] = []
    for name, value, origin in ungrouped(written):
        try:
            settings.append(Setting(name, value, origin, NAMES.find(name, origin)))
        except ConfigError as problem:
            problems.append(problem)
    defaults = dialect_defaults(DEFAULTS, NAMES, "TrainingConfig (document 3)")
    return Draft(
        DIALECT, tuple(settings), defaults, NAMES, align_saves=True, evaluation_optional=True, problems=tuple(problems)
    )


GROUPS: dict[str, dict[str, str]] = {
    **{key: {"r": "lora_r", "rank": "lora_r"} for key in ("lora", "lora_config", "peft_config")},
    **{key: {} for key in ("quantization_config", "bnb_config", *SECTIONS)},
}
"""Keys below which settings may stand together, and names that they have there alone."""


def ungrouped(written: Iterable[tuple[str, Any, str]]) -> Iterator[tuple[str, Any, str]]:
    """Settings of a group (``lora_config``, ``training``) under the names that they have by themselves."""
    for name, value, origin in written:
        if name in GROUPS and isinstance(value, dict):
            for key, inner in value.items():
                named = GROUPS[name].get(str(key), str(key))
                yield f"{name}.{named}" if name in SECTIONS and f"{name}.{named}" in NAMES else named, inner, origin
        else:
            yield name, value, origin


def _read_text(path: Path, file: str) -> str:
    try:
        raw = read_bytes(path)
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror or error}", where=file) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8: byte {raw[error.start]:#04x} at offset {error.start}", where=file) from None


def _parse(text: str, file: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ConfigError(f"{constant} is not a JSON number", where=file, remedy="settings are finite numbers")

    try:
        value = json.loads(text, parse_constant=refuse)
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair cannot be written anywhere later
    except json.JSONDecodeError as error:
        what = f"not valid JSON: {error.msg} (column {error.colno})"
        remedy = "JSON wants double quotes, and no comma before a closing bracket"
        raise ConfigError(what, where=f"{file}:{error.lineno}", remedy=remedy) from None
    except UnicodeEncodeError:
        raise ConfigError("holds half of a surrogate pair (\\ud800 to \\udfff)", where=file) from None
    except RecursionError:
        raise ConfigError("nested too deeply", where=file, remedy="settings are flat") from None
    except ValueError as error:  # an integer of thousands of digits
        raise ConfigError(f"not valid JSON: {error}", where=file) from None
    return value


def _top_level(text: str, file: str) -> Iterator[tuple[str, Any, int]]:
    """Key, value and line of each entry of the object that ``text``, valid JSON, holds."""
    decoder = json.JSONDecoder(object_pairs_hook=lambda pairs: _unique(pairs, file))
    lines: dict[str, int] = {}
    line, counted = 1, 0
    position = _skip(text, text.index("{") + 1, "")
    while text[position] != "}":
        line, counted = line + text.count("\n", counted, position), position
        name, position = decoder.raw_decode(text, position)
        value, position = decoder.raw_decode(text, _skip(text, position, ":"))
        if name in lines:
            what = f"key {name!r} stands twice (first in line {lines[name]})"
            raise ConfigError(what, where=f"{file}:{line}", remedy="keep one of them")
        lines[name] = line
        yield name, value, line
        position = _skip(text, position, ",")


def _skip(text: str, position: int, mark: str) -> int:
    """The position after white space and ``mark``."""
    while text[position].isspace() or text[position] == mark:
        position += 1
    return position


def _unique(pairs: list[tuple[str, Any]], file: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ConfigError(f"key {name!r} stands twice in one object", where=file)
        result[name] = value
    return result


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
