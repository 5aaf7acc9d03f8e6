"""How several processes share a run's work: by the settings, a DeepSpeed file, or what accelerate was told.

It reads small files and the environment. It loads no library, so contradictions are found before anything heavy is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tunesmith import assets
from tunesmith.config.files import read_bytes, read_json
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ConfigError

STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
FSDP_SETTINGS: dict[str, str] = {
    "offload_params": "cpu_offload",
    "transformer_cls_to_wrap": "transformer_layer_cls_to_wrap",
    **{
        name: name
        for name in (
            "activation_checkpointing", "auto_wrap_policy", "cpu_ram_efficient_loading", "min_num_params",
            "reshard_after_forward", "state_dict_type", "transformer_layer_cls_to_wrap",
        )
    },
}  # fmt: skip
"""Settings of accelerate that FSDP2 has, and the trainer's names for them; the others are FSDP1's."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """What is in force.

    Attributes:
        name: ``ddp`` (each process holds everything), ``fsdp2`` or ``zero3`` (weights, gradients and states are
            spread), ``zero2`` (gradients and states), ``zero1`` (states), ``zero0`` (DeepSpeed that spreads nothing).
        origin: who said so.
        deepspeed: DeepSpeed's configuration, empty without DeepSpeed.
        fsdp: settings of FSDP2 that somebody wrote, by the trainer's names.
    """

    name: str
    origin: str
    deepspeed: dict[str, Any] = field(default_factory=dict)
    fsdp: dict[str, Any] = field(default_factory=dict)

    @property
    def uses_deepspeed(self) -> bool:
        return self.name.startswith("zero")

    @property
    def shards_parameters(self) -> bool:
        """Whether no process holds the whole model."""
        return self.name in ("fsdp2", "zero3")

    def offloads(self, what: str, to: str | None = None) -> bool:
        """Whether ``optimizer`` (states) or ``param`` (weights) lie outside of the device; ``to``: there (``cpu``)."""
        if self.name == "fsdp2":
            return bool(self.fsdp.get("cpu_offload")) and to in (None, "cpu")
        section = self.deepspeed.get("zero_optimization", {}).get(f"offload_{what}") or {}
        device = str(section.get("device", "none"))
        return device != "none" if to is None else device == to


ALONE = Strategy("ddp", "default")
"""That of one process, and of several that nobody told how to share."""


def named(name: str, nvme_path: str | None = None) -> Strategy:
    """A strategy, or a DeepSpeed configuration that comes with tunesmith, by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name in ("ddp", "fsdp2"):
        return Strategy(name, name)
    if assets.deepspeed(name) is None:
        known = ", ".join(dict.fromkeys([*STRATEGIES, *assets.deepspeed_names()]))
        raise ConfigError(f"there is no strategy {name!r}", remedy=f"known are {known}")
    return _by_deepspeed(read_deepspeed(name, name, nvme_path), name)


def chosen(resolved: Resolved, environment: Mapping[str, str] = os.environ) -> Strategy:
    """The strategy of a run: what the settings, the files they name and accelerate's launcher say, if they agree.

    To be asked before training sets up its processes: accelerate then writes into the environment itself.

    Raises:
        ConfigError: two of them say different things, or one of them says something that cannot be done.
    """
    strategy = _agreed(resolved, [said for said in _said(resolved, environment) if said is not None])
    if strategy.name == "fsdp2":
        _refuse_what_fsdp2_cannot_spread(resolved)
    if strategy.name in ("zero1", "zero2", "zero3") and resolved.config.training.optim == "adafactor":
        raise ConfigError(
            f"adafactor works on rows and columns of matrices, which {strategy.name} lays out flat",
            where=resolved.origins["training.optim"],
            remedy="set optim adamw_torch, or the strategy ddp",
        )
    return strategy


def _refuse_what_fsdp2_cannot_spread(resolved: Resolved) -> None:
    optim = resolved.config.training.optim
    if resolved.config.quantization.load_in_8bit:
        raise ConfigError(
            "fsdp2 cannot spread weights in 8 bits (bitsandbytes keeps their scales beside them)",
            where=resolved.origins["quantization.load_in_8bit"],
            remedy="set load_in_4bit, or the strategy ddp, zero2 or zero3",
        )
    if optim == "adafactor" or any(part in optim for part in ("bnb", "8bit", "paged", "lion", "ademamix")):
        raise ConfigError(
            f"the optimizer {optim} cannot work on weights that fsdp2 spread",
            where=resolved.origins["training.optim"],
            remedy="set optim adamw_torch, or the strategy ddp or zero2",
        )


