"""One table from every accepted spelling to the one schema path, and the values that change with the spelling.

Spellings that belong to one dialect stand in that dialect's reader. This module validates no values.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.config.answered import ANSWERS, ANY, answer
from tunesmith.config.schema import SECTIONS
from tunesmith.errors import ConfigError, did_you_mean
from tunesmith.installed import is_importable
from tunesmith.program import named

TRACKERS = ("wandb", "tensorboard", "trackio", "mlflow")
"""What ``report_to: all`` asks for, as far as it is installed."""

Convert = Callable[[Any, Any], Any]
"""(value as written, value in force so far) -> value for the schema."""


@dataclass(frozen=True, slots=True)
class Spelling:
    """A schema path, with the conversion that this spelling's values need and their type on a command line."""

    path: str
    convert: Convert | None = None
    type: Any = None
    """Type of the value as written; None means the type of the leaf."""
    part: Literal["entry", "switch"] | None = None
    """What of the setting this spelling says, where it is not the whole: an entry of a mapping, or one choice."""


def leaf_type(path: str) -> Any:
    """Annotation of the leaf at ``path``, its constraints included."""
    section, name = path.split(".")
    field = SECTIONS[section].model_fields[name]
    return field.rebuild_annotation()


def leaf_paths() -> list[str]:
    """Every schema path, in the schema's order."""
    return [f"{section}.{name}" for section, model in SECTIONS.items() for name in model.model_fields]


def batching_when(layout: str) -> Convert:
    """Conversion of a yes/no spelling: yes takes ``layout``; no goes back to ``auto`` and leaves others alone."""

    def convert(value: Any, current: Any) -> Any:
        if not isinstance(value, bool) and value is not None:
            return value
        if value:
            return layout
        return "auto" if current == layout else current

    return convert


def one_or_many(value: Any, current: Any) -> Any:
    """Conversion of ``report_to``: one name, several (a list, or with commas), ``all``, ``none`` or nothing."""
    if value in (None, "", "none", "None", [], ["none"]):
        return []
    if value in ("all", ["all"]):
        return [name for name in TRACKERS if is_importable(name)]
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def newest_checkpoint(value: Any, current: Any) -> Any:
    """Conversion of ``resume_from_checkpoint``: yes is the newest checkpoint, and no is none."""
    if isinstance(value, bool):
        return "latest" if value else None
    return value


def entry(key: str) -> Convert:
    """Conversion of one entry of a mapping (``lr_scheduler_kwargs.min_lr``)."""

    def convert(value: Any, current: Any) -> Any:
        return {**(current or {}), key: value}

    return convert


def modules(value: Any, current: Any) -> Any:
    """Conversion of modules by name: names in one text, with commas between them, are a list; a regular expression
    (recognised by characters that no name has) and ``all-linear`` stay as they are."""
    if not isinstance(value, str) or value == "all-linear" or re.search(r"[\\^$*+?(|]", value):
        return value
    return [name.strip() for name in value.split(",") if name.strip()]


def arguments_of_optimizer(value: Any, current: Any) -> Any:
    """Conversion of ``optim_args``: a mapping, or transformers' text ``name=value,name=value``."""
    if value is None:
        return {}
    if not isinstance(value, str) or "=" not in value:
        return value
    return {name.strip(): _plain(text.strip()) for name, _, text in (one.partition("=") for one in value.split(","))}


def _plain(text: str) -> Any:
    """A number or a switch where the text is one."""
    try:
        found = json.loads(text.lower())
    except ValueError:
        return text
    return found if isinstance(found, bool | int | float) else text


def choice(yes: str, no: str) -> Convert:
    """Conversion of a yes/no spelling that chooses between two values; left empty, it chooses nothing."""

    def convert(value: Any, current: Any) -> Any:
        if isinstance(value, bool):
            return yes if value else no
        return current if value is None else value

    return convert


def unset_is_empty(value: Any, current: Any) -> Any:
    """Conversion of a mapping that a file leaves empty."""
    return {} if value is None else value


def unset_is_zero(value: Any, current: Any) -> Any:
    """Conversion for leaves where an empty value in a file means 0."""
    return 0 if value is None else value


def dtype_name(value: Any, current: Any) -> Any:
    """Conversion of a data type: unset means ``auto``; short names and ``torch.`` prefixes are understood."""
    if value is None:
        return "auto"
    short = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}
    name = str(value).removeprefix("torch.")
    return short.get(name, name)


def unset_is_auto(value: Any, current: Any) -> Any:
    """Conversion for leaves where an empty value in a file means ``auto``."""
    return "auto" if value is None else value


