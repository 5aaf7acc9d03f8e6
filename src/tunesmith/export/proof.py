"""Whether a merged model answers as what was trained: both read the same texts, the merged one in a new process.

That every weight is base + update is proven while it is written (``shards``). Here it is seen in use, which also shows
what no single weight can: a head that is tied no more, a configuration that means something else, a part that is lost.
The texts are held-out prompts with the greedy answer of the run's model. Compared are the log-probability of each of
their tokens, and whether a model would have given the same answer.

How far two right models may be apart depends on the model: where experts are close to each other, the last bit of a
number sends a token elsewhere. So the run's model is compared with itself first, in the arithmetic of training and in
that of the merged model (``noise``), and the merged model is judged by that.

It knows no data and no settings: prompts come as token ids. Run as a module, it is the new process.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from tunesmith.errors import StorageError
from tunesmith.export.layered import from_files
from tunesmith.model.digests import sha256_of_file
from tunesmith.model.internals import opener_of

PROOF = "proof.json"
MAX_POSITIONS = 256
"""The last tokens of each prompt with its answer are compared."""
LARGE_QUESTIONS = {"prompts": 4, "length": 28, "new_tokens": 1}
"""What a large model on the cpu is asked: a pass over its weights, of which each new token is one, costs more than many
more tokens would tell."""
TIMES_NOISE = 4.0
"""How many times as far as the run's model from itself the merged one may be."""
FLOORS = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 3e-2}
"""Mean differences of log-probabilities, by the dtype of the merged weights, which are always right: summing in another
order makes more than that of an architecture with a long state."""
_QUESTIONS = "questions.json"
_RESULT = "result.json"


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

    def for_large_models(self) -> Questions:
        """Fewer and shorter prompts, by their ends."""
        number, length = LARGE_QUESTIONS["prompts"], LARGE_QUESTIONS["length"]
        return replace(
            self,
            prompts=[list(prompt)[-length:] for prompt in self.prompts[:number]],
            sources=list(self.sources)[:number],
            max_new_tokens=min(self.max_new_tokens, LARGE_QUESTIONS["new_tokens"]),
        )


@dataclass(frozen=True)
class Text:
    """A prompt with the answer of the run's model, as token ids."""

    prompt: list[int]
    answer: list[int]

    @property
    def ids(self) -> list[int]:
        """All of it."""
        return [*self.prompt, *self.answer]


@dataclass(frozen=True)
class Reading:
    """What a model makes of each text: log-probabilities of its last tokens, and the answer it would have given."""

    logprobs: list[list[float]]
    answers: list[list[int]]


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two models' readings are apart.

    Attributes:
        mean_logprob_difference: mean absolute difference of a token's log-probability, in nats; infinite where one is
            no number.
        largest_logprob_difference: the largest.
        changed_answers: share of answers that are not the same, token for token.
        num_positions: tokens compared.
        num_answers: answers compared.
    """

    mean_logprob_difference: float
    largest_logprob_difference: float
    changed_answers: float
    num_positions: int
    num_answers: int


@torch.no_grad()
def read(model: Any, texts: Sequence[Text], device: torch.device | str = "cpu", *, at_once: bool = False) -> Reading:
    """Have a model read the texts, one by one or all at once, filled up behind their ends.

    Args:
        at_once: one pass over the weights for all texts; what stands behind a text cannot change it.
    """
    batches = [list(texts)] if at_once else [[text] for text in texts]
    found = [_of_logits(_logits(model, [text.ids for text in batch], device), batch) for batch in batches]
    return Reading([row for one in found for row in one.logprobs], [row for one in found for row in one.answers])


def _logits(model: Any, rows: Sequence[list[int]], device: torch.device | str) -> torch.Tensor:
    """Of rows of tokens, filled up behind their ends."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [row[-1]] * (width - len(row)) for row in rows], device=device)
    found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def _of_logits(logits: torch.Tensor, texts: Sequence[Text]) -> Reading:
    """What the logits of texts say; those of a text's last token are not needed."""
    found = Reading([], [])
    for row, text in zip(logits, texts, strict=True):
        end = len(text.ids)
        start = max(1, end - MAX_POSITIONS)
        scores = torch.log_softmax(row[start - 1 : end - 1].float(), dim=-1)
        wanted = torch.tensor(text.ids[start:end], device=scores.device)
        found.logprobs.append(scores.gather(1, wanted[:, None])[:, 0].cpu().tolist())
        found.answers.append(row[len(text.prompt) - 1 : end - 1].argmax(-1).cpu().tolist())
    return found


def answer_and_read(
    model: Any, questions: Questions, device: torch.device | str = "cpu", *, at_once: bool = False
) -> tuple[list[Text], Reading]:
    """Have a model answer every prompt, and read the texts that this makes; arguments as for ``read``."""
    if at_once:
        return _answer_and_read_at_once(model, questions, device)
    texts = greedy(model, questions, device)
    return texts, read(model, texts, device)


