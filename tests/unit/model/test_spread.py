"""Weights of several processes: when they load in pieces, what the libraries are told, and what memory goes back."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaConfig
from transformers.integrations import deepspeed
from transformers.integrations.fsdp import is_fsdp_enabled

from helpers import resolved_from
from tunesmith.config.strategy import ALONE, Strategy
from tunesmith.model import spread
from tunesmith.model.internals import without_weights
from tunesmith.model.memory import host
from tunesmith.model.parameters import trainable_parameters
from tunesmith.model.spread import loading, loads_in_pieces, memory_returned, opens_files

ZERO3 = Strategy("zero3", "test", {"zero_optimization": {"stage": 3}})
FSDP2 = Strategy("fsdp2", "test")
WAYS: list[tuple[Strategy, dict[str, Any], int, bool]] = [
    (ZERO3, {}, 2, True),
    (FSDP2, {}, 2, True),
    (FSDP2, {"use_lora": True}, 2, True),
    (ZERO3, {}, 1, False),
    (ALONE, {}, 2, False),
    (Strategy("zero2", "test", {"zero_optimization": {"stage": 2}}), {}, 2, False),
    (FSDP2, {"load_in_4bit": True}, 2, False),
    (ZERO3, {"load_in_8bit": True}, 2, False),
    (ZERO3, {"init_lora_weights": "pissa"}, 2, False),
    (FSDP2, {"init_lora_weights": "olora"}, 2, False),
    (FSDP2, {"init_lora_weights": "olora", "use_lora": False}, 2, True),
    (ZERO3, {"model_class": "package:Model"}, 2, False),
    (Strategy("fsdp2", "file", fsdp={"cpu_ram_efficient_loading": False}), {}, 2, False),
]


@pytest.mark.parametrize(("strategy", "settings", "number", "expected"), WAYS)
def test_when_weights_load_in_pieces(strategy: Strategy, settings: dict[str, Any], number: int, expected: bool) -> None:
    resolved = resolved_from(model_name_or_path="m", **(settings or {"use_lora": False}))
    assert loads_in_pieces(resolved, strategy, number) == expected


def test_one_process_of_a_machine_opens_the_files_for_fsdp2(monkeypatch: pytest.MonkeyPatch) -> None:
    for local_rank in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        assert (opens_files(FSDP2), opens_files(ZERO3), opens_files(ALONE)) == (not local_rank, True, True)


@pytest.fixture
def zero3_known() -> Any:
    """DeepSpeed's stage 3 as transformers knows it once the trainer's arguments are made."""
    from transformers.integrations import HfDeepSpeedConfig

    known = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    yield known
    deepspeed.unset_hf_deepspeed_config()


def test_deepspeed_spreads_what_loads_in_pieces_alone(zero3_known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a quantized base, or a model that only evaluates, would be cut up as well."""
    connected = []
    monkeypatch.setattr(spread, "_connect_deepspeed", lambda: connected.append(True))
    for in_pieces in (True, False):
        with loading(ZERO3, in_pieces=in_pieces):
            assert deepspeed.is_deepspeed_zero3_enabled() == in_pieces
        assert deepspeed.is_deepspeed_zero3_enabled()
    assert len(connected) == 1
    with pytest.raises(OSError, match="no such model"), loading(ZERO3, in_pieces=False):
        raise OSError("no such model")
    assert deepspeed.is_deepspeed_zero3_enabled()


@pytest.mark.parametrize("before", [None, "true"])
def test_fsdp2_is_told_while_it_loads(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    monkeypatch.setattr("transformers.distributed.fsdp._is_torch_distributed_initialized", lambda: True)
    for name in spread.FSDP_LOADS_IN_PIECES:
        monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", before)
    with loading(FSDP2, in_pieces=True):
        assert is_fsdp_enabled()
    assert not is_fsdp_enabled()
    assert [os.environ.get(name) for name in spread.FSDP_LOADS_IN_PIECES] == [before, None]


def test_nothing_is_lost_when_memory_goes_back(tmp_path: Path) -> None:
    tensors = {name: torch.randn(512, 512) for name in ("a", "b")}
    save_file(tensors, tmp_path / "model.safetensors")
    with memory_returned(), safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        mapped = {name: file.get_tensor(name) for name in tensors}
        mapped["b"].add_(1)  # writes into this process's copy of the page
        assert torch.equal(mapped["a"], tensors["a"])
    assert torch.equal(mapped["a"], tensors["a"])
    assert torch.equal(mapped["b"], tensors["b"] + 1)


def test_shapes_are_built_whole_while_zero3_trains(zero3_known: Any) -> None:
    """One process asks for them, at a save; cut up, it would wait for the others for ever."""
    model = without_weights(LlamaConfig(num_hidden_layers=1, hidden_size=32, intermediate_size=8, vocab_size=8))
    assert not any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    assert model.lm_head.weight.shape == (8, 32)
    assert deepspeed.is_deepspeed_zero3_enabled()


def test_one_function_builds_shapes() -> None:
    root = Path(spread.__file__).parents[1]
    makes_a_model = re.compile(r"(opener_of\(.*\)|Auto(Model|ModelFor)\w*|\w*ForCausalLM)\._?from_config\(")
    users = [path.name for path in root.rglob("*.py") if makes_a_model.search(path.read_text())]
    assert users == ["internals.py"]


def test_weights_that_zero3_spread_count_whole() -> None:
    layer = torch.nn.Linear(4, 3)
    layer.weight.ds_numel = layer.weight.numel()
    layer.weight.data = torch.empty(0)
    layer.bias.requires_grad = False
    assert trainable_parameters(layer) == (12, 15)


@pytest.mark.parametrize(
    ("device", "in_pieces", "peak"),
    [
        (SimpleNamespace(memory=None, device_map=None), False, 2 * 10 + 2 * 1000),
        (SimpleNamespace(memory=None, device_map=None), True, 2 * 10 + 1000),
        (SimpleNamespace(memory=80, device_map=None), True, 2 * 10 + 1000),
        (SimpleNamespace(memory=80, device_map={"": 0}), False, 2 * (10 + 5)),
    ],
    ids=["each its copy", "one copy", "one copy, then devices", "straight to devices"],
)
def test_main_memory_of_two_processes_while_they_load(
    monkeypatch: pytest.MonkeyPatch, device: Any, in_pieces: bool, peak: int
) -> None:
    monkeypatch.setattr(host, "resident", lambda: 10)
    found: Any = SimpleNamespace(peak=400, loaded=1000, offloaded=5, trained_bytes=0)
    assert host.on_host(found, device, 2, in_pieces=in_pieces).peak == peak
    found.peak = 2000  # training needs more than loading, where it is on the cpu
    expected = 4000 if device.memory is None else peak
    assert host.on_host(found, device, 2, in_pieces=in_pieces).peak == expected