def epoch_or_steps(value: Any, current: Any) -> Any:
    """Conversion of a strategy that YAML 1.1 may have read as a boolean (``no`` without quotes)."""
    return "no" if value is False else value


def warmup(value: Any, current: Any) -> Any:
    """Conversion of ``warmup_steps``; a whole number written as a float (``100.0``) is taken as steps."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def seconds(value: Any, current: Any) -> Any:
    """Conversion of a time: ``1h30m``, ``90m``, ``45s`` or a number of seconds; anything else stays as it is."""
    if not isinstance(value, str):
        return value
    parts = re.fullmatch(r"(?:([\d.]+)d)?(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s?)?", value.strip().lower())
    if parts is None or not value.strip():
        return value
    try:
        return sum(float(part or 0) * unit for part, unit in zip(parts.groups(), (86400, 3600, 60, 1), strict=True))
    except ValueError:
        return value


SPELLINGS: dict[str, Spelling] = {
    # model
    "model": Spelling("model.model_name_or_path"),
    "model_name": Spelling("model.model_name_or_path"),
    "base_model": Spelling("model.model_name_or_path"),
    "torch_dtype": Spelling("model.dtype", dtype_name, str | None),
    "dtype": Spelling("model.dtype", dtype_name, str | None),
    "attention": Spelling("model.attn_implementation"),
    # adapter
    "lora_rank": Spelling("adapter.lora_r"),
    "target_modules": Spelling("adapter.target_modules", modules),
    "lora_target_modules": Spelling("adapter.target_modules", modules),
    "exclude_modules": Spelling("adapter.exclude_modules", modules),
    "target_parameters": Spelling("adapter.target_parameters", modules),
    "llm_int8_skip_modules": Spelling("quantization.llm_int8_skip_modules", modules),
    "rank_pattern": Spelling("adapter.rank_pattern", unset_is_empty),
    "alpha_pattern": Spelling("adapter.alpha_pattern", unset_is_empty),
    # data
    "train_file": Spelling("data.train_data"),
    "data_file": Spelling("data.train_data"),
    "dataset_name": Spelling("data.train_data"),
    "eval_file": Spelling("data.eval_data"),
    "validation_file": Spelling("data.eval_data"),
    "dataset_config": Spelling("data.subset"),
    "max_seq_length": Spelling("data.max_length"),
    "max_seq_len": Spelling("data.max_length"),
    "max_sequence_len": Spelling("data.max_length"),
    "sequence_len": Spelling("data.max_length"),
    "cutoff_len": Spelling("data.max_length"),
    "chat_template": Spelling("data.template"),
    "max_samples": Spelling("data.limit"),
    "train_on_inputs": Spelling("data.loss_on", choice("all", "completion"), bool | None, part="switch"),
    "completion_only_loss": Spelling("data.loss_on", choice("completion", "all"), bool | None, part="switch"),
    "assistant_only_loss": Spelling("data.loss_on", choice("assistant", "completion"), bool | None, part="switch"),
    "max_train_samples": Spelling("data.limit"),
    "max_eval_samples": Spelling("data.eval_limit"),
    # training
    "batch_size": Spelling("training.per_device_train_batch_size"),
    "train_batch_size": Spelling("training.per_device_train_batch_size"),
    "micro_batch_size": Spelling("training.per_device_train_batch_size"),
    "eval_batch_size": Spelling("training.per_device_eval_batch_size"),
    "grad_accumulation_steps": Spelling("training.gradient_accumulation_steps"),
    "num_epochs": Spelling("training.num_train_epochs"),
    "epochs": Spelling("training.num_train_epochs"),
    "lr": Spelling("training.learning_rate"),
    "lr_scheduler": Spelling("training.lr_scheduler_type"),
    "warmup_steps": Spelling("training.warmup_steps", warmup),
    "evaluation_strategy": Spelling("training.eval_strategy", epoch_or_steps, str),
    "eval_strategy": Spelling("training.eval_strategy", epoch_or_steps, str),
    "save_strategy": Spelling("training.save_strategy", epoch_or_steps, str),
    "packing": Spelling("training.batching", batching_when("packed"), bool, part="switch"),
    "use_packing": Spelling("training.batching", batching_when("packed"), bool, part="switch"),
    "padding_free": Spelling("training.batching", batching_when("unpadded"), bool, part="switch"),
    "group_by_length": Spelling("training.batching", batching_when("length_grouped"), bool, part="switch"),
    "max_grad_norm": Spelling("training.max_grad_norm", unset_is_zero, float | None),
    "optim_args": Spelling("training.optim_args", arguments_of_optimizer),
    "resume_from_checkpoint": Spelling("training.resume_from_checkpoint", newest_checkpoint, bool | str | None),
    "resume": Spelling("training.resume_from_checkpoint", newest_checkpoint, bool | str | None),
    "time_limit": Spelling("training.time_limit", seconds, str | float | None),
    # tracking
    "report_to": Spelling("tracking.report_to", one_or_many, str | list[str] | None),
    "wandb": Spelling("tracking.use_wandb"),
    "wandb_name": Spelling("tracking.run_name"),
    "wandb_run_name": Spelling("tracking.run_name"),
    # launch
    "gpu": Spelling("launch.gpu_id"),
    "deepspeed_config": Spelling("launch.deepspeed"),
    "nproc": Spelling("launch.num_processes"),
}


ANSWERED: dict[str, Spelling] = {
    name: Spelling("training.remove_unused_columns", answer(name), Any, part="switch") for name in (*ANSWERS, *ANY)
}
"""Names of other programs that change nothing here; a value that wants something is refused with the equivalent."""


def in_sections(homes: Mapping[str, tuple[str, ...]]) -> dict[str, Spelling]:
    """Every ``section.name`` of a dialect that has sections, by the common names.

    Args:
        homes: section of the dialect -> the schema's sections whose settings may stand in it.
    """
    table: dict[str, Spelling] = {}
    for section, inside in homes.items():
        of_schema = (path.split(".") for path in leaf_paths())
        table |= {f"{section}.{name}": Spelling(f"{home}.{name}") for home, name in of_schema if home in inside}
        table |= {f"{section}.{name}": one for name, one in SPELLINGS.items() if one.path.split(".")[0] in inside}
    return table


class NameTable:
    """Looks names up: a dialect's spellings first, then dotted paths, flat standard names and common spellings."""

    def __init__(self, dialect: Mapping[str, Spelling] | None = None) -> None:
        paths = leaf_paths()
        self._table: dict[str, Spelling] = {path: Spelling(path) for path in paths}
        self._table |= {path.partition(".")[2]: Spelling(path) for path in paths}
        self._table |= SPELLINGS
        for name, spelling in SPELLINGS.items():
            if spelling.path.partition(".")[2] == name:  # a standard name whose values need conversion
                self._table[spelling.path] = spelling
        self._table |= ANSWERED
        self._table |= dialect or {}

    def __contains__(self, name: str) -> bool:
        return name in self._table or self._entry(name) is not None

    def names(self) -> list[str]:
        """Every accepted spelling, sorted."""
        return sorted(self._table)

    @property
    def table(self) -> Mapping[str, Spelling]:
        """Every accepted spelling and what it stands for; entries of mappings (``columns.prompt``) are accepted too."""
        return self._table

    def find(self, name: str, where: str) -> Spelling:
        """The spelling called ``name``.

        Raises:
            ConfigError: no setting has that name; the error suggests the nearest ones.
        """
        found = self._table.get(name) or self._entry(name)
        if found is None:
            raise unknown_name(name, self._table, where)
        return found

    def _entry(self, name: str) -> Spelling | None:
        """The spelling of one entry of a mapping: ``columns.prompt``."""
        for above, dot, key in ((name[:end], ".", name[end + 1 :]) for end, one in enumerate(name) if one == "."):
            whole = self._table.get(above)
            if dot and key and whole is not None and is_mapping(whole.path) and whole.part is None:
                inner = typing.get_args(leaf_type(whole.path))[1]
                return Spelling(whole.path, entry(key), inner, part="entry")
        return None


def is_mapping(path: str) -> bool:
    """Whether a setting is a mapping of names to values."""
    return typing.get_origin(leaf_type(path)) is dict


class UnknownName(ConfigError):
    """A name that no setting has; ``meant`` are the paths of those that may have been meant."""

    def __init__(self, name: str, where: str, remedy: str, meant: frozenset[str] = frozenset()) -> None:
        self.meant = meant
        super().__init__(f"unknown setting {name!r}", where=where, remedy=remedy)


def unknown_name(name: str, known: Mapping[str, Spelling | None], where: str) -> UnknownName:
    """The error for a name that no setting has, with the nearest known names."""
    last = name.rpartition(".")[2]
    plain = [one for one in known if "." in name or "." not in one]  # a short name is not meant as a long one as well
    remedy = did_you_mean(name, plain, did_you_mean(last, known, named("see `tunesmith config --list`")))
    meant = frozenset(spelling.path for one, spelling in known.items() if spelling and f"{one!r}" in remedy)
    return UnknownName(name, where, remedy, meant)
