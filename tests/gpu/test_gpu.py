"""What a CUDA device does is what the cpu does in float32, within the limits of each format; ``make gpu`` runs it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import logged, run_training, story_rows, tensors, write_rows
from tunesmith.evaluate.prompts import questions_for
from tunesmith.export.merge import merge
from tunesmith.model.load import load_for_inference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
LOOSE = 0.08
"""Largest difference of a training loss (about 4 at the start) where weights have 4 or 8 bits."""
WAYS: dict[str, tuple[dict[str, Any], float]] = {
    "float32": ({"bf16": False}, 2e-3),
    "bf16": ({"bf16": True}, 0.03),
    "fp16": ({"fp16": True}, 0.02),
    "nf4": ({"load_in_4bit": True, "bf16": True}, LOOSE),
    "int8": ({"load_in_8bit": True, "fp16": True}, LOOSE),
    "full": ({"use_lora": False, "bf16": True}, 0.03),
    "paged": ({"optim": "paged_adamw_8bit", "bf16": True}, 0.05),
    "packed": ({"batching": "packed", "attn_implementation": "flex_attention", "bf16": False}, 5e-3),
    "padded": ({"batching": "padded", "attn_implementation": "sdpa", "bf16": False}, 2e-3),
}
"""Way of computing -> its settings, and how far a training loss may be from the cpu's in float32."""
OF_THE_CPU = ("load_in_4bit", "load_in_8bit", "use_lora", "batching")
"""Settings that the comparison on the cpu shares: what the weights are, and how rows lie."""


def losses(folder: Path) -> list[float]:
    return [float(loss) for (loss,) in logged(folder, "loss")]


def trained(home: Path, model: Path, **values: Any) -> Path:
    steps = {"max_steps": 4, "learning_rate": 1e-3, "seed": 3, "gradient_checkpointing": False}
    folder: Path = run_training(home, model, story_rows(16), **(steps | values)).folder
    return folder


@pytest.fixture(autouse=True)
def _memory_returned() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize("way", WAYS)
def test_losses_are_those_of_the_cpu(way: str, stories_model: Path, tmp_path: Path) -> None:
    values, limit = WAYS[way]
    shared = {name: value for name, value in values.items() if name in OF_THE_CPU}
    expected = losses(trained(tmp_path / "cpu", stories_model, device_map="cpu", bf16=False, **shared))
    run = trained(tmp_path / "gpu", stories_model, **values)
    assert json.loads((run / "run.json").read_text())["model"]["device"].startswith("cuda")
    found = losses(run)
    assert len(found) == len(expected) == 4
    assert max(abs(one - other) for one, other in zip(found, expected, strict=True)) <= limit
    torch.cuda.synchronize()


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="flash-attn is not installed")
@pytest.mark.parametrize("batching", ["padded", "unpadded", "packed"])
def test_flash_attention_2(batching: str, stories_model: Path, tmp_path: Path) -> None:
    expected = losses(trained(tmp_path / "cpu", stories_model, device_map="cpu", batching=batching, bf16=False))
    values = {"attn_implementation": "flash_attention_2", "batching": batching, "bf16": True}
    found = losses(trained(tmp_path / "gpu", stories_model, **values))
    assert max(abs(one - other) for one, other in zip(found, expected, strict=True)) <= 0.03


def test_answers_are_those_of_the_cpu(stories_model: Path, tmp_path: Path) -> None:
    run = trained(tmp_path, stories_model, bf16=False)
    texts = [questions_for(run).prompts[index] for index in range(4)]
    answers = []
    for place in ("cpu", "cuda:0"):
        model = load_for_inference(run, device_map=place).model
        ids = [torch.tensor([text], device=place) for text in texts]
        answers.append([model.generate(input_ids=one, max_new_tokens=20, do_sample=False).tolist() for one in ids])
    assert answers[0] == answers[1]


def test_evaluation_during_training(stories_model: Path, tmp_path: Path) -> None:
    values = {"eval_rows": story_rows(6, seed=5), "eval_strategy": "steps", "eval_steps": 2, "allow_leak": True}
    found = [
        logged(trained(tmp_path / place, stories_model, bf16=False, **values, **settings), "eval_loss")
        for place, settings in (("cpu", {"device_map": "cpu"}), ("gpu", {}))
    ]
    assert len(found[0]) == len(found[1]) >= 2
    assert all(abs(a - b) <= 2e-3 for (a,), (b,) in zip(*found, strict=True))


def test_resumed_run_ends_where_an_unbroken_one_does(stories_model: Path, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "bf16": True, "batching": "padded"}
    whole = trained(tmp_path / "whole", stories_model, **saving)
    resumed = trained(tmp_path / "rest", stories_model, **saving, resume_from_checkpoint=str(whole / "checkpoint-2"))
    found = [dict(logged(run, "step", "loss")) for run in (whole, resumed)]
    assert all(abs(float(found[0][step]) - float(found[1][step])) <= 1e-4 for step in (3, 4))
    weights = [tensors(run) for run in (whole, resumed)]
    assert all((weights[0][name] - tensor).abs().max() <= 1e-4 for name, tensor in weights[1].items())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device")
def test_two_processes_learn_what_one_does(stories_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "train.jsonl", story_rows(16))
    told = {}
    for processes in (1, 2):
        run = tmp_path / f"run-{processes}"
        command = [sys.executable, "-m", "tunesmith", "train", "--model_name_or_path", str(stories_model),
                   "--train_data", rows, "--output_dir", str(run), "--max_steps", "4", "--bf16", "true",
                   "--global_batch_size", "4", "--per_device_train_batch_size", "2", "--lora_dropout", "0",
                   "--logging_steps", "1", "--num_processes", str(processes)]  # fmt: skip
        subprocess.run(command, check=True, timeout=300)
        told[processes] = losses(run)
    assert max(abs(one - other) for one, other in zip(told[1], told[2], strict=True)) <= 0.03


@pytest.mark.parametrize("values", [{"bf16": True}, {"load_in_4bit": True, "bf16": True}], ids=["bf16", "nf4"])
def test_merge_is_proven_on_the_gpu(values: dict[str, Any], stories_model: Path, tmp_path: Path) -> None:
    run = trained(tmp_path, stories_model, **values)
    merged = merge(run, tmp_path / "merged", questions=questions_for(run))
    assert merged.proof is not None
    assert merged.proof["verdict"] == "proven"
    assert merged.proof["tensors"]["folded"] > 0
