"""LoRA layers train in fewer passes, with PEFT's numbers; whatever is not plain goes PEFT's way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners import lora

from tunesmith.model.lean_lora import LeanForward, _Linear, _Update, add_updates_in_place


class Layers(torch.nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first = torch.nn.Linear(24, 40, bias=bias)
        self.second = torch.nn.Linear(40, 24, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.second(torch.tanh(self.first(x)))
        return answer


class InPlace(Layers):
    """Goes on in a layer's answer, as some models' own code does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.second(torch.tanh(self.first(x).mul_(0.5)))
        answer += x
        return answer


def adapted(
    bias: bool = False, dtype: torch.dtype = torch.float32, layers: type[Layers] = Layers, **settings: Any
) -> Any:
    """A model whose updates are not zero, in training."""
    torch.manual_seed(0)
    chosen = {"r": 5, "lora_alpha": 7, "target_modules": ["first", "second"]} | settings
    model = get_peft_model(layers(bias).to(dtype), LoraConfig(**chosen), autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model.train()


def learnt(model: Any, inputs: torch.Tensor, autocast: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The answer of a model and all gradients."""
    inputs = inputs.clone().requires_grad_()
    model.zero_grad()
    torch.manual_seed(1)
    with nullcontext() if autocast is None else torch.autocast("cpu", autocast):
        answer = model(inputs)
    answer.float().square().sum().backward()
    trained = {name: one.grad for name, one in model.named_parameters() if one.requires_grad}
    assert len(trained) == 4
    assert inputs.grad is not None
    return {"answer": answer.detach(), "inputs": inputs.grad, **trained}


@pytest.fixture
def lean_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of our two ways was taken, at every call."""
    calls: list[str] = []
    for function in (_Linear, _Update):
        original = function.apply

        def watched(*arguments: Any, name: str = function.__name__, original: Callable[..., Any] = original) -> Any:
            calls.append(name)
            return original(*arguments)

        monkeypatch.setattr(function, "apply", watched)
    return calls


@pytest.mark.parametrize("layers", [Layers, InPlace])
@pytest.mark.parametrize("shape", [(3, 24), (2, 3, 24), (2, 1, 3, 24)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"lora_dropout": 0.3}, {"r": 1}], ids=str)
def test_numbers_are_those_of_peft(
    settings: dict[str, Any], bias: bool, shape: tuple[int, ...], layers: type[Layers], lean_calls: list[str]
) -> None:
    model = adapted(bias, torch.float64, layers, **settings)
    inputs = torch.randn(shape, dtype=torch.float64)
    wanted = learnt(model, inputs)
    assert not lean_calls
    assert add_updates_in_place(model) == 2
    found = learnt(model, inputs)
    assert lean_calls == ["_Update" if "lora_dropout" in settings else "_Linear"] * 2
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
def test_under_autocast_numbers_are_as_near_to_the_exact_ones_as_those_of_peft(
    held: torch.dtype, dropout: float, lean_calls: list[str]
) -> None:
    """Weights of the base in either type, adapters in float32, arithmetic in bfloat16."""
    model = adapted(True, lora_dropout=dropout)
    model.base_model.model.first.base_layer.to(held)
    model.base_model.model.second.base_layer.to(held)
    exact = deepcopy(model).double()
    inputs = torch.randn(6, 24)
    by_peft, wanted = learnt(model, inputs, torch.bfloat16), learnt(exact, inputs.double())
    add_updates_in_place(model)
    ours = learnt(model, inputs, torch.bfloat16)
    assert len(lean_calls) == 2
    for name, value in wanted.items():
        assert ours[name].dtype == by_peft[name].dtype
        apart = [float((one[name].double() - value).norm() / value.norm()) for one in (ours, by_peft)]
        assert apart[0] <= 0.02
        assert apart[0] <= 1.5 * apart[1]


def test_layers_in_four_bits_get_their_update_in_place(lean_calls: list[str]) -> None:
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(0)
    plain = torch.nn.Sequential(Linear4bit(64, 128, bias=False, quant_type="nf4", compute_dtype=torch.float32)).to(
        "cpu"
    )
    plain[0].support_avx512bf16_for_cpu = False
    model = get_peft_model(plain, LoraConfig(r=4, target_modules=["0"]), autocast_adapter_dtype=False).train()
    model.base_model.model[0].lora_A["default"].float()
    torch.nn.init.normal_(model.base_model.model[0].lora_B["default"].float().weight)
    found = []
    for _ in range(2):
        inputs = torch.randn(5, 64, generator=torch.Generator().manual_seed(2)).requires_grad_()
        model.zero_grad()
        answer = model(inputs)
        answer.square().sum().backward()
        found.append([answer.detach(), inputs.grad, *(one.grad for one in model.parameters() if one.requires_grad)])
        add_updates_in_place(model)
    assert lean_calls == ["_Update"]
    for ours, by_peft in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, by_peft, rtol=1e-5, atol=1e-4)


