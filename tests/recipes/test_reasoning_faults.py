"""The faults that programs like the reasoning recipe are known to have: each test is named after one."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import ready_python
from helpers import logged, tensors
from tunesmith import notices
from tunesmith.entrypoints.reasoning import ModelTrainer, ReasoningDataset, TrainingConfig, main

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "reasoning"
TRAIN_FILE, EVAL_FILE = "data/formatted/combined_formatted.json", "data/formatted/validation.json"


@pytest.fixture(autouse=True)
def in_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPE)
    notices.clear()


@pytest.fixture
def config(stories_model: Path, tmp_path: Path) -> TrainingConfig:
    """Document 3's defaults on a small model, without quantization."""
    return TrainingConfig(
        model_name_or_path=str(stories_model),
        output_dir=str(tmp_path / "run"),
        load_in_4bit=False,
        learning_rate=1e-3,
        log_every_n_steps=1,
    )


def record_of(folder: str | Path) -> dict[str, Any]:
    return json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))


# Files that cannot be imported


@pytest.mark.parametrize(
    "program",
    [
        ["-c", "import sys; from training.trainers.model_trainer import *; assert 'torch' not in sys.modules"],
        ["-m", "training.trainers.model_trainer", "--help"],
        ["training/trainers/model_trainer.py", "--help"],
    ],
    ids=["import", "module", "script"],
)
def test_files_that_cannot_be_imported(program: list[str]) -> None:
    done = ready_python.run([ready_python.python(), *program])
    assert done.returncode == 0, done.stderr


# A __main__ that ignores its flags


