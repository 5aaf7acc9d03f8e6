"""The last layer's MLP at labelled positions alone: the ordinary way's losses and gradients, from less work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as t
from tests.unit.model.test_head import FLOAT32, SIZES, batch, both_ways, built

from tunesmith.evaluate.loss import labelled_losses
from tunesmith.model.head import inspect_head
from tunesmith.model.last_layer import last_mlp, recomputes
from tunesmith.model.load import enable_checkpointing

OTHERS: dict[str, Callable[[], Any]] = {
    "experts balanced by a loss": lambda: t.MixtralForCausalLM(t.MixtralConfig(**SIZES, num_local_experts=2)),
    "looks at the token before": lambda: t.RwkvForCausalLM(
        t.RwkvConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, context_length=64)
    ),
    "another name": lambda: t.OPTForCausalLM(
        t.OPTConfig(vocab_size=96, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
                    max_position_embeddings=64, word_embed_proj_dim=32)
    ),
    "takes more than a tensor": lambda: t.BloomForCausalLM(
        t.BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4)
    ),
}  # fmt: skip


def widths(model: Any, mlp: torch.nn.Module) -> list[int]:
    """Positions that an MLP is given in one step's forward pass."""
    seen: list[int] = []
    inner = next(module for module in mlp.modules() if isinstance(module, torch.nn.Linear))
    hook = inner.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[:-1].numel()))
    inputs = batch()
    labels, weights, positions = (inputs.pop(name) for name in ("labels", "weights", "predicting"))
    head = inspect_head(model, FLOAT32)
    assert head is not None
    seen.clear()
    losses = labelled_losses(model, inputs, labels, weights, positions, head)
    hook.remove()
    losses.nll.sum().backward()
    return seen


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_an_mlp_under_an_adapter_has_the_ordinary_gradients(targets: Any) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(
        built("own", adapter=False), LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    )
    head, losses, (ordinary, chosen) = both_ways(model)
    assert head.mlp is model.get_base_model().model.layers[-1].mlp
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert ordinary.keys() == chosen.keys()
    for name, gradient in ordinary.items():
        torch.testing.assert_close(chosen[name], gradient, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()))


def test_only_positions_with_a_label_are_computed() -> None:
    model = built("own")
    inputs = batch()
    mlps = [layer.mlp for layer in model.get_base_model().model.layers]
    whole, labelled = inputs["input_ids"].numel(), len(inputs["predicting"])
    assert labelled < whole
    assert [widths(model, mlp) for mlp in mlps] == [[whole], [labelled]]
    assert "forward" not in vars(mlps[-1])


def test_layers_that_compute_twice_see_every_position() -> None:
    model = built("own")
    base = model.get_base_model()
    enable_checkpointing(model)
    model.train()
    assert recomputes(base)
    assert widths(model, base.model.layers[-1].mlp) == [batch()["input_ids"].numel()]


def test_layers_that_fsdp_recomputes_see_every_position() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = built("own", adapter=False)
    assert not recomputes(model)
    model.model.layers[0] = checkpoint_wrapper(model.model.layers[0])
    assert recomputes(model)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_layers_see_every_position(kind: str) -> None:
    torch.manual_seed(0)
    model = OTHERS[kind]()
    head = inspect_head(model, FLOAT32)
    assert head is None or head.mlp is None


def test_a_layer_that_mixes_positions_behind_its_mlp_sees_every_one() -> None:
    model = built("own", adapter=False)
    layer = model.model.layers[-1]
    assert inspect_head(model, FLOAT32).mlp is layer.mlp
    former = layer.forward

    def forward(*arguments: Any, **keywords: Any) -> Any:
        hidden = former(*arguments, **keywords)
        return hidden + hidden.roll(1, dims=1)

    layer.forward = forward
    assert last_mlp(model) is layer.mlp
    assert inspect_head(model, FLOAT32).mlp is None


def test_an_mlp_that_counts_positions_sees_every_one() -> None:
    model = built("own", adapter=False)
    mlp = model.model.layers[-1].mlp
    former = mlp.forward
    mlp.forward = lambda hidden: former(hidden) * torch.arange(1, hidden.shape[1] + 1)[None, :, None]
    assert inspect_head(model, FLOAT32).mlp is None


def test_an_mlp_in_8_bits_sees_every_position(stories_model: Any) -> None:
    """Which columns are outliers is a matter of all tokens."""
    quantized = t.BitsAndBytesConfig(load_in_8bit=True)
    model = t.AutoModelForCausalLM.from_pretrained(stories_model, quantization_config=quantized)
    assert last_mlp(model) is None