def _agreed(resolved: Resolved, said: list[Strategy]) -> Strategy:
    if not said:
        return ALONE
    first = said[0]
    for other in said[1:]:
        if other.name != first.name:
            raise ConfigError(
                f"the strategy is {first.name} here and {other.name} by {other.origin}",
                where=first.origin,
                remedy="say it in one place only",
            )
        if other.deepspeed != first.deepspeed and first.origin != resolved.origins["launch.strategy"]:
            raise ConfigError(
                f"another DeepSpeed configuration comes from {other.origin}",
                where=first.origin,
                remedy="give one of them",
            )
    # launch.strategy is a name; a file or a launcher that agrees brings settings as well
    return next((strategy for strategy in said if strategy.origin != resolved.origins["launch.strategy"]), first)


def _said(resolved: Resolved, environment: Mapping[str, str]) -> list[Strategy | None]:
    launch, origins = resolved.config.launch, resolved.origins
    found: list[Strategy | None] = []
    if launch.strategy is not None:
        strategy = named(launch.strategy)
        found.append(Strategy(strategy.name, origins["launch.strategy"], strategy.deepspeed))
    if launch.deepspeed is not None:
        origin = origins["launch.deepspeed"]
        found.append(_by_deepspeed(read_deepspeed(launch.deepspeed, origin, launch.nvme_path), launch.deepspeed))
    if launch.accelerate_config is not None:
        content = read_accelerate(launch.accelerate_config, origins["launch.accelerate_config"])
        found.append(_by_accelerate_file(content, launch.accelerate_config))
    found.append(_by_accelerate_launcher(environment))
    return found


def read_deepspeed(name: str, origin: str, nvme_path: str | None = None) -> dict[str, Any]:
    """A DeepSpeed configuration: a JSON file, or one that comes with tunesmith.

    JSON knows no variables: in a configuration of ours ``nvme_path`` is ``auto``, which becomes ``launch.nvme_path``.

    Raises:
        ConfigError: it cannot be read, is no JSON object, or needs an ``nvme_path`` that is not given.
    """
    path = assets.deepspeed(name) or Path(name)
    try:
        content = read_json(path)
    except OSError as error:
        raise ConfigError(
            f"cannot read the DeepSpeed file {name}: {error.strerror or error}",
            where=origin,
            remedy=f"name a file, or one of {', '.join(assets.deepspeed_names())}",
        ) from error
    except ValueError as error:
        raise ConfigError(f"the DeepSpeed file is not valid JSON: {error}", where=name) from None
    if not isinstance(content, dict):
        raise ConfigError("the DeepSpeed file holds no JSON object", where=name)
    for key in ("offload_optimizer", "offload_param"):
        section = at(content, f"zero_optimization.{key}")
        if isinstance(section, dict) and section.get("nvme_path") == "auto":
            if nvme_path is None:
                raise ConfigError(f"{key} goes to an NVMe disk, and nothing says where", where=origin,
                                  remedy="set launch.nvme_path to a folder on that disk")  # fmt: skip
            section["nvme_path"] = nvme_path
    return content


def read_accelerate(path: str, origin: str) -> dict[str, Any]:
    """A file that ``accelerate config`` wrote, YAML or JSON.

    Raises:
        ConfigError: it cannot be read, or is no such file.
    """
    try:
        content = yaml.safe_load(read_bytes(path).decode("utf-8"))
    except OSError as error:
        what = f"cannot read the accelerate file {path}: {error.strerror or error}"
        raise ConfigError(what, where=origin) from error
    except (yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"the accelerate file is not valid YAML: {error}", where=path) from None
    if not isinstance(content, dict) or "distributed_type" not in content:
        raise ConfigError("is no configuration of accelerate: distributed_type is missing", where=path)
    return content


