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
from tunesmith.evaluate.loss import measure_tokens, token_losses

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
