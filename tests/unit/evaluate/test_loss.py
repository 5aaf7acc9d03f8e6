"""The loss of a model that is laid over two devices, which a tensor with a place of its own stands in for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
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


def test_figures_divide_the_loss_by_the_weight_and_right_answers_by_their_number() -> None:
    totals = torch.tensor([6.0, 4.0, 8.0, 2.0])  # nll, weight, labelled tokens, right ones
    assert token_figures(totals) == {"loss": 1.5, "token_accuracy": 0.25}


def by_hand(ids: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> tuple[float, float, int, int]:
    """nll times weight, weight, labelled tokens and right ones of a batch, token after token."""
    with torch.no_grad():
        logits = TwoDevices(None, None)(ids).logits
    nll = weight = 0.0
    count = correct = 0
    for row in range(ids.shape[0]):
        for at in range(1, ids.shape[1]):
            target = int(labels[row, at])
            if target == IGNORE_INDEX:
                continue
            scores = logits[row, at - 1].double()
            nll -= float(scores.log_softmax(-1)[target]) * float(weights[row, at])
            weight += float(weights[row, at])
            count += 1
            correct += int(scores.argmax()) == target
    return nll, weight, count, correct


@pytest.mark.parametrize("chosen_positions", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_totals_of_each_row_are_those_by_hand(chosen_positions: bool, weighted: bool) -> None:
    parts = batch()
    with torch.no_grad():
        likely = TwoDevices(None, None)(parts["input_ids"]).logits.argmax(-1)
    parts["labels"][0, 4] = likely[0, 3]  # so that one is right
    parts["labels"][:, 0] = parts["input_ids"][:, 0]  # nothing predicts the first token
    weights = parts["weights"] if weighted else None
    losses = token_losses(
        TwoDevices(None, None), {"input_ids": parts["input_ids"]}, parts["labels"], weights,
        chosen_positions=chosen_positions, count_correct=True,
    )  # fmt: skip
    totals = row_totals(losses)
    assert totals.dtype == torch.float64
    for row in range(3):
        one = (tensor[row : row + 1] for tensor in (parts["input_ids"], parts["labels"], parts["weights"]))
        ids, labels, own = one
        expected = by_hand(ids, labels, own if weighted else torch.ones_like(own))
        assert totals[row].tolist() == pytest.approx(expected, rel=1e-6)
    assert float(totals[0, 3]) >= 1
    weight = label_weight(parts["labels"], weights)
    assert weight.dtype == torch.float64
    assert float(weight) == pytest.approx(float(totals[:, 1].sum()), rel=1e-12)


def test_right_answers_are_counted_only_where_somebody_asks() -> None:
    parts = batch()
    losses = token_losses(
        TwoDevices(None, None), {"input_ids": parts["input_ids"]}, parts["labels"], chosen_positions=True
    )
    assert losses.correct is None
    with pytest.raises(ValueError, match="not told to count"):
        row_totals(losses)


@pytest.mark.parametrize("weighted", [True, False])
def test_the_loss_of_an_evaluation_is_by_weight_over_all_batches(weighted: bool) -> None:
    """Batches of unequal weight, so that a mean of means or a division by count would show."""
    first, second = batch(), {name: tensor[:1, :5] for name, tensor in batch().items()}
    expected = [0.0] * 4
    for parts in (first, second):
        own = parts["weights"] if weighted else torch.ones_like(parts["weights"])
        found = by_hand(parts["input_ids"], parts["labels"], own)
        expected = [one + other for one, other in zip(expected, found, strict=True)]
    batches = [
        {name: tensor for name, tensor in parts.items() if weighted or name != "weights"} | {"origins": ["f:1"]}
        for parts in (first, second)
    ]
    figures = measure_tokens(TwoDevices(None, None), batches, torch.device("cpu"))  # type: ignore[arg-type]
    nll, weight, count, correct = expected
    assert figures == pytest.approx({"loss": nll / weight, "token_accuracy": correct / count}, rel=1e-6)


def test_an_evaluation_leaves_no_gradient_and_asks_for_logits_where_labels_are() -> None:
    asked = []

    class Watched(TwoDevices):
        def forward(self, input_ids: torch.Tensor, logits_to_keep: Any = 0, use_cache: bool = True) -> CausalLMOutput:
            asked.append((torch.is_grad_enabled(), logits_to_keep, use_cache))
            return super().forward(input_ids, logits_to_keep, use_cache)

    class Wrapped(torch.nn.Module):
        """As PEFT's wrapper: its own forward takes anything, and the base tells what it takes."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = Watched(None, None)

        def get_base_model(self) -> torch.nn.Module:
            return self.inner

        def forward(self, **keywords: Any) -> CausalLMOutput:
            return self.inner(**keywords)

    for model in (Watched(None, None), Wrapped()):
        measure_tokens(model, [batch()], torch.device("cpu"))
        grad, positions, use_cache = asked.pop()
        assert (grad, use_cache) == (False, False)
        assert positions.tolist() == [2, 3, 4, 5]
    assert keeps_logits(Watched(None, None))
    assert not keeps_logits(torch.nn.Linear(2, 2))