def second_adapter(model: Any) -> None:
    model.add_adapter("other", LoraConfig(r=2, target_modules=["first", "second"]))
    model.base_model.set_adapter(["default", "other"])


def watched_matrix(model: Any) -> None:
    for layer in (model.base_model.model.first, model.base_model.model.second):
        layer.lora_A["default"].register_forward_hook(lambda *_: None)


UNUSUAL: dict[str, tuple[dict[str, Any], Callable[[Any], Any]]] = {
    "evaluation": ({}, lambda model: model.eval()),
    "DoRA": ({"use_dora": True}, lambda model: None),
    "a bias of the update": ({"lora_bias": True}, lambda model: None),
    "two adapters": ({}, second_adapter),
    "a hook": ({}, watched_matrix),
    "merged": ({}, lambda model: model.merge_adapter()),
    "switched off": ({}, lambda model: model.base_model.disable_adapter_layers()),
    "other types": ({}, lambda model: [one.half() for one in model.modules() if isinstance(one, torch.nn.ModuleDict)]),
}


@pytest.mark.parametrize("unusual", UNUSUAL)
def test_whatever_is_not_plain_goes_the_way_of_peft(unusual: str, lean_calls: list[str]) -> None:
    settings, change = UNUSUAL[unusual]
    model = adapted(True, **settings)
    add_updates_in_place(model)
    change(model)
    inputs = torch.randn(3, 24)
    answer = model(inputs)
    for layer in (model.base_model.model.first, model.base_model.model.second):
        del layer.forward
    assert torch.equal(answer, model(inputs))
    assert not lean_calls


def test_a_base_that_is_trained_or_watched_answers_itself(lean_calls: list[str]) -> None:
    model = adapted()
    add_updates_in_place(model)
    seen: list[Any] = []
    first, second = model.base_model.model.first, model.base_model.model.second
    first.base_layer.weight.requires_grad = True
    second.base_layer.register_forward_hook(lambda *call: seen.append(call))
    model(torch.randn(3, 24)).sum().backward()
    assert lean_calls == ["_Update", "_Update"]
    assert first.base_layer.weight.grad is not None
    assert len(seen) == 1


def test_a_layer_whose_forward_is_somebodys_own_stays(lean_calls: list[str]) -> None:
    model = adapted()
    layer = model.base_model.model.first
    layer.forward = lambda x: lora.Linear.forward(layer, x) * 2
    assert add_updates_in_place(model) == 1
    assert add_updates_in_place(model) == 0
    model(torch.randn(3, 24))
    assert lean_calls == ["_Linear"]


def test_a_copy_has_its_own_layers() -> None:
    model = adapted()
    add_updates_in_place(model)
    copy = deepcopy(model)
    forward = copy.base_model.model.first.forward
    assert isinstance(forward, LeanForward)
    assert forward.layer is copy.base_model.model.first
    inputs = torch.randn(3, 24)
    assert torch.equal(copy(inputs), model(inputs))


def test_gradients_are_those_of_the_function() -> None:
    torch.manual_seed(0)
    x, w, bias, a, b, y = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in [(6, 4), (5, 4), (5,), (2, 4), (5, 2), (6, 5)]
    )
    frozen = w.detach(), bias.detach()
    assert torch.autograd.gradcheck(lambda x, a, b: _Linear.apply(x, *frozen, a, b, 0.7), (x, a, b))
    assert torch.autograd.gradcheck(lambda y, x, a, b: _Update.apply(y, x, a, b, 0.7), (y, x, a, b))
