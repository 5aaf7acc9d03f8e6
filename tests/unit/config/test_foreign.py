"""Files of other programs: recognised, translated with reasons for what is left out, and trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import write_rows
from tunesmith import notices
from tunesmith.cli.main import main
from tunesmith.config.load import detect_dialect, load, read
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ConfigError

FILES = Path(__file__).parents[2] / "coming_from"
TOOLS = {
    "trl": "trl",
    "axolotl": "axolotl",
    "llama-factory": "llama_factory",
    "unsloth": "unsloth",
    "torchtune": "torchtune",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the rows that the files name."""
    monkeypatch.chdir(tmp_path)
    chats = [
        {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}]}
        for n in range(8)
    ]
    tasks = [{"instruction": f"Say {n}.", "input": "", "output": f"{n}"} for n in range(8)]
    write_rows(tmp_path / "conversations.jsonl", chats)
    write_rows(tmp_path / "instructions.jsonl", tasks)
    (tmp_path / "described").mkdir()
    write_rows(
        tmp_path / "described" / "ours.jsonl", [{"ask": row["instruction"], "say": row["output"]} for row in tasks]
    )
    described = {"ours": {"file_name": "ours.jsonl", "columns": {"prompt": "ask", "response": "say"}}}
    (tmp_path / "described" / "dataset_info.json").write_text(json.dumps(described))
    return tmp_path


def example(tool: str) -> Path:
    return FILES / f"{TOOLS[tool]}.yaml"


EXPECTED: dict[str, dict[str, Any]] = {
    "trl": {
        "adapter.use_lora": True, "adapter.lora_r": 8, "data.loss_on": "assistant", "data.max_length": 256,
        "training.gradient_checkpointing": True, "training.save_strategy": "no", "training.learning_rate": 1e-3,
    },
    "axolotl": {
        "data.train_data": "instructions.jsonl", "data.format": "alpaca", "data.dev_split": 0.25,
        "adapter.target_modules": "all-linear", "training.batching": "packed", "data.loss_on": "completion",
        "training.per_device_train_batch_size": 2, "training.eval_strategy": "epoch", "model.pad_token": "</s>",
        "training.bf16": None, "quantization.load_in_4bit": False, "tracking.use_wandb": None,
    },
    "llama-factory": {
        "data.train_data": "described/ours.jsonl", "data.columns": {"instruction": "ask", "output": "say"},
        "adapter.lora_r": 8, "adapter.lora_alpha": 16, "adapter.target_modules": "all-linear",
        "data.template": "alpaca", "data.dev_split": 0.2, "launch.ddp_timeout": 180_000_000, "data.num_proc": 2,
    },
    "unsloth": {
        "model.model_name_or_path": "nano-mistral", "data.format": "messages", "data.loss_on": "completion",
        "adapter.target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "training.seed": 3407,
        "quantization.load_in_4bit": False, "training.gradient_checkpointing": True, "training.save_strategy": "no",
    },
    "torchtune": {
        "model.model_name_or_path": "nano-mistral", "data.train_data": "instructions.jsonl", "data.loss_on": "all",
        "adapter.target_modules": ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "training.max_grad_norm": 0.0, "training.output_dir": "from-torchtune", "model.device_map": "cpu",
        "training.lr_scheduler_type": "cosine", "training.warmup_steps": 1, "training.seed": 7,
    },
}  # fmt: skip
LEFT = {
    "trl": {"gradient_checkpointing_kwargs"},
    "axolotl": {"model_type", "tokenizer_type", "dataset_prepared_path", "pad_to_sequence_len"},
    "llama-factory": {"overwrite_cache", "plot_loss"},
    "unsloth": {"logging.tensorboard_dir"},
    "torchtune": {
        "tokenizer.path", "checkpointer.checkpoint_files", "checkpointer.model_type", "loss", "max_steps_per_epoch",
        "metric_logger.log_dir",
    },
}  # fmt: skip