@torch.no_grad()
def greedy(model: Any, questions: Questions, device: torch.device | str = "cpu") -> list[Text]:
    """The greedy answer to every prompt, its stop token included; all prompts in one batch."""
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
    written = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings)
    answers = [_until_stop(row, questions.stop_token_ids) for row in written[:, width:].tolist()]
    return [Text(list(prompt), answer) for prompt, answer in zip(questions.prompts, answers, strict=True)]


@torch.no_grad()
def _answer_and_read_at_once(
    model: Any, questions: Questions, device: torch.device | str
) -> tuple[list[Text], Reading]:
    """A pass over the weights for each token of all answers, without a cache; the last one has read all the rest."""
    rows = [list(prompt) for prompt in questions.prompts]
    for _ in range(questions.max_new_tokens):
        logits = _logits(model, rows, device)
        for row, scores in zip(rows, logits, strict=True):
            row.append(int(scores[len(row) - 1].argmax()))
    pairs = [(list(prompt), row[len(prompt) :]) for prompt, row in zip(questions.prompts, rows, strict=True)]
    texts = [Text(prompt, _until_stop(answer, questions.stop_token_ids)) for prompt, answer in pairs]
    return texts, _of_logits(logits, texts)


def difference(one: Reading, other: Reading) -> Difference:
    """How far two readings of the same texts are apart."""
    pairs = [
        abs(a - b)
        for first, second in zip(one.logprobs, other.logprobs, strict=True)
        for a, b in zip(first, second, strict=True)
    ]
    changed = sum(a != b for a, b in zip(one.answers, other.answers, strict=True))
    finite = all(map(math.isfinite, pairs)) and bool(pairs)
    mean, largest = (sum(pairs) / len(pairs), max(pairs)) if finite else (math.inf, math.inf)
    return Difference(mean, largest, changed / len(one.answers), len(pairs), len(one.answers))


def allowed(noise: Difference, dtype: str) -> dict[str, float]:
    """The limits of a verdict: so many times the noise, and what chance may add to a share of few answers."""
    share, number = noise.changed_answers, noise.num_answers
    guess = (share * number + 1) / (number + 2)
    chance = 3 * math.sqrt(guess * (1 - guess) / number)
    mean = noise.mean_logprob_difference
    return {
        "mean_logprob_difference": max(FLOORS[dtype], TIMES_NOISE * mean if math.isfinite(mean) else 0.0),
        "changed_answers": min(1.0, share + chance),
    }


def problems_of(use: Difference, limits: dict[str, float]) -> list[str]:
    """What is beyond the limits; empty when the merged model is what was trained."""
    told = {
        "mean_logprob_difference": "log-probabilities differ by {:.2g} on average",
        "changed_answers": "the share of answers that changed is {:.2g}",
    }
    return [
        f"{words.format(getattr(use, name))} (allowed {limits[name]:.2g})"
        for name, words in told.items()
        if not getattr(use, name) <= limits[name]
    ]


def read_merged(folder: Path, work: Path) -> Reading:
    """Load the merged model as anyone would, or layer by layer where it is large, and have it read the texts."""
    told = json.loads((work / _QUESTIONS).read_text(encoding="utf-8"))
    texts = [Text(**text) for text in told["texts"]]
    trusted = {"trust_remote_code": told["own_code"]}
    config = AutoConfig.from_pretrained(folder, **trusted)
    if told["large"] and told["device"] == "cpu":
        return read(from_files(folder, config, **trusted), texts, at_once=True)
    model: PreTrainedModel = opener_of(config).from_pretrained(
        folder, dtype="auto", use_safetensors=True, device_map=told["device"], **trusted
    )
    return read(model.eval(), texts, model.device, at_once=told["large"])


def write_questions(work: Path, texts: Sequence[Text], *, own_code: bool, large: bool, device: str) -> None:
    """Leave the texts in a folder for the new process.

    Args:
        own_code: whether the merged model's own code may run.
        large: whether it is read once for all texts.
        device: where.
    """
    content = {"texts": [asdict(text) for text in texts], "own_code": own_code, "large": large, "device": device}
    (work / _QUESTIONS).write_text(json.dumps(content), encoding="utf-8")


def read_in_a_new_process(model_folder: Path, work: Path) -> Reading:
    """``read_merged`` by an interpreter that has never seen the run.

    Raises:
        StorageError: the merged model cannot be loaded there.
    """
    import tunesmith

    paths = [str(Path(tunesmith.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, "-m", "tunesmith.export.proof", str(model_folder), str(work)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise StorageError(f"the merged model cannot be used in a new process ({reason})", where=str(model_folder))
    return Reading(**json.loads((work / _RESULT).read_text(encoding="utf-8")))


def sha256_of_weights(folder: Path) -> dict[str, str]:
    """Name and sha256 of every safetensors file in a folder."""
    return {path.name: sha256_of_file(path) for path in sorted(folder.glob("*.safetensors"))}


def _until_stop(ids: list[int], stops: Sequence[int]) -> list[int]:
    end = next((position for position, token in enumerate(ids) if token in stops), len(ids) - 1)
    return ids[: end + 1]


def _main(model_folder: str, work: str) -> None:
    result = read_merged(Path(model_folder), Path(work))
    (Path(work) / _RESULT).write_text(json.dumps(asdict(result)), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
