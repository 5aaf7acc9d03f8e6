"""Products by oneDNN: torch's numbers but for rounding, forward and backward, where they are the quicker ones alone."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from tunesmith.model import products
from tunesmith.model.head import FrozenHeadLoss
from tunesmith.model.lean_lora import add_updates_in_place
from tunesmith.model.products import LEAST_ROWS, multiply_quickly, times


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """oneDNN counts as the quicker library; shapes of the weights for which it is asked."""
    monkeypatch.setattr(products, "onednn_is_quicker", lambda: True)
    asked: list[tuple[int, ...]] = []
    by_onednn = torch.ops.mkldnn._linear_pointwise

    class Watched:
        @staticmethod
        def _linear_pointwise(x: torch.Tensor, weight: torch.Tensor, *more: Any) -> torch.Tensor:
            asked.append(tuple(weight.shape))
            made: torch.Tensor = by_onednn(x, weight, *more)
            return made

    monkeypatch.setattr(torch.ops, "mkldnn", Watched)
    return asked


class HalfInPlace(torch.nn.Tanh):
    """Goes on in a layer's answer, as some models' own code does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.mul_(0.5))


def layers(bias: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    made = (torch.nn.Linear(24, 40, bias=bias), HalfInPlace(), torch.nn.Linear(40, 24, bias=bias))
    return torch.nn.Sequential(*made).to(dtype)


def learnt(model: torch.nn.Module, inputs: torch.Tensor) -> dict[str, Any]:
    """The answer of a model and all gradients."""
    inputs = inputs.clone().requires_grad_()
    model.zero_grad()
    answer = model(inputs)
    answer.float().square().sum().backward()
    return {"answer": answer.detach(), "inputs": inputs.grad, **{n: p.grad for n, p in model.named_parameters()}}


def agree(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("shape", [(LEAST_ROWS, 24), (2, 50, 24), (3, 2, 10, 24)])
@pytest.mark.parametrize("trained", ["nothing", "biases", "all"])
@pytest.mark.parametrize("bias", [True, False])
def test_numbers_and_gradients_are_those_of_torch(
    shape: tuple[int, ...], trained: str, bias: bool, asked: list[Any]
) -> None:
    model = layers(bias)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = trained == "all" or (trained == "biases" and "bias" in name)
    inputs = torch.randn(shape)
    wanted = learnt(model, inputs)
    assert not asked
    assert multiply_quickly(model) == 2
    agree(learnt(model, inputs), wanted)
    assert asked == [(40, 24), (24, 40), (40, 24), (24, 40)]  # and the same two, transposed, on the way back
    with torch.no_grad():  # evaluation
        assert torch.equal(model(inputs), wanted["answer"])


def test_weights_and_activations_may_lie_any_way() -> None:
    x, weight = torch.randn(7, 300)[:, ::3], torch.randn(100, 200).t()[::2]
    torch.testing.assert_close(
        torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], ""), x @ weight.t(), rtol=1e-5, atol=1e-5
    )


UNUSUAL = {
    "few rows": (torch.float32, (LEAST_ROWS - 1, 24)),
    "one long row": (torch.float32, (1, 24)),
    "float64": (torch.float64, (64, 24)),
    "bfloat16": (torch.bfloat16, (64, 24)),
    "no row": (torch.float32, (0, 24)),
}


@pytest.mark.parametrize("unusual", UNUSUAL)
def test_other_types_and_few_rows_go_the_way_of_torch(unusual: str, asked: list[Any]) -> None:
    dtype, shape = UNUSUAL[unusual]
    model, inputs = layers(dtype=dtype), torch.randn(shape, dtype=dtype)
    answer = model(inputs)
    multiply_quickly(model)
    assert torch.equal(model(inputs), answer)
    assert torch.equal(times(inputs, model[0].weight), F.linear(inputs, model[0].weight))
    assert not asked


