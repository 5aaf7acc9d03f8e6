"""Whole runs whose rows begin alike: the losses of padded ones, and exact continuation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import logged, run_training, tensors

SYSTEM = "Once upon a time there was a little girl and a big dog. They liked to play in the park. "
LORA: dict[str, Any] = {"use_lora": True, "lora_r": 4, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0}


def rows(number: int) -> list[dict[str, Any]]:
    """Three rows of each beginning behind the one of all; some with weights."""
    places = [f"One day they went to place {index // 3} with a red ball and a small cake. " for index in range(number)]
    return [
        {"prompt": f"{SYSTEM}{place}Friend {index} came.", "completion": " They were happy." * (1 + index % 2),
         "weight": 1.0 + index % 2}
        for index, place in enumerate(places)
    ]  # fmt: skip


@pytest.mark.parametrize("more", [LORA, LORA | {"load_in_4bit": True, "gradient_checkpointing": True}])
def test_a_run_has_the_losses_of_a_padded_one(tmp_path: Path, stories_model: Path, more: dict[str, Any]) -> None:
    common = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 3, "num_train_epochs": 2.0, **more}
    for layout in ("padded", "auto"):
        run_training(tmp_path / layout, stories_model, rows(12), batching=layout, **common)
    assert json.loads((tmp_path / "auto/run/run.json").read_text())["layout"]["batching"] == "prefix_tree"
    padded, shared = (logged(tmp_path / name / "run", "step", "loss", "grad_norm") for name in ("padded", "auto"))
    assert len(padded) == 4
    in_few_bits = "load_in_4bit" in more
    for one, other in zip(padded, shared, strict=True):
        assert one == pytest.approx(other, rel=5e-3 if in_few_bits else 1e-5)


def test_continuing_in_the_middle_of_an_epoch_is_exact(tmp_path: Path, stories_model: Path) -> None:
    common = {"num_train_epochs": 2.0, "save_strategy": "steps", "save_steps": 1, "group_by_prefix": True,
              "per_device_train_batch_size": 3, **LORA, "lora_dropout": 0.1}  # fmt: skip
    run_training(tmp_path, stories_model, rows(9), **common)
    whole = tmp_path / "run"
    before, weights = logged(whole, "step", "loss", "grad_norm"), tensors(whole)
    assert len(before) == 6
    for step in (5, 6):
        (whole / f"checkpoint-{step}" / "manifest.json").unlink()
    run_training(tmp_path, stories_model, rows(9), resume_from_checkpoint="latest", **common)
    assert logged(whole, "step", "loss", "grad_norm") == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tensors(whole).items())


def test_rows_that_begin_alike_come_together_once_an_epoch(tmp_path: Path, stories_model: Path) -> None:
    """The trainer's own batches are those that ``order`` tells ``check`` and ``preview`` of."""
    from helpers import resolved_from, write_rows
    from tunesmith.data.families import families
    from tunesmith.model.load import load_model
    from tunesmith.train.order import batches
    from tunesmith.train.processes import Processes
    from tunesmith.train.run import build_trainer, inference_contract, trainer_arguments
    from tunesmith.train.setup import set_up

    resolved = resolved_from(
        model_name_or_path=str(stories_model), train_data=write_rows(tmp_path / "rows.jsonl", rows(12)),
        output_dir=str(tmp_path / "run"), group_by_prefix=True, per_device_train_batch_size=3, max_length=256, **LORA,
    )  # fmt: skip
    setup = set_up(resolved, Processes())
    loaded = load_model(resolved, setup.precision, setup.device)
    trainer = build_trainer(setup, loaded, inference_contract(setup, loaded), trainer_arguments(setup))
    examples: Any = setup.data.train
    lengths = [len(example.input_ids) for example in examples]
    loader = trainer.get_train_dataloader()
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        drawn = [batch["origins"] for batch in loader]
        told = batches(resolved, lengths, epoch, families(examples, 3))
        assert drawn == [[examples[at].origin for at in batch] for batch in told]
        assert sorted(len({(int(one.rpartition(":")[2]) - 1) // 3 for one in batch}) for batch in drawn) == [1] * 4
