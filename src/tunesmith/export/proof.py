"""Whether a merged model is the model that was trained: both answer the same prompts, the merged one in a new process.

Two comparisons are made, on the prompts and on what the run's model answers to them:

- *weights*: adapter on base against merged model, both multiplied in float32 with the weights that their bits stand
  for. What differs here comes from merging and from rounding the merged weights; the verdict rests on it.
- *use*: the run's model in the arithmetic it was trained in against the merged model in its own. int8 layers round
  their inputs as well, and 16-bit arithmetic rounds every step, so this differs where no weight does; it is told, and
  only its being finite is judged.

It knows no data and no settings: prompts come as token ids. Run as a module, it is the new process.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from tunesmith.errors import StorageError

Comparison = Literal["weights", "use"]
PROOF = "proof.json"
MAX_POSITIONS = 256
"""The last positions of each prompt with its answer are compared; logits of more would fill the disk."""
_QUESTIONS = "questions.json"
_RESULT = "result.json"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far the weights' answers may be apart.

    Attributes:
        relative_difference: largest difference of a logit, as a share of the largest logit (or of 1, if that is more).
        argmax_agreement: least share of positions at which both prefer the same token.
    """

    relative_difference: float
    argmax_agreement: float


TOLERANCES = {
    "float32": Tolerance(1e-5, 0.999),
    "float16": Tolerance(1e-2, 0.99),
    "bfloat16": Tolerance(5e-2, 0.95),
}
"""By the dtype of the merged weights. float32 holds them exactly; rounding to 11 and 8 bits moves logits."""


@dataclass(frozen=True)
class Questions:
    """What both models are asked.

    Attributes:
        prompts: token ids, special tokens included.
        sources: where each prompt comes from (``file:line``).
        kind: what they are, in words.
        stop_token_ids: tokens that end an answer.
        max_new_tokens: longest answer.
    """

    prompts: Sequence[Sequence[int]]
    sources: Sequence[str]
    kind: str
    stop_token_ids: Sequence[int]
    max_new_tokens: int = 128


@dataclass(frozen=True, slots=True)
class Drift:
    """How far two models' answers are apart, over all compared positions.

    Attributes:
        max_difference: largest absolute difference of a logit.
        mean_difference: mean absolute difference of a logit.
        relative_difference: the former, as a share of the largest logit (or of 1, if that is more).
        argmax_agreement: share of positions at which both prefer the same token.
        num_positions: positions compared.
    """

    max_difference: float
    mean_difference: float
    relative_difference: float
    argmax_agreement: float
    num_positions: int


class Tally:
    """Adds up differences prompt by prompt, so that only one prompt's logits are in memory."""

    def __init__(self) -> None:
        self.largest = self.total = self.scale = 0.0
        self.same = self.positions = self.logits = 0
        self.finite = True

    def add(self, one: torch.Tensor, other: torch.Tensor) -> None:
        """Take in the logits of two models, each [positions, vocabulary]."""
        difference = (one - other).abs()
        self.finite = self.finite and bool(torch.isfinite(difference).all())
        self.largest = max(self.largest, difference.max().item())
        self.scale = max(self.scale, one.abs().max().item(), 1.0)
        self.total += difference.sum(dtype=torch.float64).item()
        self.same += int((one.argmax(-1) == other.argmax(-1)).sum())
        self.positions += len(one)
        self.logits += one.numel()

    def drift(self) -> Drift:
        """The differences so far, of which there must be some; infinite where a logit was not finite."""
        if not self.finite:
            return Drift(math.inf, math.inf, math.inf, 0.0, self.positions)
        relative = self.largest / self.scale
        return Drift(self.largest, self.total / self.logits, relative, self.same / self.positions, self.positions)


@torch.no_grad()
def logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Logits [positions, vocabulary] of the last ``MAX_POSITIONS`` of a text, in float32 on the cpu."""
    input_ids = torch.tensor([list(ids)], device=model.device)
    output: torch.Tensor = model(input_ids=input_ids).logits[0, -MAX_POSITIONS:]
    return output.float().cpu()


@torch.no_grad()
def greedy(model: Any, questions: Questions) -> list[list[int]]:
    """The greedy answer to every prompt, its stop token included; all prompts in one batch, padded on the left."""
    width = max(map(len, questions.prompts))
    pad = questions.stop_token_ids[0]
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in questions.prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in questions.prompts])
    settings = GenerationConfig(
        max_new_tokens=questions.max_new_tokens,
        do_sample=False,
        eos_token_id=list(questions.stop_token_ids),
        pad_token_id=pad,
    )
    written = model.generate(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=settings
    )
    return [_until_stop(row, questions.stop_token_ids) for row in written[:, width:].tolist()]


def write_questions(work: Path, questions: Questions, answers: Sequence[Sequence[int]], *, own_code: bool) -> None:
    """Leave the questions and the run's answers in a folder for the new process.

    Args:
        own_code: whether the merged model's own code may run.
    """
    content = asdict(questions) | {"answers": answers, "own_code": own_code}
    (work / _QUESTIONS).write_text(json.dumps(content), encoding="utf-8")


def write_logits(work: Path, comparison: Comparison, model: torch.nn.Module, texts: Sequence[Sequence[int]]) -> None:
    """Leave the model's logits on every prompt with its answer in the folder, for one of the comparisons."""
    for number, ids in enumerate(texts):
        save_file({"logits": logits(model, ids)}, work / f"{comparison}-{number}.safetensors")


