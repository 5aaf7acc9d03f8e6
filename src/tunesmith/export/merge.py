"""An adapter folded into its base: one plain model in one dtype, proven to be what was trained.

The order is: look, ask the run's model, fold and prove tensor by tensor, write beside the place, ask the merged model
in a new process, judge, put in place. Folding stands in ``shards``, asking in ``asked``, judging in ``proof``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.dynamic_module_utils import custom_object_save

from tunesmith.config.resolve import NO_PERMISSIONS
from tunesmith.errors import ModelError, NumericsError, StorageError
from tunesmith.export import proof, shards
from tunesmith.export.asked import Asked, BaseKind, DTypeName, ask, give_memory_back
from tunesmith.export.card import run_folder_of, write_card
from tunesmith.export.checkpoint import Rounding, generation_defaults, open_base
from tunesmith.export.portable import write_old_names
from tunesmith.export.save import write_generation_defaults
from tunesmith.model.fingerprint import fingerprint
from tunesmith.model.load import ModelSpec, model_spec
from tunesmith.model.source import ADAPTER_CONFIG
from tunesmith.report.folder import check_new, write_json
from tunesmith.report.record import versions

MAX_SHARD_SIZE = "2GB"
COMPANIONS = ("generation_config.json", "inference.json")
"""Files beside the adapter that hold for the merged model as they are."""
PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
"""Files beside the base that say how it reads images and sound."""


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged model on disk.

    Attributes:
        path: its folder.
        base: what the adapter was folded into.
        dtype: dtype of the weights.
        proof: the content of ``proof.json``; None where nobody asked for a proof.
    """

    path: Path
    base: BaseKind
    dtype: DTypeName
    proof: dict[str, Any] | None


def merge(
    run: str | Path,
    output_dir: str | Path,
    *,
    questions: proof.Questions | None,
    dtype: DTypeName = "bfloat16",
    base: BaseKind = "trained",
    base_model: str | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
    permissions: Mapping[str, Any] = NO_PERMISSIONS,
) -> Merged:
    """Fold a run's adapter into its base and save the result as a plain model, if it is proven to be the same.

    A quantized base differs from its original, and the adapter learned on the former. So ``trained`` folds into the
    weights that were really multiplied with: dequantized, or rounded to the run's dtype. ``original`` folds
    into the published weights, which no one trained on.

    Args:
        run: run or adapter folder.
        output_dir: a new folder for the merged model; it appears when everything is written and proven.
        questions: what the proof asks; None leaves the proof out.
        dtype: dtype of the merged weights.
        base_model: another place of the base.
        max_shard_size: largest weights file.
        permissions: what today's command line permits, by path.

    Raises:
        ModelError: the folder holds no adapter, or adapter and base do not belong together.
        NumericsError: a merged weight is not base + update, or the merged model answers otherwise than the trained one.
        StorageError: ``output_dir`` is not empty or cannot be written.
    """
    folder, target = Path(run), Path(output_dir)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ModelError("holds no adapter to merge", where=str(run))
    check_new(target)
    how = model_spec(folder, base=base_model, permissions=permissions)
    with _stage(target) as stage:
        work = stage / ".proof"
        work.mkdir()
        asked = None if questions is None else ask(how, base, dtype, questions, work)
        ledger = write_merged(
            how,
            stage,
            dtype=dtype,
            base=base,
            max_shard_size=max_shard_size,
            held=asked.held if asked else None,
        )
        evidence = None
        if asked is not None:
            asked.held = None
            give_memory_back()
            evidence = _prove(how, stage, work, dtype, asked, ledger) | _circumstances(how, asked.questions, base)
            write_json(stage / proof.PROOF, evidence)
        shutil.rmtree(work)
        write_card(run_folder_of(folder), stage, "merged")
        if target.exists():
            target.rmdir()
        stage.replace(target)
    return Merged(target, base, dtype, evidence)


def write_merged(
    how: ModelSpec,
    stage: Path,
    *,
    dtype: DTypeName,
    base: BaseKind,
    max_shard_size: str,
    held: Rounding | None = None,
) -> shards.Ledger:
    """Write the merged model and its tokenizer into ``stage``, every tensor proven.

    Args:
        held: quantized weights as a loaded model holds them; they are rounded anew without it.

    Returns:
        What was proven.
    """
    tokenizer = AutoTokenizer.from_pretrained(how.tokenizer_folder, trust_remote_code=False)
    section = how.resolved.config.model
    files = open_base(how)
    try:
        fold = shards.fold(how, files, getattr(torch, dtype), original=base == "original", held=held)
        shards.write_shards(fold, stage, getattr(torch, dtype), max_shard_size)
        write_generation_defaults(generation_defaults(files, section.revision), stage)
        tokenizer.save_pretrained(stage)
        write_old_names(stage)
        _copy(files.folder, stage, PROCESSORS)
        if files.model.is_custom_code():
            configuration: Any = files.model.config
            custom_object_save(files.model, stage, config=configuration)
        _copy(how.folder, stage, COMPANIONS)
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror or error}", where=str(stage)) from error
    return fold.ledger


def _copy(folder: Path, stage: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, stage / name)


@contextmanager
def _stage(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that is gone afterwards, unless it took the target's place."""
    stage = target.absolute().with_name(f".{target.name}.merging")
    try:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror or error}", where=str(target)) from error
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _prove(
    how: ModelSpec, stage: Path, work: Path, dtype: DTypeName, asked: Asked, ledger: shards.Ledger
) -> dict[str, Any]:
    """What was proven of the model in ``stage``, tensor by tensor and in use.

    Raises:
        NumericsError: a file is not the one that was proven, or the model answers otherwise than is allowed.
    """
    sha256 = proof.sha256_of_weights(stage)
    use = proof.difference(asked.reading, proof.read_in_a_new_process(stage, work))
    limits = proof.allowed(asked.noise, dtype)
    problems = proof.problems_of(use, limits)
    if sha256 != ledger.sha256:
        problems.append("its files are not those that were proven while they were written")
    if problems:
        raise NumericsError(
            f"the merged model is not what was trained and is not kept: {', '.join(problems)}",
            where=str(how.folder),
            remedy="merge with --dtype float32, or keep using the adapter",
        )
    tensors = {name: value for name, value in asdict(ledger).items() if name != "sha256"}
    return {
        "verdict": "proven",
        "tensors": tensors | {"largest_error_is_in": f"units in the last place of {dtype}"},
        "use": asdict(use),
        "noise": asdict(asked.noise) | {"between": asked.between},
        "allowed": limits,
        "sha256": sha256,
        "versions": versions(),
    }


def _circumstances(how: ModelSpec, questions: proof.Questions, base: BaseKind) -> dict[str, Any]:
    """What was asked of which weights, for whoever reads the proof."""
    return {
        "weights_compared": f"{_described(how, base)}, plus the update in float32, against the merged weights",
        "prompts": {"kind": questions.kind, "sources": list(questions.sources)},
        "positions": f"the last {proof.MAX_POSITIONS} of each prompt with its answer",
        "reloaded": "in a new process",
        "base_fingerprint": fingerprint(how.base_folder()),
    }


def _described(how: ModelSpec, base: BaseKind) -> str:
    quantization = how.resolved.config.quantization
    if base == "original":
        return "the published base, on which the adapter was not trained"
    if quantization.load_in_4bit:
        return f"the {quantization.bnb_4bit_quant_type} base, dequantized"
    if quantization.load_in_8bit:
        return "the int8 base, dequantized"
    return f"the base held in {str(how.weight_dtype).removeprefix('torch.')}"
