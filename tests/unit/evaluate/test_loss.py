"""The loss of an evaluation counted again by hand: by weight, over labelled tokens, whatever the batches.

And that of a model laid over two devices, which a tensor with a place of its own stands in for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers import AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import slice_logits_to_keep

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


CPU, FIRST, LAST = torch.device("cpu"), torch.device("cuda:0"), torch.device("cuda:1")
VOCABULARY, WIDTH = 11, 8


class Placed(torch.Tensor):
    """A tensor in this process's memory that claims a device, and is as strict as torch is with real ones."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
                return place_of(args[0])
            if func == torch.Tensor.to:
                return moved(*args, **kwargs)
            owner = place_of(args[0]) if isinstance(args[0], torch.Tensor) else None
            if func == torch.Tensor.__getitem__:
                places = {place_of(index) for index in tensors_in(args[1])} - {CPU, owner}
            else:
                places = {place_of(part) for part in tensors_in([args, *kwargs.values()]) if part.dim()}
                owner = next(iter(places), owner)
                places -= {owner}
            if places:
                raise RuntimeError(f"all tensors should be on one device: {func.__name__} on {owner} and {places}")
            return at(func(*args, **kwargs), owner)


def place_of(tensor: torch.Tensor) -> torch.device:
    return getattr(tensor, "place", CPU)


def tensors_in(parts: Any) -> Iterator[torch.Tensor]:
    if isinstance(parts, torch.Tensor):
        yield parts
    elif isinstance(parts, list | tuple):
        for part in parts:
            yield from tensors_in(part)


def moved(tensor: torch.Tensor, target: Any, non_blocking: bool = False) -> torch.Tensor:
    """``tensor.to``: another device, another type, or both as another tensor has them."""
    if isinstance(target, torch.dtype):
        return at(tensor.to(target), place_of(tensor))
    values = tensor.to(target.dtype) if isinstance(target, torch.Tensor) else tensor * 1
    return at(values, place_of(target) if isinstance(target, torch.Tensor) else torch.device(target))


def at(values: Any, place: torch.device | None) -> Any:
    if isinstance(values, torch.Tensor):
        values = values if isinstance(values, Placed) else values.as_subclass(Placed)
        values.place = place
    return values


class TwoDevices(torch.nn.Module):
    """Embedding on the first device, output head on the last, and accelerate's hook around the whole."""

    def __init__(self, first: torch.device | None = FIRST, last: torch.device | None = LAST) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.embedding = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
        for part, place in ((self.embedding, first), (self.head, last)):
            table = torch.randn(VOCABULARY, WIDTH, generator=generator)
            part.weight = torch.nn.Parameter(table if place is None else at(table, place))
        self.hidden_place = last

    def forward(
        self, input_ids: torch.Tensor, logits_to_keep: int | torch.Tensor = 0, use_cache: bool = True
    ) -> CausalLMOutput:
        hidden = self.embedding(input_ids).cumsum(1)
        hidden = hidden if self.hidden_place is None else hidden.to(self.hidden_place)
        return CausalLMOutput(logits=self.head(slice_logits_to_keep(hidden, logits_to_keep)))


def spread_model() -> torch.nn.Module:
    model = TwoDevices()
    hook = AlignDevicesHook(execution_device=FIRST, io_same_device=True)
    add_hook_to_module(model, hook)
    return model


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(0, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(5))
    labels = ids.clone()
    labels[:, :3] = IGNORE_INDEX
    labels[1, 5:] = IGNORE_INDEX
    weights = torch.linspace(0.5, 2.0, 21).reshape(3, 7)
    return {"input_ids": ids, "labels": labels, "weights": weights}


@pytest.mark.parametrize("chosen_positions", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_loss_is_computed_where_the_logits_are(chosen_positions: bool, weighted: bool) -> None:
    def losses(model: torch.nn.Module, place: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        parts = {name: place(tensor) for name, tensor in batch().items()}
        weights = parts["weights"] if weighted else None
        return token_losses(
            model, {"input_ids": parts["input_ids"]}, parts["labels"], weights, chosen_positions=chosen_positions,
            count_correct=True,
        )  # fmt: skip

    plain = losses(TwoDevices(None, None), lambda tensor: tensor)
    for model, place in ((spread_model(), FIRST), (TwoDevices(LAST, LAST), LAST)):
        spread = losses(model, lambda tensor, place=place: at(tensor.clone(), place))
        assert spread.nll.device == place
        assert torch.equal(spread.nll.as_subclass(torch.Tensor), plain.nll)
        assert torch.equal(spread.correct.as_subclass(torch.Tensor), plain.correct)
        total = spread.nll.sum()
        total.backward()
        assert model.embedding.weight.grad is not None
        assert model.head.weight.grad is not None


def test_figures_of_a_spread_model_are_those_of_a_whole_one() -> None:
    plain = measure_tokens(TwoDevices(None, None), [batch()], torch.device("cpu"))
    placed = {name: at(tensor, FIRST) for name, tensor in batch().items()}
    totals = measure_tokens(spread_model(), [placed], torch.device("cpu"))
    assert totals == pytest.approx(plain, rel=1e-6)
