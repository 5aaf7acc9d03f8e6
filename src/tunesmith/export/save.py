"""A trained model into its folder: weights, tokenizer, generation defaults; opened again before it counts.

It writes safetensors and JSON only, no pickles, and neither the record of the run nor the model card.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from tunesmith import assets
from tunesmith.config.schema import ModelSection
from tunesmith.errors import StorageError
from tunesmith.export import inference
from tunesmith.export.checkpoint import open_files
from tunesmith.export.inference import Contract
from tunesmith.export.portable import write_old_names
from tunesmith.model import source
from tunesmith.model.adapter_file import ADAPTER_WEIGHTS, CHECKSUM_KEY, FINGERPRINT_KEY, checksum, read_adapter
from tunesmith.model.adapters import adapter_tensors, portable_tensors
from tunesmith.model.cache_setting import cache_as_in_base
from tunesmith.model.fingerprint import fingerprint
from tunesmith.model.headers import INDEX, few, file_headers
from tunesmith.model.internals import names_that_peft_loses
from tunesmith.model.source import ADAPTER_CONFIG
from tunesmith.notices import notify
from tunesmith.report.folder import read_json, sync_folder, write_json

STAGE = ".saving"


def save_model(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    base: ModelSection,
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    contract: Contract | None = None,
    max_shard_size: str | None = None,
) -> list[str]:
    """Save an adapter, or the whole model where there is none, with everything that is needed to use it.

    The files are written beside their place, opened again, compared with the model, and then put in place one by one,
    the weights last; so a folder holds a model that was read back, or the one it held before.

    ``adapter_config.json`` names the base as it was given; ``nano-mistral`` becomes the folder inside the package, so
    that PEFT alone can open the adapter on this machine (``run.json`` keeps the name). The base's fingerprint stands in
    the metadata of the adapter's weights. Adapters that took their start out of the base (PiSSA, OLoRA) are saved in
    the form that fits the untouched base. A checksum over weights and configuration stands beside the fingerprint.

    Args:
        output_dir: the run folder, or any other.
        base: the section that names the base.
        state_dict: the model's gathered weights, where it is spread over several processes.
        contract: how the model wants to be asked.
        max_shard_size: largest file of a whole model's weights (``2GB``); unset, the library's default.

    Returns:
        The names of the written files.

    Raises:
        StorageError: the folder cannot be written, or what was read back differs from the model.
    """
    target = Path(output_dir)
    stage = target / STAGE
    try:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        if isinstance(model, PeftModel):
            expected = _write_adapter(model, stage, base, state_dict)
        else:
            expected = _write_full(model, stage, state_dict, max_shard_size) | carry_along(base, stage)
        write_generation_defaults(getattr(model, "generation_config", None), stage)
        tokenizer.save_pretrained(stage)
        write_old_names(stage)
        if contract is not None:
            inference.write(stage, contract)
        _verify(stage, expected)
        written = _put_in_place(stage, target)
    except OSError as error:
        raise StorageError(
            f"the model cannot be saved ({error.strerror or error})",
            where=str(target),
            remedy="free space or name a writable folder",
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return written


def loadable_base(name: str) -> str:
    """The base's name as ``adapter_config.json`` needs it: as given, or the folder of the model inside the package."""
    embedded = assets.embedded_model(name)
    return name if embedded is None else str(embedded)


def _write_adapter(
    model: PeftModel, stage: Path, base: ModelSection, state_dict: Mapping[str, torch.Tensor] | None
) -> dict[str, torch.Tensor]:
    tensors = _write_portable(model, adapter_tensors(model, state_dict), stage, base)
    lost = names_that_peft_loses(model, tensors)
    if lost:
        notify(
            f"PEFT by itself would lose {len(lost)} tensors of this adapter ({few(lost)}), whose names it takes for "
            "others; tunesmith opens it whole, and merged it is like any model"
        )
    return tensors


def make_portable(model: Any, folder: Path, base: ModelSection) -> None:
    """Write the adapter of a checkpoint anew so that it fits the untouched base, where it does not (PiSSA, OLoRA), and
    its configuration in an order that is the same in every process.

    Args:
        model: the model in training, which still knows what its adapter began with.
        folder: the checkpoint, with the adapter's weights as they are trained.
        base: the section that names the base.
    """
    if getattr(model, "initial_adapter", None) is not None:
        _write_portable(model, read_adapter(folder).tensors, folder, base)
    elif (folder / ADAPTER_CONFIG).is_file():
        values = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        sets = {name for name, value in model.peft_config["default"].to_dict().items() if isinstance(value, set)}
        values = {name: sorted(value) if name in sets and value else value for name, value in values.items()}
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        (folder / ADAPTER_CONFIG).write_text(text, encoding="utf-8")


