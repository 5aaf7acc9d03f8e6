"""The reader of flat JSON: strictness, origins, document 3's defaults, and what defaults do beside written values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith import notices
from tunesmith.config import files
from tunesmith.config.load import detect_dialect, load, resolve_draft
from tunesmith.config.readers import flat_json
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ConfigError, ConfigErrors

DOCUMENT_3 = """{
  "model_name_or_path": "mistralai/Mistral-7B-v0.1",
  "use_lora": true,
  "load_in_4bit": true,
  "lora_r": 16,
  "lora_alpha": 32,
  "lora_dropout": 0.05,
  "output_dir": "checkpoints/mistral-7b-reasoning",
  "max_seq_length": 2048,
  "train_batch_size": 1,
  "gradient_accumulation_steps": 4,
  "num_train_epochs": 3,
  "learning_rate": 2e-5,
  "weight_decay": 0.01,
  "warmup_ratio": 0.03,
  "fp16": true,
  "gradient_checkpointing": true
}
"""

EXPECTED_DEFAULTS: dict[str, Any] = {
    "model.model_name_or_path": "mistralai/Mistral-7B-v0.1",
    "model.tokenizer_name_or_path": None,
    "adapter.use_lora": True,
    "adapter.lora_r": 16,
    "adapter.lora_alpha": 32,
    "adapter.lora_dropout": 0.05,
    "adapter.target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "adapter.bias": "none",
    "adapter.task_type": "CAUSAL_LM",
    "quantization.load_in_4bit": True,
    "quantization.load_in_8bit": False,
    "data.max_length": 2048,
    "data.add_bos": "if_known",
    "data.too_long": "drop",
    "training.output_dir": "checkpoints/mistral-7b-reasoning",
    "training.per_device_train_batch_size": 1,
    "training.per_device_eval_batch_size": 1,
    "training.gradient_accumulation_steps": 4,
    "training.num_train_epochs": 3.0,
    "training.learning_rate": 2e-5,
    "training.lr_scheduler_type": "cosine",
    "training.weight_decay": 0.01,
    "training.warmup_ratio": 0.03,
    "training.fp16": True,
    "training.bf16": False,
    "training.gradient_checkpointing": True,
    "training.logging_steps": 10,
    "training.eval_steps": 200,
    "training.save_steps": 500,
    "training.save_total_limit": 3,
    "training.seed": 42,
    "training.load_best_model_at_end": True,
    "training.early_stopping_patience": 5,
    "training.early_stopping_threshold": 0.01,
    "training.final_subdir": "final",
    "tracking.use_wandb": False,
    "tracking.wandb_project": "SimpleFoundation",
    "tracking.run_name": None,
    "launch.deepspeed": None,
}


@pytest.fixture(autouse=True)
def fresh_notices() -> None:
    notices.clear()


WITHOUT_EVALUATION = {"training.load_best_model_at_end": False, "training.early_stopping_patience": None}
"""What the documented defaults become where there are no evaluation rows to choose by."""


def write(folder: Path, text: str) -> Path:
    path = folder / "config.json"
    path.write_text(text, encoding="utf-8")
    return path


def resolve_text(folder: Path, text: str, *overrides: str) -> Resolved:
    return load(write(folder, text), overrides)


def test_document_json_with_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert detect_dialect(write(tmp_path, DOCUMENT_3)) == "json"
    resolved = load("config.json")
    written = [path for path in resolved.origins if resolved.explicit(path)]
    assert len(written) == 16
    assert resolved.origins["model.model_name_or_path"] == "config.json:2"
    assert resolved.origins["training.gradient_checkpointing"] == "config.json:17"
    assert {path: resolved.values()[path] for path in EXPECTED_DEFAULTS} == EXPECTED_DEFAULTS | WITHOUT_EVALUATION


def test_defaults_with_evaluation_rows(tmp_path: Path) -> None:
    resolved = resolve_text(tmp_path, '{"eval_file": "rows.json"}')
    expected = EXPECTED_DEFAULTS | {"training.save_steps": 600}
    assert {path: resolved.values()[path] for path in expected} == expected


def test_silence_means_the_documented_defaults(tmp_path: Path) -> None:
    resolved = resolve_text(tmp_path, "{}")
    assert {path: resolved.values()[path] for path in EXPECTED_DEFAULTS} == EXPECTED_DEFAULTS | WITHOUT_EVALUATION
    assert not any(resolved.explicit(path) for path in EXPECTED_DEFAULTS)
    assert resolved.fingerprint() == resolve_text(tmp_path, DOCUMENT_3).fingerprint()


def test_keywords_and_a_file_give_the_same_run(tmp_path: Path) -> None:
    values = {"learning_rate": 1e-4, "log_every_n_steps": 3, "lora_target_modules": ["q_proj"], "wandb_name": "a"}
    by_name = resolve_draft(flat_json.from_keywords(values))
    assert by_name.fingerprint() == resolve_text(tmp_path, json.dumps(values)).fingerprint()
    assert by_name.origins["training.logging_steps"] == "TrainingConfig"


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("learning_rate: 1e-4\n", 1, "not valid JSON"),
        ("{\n'learning_rate': 1}", 2, "not valid JSON"),
        ('{\n "seed": 1,}', 2, "not valid JSON"),
        ('{"seed": 1} // comment', 1, "not valid JSON"),
        ('{"seed": 1}\n{"seed": 2}', 2, "not valid JSON"),
        ("", 1, "not valid JSON"),
        ('{\n\n"seed": 1,\n"seed": 2}', 4, "'seed' stands twice (first in line 3)"),
        ('{\n"learning_rat": 1e-4}', 2, "did you mean 'learning_rate'"),
        ('{\n"training": {"sed": 1}}', 2, "'sed'"),
        ('{"seed":\n1,\n"seed ": 2}', 3, "unknown setting 'seed '"),
        ('{\n"learning_rate": {"value": 1}}', 2, "learning_rate = {'value': 1}"),
        ('{\n"learning_rate": "2e-5"}', 2, "learning_rate = '2e-5'"),
        ('{\n"use_lora": "True"}', 2, "use_lora = 'True'"),
        ('{\n"use_lora": 1}', 2, "use_lora = 1"),
        ('{\n"seed": [[1]]}', 2, "seed = [[1]]"),
        ('{\n"train_batch_size": 0}', 2, "train_batch_size = 0"),
        ('{\n"learning_rate": 1e999}', 2, "learning_rate = inf"),
        ('{\n"lora_target_modules": ["q_proj", 3]}', 2, "lora_target_modules"),
    ],
)  # fmt: skip
def test_mistakes_name_their_line(tmp_path: Path, text: str, line: int, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_text(tmp_path, text)
    assert part in str(caught.value)
    assert f"config.json:{line}:" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[1, 2]", "holds a list, not an object"),
        ("3", "holds a number"),
        ("null", "holds null"),
        ('"text"', "holds a text"),
        ("true", "holds true or false"),
        ('{"learning_rate": NaN}', "NaN is not a JSON number"),
        ('{"wandb_name": "\\ud800"}', "surrogate"),
        ('{"lr_scheduler_kwargs": {"a": 1, "a": 2}}', "'a' stands twice"),
        ('{"seed": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"seed": ' + "1" * 10_000 + "}", "not valid JSON"),
        ('{"wandb_name": "' + "x" * files.MAX_BYTES + '"}', "larger than"),
    ],
)
def test_odd_files(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        resolve_text(tmp_path, text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b'{"wandb_name": "\xe9"}')
    for path, part in [("latin.json", "not UTF-8"), ("absent.json", "cannot read"), (".", "cannot read")]:
        with pytest.raises(ConfigError, match=part):
            flat_json.read(tmp_path / path)


def test_all_unknown_keys_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors) as caught:
        resolve_text(tmp_path, '{"lerning_rate": 1,\n"seeed": 2,\n"quantum": 3}')
    assert [problem.where.rpartition(":")[2] for problem in caught.value.problems if problem.where] == ["1", "2", "3"]


def test_tabs_escapes_and_a_byte_order_mark_are_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes('\ufeff{\n\t"wandb_name":\t"caf\\u00e9 \\ud83d\\ude00 \\/",\r\n\t"seed" : 7 }'.encode())
    resolved = load(path)
    assert resolved.config.tracking.run_name == "café 😀 /"
    assert resolved.config.training.seed == 7
    assert resolved.origins["training.seed"].endswith("config.json:3")


def test_dotted_and_common_spellings(tmp_path: Path) -> None:
    resolved = resolve_text(tmp_path, '{"training.seed": 1, "eval_file": "a.json", "deepspeed_config": "ds.json"}')
    assert resolved.config.training.seed == 1
    assert resolved.config.data.eval_data == "a.json"
    assert resolved.config.launch.deepspeed == "ds.json"


def test_flags_of_the_dialect_on_the_command_line(tmp_path: Path) -> None:
    switches = ["--use_lora", "False", "--load_in_4bit", "False"]
    modules = ["--lora_target_modules", "q_proj", "v_proj"]
    config = resolve_text(tmp_path, '{"use_lora": true}', *switches, "--log_every_n_steps", "2", *modules).config
    assert config.adapter.use_lora is False
    assert config.quantization.load_in_4bit is False
    assert config.training.logging_steps == 2
    assert config.adapter.target_modules == ["q_proj", "v_proj"]


def test_saves_align_with_evaluations_and_say_so(tmp_path: Path) -> None:
    resolved = resolve_text(tmp_path, '{"eval_file": "a.json"}')
    assert resolved.config.training.save_steps == 600
    assert "500, aligned" in resolved.origins["training.save_steps"]
    assert any("save_steps 500 becomes 600" in text for text in notices.collected())


@pytest.mark.parametrize("text", ["{}", '{"eval_file": "a.json", "load_best_model_at_end": false}'])
def test_saves_stay_where_nothing_depends_on_them(tmp_path: Path, text: str) -> None:
    assert resolve_text(tmp_path, text).config.training.save_steps == 500
    assert notices.collected() == []


def test_held_out_rows_align_saves_too(tmp_path: Path) -> None:
    assert resolve_text(tmp_path, '{"dev_split": 0.1, "eval_every_n_steps": 150}').config.training.save_steps == 600


@pytest.mark.parametrize(
    ("flags", "path", "notice"),
    [
        (["--bf16", "True"], "training.fp16", "gives way to bf16 true"),
        (["--load_in_8bit", "True"], "quantization.load_in_4bit", "gives way to load_in_8bit true"),
        (["--use_lora", "False"], "quantization.load_in_4bit", "gives way to use_lora false"),
    ],
)
def test_a_default_gives_way_to_what_somebody_wrote(tmp_path: Path, flags: list[str], path: str, notice: str) -> None:
    resolved = resolve_text(tmp_path, "{}", *flags)
    assert resolved.values()[path] is False
    assert not resolved.explicit(path)
    assert any(notice in text for text in notices.collected())


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"fp16": true, "bf16": true}', "bf16 and fp16 are both on"),
        ('{"load_in_4bit": true, "load_in_8bit": true}', "load_in_4bit and load_in_8bit are both on"),
        ('{"load_in_4bit": true, "use_lora": false}', "full fine-tuning"),
    ],
)
def test_written_contradictions_are_errors(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        resolve_text(tmp_path, text)