def compare(model_folder: Path, work: Path) -> dict[str, Any]:
    """Load the merged model as anyone would, and compare its answers with those left in ``work``.

    Returns:
        ``weights`` and ``use`` as in ``Drift``, and ``generation``: prompts, same_text (how many greedy answers are the
        same, token for token), stopped_share and stopped_share_of_the_run (answers that a stop token ended).
    """
    content = json.loads((work / _QUESTIONS).read_text(encoding="utf-8"))
    answers, own_code = content.pop("answers"), content.pop("own_code")
    questions = Questions(**content)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        model_folder, dtype="auto", use_safetensors=True, trust_remote_code=own_code
    ).eval()
    written = greedy(model, questions)
    texts = [[*prompt, *answer] for prompt, answer in zip(questions.prompts, answers, strict=True)]
    use = _drift(model, texts, work, "use")
    weights = _drift(model.float(), texts, work, "weights")
    stops = set(questions.stop_token_ids)
    return {
        "weights": asdict(weights),
        "use": asdict(use),
        "generation": {
            "prompts": len(written),
            "same_text": sum(one == other for one, other in zip(written, answers, strict=True)),
            "stopped_share": _stopped(written, stops),
            "stopped_share_of_the_run": _stopped(answers, stops),
        },
    }


def compare_in_a_new_process(model_folder: Path, work: Path) -> dict[str, Any]:
    """``compare`` by an interpreter that has never seen the run.

    Raises:
        StorageError: the merged model cannot be loaded there.
    """
    import tunesmith

    paths = [str(Path(tunesmith.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, "-m", "tunesmith.export.proof", str(model_folder), str(work)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise StorageError(f"the merged model cannot be used in a new process ({reason})", where=str(model_folder))
    result: dict[str, Any] = json.loads((work / _RESULT).read_text(encoding="utf-8"))
    return result


def problems_of(comparison: dict[str, Any], dtype: str) -> list[str]:
    """What is beyond the tolerance of a dtype; empty when the merged model is what was trained."""
    found, tolerance = comparison["weights"], TOLERANCES[dtype]
    problems = []
    if not found["relative_difference"] <= tolerance.relative_difference:
        problems.append(
            f"logits differ by up to {found['relative_difference']:.2g} of the largest logit "
            f"(tolerance {tolerance.relative_difference:g})"
        )
    if not found["argmax_agreement"] >= tolerance.argmax_agreement:
        problems.append(
            f"the preferred token is the same at {found['argmax_agreement']:.4f} of the positions "
            f"(tolerance {tolerance.argmax_agreement:g})"
        )
    if not math.isfinite(comparison["use"]["max_difference"]):
        problems.append(f"computing in {dtype} it answers with values that are not finite")
    return problems


def sha256_of_weights(folder: Path) -> dict[str, str]:
    """Name and sha256 of every safetensors file in a folder."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            found[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def _drift(model: PreTrainedModel, texts: Sequence[Sequence[int]], work: Path, comparison: Comparison) -> Drift:
    tally = Tally()
    for number, ids in enumerate(texts):
        with safe_open(work / f"{comparison}-{number}.safetensors", framework="pt") as file:
            tally.add(file.get_tensor("logits"), logits(model, ids))
    return tally.drift()


def _until_stop(ids: list[int], stops: Sequence[int]) -> list[int]:
    end = next((position for position, token in enumerate(ids) if token in stops), len(ids) - 1)
    return ids[: end + 1]


def _stopped(answers: Sequence[Sequence[int]], stops: set[int]) -> float:
    return sum(bool(answer) and answer[-1] in stops for answer in answers) / len(answers)


def _main(model_folder: str, work: str) -> None:
    result = compare(Path(model_folder), Path(work))
    (Path(work) / _RESULT).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