def _write_portable(
    model: PeftModel, trained: dict[str, torch.Tensor], stage: Path, base: ModelSection
) -> dict[str, torch.Tensor]:
    tensors, config = portable_tensors(model, trained)
    values = config.to_dict() | {
        "base_model_name_or_path": loadable_base(base.model_name_or_path),
        "revision": base.revision,
        "inference_mode": True,
    }
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    (stage / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
    folder = source.local_folder(source.locate(base.model_name_or_path, base.revision), base.revision)
    marks = {FINGERPRINT_KEY: fingerprint(folder), CHECKSUM_KEY: checksum(tensors, json.loads(text))}
    save_file(tensors, stage / ADAPTER_WEIGHTS, metadata={"format": "pt"} | marks)
    _sort_metadata(stage / ADAPTER_WEIGHTS)
    return tensors


def _sort_metadata(path: Path) -> None:
    """safetensors writes its metadata in a random order; sorted, equal adapters are equal files."""
    with path.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":")).encode()
        if len(text) > size:
            raise StorageError("the header cannot be rewritten in place", where=str(path))
        stream.seek(8)
        stream.write(text.ljust(size))


def _write_full(
    model: PreTrainedModel, stage: Path, state_dict: Mapping[str, torch.Tensor] | None, max_shard_size: str | None
) -> dict[str, torch.Tensor]:
    size: dict[str, Any] = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    with cache_as_in_base(model):
        model.save_pretrained(stage, state_dict=None if state_dict is None else dict(state_dict), **size)
    # The library writes some architectures under the names that their publishers gave the weights.
    return dict(revert_weight_conversion(model, dict(state_dict if state_dict is not None else model.state_dict())))


def carry_along(base: ModelSection, stage: Path) -> dict[str, torch.Tensor]:
    """Write the base's tensors that have no place in the model (multi-token prediction) beside a model trained whole.

    The library reads past them, so training neither needs nor changes them; who serves the model does.

    Returns:
        What was written, by name.
    """
    if base.model_class is not None:
        return {}
    files = open_files(base)
    extra = {name: files.read(name) for name in files.carried}
    if not extra:
        return {}
    notify(f"{len(extra)} tensors that the model does not use were carried along untrained ({few(extra)})")
    shards = sorted(stage.glob("model*.safetensors"))
    names = [f"model-{number:05d}-of-{len(shards) + 1:05d}.safetensors" for number in range(1, len(shards) + 2)]
    for shard, name in zip(shards, names, strict=False):
        shard.rename(stage / name)
    save_file(extra, stage / names[-1], metadata={"format": "pt"})
    found = {tensor: name for name in names for tensor in file_headers(stage / name)}
    index = read_json(stage / INDEX) if (stage / INDEX).is_file() else {"metadata": {}}
    index["metadata"]["total_size"] = sum((stage / name).stat().st_size for name in names)
    write_json(stage / INDEX, index | {"weight_map": dict(sorted(found.items()))})
    return extra


def write_generation_defaults(defaults: GenerationConfig | None, folder: Path) -> None:
    """Write them as they are; saving through the library would refuse some that published models carry."""
    if defaults is not None:
        (folder / "generation_config.json").write_text(defaults.to_json_string(), encoding="utf-8")


def _verify(stage: Path, expected: Mapping[str, torch.Tensor]) -> None:
    """Open every saved tensor and compare it with the model's: name, shape, type, value, and that it is finite."""
    found: set[str] = set()
    for file in sorted(stage.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                tensor = tensors.get_tensor(name)
                found.add(name)
                if name not in expected:
                    raise StorageError(f"{name} was written and is not in the model", where=str(file))
                if tensor.numel() == 0:
                    raise StorageError(f"{name} is empty: its pieces were not gathered", where=str(file))
                original = expected[name].detach().to("cpu")
                if tensor.shape != original.shape or tensor.dtype != original.dtype:
                    raise StorageError(f"{name} was read back as {tensor.dtype} {tuple(tensor.shape)}", where=str(file))
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise StorageError(f"{name} holds values that are not finite", where=str(file))
                if not torch.equal(tensor, original):
                    raise StorageError(f"{name} was read back with other values", where=str(file))
    # A tied weight is one tensor under several names, and is written under one of them.
    written = {expected[name].data_ptr() for name in found}
    missing = sorted(
        name for name, tensor in expected.items() if name not in found and tensor.data_ptr() not in written
    )
    if missing or not found:
        raise StorageError(f"{len(missing)} tensors were not written ({', '.join(missing[:3])})", where=str(stage))


def _put_in_place(stage: Path, target: Path) -> list[str]:
    files = sorted(path for path in stage.iterdir() if path.is_file())
    files.sort(key=lambda path: path.suffix == ".safetensors")
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        file.chmod(file_mode())  # safetensors makes its files readable to their owner alone
        file.replace(target / file.name)
    sync_folder(target)
    return [file.name for file in files]


def file_mode() -> int:
    """The mode that this process's ordinary files get."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
