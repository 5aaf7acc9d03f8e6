"""The head asked for labelled positions: the ordinary way's losses and gradients, whatever stands behind the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as t

from tunesmith.data.collate import Collator
from tunesmith.data.masking import IGNORE_INDEX
from tunesmith.evaluate.loss import labelled_losses, token_losses
from tunesmith.model import head as heads
from tunesmith.model import products
from tunesmith.model.head import FrozenHeadLoss, inspect_head
from tunesmith.model.precision import Precision

FLOAT32 = Precision("float32", "test")
BFLOAT16 = Precision("bfloat16", "test")
SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
MODELS: dict[str, tuple[bool, Callable[[], Any]]] = {
    "own": (True, lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES))),
    "tied": (True, lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES, tie_word_embeddings=True))),
    "bias": (True, lambda: t.PhiForCausalLM(t.PhiConfig(**SIZES))),
    "capped": (False, lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.5))),
    "scaled": (False, lambda: t.GraniteForCausalLM(t.GraniteConfig(**SIZES, logits_scaling=3.0))),
}
"""Name -> whether nothing is done to what the head gives, and a model."""


def built(kind: str, *, adapter: bool = True, **more: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = MODELS[kind][1]()
    if not adapter:
        return model
    targets = ["q_proj", "v_proj"]
    return get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False, **more))


def batch(layout: Any = "padded") -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    rows = []
    for prompt, length in ((4, 9), (1, 17), (6, 13), (5, 5)):
        ids = torch.randint(3, 96, (length,), generator=generator).tolist()
        weights = [0.25 * (1 + len(rows))] * length
        rows.append({"input_ids": ids, "labels": [IGNORE_INDEX] * prompt + ids[prompt:], "weights": weights})
    collated = Collator(layout, 0, predicting=True)(rows)
    collated.pop("origins")
    return collated


def both_ways(model: Any, precision: Precision = FLOAT32) -> tuple[Any, list[float], list[dict[str, torch.Tensor]]]:
    head = inspect_head(model, precision)
    losses, gradients = [], []
    for ordinary in (True, False):
        inputs = batch()
        labels, weights, positions = (inputs.pop(name) for name in ("labels", "weights", "predicting"))
        model.zero_grad()
        with precision.autocast("cpu"):
            if ordinary:
                found = token_losses(model, inputs, labels, weights, chosen_positions=False)
            else:
                found = labelled_losses(model, inputs, labels, weights, positions, head)
        assert int(found.labelled.sum()) == sum(length - prompt for prompt, length in ((4, 9), (1, 17), (6, 13)))
        found.nll.sum().backward()
        losses.append(found.nll.sum().item())
        gradients.append({name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None})
    return head, losses, gradients


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("adapter", [True, False])
def test_losses_and_gradients_are_those_of_the_ordinary_way(kind: str, adapter: bool) -> None:
    model = built(kind, adapter=adapter)
    assert model.training
    head, losses, gradients = both_ways(model)
    assert head.plain == MODELS[kind][0]
    assert head.scored == (adapter and head.plain)  # a head that is trained goes the ordinary way
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert (gradients[1][name] - gradient).norm() <= 1e-5 * gradient.norm(), name
    assert model.training
    assert "forward" not in vars(model.get_output_embeddings() if not adapter else model.base_model.model.lm_head)


def test_an_adapter_on_the_head_goes_the_ordinary_way() -> None:
    for more in ({"modules_to_save": ["lm_head"]}, {"layers_to_transform": None, "exclude_modules": None}):
        model = built("own", **more)
        if "modules_to_save" in more:
            head, losses, gradients = both_ways(model)
            assert not head.scored
            assert any("lm_head" in name for name in gradients[1])
            assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arithmetic_in_16_bits_is_that_of_the_ordinary_way(dtype: torch.dtype) -> None:
    """Weights in 16 bits, or in 32 under autocast: the logits are rounded as they would be."""
    model = built("own").to(dtype)
    head, losses, gradients = both_ways(model, BFLOAT16)
    assert head.scored
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, gradient in gradients[0].items():
        assert (gradients[1][name] - gradient).float().norm() <= 2e-2 * gradient.float().norm(), name


@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_pass_is_what_autograd_finds(
    chunk: int, biased: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "CHUNK_LOGITS", chunk * 40)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 8, generator=generator, dtype=dtype)
    bias = torch.randn(40, generator=generator, dtype=dtype) if biased else None
    targets = torch.randint(40, (13,), generator=generator)
    scale = torch.rand(13, generator=generator, dtype=dtype)
    hidden = torch.randn(13, 8, generator=generator, dtype=dtype, requires_grad=True)
    expected = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none")
    (gradient,) = torch.autograd.grad((expected * scale).sum(), hidden)
    found = FrozenHeadLoss.apply(hidden, weight, bias, targets)
    (ours,) = torch.autograd.grad((found.to(dtype) * scale).sum(), hidden)
    assert torch.allclose(found.to(dtype), expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(ours, gradient, rtol=1e-4, atol=1e-6)


def test_a_large_vocabulary_is_scored_in_room_that_all_chunks_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probabilities take the room of their scores: more words than fit what a kernel keeps at hand."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(600, 4, generator=generator), torch.randn(33_333, 4, generator=generator)
    targets = torch.randint(33_333, (600,), generator=generator)
    assert [part.stop - part.start for part in heads._chunks(600, 33_333)] == [200, 200, 200]
    monkeypatch.setattr(products, "onednn_is_quicker", lambda: False)
    room = heads._Room(200, weight)
    assert len({tensor.data_ptr() for _ in range(2) for tensor in room.fill(hidden[:150], None)}) == 1
    hidden.requires_grad_()
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), hidden)
    found = FrozenHeadLoss.apply(hidden, weight, None, targets)
    (ours,) = torch.autograd.grad(found.sum(), hidden)
    assert torch.allclose(found, expected, rtol=1e-5)
    assert torch.allclose(ours, gradient, rtol=1e-4, atol=1e-5)


def test_a_batch_without_labels_has_no_loss_and_gradients_of_zero() -> None:
    model = built("own")
    head = inspect_head(model, FLOAT32)
    assert head is not None
    ids = torch.full((1, 5), 7)
    empty = torch.zeros(0, dtype=torch.long)
    found = labelled_losses(model, {"input_ids": ids}, torch.full((1, 5), IGNORE_INDEX), None, empty, head)
    found.nll.sum().backward()
    assert found.nll.shape == (1, 0)
    assert all(float(one.grad.abs().sum()) == 0 for one in model.parameters() if one.requires_grad)


def test_a_model_that_looks_at_other_positions_behind_its_head_is_left_alone() -> None:
    model = built("own", adapter=False)
    former = model.forward

    def forward(*arguments: Any, **keywords: Any) -> Any:
        output = former(*arguments, **keywords)
        output.logits = output.logits - output.logits.mean(dim=1, keepdim=True)
        return output

    model.forward = forward
    assert inspect_head(model, FLOAT32) is None


def test_no_logits_of_the_whole_batch_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    monkeypatch.setattr(heads, "CHUNK_LOGITS", 96 * 4)

    class Largest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            # a view with as many rows as the hidden size is the weight, transposed
            if isinstance(result, torch.Tensor) and tuple(result.shape[1:]) == (96,) and len(result) != 32:
                self.rows = max(self.rows, result.shape[0])
            return result

    model = built("own")
    head = inspect_head(model, FLOAT32)
    assert head is not None
    inputs = batch()
    labels, weights, positions = (inputs.pop(name) for name in ("labels", "weights", "predicting"))
    with Largest() as largest:
        labelled_losses(model, inputs, labels, weights, positions, head).nll.sum().backward()
    assert 0 < largest.rows <= 4