@pytest.mark.parametrize("tool", TOOLS)
def test_a_file_is_recognised_and_means_what_it_meant(tool: str, here: Path) -> None:
    assert detect_dialect(example(tool)) == tool
    values = load(example(tool)).values()
    assert {path: values[path] for path in EXPECTED[tool]} == EXPECTED[tool]
    assert {key for key, _, _ in read(example(tool)).left} == LEFT[tool]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_translation_says_the_same_and_names_what_it_leaves(
    tool: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notices.clear()
    assert main(["config", str(example(tool)), "--to", "yaml"]) == 0
    shown = capsys.readouterr()
    (here / "mine.yaml").write_text(shown.out)
    assert load(here / "mine.yaml").values() == load(example(tool)).values()
    for key in LEFT[tool]:
        assert f"{key} is left out: " in shown.out
        assert f"{key} is left out: " in shown.err


@pytest.mark.parametrize("tool", TOOLS)
def test_a_translation_passes_check_and_trains(tool: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tunesmith.train.run import train

    assert main(["config", str(example(tool)), "--to", "yaml"]) == 0
    (here / "mine.yaml").write_text(capsys.readouterr().out)
    assert main(["check", "mine.yaml", "--max_steps", "2"]) == 0
    result = train(load(here / "mine.yaml", ["--max_steps", "2"]), command=["test"])
    assert result.steps == 2
    assert (here / result.model_folder).is_dir()


def tried(here: Path, name: str, text: str) -> Resolved:
    (here / name).write_text(text)
    return load(here / name)


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("base_model: m\nadapter: qlora\nload_in_4bit: true\nsequence_len: 64\n", "quantization.load_in_4bit", True),
        ("base_model: m\nsequence_len: 64\nload_in_8bit: true\n", "quantization.load_in_8bit", False),
        ("base_model: m\nsequence_len: 64\n", "adapter.use_lora", False),
        ("base_model: m\nadapter: lora\nwandb_project: p\n", "tracking.use_wandb", True),
        ("base_model: m\nadapter: lora\nchat_template: llama3\n", "data.template", "llama-3"),
        ("base_model: m\nadapter: lora\nflash_attention: true\n", "model.attn_implementation", "flash_attention_2"),
        ("base_model: m\nadapter: lora\nhub_model_id: me/x\n", "training.push_to_hub", True),
        ("base_model: m\nadapter: lora\nneftune_noise_alpha: 5\n", "training.neftune_noise_alpha", 5.0),
        ("model_name_or_path: m\nstage: sft\nfinetuning_type: full\n", "adapter.use_lora", False),
        ("model_name_or_path: m\nstage: sft\nquantization_bit: 4\n", "quantization.load_in_4bit", True),
        ("model_name_or_path: m\nstage: sft\nlora_rank: 64\n", "adapter.lora_alpha", 128),
        (
            "model_name_or_path: m\nstage: sft\nlora_target: q_proj,v_proj\n",
            "adapter.target_modules",
            ["q_proj", "v_proj"],
        ),
        ("model_name_or_path: m\nstage: sft\ntrain_on_prompt: true\n", "data.loss_on", "all"),
        ("model_name_or_path: m\nstage: sft\nmask_history: true\n", "data.loss_on", "last_assistant"),
        ("model_name: m\nrandom_state: 3\nr: 4\n", "adapter.lora_r", 4),
        ("model_name: m\nrandom_state: 3\nload_in_4bit: false\n", "quantization.load_in_4bit", False),
        ("model_name: m\nrandom_state: 3\nsave_method: merged_16bit\n", "training.save_merged_model", True),
        ("model_name_or_path: m\ndataset_name: d\n", "adapter.use_lora", False),
        (
            "model_name_or_path: m\ndataset_name: d\nuse_peft: true\nload_in_4bit: true\n",
            "quantization.load_in_4bit",
            True,
        ),
    ],
)
def test_single_keys(here: Path, text: str, path: str, expected: Any) -> None:
    assert tried(here, "theirs.yaml", text).values()[path] == expected


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        ("base_model: m\nadapter: lora\nval_set_size: 500\n", "val_set_size", "dev_split"),
        ("base_model: m\nadapter: lora\nevals_per_epoch: 4\n", "evals_per_epoch", "eval_steps"),
        ("base_model: m\nadapter: lora\nplugins: [a.B]\n", "plugins", "not loaded"),
        ("base_model: m\nadapter: lora\ntorch_compile: true\n", "torch_compile", "many shapes"),
        ("base_model: m\nadapter: lora\nsample_pakcing: true\n", "sample_pakcing", "did you mean 'sample_packing'"),
        ("base_model: m\ndatasets: [{path: x, type: pygmalion}]\n", "datasets", "format"),
        ("model_name_or_path: m\nstage: dpo\n", "stage", "another kind of training"),
        ("model_name_or_path: m\nstage: sft\ndataset: nowhere\n", "dataset", "dataset_info.json"),
        ("model: m\nrandom_state: 3\nhf_token: hf_x\n", "hf_token", "environment"),
    ],
)
def test_what_is_left_out_has_a_reason(here: Path, text: str, key: str, reason: str) -> None:
    (here / "theirs.yaml").write_text(text)
    draft = read(here / "theirs.yaml")
    (found,) = [(where, why) for name, where, why in draft.left if name == key]
    assert found[0].startswith("theirs.yaml:")
    assert reason in found[1]
    assert "hf_x" not in str(draft)


def test_a_wrong_value_is_told_under_its_own_key(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"theirs.yaml:2: micro_batch_size = 'two'"):
        tried(here, "theirs.yaml", "base_model: m\nmicro_batch_size: two\nsequence_len: 8\n")


def test_json_of_another_program_is_recognised_too(here: Path) -> None:
    values = tried(
        here, "theirs.json", '{"model_name_or_path": "m", "stage": "sft", "finetuning_type": "full"}'
    ).values()
    assert values["adapter.use_lora"] is False
    (here / "ours.json").write_text('{"model_name_or_path": "m", "output_dir": "x"}')
    assert detect_dialect(here / "ours.json") == "json"
