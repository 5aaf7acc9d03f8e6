"""The loss of an evaluation counted again by hand: by weight, over labelled tokens, whatever the batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tunesmith.data.masking import IGNORE_INDEX
from tunesmith.evaluate.loss import (
    keeps_logits,
    label_weight,
    measure_tokens,
    row_totals,
    token_figures,
    token_losses,
)


@pytest.fixture(scope="module")
def model(models_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(models_folder / "llama", dtype=torch.float32).eval()


def made_batch(rows: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 90, (rows, 12), generator=generator)
    labels = ids.masked_fill(torch.rand(rows, 12, generator=generator) < 0.5, IGNORE_INDEX)
    weights = torch.tensor([0.25, 1.0, 3.0])[torch.randint(0, 3, (rows, 12), generator=generator)]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "weights": weights}


def by_hand(model: Any, batches: list[dict[str, Any]]) -> tuple[float, float, int, int]:
    """Summed weighted loss, weight, labelled tokens and right ones, token by token."""
    nll, weight, count, right = 0.0, 0.0, 0, 0
    for batch in batches:
        with torch.no_grad():
            chances = model(batch["input_ids"]).logits.double().log_softmax(-1)
        for row, labels in enumerate(batch["labels"].tolist()):
            for position, label in enumerate(labels):
                if position and label != IGNORE_INDEX:
                    of_token = batch["weights"][row, position].item() if "weights" in batch else 1.0
                    nll -= of_token * chances[row, position - 1, label].item()
                    weight += of_token
                    count += 1
                    right += int(chances[row, position - 1].argmax() == label)
    return nll, weight, count, right


def test_the_loss_of_an_evaluation_is_an_average_by_weight(model: Any) -> None:
    """Batches of unequal size and weight, so that no average of averages and no count of tokens gives it."""
    batches = [made_batch(3, 1), made_batch(1, 2)]
    nll, weight, count, right = by_hand(model, batches)
    assert abs(weight / count - 1) > 0.1
    found = measure_tokens(model, [dict(batch) for batch in batches], torch.device("cpu"))
    assert found == {"loss": pytest.approx(nll / weight, rel=1e-5), "token_accuracy": right / count}


def test_without_weights_every_labelled_token_counts_once(model: Any) -> None:
    batches = [{name: value for name, value in made_batch(rows, rows).items() if name != "weights"} for rows in (2, 3)]
    nll, weight, count, right = by_hand(model, batches)
    assert weight == count
    found = measure_tokens(model, [dict(batch) for batch in batches], torch.device("cpu"))
    assert found == {"loss": pytest.approx(nll / count, rel=1e-5), "token_accuracy": right / count}


@pytest.mark.parametrize("chosen_positions", [True, False])
def test_rows_add_what_is_their_own(model: Any, chosen_positions: bool) -> None:
    batch = made_batch(3, 5)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    losses = token_losses(
        model, inputs, batch["labels"], batch["weights"], chosen_positions=chosen_positions, count_correct=True
    )
    totals = row_totals(losses)
    for row in range(3):
        alone = by_hand(model, [{name: value[row : row + 1] for name, value in batch.items()}])
        assert totals[row].tolist() == pytest.approx(alone, rel=1e-5)
    assert label_weight(batch["labels"], batch["weights"]).item() == pytest.approx(totals[:, 1].sum().item())


def test_right_answers_are_counted_only_where_somebody_asked(model: Any) -> None:
    batch = made_batch(2, 6)
    losses = token_losses(model, {"input_ids": batch["input_ids"]}, batch["labels"], chosen_positions=True)
    with pytest.raises(ValueError, match="was not told to count"):
        row_totals(losses)


def test_figures_come_from_sums() -> None:
    assert token_figures(torch.tensor([6.0, 3.0, 4.0, 1.0])) == {"loss": 2.0, "token_accuracy": 0.25}


def test_an_evaluation_makes_no_gradient_and_asks_only_for_logits_that_have_labels(model: Any) -> None:
    class Wrapped(torch.nn.Module):
        """As PEFT's wrapper: its own forward takes anything, and the base tells what it can do."""

        def get_base_model(self) -> Any:
            return model

        def forward(self, **keywords: Any) -> Any:
            asked.append((torch.is_grad_enabled(), keywords.pop("logits_to_keep").tolist(), keywords.pop("use_cache")))
            assert sorted(keywords) == ["attention_mask", "input_ids"]
            return model(**keywords, logits_to_keep=torch.tensor(asked[-1][1]))

    asked: list[Any] = []
    batch = made_batch(1, 7)
    labelled = [at - 1 for at in range(1, 12) if batch["labels"][0, at] != IGNORE_INDEX]
    measure_tokens(Wrapped(), [batch | {"origins": ["f:1"]}], torch.device("cpu"))
    assert asked == [(False, labelled, False)]
    assert keeps_logits(model)
    assert not keeps_logits(torch.nn.Linear(2, 2))
