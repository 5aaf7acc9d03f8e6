"""What every run on every architecture goes through, on a tiny model of each: numbers are those of the libraries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchmarks.zoo.models import BY_NAME, build
from peft import LoraConfig

from tunesmith.model import products
from tunesmith.model.fresh import new_adapter
from tunesmith.model.lean_lora import add_updates_in_place
from tunesmith.model.products import LEAST_ROWS, multiply_quickly


def learnt(model: Any) -> dict[str, torch.Tensor]:
    """Loss and all gradients of a step."""
    ids = torch.randint(4, 90, (2, LEAST_ROWS), generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    torch.manual_seed(0)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    loss.backward()
    found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return found | {"loss": loss.detach()}


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_a_step_with_our_layers_is_one_with_those_of_the_libraries(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the architecture's own code does with what its layers answer."""
    monkeypatch.setattr(products, "onednn_is_quicker", lambda: True)
    torch.manual_seed(1)
    model = new_adapter(build(name), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.02)  # or A had no gradient
    model.train()
    wanted = learnt(model)
    assert add_updates_in_place(model) + multiply_quickly(model)
    found = learnt(model)
    assert found.keys() == wanted.keys()
    for part, value in wanted.items():
        torch.testing.assert_close(found[part], value, rtol=1e-3, atol=1e-5, msg=part)