def test_autocast_decides_the_type(asked: list[Any]) -> None:
    model, inputs = layers(), torch.randn(64, 24)
    multiply_quickly(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(inputs).dtype == torch.bfloat16
    assert not asked


def test_layers_of_others_stay(asked: list[Any]) -> None:
    class Own(torch.nn.Linear):
        pass

    model = layers()
    own, inputs = Own(24, 24), torch.randn(64, 24)
    model.append(own)
    model[2].forward = lambda x: F.linear(x, model[2].weight) * 2
    answer = model(inputs)
    assert multiply_quickly(model) == 1
    assert multiply_quickly(model) == 0
    assert "forward" not in vars(own)
    torch.testing.assert_close(model(inputs), answer, rtol=1e-5, atol=1e-5)
    assert asked == [(40, 24)]


def test_nothing_is_replaced_where_torch_is_as_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_quicker", lambda: False)
    model = layers()
    assert not multiply_quickly(model)
    assert "forward" not in vars(model[0])


def test_a_copy_has_its_own_weights(asked: list[Any]) -> None:
    model = layers()
    multiply_quickly(model)
    copy = deepcopy(model)
    torch.nn.init.zeros_(copy[2].weight)
    inputs = torch.randn(64, 24)
    assert torch.equal(copy(inputs), copy[2].bias.expand(64, 24))
    assert not torch.equal(model(inputs), copy(inputs))


def test_a_compiled_model_is_one_graph(asked: list[Any]) -> None:
    compiled: Any = torch.compile
    model, inputs = layers(), torch.randn(64, 24)
    answer = model(inputs)
    multiply_quickly(model)
    torch.testing.assert_close(compiled(model, backend="eager", fullgraph=True)(inputs), answer)


def test_lora_trains_in_fewer_passes_over_such_layers_too(asked: list[Any]) -> None:
    settings = LoraConfig(r=4, target_modules=["0", "2"], init_lora_weights=False)
    model = get_peft_model(layers(), settings).train()
    inputs = torch.randn(64, 24)
    wanted = learnt(model, inputs)
    assert add_updates_in_place(model) == 2
    assert multiply_quickly(model) == 6  # two bases, and A and B of each
    agree(learnt(model, inputs), wanted)
    forwards = [(4, 24), (40, 24), (4, 40), (24, 40)]
    assert asked[:4] == forwards
    assert sorted(asked[4:]) == sorted([(4, 24), (40, 24)[::-1], (4, 40), (24, 40)[::-1]])


@pytest.mark.parametrize("biased", [True, False])
def test_a_frozen_head_asks_it_too(biased: bool, asked: list[Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(70, 24, generator=generator), torch.randn(500, 24, generator=generator)
    bias = torch.randn(500, generator=generator) if biased else None
    targets = torch.randint(500, (70,), generator=generator)
    hidden.requires_grad_()
    expected = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), hidden)
    apply: Any = FrozenHeadLoss.apply
    found = apply(hidden, weight, bias, targets)
    (ours,) = torch.autograd.grad(found.sum(), hidden)
    assert asked == [(500, 24)]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("capability", "vendor", "quicker"),
    [
        ("AVX512", "AuthenticAMD", True),
        ("AVX512", "GenuineIntel", False),  # MKL uses AVX-512 there
        ("AVX2", "AuthenticAMD", False),  # measured: no difference
        ("DEFAULT", "", False),
    ],
)
def test_processors_on_which_it_is_the_quicker_one(
    capability: str, vendor: str, quicker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(products, "_vendor", lambda: vendor)
    assert products.onednn_is_quicker.__wrapped__() is quicker


def test_the_vendor_is_read() -> None:
    cpus = Path("/proc/cpuinfo")
    named = "vendor_id" in cpus.read_text(encoding="utf-8") if cpus.is_file() else False
    if not named:
        pytest.skip("this system does not say who made its processor")
    assert products._vendor() in cpus.read_text(encoding="utf-8")
    assert products._vendor()
