"""The trainer computes where the run does, on machines that are not here: torch is told of devices that it lacks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from transformers.training_args import ParallelMode

from tunesmith import notices
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ModelError
from tunesmith.model.device import CPU, Machine, choose
from tunesmith.model.load import model_spec
from tunesmith.model.precision import Precision
from tunesmith.train.arguments import check_optimizer, sft_keywords
from tunesmith.train.plan import Plan
from tunesmith.train.trainer import Arguments

Settings = Callable[..., Resolved]
TWO = Machine(2, True, (80, 80), ("a", "b"))
APPLE = Machine(0, True, (16,), ("Apple mps",), mps=True)


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Two CUDA devices, as far as the libraries can see; the list tells which one was made torch's own."""
    made: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: made.append(str(device)))
    for name in ("LOCAL_RANK", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield made
    AcceleratorState._reset_state(reset_partial_state=True)


def arguments(resolved: Resolved) -> Arguments:
    device, plan = choose(resolved, TWO, {}), Plan(4, 1, 1, 4, 4, 0, 1)
    keywords = sft_keywords(resolved, device, Precision("float32", "test"), plan, resuming=False)
    return Arguments(**keywords | {"report_to": "none"})


@pytest.mark.parametrize("bits", [{}, {"load_in_4bit": True}])
@pytest.mark.parametrize(
    ("device_map", "device"), [("cuda:0", "cuda:0"), ("cuda:1", "cuda:1"), ("auto", "cuda:0"), ("cpu", "cpu")]
)
def test_one_process_never_replicates_the_model(
    device_map: str, device: str, bits: dict[str, Any], settings: Settings, current: list[str], tmp_path: Path
) -> None:
    made = arguments(settings(device_map=device_map, output_dir=str(tmp_path), **bits))
    assert str(made.device) == device
    assert made.n_gpu <= 1
    assert made.parallel_mode == ParallelMode.NOT_PARALLEL
    assert made.train_batch_size == made.per_device_train_batch_size
    assert str(PartialState().device) == device  # what accelerate compares with the device of quantized weights
    assert made.dataloader_pin_memory == (device != "cpu")
    assert current[-1:] == ([] if device == "cpu" else [device])


def test_a_runs_device_is_not_carried_over_to_another_machine(
    models_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained with ``gpu_id: 1`` or ``device_map: cuda:1``, asked where there is one GPU, or none."""
    run = tmp_path / "run"
    shutil.copytree(models_folder / "llama", run)
    for recorded in ({"launch.gpu_id": 1}, {"model.device_map": "cuda:1"}):
        values = {"model.model_name_or_path": "gone", "adapter.use_lora": False} | recorded
        (run / "run.json").write_text(json.dumps({"settings": values}))
        for machine, place in ((Machine(1, True, (80,), ("a",)), {"": 0}), (Machine(), None), (TWO, "auto")):
            monkeypatch.setattr("tunesmith.model.device.seen", lambda machine=machine: machine)
            assert model_spec(run).device.device_map == place
        monkeypatch.setattr("tunesmith.model.device.seen", lambda: TWO)
        assert model_spec(run, device_map="cuda:1").device.device_map == {"": 1}
        assert model_spec(run, device_map="cpu").device.use_cpu


@pytest.mark.parametrize("optim", ["paged_adamw_8bit", "adamw_8bit", "adamw_bnb_8bit", "paged_lion_32bit"])
def test_optimizers_of_bitsandbytes_on_apples_device_are_refused(
    optim: str, settings: Settings, clean_notices: None
) -> None:
    resolved = settings(optim=optim)
    with pytest.raises(ModelError, match=f"{optim} needs bitsandbytes"):
        check_optimizer(resolved, choose(resolved, APPLE, {}))
    check_optimizer(resolved, choose(resolved, TWO, {}))
    assert notices.collected() == []
    check_optimizer(resolved, CPU)
    assert len(notices.collected()) == optim.startswith("paged_")


def test_other_optimizers_go_anywhere(settings: Settings) -> None:
    resolved = settings(optim="adamw_torch")
    for machine in (TWO, APPLE, Machine()):
        check_optimizer(resolved, choose(resolved, machine, {}))