def test_main_that_ignores_its_flags(stories_model: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "model_name_or_path": str(stories_model),
        "tokenizer_name_or_path": str(stories_model),
        "use_lora": True,
        "load_in_4bit": False,
        "load_in_8bit": False,
        "lora_r": 4,
        "lora_alpha": 12,
        "lora_dropout": 0.0,
        "lora_target_modules": ["q_proj", "v_proj"],
        "output_dir": str(tmp_path / "run"),
        "max_seq_length": 200,
        "train_batch_size": 2,
        "eval_batch_size": 3,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 0.03,
        "learning_rate": 3e-4,
        "lr_scheduler_type": "linear",
        "weight_decay": 0.1,
        "warmup_ratio": 0.5,
        "fp16": False,
        "bf16": False,
        "gradient_checkpointing": False,
        "deepspeed_config": None,
        "seed": 7,
        "log_every_n_steps": 1,
        "eval_every_n_steps": 2,
        "save_every_n_steps": 2,
        "save_total_limit": 1,
        "early_stopping_patience": 2,
        "early_stopping_threshold": 0.5,
        "use_wandb": False,
        "wandb_project": "mine",
        "wandb_name": "a name",
    }
    assert set(values) == {setting.name for setting in fields(TrainingConfig)}
    flags = ["--train_file", TRAIN_FILE, "--eval_file", EVAL_FILE]
    for name, value in values.items():
        flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    assert main(flags) == 0
    kept = json.loads((tmp_path / "run" / "final" / "training_config.json").read_text(encoding="utf-8"))
    assert kept == values | {"train_file": TRAIN_FILE, "eval_file": EVAL_FILE}
    record = record_of(tmp_path / "run")
    assert sum(origin == "command line" for origin in record["origins"].values()) == len(values) + 2
    adapter = json.loads((tmp_path / "run" / "final" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (adapter["r"], adapter["lora_alpha"], adapter["target_modules"]) == (4, 12, ["q_proj", "v_proj"])
    assert record["plan"]["total_steps"] == 3
    assert record["plan"]["warmup_steps"] == 2
    rates = [rate for (rate,) in logged(tmp_path / "run", "learning_rate")]
    assert rates == pytest.approx([0, 1.5e-4, 3e-4])
    assert [step for step, _ in logged(tmp_path / "run", "step", "eval_loss")] == [2, 3]


# A collator that overwrites the prompt mask, and hides the end token when it also pads


def test_collator_overwriting_the_prompt_mask(stories_tokenizer: Any) -> None:
    from tunesmith.data.batching import BatchRows
    from tunesmith.data.collate import Collator

    dataset = ReasoningDataset(TRAIN_FILE, stories_tokenizer, 512)
    rows = json.loads(Path(TRAIN_FILE).read_text(encoding="utf-8"))
    assert len(dataset) == len(rows) == 160
    bos, eos = stories_tokenizer.bos_token_id, stories_tokenizer.eos_token_id
    batch = Collator("padded", pad_token_id=eos)(BatchRows(dataset.examples[:4], "padded", 512))
    swept = 0
    for row, labels, ids, mask in zip(rows, batch["labels"], batch["input_ids"], batch["attention_mask"], strict=False):
        trained = ids[labels != -100]
        prompt = ids[(labels == -100) & (mask == 1)]
        assert prompt[0] == bos
        assert stories_tokenizer.decode(prompt[1:]) == row["prompt"]
        assert trained[-1] == eos
        assert stories_tokenizer.decode(trained[:-1]).strip() == row["response"]
        assert trained.tolist() == labels[labels != -100].tolist()
        assert (labels[mask == 0] == -100).all()
        swept += 1
    assert swept == 4


def test_dataset_rows_are_begin_prompt_response_end(stories_tokenizer: Any) -> None:
    dataset = ReasoningDataset(EVAL_FILE, stories_tokenizer, 512)
    assert len(dataset) == len(list(dataset)) == 40
    for item in dataset:
        assert item.keys() == {"input_ids", "labels", "attention_mask"}
        ids = item["input_ids"].tolist()
        assert ids.count(stories_tokenizer.bos_token_id) == ids.count(stories_tokenizer.eos_token_id) == 1
        assert (ids[0], ids[-1]) == (stories_tokenizer.bos_token_id, stories_tokenizer.eos_token_id)
        assert item["attention_mask"].tolist() == [1] * len(ids)
        assert item["labels"].shape == item["input_ids"].shape


def test_too_long_rows_keep_their_end_or_go(stories_tokenizer: Any) -> None:
    dataset = ReasoningDataset(TRAIN_FILE, stories_tokenizer, 100)
    account = dataset.ledger.total()
    assert account.read == 160
    assert 0 < len(dataset) < 160
    assert len(account.dropped["too_long"]) == 160 - len(dataset)
    assert all(item["input_ids"][-1] == stories_tokenizer.eos_token_id for item in dataset)


# Batch size above 1 crashes; any eval_file crashes


def test_batch_size_above_1_crashing(config: TrainingConfig, tmp_path: Path) -> None:
    """It does not, and batches of 4 train as 4 accumulated rows do."""
    curves = []
    for batch_size, accumulation in ((4, 1), (1, 4)):
        config.lora_dropout = 0.0
        config.output_dir = str(tmp_path / f"{batch_size}x{accumulation}")
        config.train_batch_size, config.gradient_accumulation_steps = batch_size, accumulation
        ModelTrainer(config, max_steps=3).train(TRAIN_FILE)
        curves.append([loss for (loss,) in logged(Path(config.output_dir), "loss")])
    assert len(curves[0]) == 3
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_any_eval_file_crashing(config: TrainingConfig) -> None:
    config.eval_every_n_steps = config.save_every_n_steps = 2
    config.eval_batch_size = 8
    ModelTrainer(config, max_steps=4).train(TRAIN_FILE, EVAL_FILE)
    evaluations = logged(Path(config.output_dir), "step", "eval_loss")
    assert [step for step, _ in evaluations] == [2, 4]
    assert evaluations[1][1] < evaluations[0][1]


# Save steps that are not a multiple of eval steps, so that early stopping can never run


def test_save_steps_not_a_multiple_of_eval_steps(config: TrainingConfig) -> None:
    """Early stopping runs, stops, and the best checkpoint is the result."""
    config.eval_every_n_steps, config.save_every_n_steps = 2, 3
    config.early_stopping_patience, config.early_stopping_threshold = 2, 100.0  # nothing counts as an improvement
    final = ModelTrainer(config, max_steps=40).train(TRAIN_FILE, EVAL_FILE)
    record = record_of(config.output_dir)
    assert any("save_steps 3 becomes 4" in notice for notice in record["notices"])
    assert record["result"]["steps"] == 6  # the first evaluation, and two without improvement
    assert record["status"] == "finished"
    assert Path(final, "adapter_model.safetensors").is_file()


def test_early_stopping_with_the_documented_patience(config: TrainingConfig) -> None:
    config.eval_every_n_steps = config.save_every_n_steps = 1
    config.learning_rate = 1e-9  # the loss does not move
    ModelTrainer(config, max_steps=40).train(TRAIN_FILE, EVAL_FILE)
    record = record_of(config.output_dir)
    assert record["result"]["steps"] == 6  # one evaluation, then 5 that are less than 0.01 better
    assert record["best_checkpoint"] is not None


# LoRA without quantization plus gradient checkpointing fails at backward


def test_lora_without_quantization_plus_gradient_checkpointing(config: TrainingConfig, tmp_path: Path) -> None:
    config.lora_dropout = 0.0
    results = []
    for checkpointing in (True, False):
        config.gradient_checkpointing = checkpointing
        config.output_dir = str(tmp_path / f"checkpointing-{checkpointing}")
        results.append(tensors(Path(ModelTrainer(config, max_steps=2).train(TRAIN_FILE))))
    with_it, without_it = results
    learnt = [name for name, tensor in with_it.items() if "lora_B" in name and tensor.abs().max() > 0]
    assert len(learnt) == len(with_it) // 2 == 20
    assert all((with_it[name] - without_it[name]).abs().max() < 1e-6 for name in with_it)


# Saved generation parameters, promised and absent (the merge is in test_reasoning.py)


def test_generation_parameters_promised_and_absent(config: TrainingConfig, stories_tokenizer: Any) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    final = ModelTrainer(config, max_steps=1).train(TRAIN_FILE)
    assert GenerationConfig.from_pretrained(final).eos_token_id == [stories_tokenizer.eos_token_id]
    assert AutoTokenizer.from_pretrained(final).get_vocab() == stories_tokenizer.get_vocab()
    kept = json.loads(Path(final, "training_config.json").read_text(encoding="utf-8"))
    assert kept.keys() == {setting.name for setting in fields(TrainingConfig)} | {"train_file", "eval_file"}
