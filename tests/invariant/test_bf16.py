"""Training in bfloat16 (autocast on the cpu): no layout is further from the truth than a plain loop in bfloat16.

Equality cannot be asked of 16 bits. The truth is the same step in float32; how far bfloat16 may be from it, a loop
written out by hand says (the way in which Cut Cross-Entropy's authors test theirs).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from helpers import logged, run_training, story_rows, tensors

ROWS = 8
SLACK = 0.1
"""Share of the reference's own error: two correct orders of summation differ, and a wrong rounding adds far more."""
LOSS_SLACK = 2e-4
"""Relative: the errors of a mean over many tokens cancel by chance, down to nothing in the reference, too."""
SHARED_SLACK = 1e-3
"""The same where rows share their beginning: what it is rounded by is one error, in every row, and cancels less."""


@dataclass(frozen=True)
class Step:
    """Loss of one step, and its gradient by the name of the weight."""

    loss: float
    gradient: dict[str, torch.Tensor]

    def errors(self, truth: Step) -> tuple[float, float]:
        """Relative distance of loss and gradient from the truth."""
        off = sum(float((self.gradient[name] - true).double().square().sum()) for name, true in truth.gradient.items())
        size = sum(float(true.double().square().sum()) for true in truth.gradient.values())
        return abs(self.loss - truth.loss) / truth.loss, (off / size) ** 0.5


def plain_step(folder: Path, dtype: torch.dtype) -> Step:
    """The step as somebody would write it out: rows of two, padded by hand, summed losses over all trained tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    rows = []
    for row in story_rows(ROWS):
        prompt = [tokenizer.bos_token_id, *tokenizer(row["prompt"], add_special_tokens=False).input_ids]
        text = tokenizer(row["prompt"] + row["completion"], add_special_tokens=False).input_ids
        ids = [tokenizer.bos_token_id, *text, tokenizer.eos_token_id]
        assert ids[: len(prompt)] == prompt
        rows.append((ids, len(prompt)))
    count = sum(len(ids) - start for ids, start in rows)
    total = 0.0
    for two in (rows[at : at + 2] for at in range(0, ROWS, 2)):
        longest = max(len(ids) for ids, _ in two)
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in two])
        seen = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in two])
        labels = torch.tensor([[-100] * start + ids[start:] + [-100] * (longest - len(ids)) for ids, start in two])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(input_ids=ids, attention_mask=seen).logits
        loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / count
        loss.backward()
        total += loss.item()
    return Step(total, {name: parameter.grad for name, parameter in model.named_parameters()})


def our_step(folder: Path, model: Path, **settings: Any) -> Step:
    """One step of the engine; plain descent with rate 1 and no clipping, so that the weights tell the gradient."""
    run_training(
        folder, model, story_rows(ROWS), max_steps=1, use_lora=False, optim="sgd", learning_rate=1.0, max_grad_norm=0.0,
        lr_scheduler_type="constant", warmup_ratio=0.0, **settings,
    )  # fmt: skip
    before, after = tensors(model), tensors(folder / "run")
    ((loss,),) = logged(folder / "run", "loss")
    return Step(loss, {name: before[name].float() - weight.float() for name, weight in after.items()})


@pytest.fixture(scope="module")
def truth(stories_model: Path) -> Step:
    return plain_step(stories_model, torch.float32)


@pytest.fixture(scope="module")
def reference(stories_model: Path) -> Step:
    return plain_step(stories_model, torch.bfloat16)


LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": {"per_device_train_batch_size": ROWS, "batching": "padded"},
    "shared beginnings": {"per_device_train_batch_size": ROWS, "batching": "prefix_tree"},
    "unpadded": {"per_device_train_batch_size": ROWS, "batching": "unpadded"},
    "packed": {"per_device_train_batch_size": ROWS, "batching": "packed"},
    "accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": ROWS, "batching": "padded"},
    "unpadded, accumulated, recomputed": {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": ROWS // 2, "batching": "unpadded",
        "gradient_checkpointing": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_bf16_is_as_near_to_the_truth_as_a_plain_loop(
    tmp_path: Path, stories_model: Path, truth: Step, reference: Step, name: str
) -> None:
    step = our_step(tmp_path, stories_model, bf16=True, **LAYOUTS[name])
    allowed, found = reference.errors(truth), step.errors(truth)
    assert allowed[1] > 1e-3  # it is bfloat16 that is measured
    assert found[1] > 1e-3
    assert found[0] <= allowed[0] + (SHARED_SLACK if name == "shared beginnings" else LOSS_SLACK)
    assert found[1] <= allowed[1] * (1 + SLACK)


def test_float32_is_the_truth(tmp_path: Path, stories_model: Path, truth: Step) -> None:
    """What measures the errors above measures none where there is none."""
    step = our_step(tmp_path, stories_model, **LAYOUTS["unpadded"])
    assert max(step.errors(truth)) < 1e-5
