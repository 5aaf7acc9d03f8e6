"""An adapter folded into its base: one model, in one number format, with the measured distance from what was trained.

It merges in memory and judges nothing; the distance is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tunesmith.errors import ModelError, StorageError
from tunesmith.export import inference
from tunesmith.export.save import save_model
from tunesmith.model import source
from tunesmith.model.adapters import ADAPTER_CONFIG, load_adapter_strictly
from tunesmith.model.fingerprint import fingerprint
from tunesmith.model.load import Inference, load_for_inference
from tunesmith.model.quantize import dequantized_weights, is_quantized

BaseKind = Literal["trained", "original"]


@dataclass(frozen=True, slots=True)
class Drift:
    """How far two models' answers are apart, over all positions of all prompts.

    Attributes:
        max_difference: largest absolute difference of a logit.
        mean_difference: mean absolute difference of a logit.
        argmax_agreement: share of positions at which both prefer the same token.
        num_positions: positions compared.
    """

    max_difference: float
    mean_difference: float
    argmax_agreement: float
    num_positions: int


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged model on disk.

    Attributes:
        path: its folder.
        base: what the adapter was folded into.
        dtype: number format of the weights.
        drift: distance of the model in ``path`` from adapter and base as trained; None where no prompts were given.
    """

    path: Path
    base: BaseKind
    dtype: str
    drift: Drift | None


def merge(
    run: str | Path,
    output_dir: str | Path,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
    base: BaseKind = "trained",
    base_model: str | None = None,
    prompts: Sequence[Sequence[int]] = (),
) -> Merged:
    """Fold a run's adapter into its base and save the result as a plain model.

    A base in few bits differs from its original, and the adapter learned on the former. So ``trained`` folds into the
    weights that were really multiplied with: dequantized, or rounded to the run's number format. ``original`` folds
    into the published weights, which no one trained on.

    Args:
        run: run or adapter folder.
        output_dir: a new folder for the merged model.
        dtype: number format of the merged weights.
        base_model: another place of the base.
        prompts: token ids, on which the distance is measured, with the model read back from ``output_dir``.

    Raises:
        ModelError: the folder holds no adapter, or adapter and base do not belong together.
        StorageError: ``output_dir`` is not empty or cannot be written.
    """
    folder, target = Path(run), Path(output_dir)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ModelError("holds no adapter to merge", where=str(run))
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise StorageError("is there already", where=str(target), remedy="name a new folder for the merged model")
    trained = load_for_inference(folder, base=base_model, device_map="cpu")
    reference = [logits(trained, prompt) for prompt in prompts]
    merged = _fold(trained, folder, base).to(getattr(torch, dtype))
    merged.config.dtype = getattr(torch, dtype)
    tokenizer = AutoTokenizer.from_pretrained(trained.tokenizer_folder)
    save_model(merged, tokenizer, target, trained.resolved.config.model, contract=inference.read(folder))
    drift = None
    if prompts:
        reopened = AutoModelForCausalLM.from_pretrained(target, dtype=dtype).eval()
        drift = measure(reference, [_forward(reopened, prompt) for prompt in prompts])
    return Merged(target, base, dtype, drift)


def measure(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> Drift:
    """The distance between two models' logits, each [positions, vocabulary], prompt by prompt."""
    one, other = torch.cat(list(first)), torch.cat(list(second))
    difference = (one - other).abs()
    same = one.argmax(-1) == other.argmax(-1)
    return Drift(difference.max().item(), difference.mean().item(), same.float().mean().item(), len(same))


def logits(inference: Inference, prompt: Sequence[int]) -> torch.Tensor:
    """Logits [positions, vocabulary] in float32, computed as in training."""
    with inference.precision.autocast(inference.model.device):
        return _forward(inference.model, prompt)


@torch.no_grad()
def _forward(model: PreTrainedModel | PeftModel, prompt: Sequence[int]) -> torch.Tensor:
    output: torch.Tensor = model(input_ids=torch.tensor([list(prompt)], device=model.device)).logits[0]
    return output.float().cpu()


def _fold(trained: Inference, folder: Path, base: BaseKind) -> PreTrainedModel:
    """The base in float32 with the adapter folded in."""
    resolved = trained.resolved
    section = resolved.config.model
    located = source.locate(section.model_name_or_path, section.revision)
    plain: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        located,
        dtype=torch.float32 if base == "original" else trained.held_in,
        trust_remote_code=source.may_run_code(section, located),
        use_safetensors=True,
        **({"revision": section.revision} if section.revision and not Path(located).is_dir() else {}),
    )
    plain = plain.float()
    if base == "trained" and is_quantized(resolved.config.quantization):
        _take_dequantized(plain, trained.model)
    files = source.local_folder(located, section.revision)
    adapted = load_adapter_strictly(plain, folder, fingerprint(files))
    merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    _untie_if_different(merged)
    merged.config.use_cache = True
    return merged


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
