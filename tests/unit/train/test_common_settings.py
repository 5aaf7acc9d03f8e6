"""Settings that other programs have too: each changes the training that it should change, in a real run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed

from helpers import logged, run_training, story_rows, tensors
from tunesmith.train.processes import connect_with_itself, disconnect, leave_sums_to_gloo

SHORT: dict[str, Any] = {"max_steps": 3, "per_device_train_batch_size": 2, "target_modules": "all-linear"}


def trained(folder: Path, **settings: Any) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    run_training(folder, "nano-mistral", story_rows(8), **SHORT, **settings)
    return tensors(folder / "run"), logged(folder / "run", "loss")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    return trained(tmp_path_factory.mktemp("plain"), optim="sgd")


def test_neftune_adds_noise_from_the_first_step(plain: Any, tmp_path: Path) -> None:
    _, losses = trained(tmp_path, optim="sgd", neftune_noise_alpha=50.0)
    assert losses[0] != plain[1][0]
    _, again = trained(tmp_path / "again", optim="sgd", neftune_noise_alpha=50.0)
    assert again == losses


def test_arguments_reach_the_optimizer(plain: Any, tmp_path: Path) -> None:
    weights, losses = trained(tmp_path, optim="sgd", optim_args={"momentum": 0.9, "nesterov": True})
    assert losses[0] == plain[1][0]  # the first step begins from the same weights
    assert any(not torch.equal(weights[name], value) for name, value in plain[0].items())


def test_patterns_decide_ranks_in_the_saved_adapter(tmp_path: Path) -> None:
    settings = {"lora_r": 4, "rank_pattern": {"q_proj": 2}, "exclude_modules": ["k_proj"]}
    weights, _ = trained(tmp_path, **settings)
    ranks = {name: value.shape[0] for name, value in weights.items() if "lora_A" in name}
    assert {rank for name, rank in ranks.items() if "q_proj" in name} == {2}
    assert {rank for name, rank in ranks.items() if "q_proj" not in name} == {4}
    assert not any("k_proj" in name for name in ranks)


def test_save_strategy_best_writes_at_best_evaluations_alone(tmp_path: Path) -> None:
    rows = story_rows(8)
    settings = {"eval_steps": 1, "save_strategy": "best", "allow_leak": True, "learning_rate": 5e-3}
    run_training(tmp_path, "nano-mistral", rows, eval_rows=rows[:4], **SHORT | {"max_steps": 4}, **settings)
    losses = [loss for (loss,) in logged(tmp_path / "run", "eval_loss")][:4]
    best = {step for step in range(1, 5) if losses[step - 1] == min(losses[:step])}
    found = {int(path.name.partition("-")[2]) for path in (tmp_path / "run").glob("checkpoint-*")}
    assert best <= found <= best | {4}
    assert len(best) > 1


def test_a_process_can_be_a_group_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    connect_with_itself()
    connect_with_itself()
    assert torch.distributed.get_world_size() == 1
    found: list[Any] = [None]
    torch.distributed.all_gather_object(found, "x")
    assert found == ["x"]
    assert os.environ["LOCAL_RANK"] == "0"
    disconnect()
    assert not torch.distributed.is_initialized()
    assert "LOCAL_RANK" not in os.environ


def test_deepspeed_compiles_nothing_to_sum_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks this table before it builds the operator; a name that is gone would let it compile again."""
    import importlib
    import inspect

    from deepspeed import ops
    from deepspeed.ops.op_builder.cpu.comm import ShareMemCommBuilder

    monkeypatch.setattr(ops, "__compatible_ops__", dict(ops.__compatible_ops__))
    assert ShareMemCommBuilder.NAME in ops.__compatible_ops__
    assert "__compatible_ops__.get(builder.NAME" in inspect.getsource(
        importlib.import_module("deepspeed.comm.torch").build_shm_op
    )
    leave_sums_to_gloo()
    assert ops.__compatible_ops__[ShareMemCommBuilder.NAME] is False
