"""What each weight is for, read off the structure of today's architectures without weights."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest
import torch
from benchmarks.zoo.models import BY_NAME, configuration
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.model.internals import without_weights
from tunesmith.model.roles import READ_PAST, is_linear, weights_of


def parts(name: str) -> dict[str, set[str]]:
    """Role -> ends of the names of its weights, those on which no adapter can sit with a mark."""
    found = defaultdict(set)
    for weight in weights_of(without_weights(configuration(BY_NAME[name]))):
        leaf = re.sub(r"\.\d+(?=\.|$)", "", weight.target).rpartition(".")[2]
        found[weight.role].add(leaf + ("!" if weight.obstacle else ""))
    return dict(found)


SEVEN = {"attention": {"q_proj", "k_proj", "v_proj", "o_proj"}, "mlp": {"gate_proj", "up_proj", "down_proj"}}
EXPECTED: dict[str, dict[str, set[str]]] = {
    "llama": SEVEN,
    "mixtral": {"experts": {"gate_up_proj", "down_proj"}, "router": {"weight"}},
    "qwen2_moe": {"shared_experts": SEVEN["mlp"], "router": {"weight", "shared_expert_gate"}},
    "granitemoehybrid": {"shared_experts": {"input_linear", "output_linear"}, "experts": {"gate_up_proj", "down_proj"}},
    "deepseek_v32": {"indexer": {"wq_b", "wk", "weights_proj"}},
    "gpt2": {"attention": {"c_attn", "c_proj"}, "mlp": {"c_fc", "c_proj"}},
    "opt": {"mlp": {"fc1", "fc2"}},
    "lfm2": {"attention": {"in_proj", "out_proj", "q_proj", "k_proj", "v_proj"}},
    "mamba": {"attention": {"in_proj", "x_proj!", "dt_proj!", "out_proj!"}},
    "deepseek_v4": {"indexer": {"kv_proj", "gate_proj", "q_b_proj", "weights_proj"}},
    "jetmoe": {"experts": {"weight"}, "router": {"layer"}},
    "llama4_text": {"router": {"weight!"}},
    "zamba2": {"mlp": {"down_proj!", "gate_up_proj!", "gate_up_proj_adapter_list!"}},
    "dbrx": {"experts": {"w1!", "v1!", "w2!"}},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_parts_of_architectures(name: str) -> None:
    found = parts(name)
    for role, expected in EXPECTED[name].items():
        leaves = {leaf for leaf in found[role] if not leaf.startswith("0")}
        assert leaves == expected or (name == "zamba2" and expected >= leaves - {"0!"}), (role, leaves)


class Twice(torch.nn.Linear):
    """A linear layer that answers with two things."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input), input  # type: ignore[return-value]


class Same(torch.nn.Linear):
    """A linear layer with code of its own that multiplies all the same."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input @ self.weight.T + self.bias


def test_a_class_of_its_own_counts_by_what_it_computes() -> None:
    assert is_linear(torch.nn.Linear(2, 3))
    assert is_linear(Same(5, 7))
    assert not is_linear(Twice(5, 7))


class Reader(torch.nn.Module):
    """Reads the weight of one of its layers, as fused kernels do."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.read = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.called(hidden_states) @ self.read.weight.to(self.called.weight.dtype)


def test_a_weight_that_is_read_past_its_layer_carries_no_adapter() -> None:
    model = LlamaForCausalLM(LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, vocab_size=8))
    model.model.layers[0].mlp = Reader()
    obstacles = {weight.target: weight.obstacle for weight in weights_of(model) if ".mlp." in weight.target}
    assert obstacles["model.layers.0.mlp.read"] == READ_PAST
    assert obstacles["model.layers.0.mlp.called"] is None
