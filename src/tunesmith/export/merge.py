"""An adapter folded into its base: one plain model in one dtype, proven to be what was trained.

The order is: look, ask the run's model, fold, write beside the place, ask the merged model in a new process, judge, put
in place. Folding shard by shard stands in ``shards``, asking and judging in ``proof``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tunesmith.config.permissions import permissions_of
from tunesmith.config.resolve import NO_PERMISSIONS
from tunesmith.errors import ModelError, NumericsError, StorageError
from tunesmith.export import proof, shards
from tunesmith.export.card import run_folder_of, write_card
from tunesmith.export.portable import write_old_names
from tunesmith.export.save import save_model, write_generation_defaults
from tunesmith.model import source
from tunesmith.model.adapter_config import ADAPTER_CONFIG
from tunesmith.model.adapters import load_adapter_strictly
from tunesmith.model.fingerprint import fingerprint
from tunesmith.model.load import ModelSpec, load_from_spec, model_spec
from tunesmith.model.precision import Precision
from tunesmith.model.quantize import dequantized_weights, is_quantized, use_dequantized_weights
from tunesmith.model.whole import open_checked
from tunesmith.notices import notify
from tunesmith.report.folder import write_json
from tunesmith.report.record import versions

BaseKind = Literal["trained", "original"]
DTypeName = Literal["float32", "bfloat16", "float16"]
MAX_SHARD_SIZE = "2GB"
COMPANIONS = ("generation_config.json", "inference.json")
"""Files beside the adapter that hold for the merged model as they are."""


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged model on disk.

    Attributes:
        path: its folder.
        base: what the adapter was folded into.
        dtype: dtype of the weights.
        in_memory: why the base was in memory as a whole; None where it was folded shard by shard.
        proof: the content of ``proof.json``; None where nobody asked for a proof.
    """

    path: Path
    base: BaseKind
    dtype: DTypeName
    in_memory: str | None
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
        NumericsError: the merged model is further from the trained one than ``proof.TOLERANCES`` allows.
        StorageError: ``output_dir`` is not empty or cannot be written.
    """
    folder, target = Path(run), Path(output_dir)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ModelError("holds no adapter to merge", where=str(run))
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise StorageError("is there already", where=str(target), remedy="name a new folder for the merged model")
    how = model_spec(folder, base=base_model, device_map="cpu", permissions=permissions)
    with _stage(target) as stage:
        work = stage / ".proof"
        work.mkdir()
        if questions is not None:
            ask(how, base, questions, work)
        in_memory = write_merged(how, stage, dtype=dtype, base=base, max_shard_size=max_shard_size)
        evidence = None
        if questions is not None:
            evidence = _prove(how, stage, work, dtype)
            folded = "shard by shard" if in_memory is None else f"in memory: {in_memory}"
            evidence |= _circumstances(how, questions, base) | {"folded": folded}
            write_json(stage / proof.PROOF, evidence)
        shutil.rmtree(work)
        write_card(run_folder_of(folder), stage, "merged")
        if target.exists():
            target.rmdir()
        stage.replace(target)
    return Merged(target, base, dtype, in_memory, evidence)


def ask(how: ModelSpec, base: BaseKind, questions: proof.Questions, work: Path) -> None:
    """Leave the answers of adapter and base in ``work``: as the run computes, and with the exact weights in float32."""
    trained = load_from_spec(how)
    with trained.precision.autocast("cpu"):
        answers = proof.greedy(trained.model, questions)
        texts = [[*prompt, *answer] for prompt, answer in zip(questions.prompts, answers, strict=True)]
        proof.write_logits(work, "use", trained.model, texts)
    if base == "original":
        del trained  # one model at a time
        trained = load_from_spec(_on_the_original(how))
    use_dequantized_weights(trained.model)
    proof.write_logits(work, "weights", trained.model, texts)
    section = how.resolved.config.model
    own_code = source.may_run_code(section, source.locate(section.model_name_or_path, section.revision))
    proof.write_questions(work, questions, answers, own_code=own_code)


def write_merged(
    how: ModelSpec, stage: Path, *, dtype: DTypeName, base: BaseKind, max_shard_size: str, in_memory: bool = False
) -> str | None:
    """Write the merged model and its tokenizer into ``stage``.

    Args:
        in_memory: hold the whole base in memory even where that is not needed; the files are the same.

    Returns:
        Why the base was held in memory as a whole; None where it was folded shard by shard.
    """
    tokenizer = AutoTokenizer.from_pretrained(how.tokenizer_folder, trust_remote_code=False)
    section = how.resolved.config.model
    shape = shards.open_base(how)
    fold, why_not = shards.fold(how, shape, original=base == "original")
    if in_memory or fold is None:
        if why_not is not None:
            notify(f"the base is merged in memory as a whole, because {why_not}")
        merged = fold_in_memory(how, base).to(getattr(torch, dtype))
        merged.config.dtype = getattr(torch, dtype)
        save_model(merged, tokenizer, stage, section, max_shard_size=max_shard_size)
    else:
        try:
            shards.write_shards(fold, stage, getattr(torch, dtype), max_shard_size)
            write_generation_defaults(shards.generation_defaults(shape, section.revision), stage)
            tokenizer.save_pretrained(stage)
            write_old_names(stage)
        except OSError as error:
            raise StorageError(f"cannot write: {error.strerror or error}", where=str(stage)) from error
    for name in COMPANIONS:
        if (how.folder / name).is_file():
            shutil.copyfile(how.folder / name, stage / name)
    return why_not


def fold_in_memory(how: ModelSpec, base: BaseKind) -> PreTrainedModel:
    """The whole base in float32 with the adapter folded in."""
    quantized = base == "trained" and is_quantized(how.resolved.config.quantization)
    section = how.resolved.config.model
    found = open_checked(section)
    plain: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        found.located,
        dtype=torch.float32 if base == "original" else how.weight_dtype,
        use_safetensors=True,
        **found.keywords,
    )
    plain = plain.float()
    if quantized:
        _take_dequantized(plain, load_from_spec(how).model)
    adapted = load_adapter_strictly(plain, how.folder, how.base_folder(), how.checksum)
    merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    _untie_if_different(merged)
    merged.config.use_cache = True
    return merged


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


def _prove(how: ModelSpec, stage: Path, work: Path, dtype: DTypeName) -> dict[str, Any]:
    """How far the model in ``stage`` is from the one whose answers are in ``work``.

    Raises:
        NumericsError: further than is tolerated.
    """
    comparison = proof.compare_in_a_new_process(stage, work)
    problems = proof.problems_of(comparison, dtype)
    if problems:
        raise NumericsError(
            f"the merged model is not what was trained and is not kept: {', '.join(problems)}",
            where=str(how.folder),
            remedy="merge with --dtype float32, or keep using the adapter",
        )
    return {
        "verdict": "within tolerance",
        "tolerance": {"of": "weights", "dtype": dtype} | asdict(proof.TOLERANCES[dtype]),
        "use_compared": f"the run's model computing in {_arithmetic(how)}, against the merged model in {dtype}",
        **comparison,
        "sha256": proof.sha256_of_weights(stage),
        "versions": versions(),
    }


def _circumstances(how: ModelSpec, questions: proof.Questions, base: BaseKind) -> dict[str, Any]:
    """What was asked of which weights, for whoever reads the proof."""
    return {
        "weights_compared": f"{_described(how, base)}, against the merged weights; all in float32",
        "prompts": {"kind": questions.kind, "sources": list(questions.sources)},
        "positions": f"the last {proof.MAX_POSITIONS} of each prompt with its answer",
        "reloaded": "in a new process, by plain transformers",
        "base_fingerprint": fingerprint(how.base_folder()),
    }


def _described(how: ModelSpec, base: BaseKind) -> str:
    quantization = how.resolved.config.quantization
    if base == "original":
        return "adapter on the original base, on which it was not trained"
    if quantization.load_in_4bit:
        return f"adapter on the {quantization.bnb_4bit_quant_type} weights, dequantized"
    if quantization.load_in_8bit:
        return "adapter on the int8 weights, dequantized; inputs not rounded"
    return f"adapter on the base held in {str(how.weight_dtype).removeprefix('torch.')}"


def _arithmetic(how: ModelSpec) -> str:
    return f"{how.precision.dtype}{', int8 layers' if how.resolved.config.quantization.load_in_8bit else ''}"


def _on_the_original(how: ModelSpec) -> ModelSpec:
    unquantized = model_spec(
        how.folder,
        base=how.resolved.config.model.model_name_or_path,
        device_map="cpu",
        quantized=False,
        permissions=permissions_of(how.resolved.values()),
    )
    return replace(unquantized, precision=Precision("float32", "the proof"), weight_dtype=torch.float32)


def _take_dequantized(plain: PreTrainedModel, trained: PreTrainedModel | PeftModel) -> None:
    quantized = trained.get_base_model() if isinstance(trained, PeftModel) else trained
    num_taken = 0
    with torch.no_grad():
        for name, weight in dequantized_weights(quantized):
            # adapters stand around the layers: "...q_proj.base_layer.weight" is the plain "...q_proj.weight"
            plain.get_parameter(name.replace(".base_layer.", ".")).copy_(weight.float())
            num_taken += 1
    if not num_taken:
        raise ModelError("the base was to be quantized and has no quantized layer", where=plain.name_or_path)


def _untie_if_different(model: PreTrainedModel) -> None:
    """Say in the configuration that head and embedding differ, where the adapter trained one of them alone."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if model.config.tie_word_embeddings and head is not None and head.weight is not embedding.weight:
        model.config.tie_word_embeddings = False
