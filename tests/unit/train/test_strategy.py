"""DeepSpeed files are checked before anything is loaded; weights that are not spread are left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import resolved_from
from tunesmith import assets
from tunesmith.config.resolve import Resolved
from tunesmith.config.strategy import Strategy, named
from tunesmith.errors import ConfigError, ModelError
from tunesmith.model.device import CPU
from tunesmith.model.load import load_model
from tunesmith.model.precision import Precision
from tunesmith.train import processes
from tunesmith.train.strategy import (
    FOLLOWING,
    check_precision,
    check_tied,
    choose_strategy,
    gathered_weights,
)

SHIPPED = (
    Path(__file__).resolve().parents[3] / "recipes" / "reasoning" / "training" / "configs" / "deepspeed_zero3.json"
)


def run_with(file: Path, **settings: Any) -> Resolved:
    return resolved_from(model_name_or_path="m", deepspeed_config=str(file), **settings)


def strategy_of(resolved: Resolved, num_processes: int = 1) -> Strategy:
    return choose_strategy(resolved, num_processes)


def written(folder: Path, content: Any) -> Path:
    path = folder / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("settings", [{}, {"load_in_4bit": True}, {"load_in_8bit": True}, {"use_lora": False}])
def test_shipped_file_fits_every_kind_of_run(settings: dict[str, Any]) -> None:
    strategy_of(run_with(SHIPPED, **settings))


def test_runs_without_deepspeed_are_not_checked() -> None:
    strategy_of(resolved_from(model_name_or_path="m"))


@pytest.mark.parametrize(
    ("content", "part"),
    [("{", "not valid JSON"), ("[]", "no JSON object"), ("", "not valid JSON")],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        strategy_of(run_with(written(tmp_path, content)))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the DeepSpeed file"):
        strategy_of(run_with(tmp_path / "absent.json"))


def test_every_repeated_setting_must_agree(tmp_path: Path) -> None:
    values = run_with(SHIPPED).values()
    swept = 0
    for key, setting in FOLLOWING.items():
        for value, fits in (("auto", True), (values[setting], True), (12345, False)):
            content: Any = value
            for part in reversed(key.split(".")):
                content = {part: content}
            resolved = run_with(written(tmp_path, content))
            if fits:
                strategy_of(resolved)
            else:
                with pytest.raises(ConfigError, match="auto"):
                    strategy_of(resolved)
            swept += 1
    assert swept == 3 * 7


def test_rows_of_a_step_over_all_processes(tmp_path: Path) -> None:
    resolved = run_with(
        written(tmp_path, {"train_batch_size": 24}), per_device_train_batch_size=3, gradient_accumulation_steps=4
    )
    strategy_of(resolved, 2)
    with pytest.raises(ConfigError, match="train_batch_size is 24"):
        strategy_of(resolved)


def test_whole_weights_need_no_gathering() -> None:
    assert gathered_weights(torch.nn.Linear(2, 2)) is None


def test_processes_are_what_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (processes.rank(), processes.num_processes(), processes.is_main_process()) == (0, 1, True)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (processes.rank(), processes.num_processes(), processes.is_main_process()) == (1, 2, False)


@pytest.mark.parametrize(
    ("content", "settings", "part"),
    [
        ({"scheduler": {"type": "WarmupDecayLR"}}, {"lr_scheduler_type": "cosine"}, "lr_scheduler_type"),
        ({"scheduler": {"type": "OneCycle"}}, {}, "lr_scheduler_type"),
        ({"optimizer": {"type": "AdamW"}}, {"optim": "sgd"}, "training.optim"),
        ({"optimizer": {"type": "AdamW"}}, {"loraplus_lr_ratio": 4.0}, "loraplus_lr_ratio"),
        ({"optimizer": {"params": {"betas": [0.5, 0.9]}}}, {}, "betas"),
        ({"gradient_accumulation_steps": 2}, {"global_batch_size": 8, "per_device_train_batch_size": 2}, "passes"),
    ],
)
def test_sections_that_contradict_the_run(
    tmp_path: Path, content: dict[str, Any], settings: dict[str, Any], part: str
) -> None:
    with pytest.raises(ConfigError, match=part):
        strategy_of(run_with(written(tmp_path, content), **settings))


def test_sections_that_fit_the_run(tmp_path: Path) -> None:
    content = {
        "scheduler": {"type": "WarmupDecayLR"},
        "optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.999]}},
        "gradient_accumulation_steps": 4,
    }
    settings = {"lr_scheduler_type": "linear", "global_batch_size": 8, "per_device_train_batch_size": 2}
    assert strategy_of(run_with(written(tmp_path, content), **settings)).name == "zero0"


def test_every_configuration_that_comes_with_tunesmith_fits(tmp_path: Path) -> None:
    names = assets.deepspeed_names()
    assert len(names) == 5
    for name in names:
        resolved = resolved_from(model_name_or_path="m", deepspeed=name, nvme_path=str(tmp_path))
        assert strategy_of(resolved).name == name[:5]


def test_arithmetic_of_files_and_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bf16, fp32 = Precision("bfloat16", "test"), Precision("float32", "test")
    resolved = run_with(written(tmp_path, {"bf16": {"enabled": True}}))
    strategy = strategy_of(resolved)
    check_precision(resolved, strategy, bf16)
    with pytest.raises(ConfigError, match="enabled is True"):
        check_precision(resolved, strategy, fp32)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    check_precision(resolved, strategy, bf16)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ConfigError, match="mixed_precision is fp16"):
        check_precision(resolved, strategy, bf16)


def test_processes_of_an_accelerate_file(tmp_path: Path) -> None:
    path = written(tmp_path, {"distributed_type": "MULTI_CPU", "num_processes": 2})
    resolved = resolved_from(model_name_or_path="m", accelerate_config=str(path))
    with pytest.raises(ConfigError, match="num_processes is 2, and this run has 1"):
        strategy_of(resolved)
    assert strategy_of(resolved, 2).name == "ddp"


def test_one_process_spreads_nothing_by_fsdp2() -> None:
    resolved = resolved_from(model_name_or_path="m", strategy="fsdp2")
    with pytest.raises(ConfigError, match="there is one"):
        strategy_of(resolved)
    assert strategy_of(resolved, 2).name == "fsdp2"


def test_copies_of_a_tied_head_are_not_spread_by_fsdp2(models_folder: Path) -> None:
    for kind, fits in (("llama", False), ("mistral", True)):
        model = load_model(
            resolved_from(model_name_or_path=str(models_folder / kind), modules_to_save=["lm_head"], max_length=64),
            Precision("float32", "test"),
            CPU,
        )
        check_tied(named("zero3"), model)
        if fits:
            check_tied(named("fsdp2"), model)
        else:
            with pytest.raises(ModelError, match="modules_to_save"):
                check_tied(named("fsdp2"), model)
