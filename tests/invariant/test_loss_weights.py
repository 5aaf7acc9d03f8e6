"""Weights of rows and turns: 1 changes no bit, 0 is like not being there, and the loss is an average by weight."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers import logged, run_training, story_rows
from tunesmith.data.masking import IGNORE_INDEX
from tunesmith.evaluate.loss import label_weight, token_losses

LOGGED = ("step", "loss", "grad_norm")


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "run" / "adapter_model.safetensors")


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_weight_1_is_no_weight_bit_for_bit(tmp_path: Path, stories_model: Path, batching: str) -> None:
    rows = story_rows(8)
    settings: dict[str, Any] = {"max_steps": 3, "gradient_accumulation_steps": 2, "batching": batching}
    run_training(tmp_path / "without", stories_model, rows, **settings)
    run_training(tmp_path / "with", stories_model, [row | {"weight": 1.0} for row in rows], **settings)
    assert same_bits(weights_of(tmp_path / "without"), weights_of(tmp_path / "with"))
    assert logged(tmp_path / "without/run", *LOGGED) == logged(tmp_path / "with/run", *LOGGED)


def test_equal_weights_of_all_rows_change_nothing_but_rounding(tmp_path: Path, stories_model: Path) -> None:
    """The loss is divided by the sum of weights, so 2 for everything is the same training (2 is exact in float32)."""
    rows = story_rows(8)
    settings: dict[str, Any] = {"max_steps": 3, "gradient_accumulation_steps": 2}
    run_training(tmp_path / "without", stories_model, rows, **settings)
    run_training(tmp_path / "twice", stories_model, [row | {"weight": 2} for row in rows], **settings)
    assert same_bits(weights_of(tmp_path / "without"), weights_of(tmp_path / "twice"))


def chats(number: int, **first_answer: Any) -> list[dict[str, Any]]:
    rows = []
    for row in story_rows(number):
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": "No.", **first_answer}]
        turns += [{"role": "user", "content": "And?"}, {"role": "assistant", "content": row["completion"]}]
        rows.append({"messages": turns})
    return rows


def test_a_turn_of_weight_0_teaches_as_if_only_the_other_had_loss(tmp_path: Path, stories_model: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 2, "template": "plain"}
    run_training(tmp_path / "zero", stories_model, chats(6, weight=0), **settings)
    run_training(tmp_path / "last", stories_model, chats(6), loss_on="last_assistant", **settings)
    assert same_bits(weights_of(tmp_path / "zero"), weights_of(tmp_path / "last"))
    both = run_training(tmp_path / "both", stories_model, chats(6), **settings)
    assert both.steps == 2
    assert not same_bits(weights_of(tmp_path / "zero"), weights_of(tmp_path / "both"))


def test_rows_of_weight_0_are_counted_and_left_out(tmp_path: Path, stories_model: Path) -> None:
    rows = story_rows(8)
    weighted = [row | {"weight": 0 if index % 2 else 1} for index, row in enumerate(rows)]
    settings: dict[str, Any] = {"max_steps": 2, "max_dropped": 0.5}
    run_training(tmp_path / "zero", stories_model, weighted, **settings)
    run_training(tmp_path / "absent", stories_model, rows[::2], **settings)
    assert same_bits(weights_of(tmp_path / "zero"), weights_of(tmp_path / "absent"))


def test_the_logged_loss_is_the_average_by_weight_however_the_step_is_cut(tmp_path: Path, stories_model: Path) -> None:
    rows = [row | {"weight": 0.25 + index % 3} for index, row in enumerate(story_rows(8))]
    losses = []
    for batch, accumulation, batching in ((8, 1, "padded"), (2, 4, "padded"), (1, 8, "padded"), (8, 1, "unpadded")):
        name = f"{batching}{batch}"
        run_training(
            tmp_path / name,
            stories_model,
            rows,
            max_steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            batching=batching,
        )
        losses.append(logged(tmp_path / name / "run", "loss", "grad_norm")[0])
    plain = run_training(
        tmp_path / "plain", stories_model, story_rows(8), max_steps=1, per_device_train_batch_size=8
    )  # the same rows without weights have another loss
    for loss, norm in losses[1:]:
        assert math.isclose(loss, losses[0][0], rel_tol=1e-6)
        assert math.isclose(norm, losses[0][1], rel_tol=1e-5)
    assert not math.isclose(plain.metrics["loss"], losses[0][0], rel_tol=1e-3)


def test_token_losses_are_multiplied_and_their_weights_summed(stories_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(stories_model).eval()
    ids = torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :3] = IGNORE_INDEX
    weights = torch.rand(2, 9, generator=torch.Generator().manual_seed(1))
    for chosen in (False, True):
        plain = token_losses(model, {"input_ids": ids}, labels, chosen_positions=chosen)
        weighted = token_losses(model, {"input_ids": ids}, labels, weights, chosen_positions=chosen)
        expected = sum(
            float(nll) * float(weight)
            for nll, weight in zip(plain.nll[:, -6:].flatten().tolist(), weights[:, 3:].flatten().tolist(), strict=True)
        )
        assert math.isclose(float(weighted.nll.sum()), expected, rel_tol=1e-5)
        assert math.isclose(float(weighted.weight.sum()), float(weights[:, 3:].sum()), rel_tol=1e-6)
        assert float(plain.weight.sum()) == 12
        ones = token_losses(model, {"input_ids": ids}, labels, torch.ones(2, 9), chosen_positions=chosen)
        assert torch.equal(ones.nll, plain.nll)
        assert torch.equal(ones.weight, plain.weight)
    assert math.isclose(float(label_weight(labels, weights)), float(weights[:, 3:].double().sum()), rel_tol=1e-12)
    assert float(label_weight(labels, None)) == 12