def mixed_precision(resolved: Resolved, environment: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """The dtype that accelerate was told (``bf16``, ``fp16``) and who told it; its ``no`` says nothing.

    Raises:
        ConfigError: the accelerate file cannot be read.
    """
    said = [(environment.get("ACCELERATE_MIXED_PRECISION"), "accelerate launch (ACCELERATE_MIXED_PRECISION)")]
    file = resolved.config.launch.accelerate_config
    if file is not None:
        content = read_accelerate(file, resolved.origins["launch.accelerate_config"])
        said.append((content.get("mixed_precision"), file))
    return next(((str(value), origin) for value, origin in said if str(value).lower() in ("bf16", "fp16")), None)


def at(content: Any, key: str) -> Any:
    """The value at a dotted key of nested dicts, or None."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _by_deepspeed(content: dict[str, Any], origin: str) -> Strategy:
    stage = at(content, "zero_optimization.stage") or 0
    if stage not in (0, 1, 2, 3):
        raise ConfigError(f"zero_optimization.stage is {stage!r}", where=origin, remedy="write 0, 1, 2 or 3")
    return Strategy(f"zero{stage}", origin, content)


def _by_accelerate_file(content: dict[str, Any], path: str) -> Strategy | None:
    kind = str(content["distributed_type"]).upper()
    if kind == "DEEPSPEED":
        return _by_accelerate_deepspeed(content.get("deepspeed_config") or {}, path)
    if kind == "FSDP":
        written = content.get("fsdp_config") or {}
        return _by_fsdp({key.removeprefix("fsdp_"): value for key, value in written.items()}, path)
    if kind in ("NO", "MULTI_CPU", "MULTI_GPU"):
        return None if kind == "NO" else Strategy("ddp", path)
    raise ConfigError(
        f"distributed_type is {kind}", where=path, remedy="NO, MULTI_CPU, MULTI_GPU, FSDP and DEEPSPEED can be used"
    )


def _by_accelerate_launcher(environment: Mapping[str, str]) -> Strategy | None:
    """What ``accelerate launch`` tells its processes; that they are copies of each other (ddp) it does not say."""
    if environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return _by_fsdp(_prefixed(environment, "FSDP_"), "accelerate launch (ACCELERATE_USE_FSDP)")
    if environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        written = _prefixed(environment, "ACCELERATE_") | _prefixed(environment, "ACCELERATE_DEEPSPEED_")
        written["deepspeed_config_file"] = written.get("config_file")
        return _by_accelerate_deepspeed(written, "accelerate launch (ACCELERATE_USE_DEEPSPEED)")
    if environment.get("ACCELERATE_USE_MEGATRON_LM", "false").lower() == "true":
        raise ConfigError("Megatron-LM cannot be used", where="accelerate launch", remedy="choose FSDP or DEEPSPEED")
    return None


def _prefixed(environment: Mapping[str, str], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix).lower(): value for key, value in environment.items() if key.startswith(prefix)}


def _by_fsdp(written: dict[str, Any], origin: str) -> Strategy:
    if str(written.get("version", 1)) != "2":
        raise ConfigError(
            f"FSDP's version is {written.get('version', 1)}, and only version 2 is supported",
            where=origin,
            remedy="write fsdp_version: 2 (accelerate to-fsdp2 converts the file)",
        )
    values = {key: yaml.safe_load(str(value)) for key, value in written.items()}  # the launcher's are text
    return Strategy("fsdp2", origin, fsdp={FSDP_SETTINGS[key]: values[key] for key in values if key in FSDP_SETTINGS})


def _by_accelerate_deepspeed(written: dict[str, Any], origin: str) -> Strategy:
    """accelerate's short form of a DeepSpeed configuration, or the file that it names."""
    if written.get("deepspeed_config_file"):
        file = str(written["deepspeed_config_file"])
        return _by_deepspeed(read_deepspeed(file, origin), file)
    values = {key: yaml.safe_load(str(value)) for key, value in written.items()}  # the launcher's are text
    zero: dict[str, Any] = {"stage": values.get("zero_stage", 2)}
    for part in ("optimizer", "param"):
        device = values.get(f"offload_{part}_device") or "none"
        if device != "none":
            zero[f"offload_{part}"] = {"device": device, "nvme_path": values.get(f"offload_{part}_nvme_path")}
    content = read_deepspeed("zero2", origin) | {"zero_optimization": zero}
    content |= {key: values[key] for key in ("gradient_accumulation_steps", "gradient_clipping") if values.get(key)}
    return _by_deepspeed(content, origin)
