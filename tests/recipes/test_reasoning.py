"""The reasoning recipe as document 3 describes it: its commands, its Python API, its merge, on a small real model."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ready_python
from helpers import logged, tensors
from tunesmith import notices
from tunesmith.config.load import load
from tunesmith.config.readers import flat_json
from tunesmith.config.resolve import resolve

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "reasoning"
TRAIN_FILE, EVAL_FILE = "data/formatted/combined_formatted.json", "data/formatted/validation.json"

COMMANDS: dict[str, str] = {
    "basic": """
        python -m training.trainers.model_trainer
            --model_name_or_path "mistralai/Mistral-7B-v0.1"
            --train_file "data/formatted/combined_formatted.json"
            --output_dir "checkpoints/mistral-7b-reasoning"
            --use_lora True
            --load_in_4bit True
            --num_train_epochs 3
            --learning_rate 2e-5
            --train_batch_size 1
            --gradient_accumulation_steps 4""",
    "distributed": """
        deepspeed training/trainers/model_trainer.py
            --model_name_or_path "meta-llama/Llama-2-13b-hf"
            --train_file "data/formatted/combined_formatted.json"
            --output_dir "checkpoints/llama-13b-reasoning"
            --use_lora True
            --load_in_4bit True
            --num_train_epochs 3
            --deepspeed_config "training/configs/deepspeed_zero3.json" """,
}
"""The commands of document 3; a test only adds what replaces the model and the output folder, and shortens the run."""


@pytest.fixture(autouse=True)
def in_the_recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The recipe's folder is the working directory, and its ``training`` is the one that is imported."""

    def forget_training() -> None:
        for name in [name for name in sys.modules if name == "training" or name.startswith("training.")]:
            del sys.modules[name]

    monkeypatch.chdir(RECIPE)
    monkeypatch.syspath_prepend(str(RECIPE))
    notices.clear()
    forget_training()
    yield
    forget_training()


@pytest.fixture
def recipe() -> ModuleType:
    """The module that document 3 imports from."""
    import training.trainers.model_trainer as module

    return module


def run_command(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of the recipe in processes of its own, with this environment's programs first."""
    return ready_python.run(words, env=ready_python.environment(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settings_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text(encoding="utf-8"))["settings"]


FINISHED = {
    "adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "tokenizer_config.json",
    "training_config.json", "generation_config.json", "inference.json", "README.md",
}  # fmt: skip


def test_both_documented_commands(stories_model: Path, tmp_path: Path) -> None:
    """Also: two processes under ZeRO-3 compute what one process computes on batches twice as large."""
    override = ["--model_name_or_path", str(stories_model), "--max_steps", "3", "--log_every_n_steps", "1"]
    override += ["--lora_dropout", "0", "--save_strategy", "no"]
    ran = 0
    for name, command in COMMANDS.items():
        words = shlex.split(command) + override + ["--output_dir", str(tmp_path / name)]
        if name == "basic":
            words += ["--gradient_accumulation_steps", "8"]  # the rows of a step of the other command's two processes
        else:
            words[1:1] = ["--num_gpus", "2", "--master_port", str(free_port())]
        done = run_command(words)
        assert done.returncode == 0, done.stderr
        assert str(tmp_path / name / "final") in done.stdout.splitlines()
        assert {file.name for file in (tmp_path / name / "final").iterdir()} == FINISHED
        ran += 1
    assert ran == len(COMMANDS) == 2
    facts = json.loads((tmp_path / "distributed" / "run.json").read_text(encoding="utf-8"))
    assert facts["plan"]["num_processes"] == 2
    one, two = (logged(tmp_path / name, "loss", "grad_norm") for name in ("basic", "distributed"))
    assert len(one) == 3
    for (loss, norm), (other_loss, other_norm) in zip(one, two, strict=True):
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert other_norm == pytest.approx(norm, rel=1e-4)
    single, spread = tensors(tmp_path / "basic" / "final"), tensors(tmp_path / "distributed" / "final")
    assert single.keys() == spread.keys()
    assert len(single) == 40
    for tensor_name, tensor in single.items():
        assert spread[tensor_name].shape == tensor.shape
        assert (spread[tensor_name] - tensor).abs().max() < 1e-5


def test_merge_command_promised_and_absent(stories_model: Path, tmp_path: Path, recipe: ModuleType) -> None:
    """The Python calls of document 3 in their order, and its merge in a process that knows nothing of tunesmith."""
    config = recipe.TrainingConfig(
        model_name_or_path=str(stories_model),
        use_lora=True,
        load_in_4bit=True,
        num_train_epochs=0.2,
        learning_rate=1e-2,
        output_dir=str(tmp_path / "run"),
    )
    trainer = recipe.ModelTrainer(config)
    final_checkpoint = trainer.train(train_file=TRAIN_FILE, eval_file=EVAL_FILE)
    assert final_checkpoint == str(tmp_path / "run" / "final")
    merged = tmp_path / "final_merged_model"
    snippet = f"""
        import sys
        import torch
        from transformers import AutoModelForCausalLM
        from peft import PeftModel
        base_model = AutoModelForCausalLM.from_pretrained({str(stories_model)!r})
        adapter_path = {final_checkpoint!r}
        model = PeftModel.from_pretrained(base_model, adapter_path)
        ids = torch.tensor([[1, 400, 411, 300]])
        with torch.no_grad():
            adapted = model.eval()(ids).logits
            with model.disable_adapter():
                plain = model(ids).logits
        merged_model = model.merge_and_unload()
        merged_model.save_pretrained({str(merged)!r})
        alone = AutoModelForCausalLM.from_pretrained({str(merged)!r})
        with torch.no_grad():
            again = alone.eval()(ids).logits
        assert "tunesmith" not in sys.modules
        print((adapted - plain).abs().max().item(), (again - adapted).abs().max().item())
    """
    lines = [line[8:] for line in snippet.splitlines()]
    done = run_command([sys.executable, "-c", "\n".join(lines)])
    assert done.returncode == 0, done.stderr
    learnt, drift = map(float, done.stdout.splitlines()[-1].split())
    assert learnt > 0.1
    assert drift < 1e-4


def test_both_shipped_configurations(recipe: ModuleType) -> None:
    shipped = sorted(path.name for path in (RECIPE / "training" / "configs").iterdir())
    assert shipped == ["deepspeed_zero3.json", "default.json"]
    resolved = load("training/configs/default.json")
    assert recipe.TrainingConfig().written() == {}
    assert resolved.fingerprint() == resolve(flat_json.from_keywords({})).fingerprint()


def test_fields_and_defaults_of_the_reader_and_the_class_agree(recipe: ModuleType) -> None:
    from dataclasses import asdict

    fields = asdict(recipe.TrainingConfig())
    not_in_the_class = {"add_bos", "too_long", "load_best_model_at_end", "final_subdir"}
    assert len(fields) == 33
    assert fields == {name: value for name, value in flat_json.DEFAULTS.items() if name not in not_in_the_class}


def test_wandb_settings_of_the_document(recipe: ModuleType) -> None:
    named = recipe.TrainingConfig(use_wandb=True, wandb_project="SimpleFoundation", wandb_name="mistral-reasoning")
    tracking = resolve(flat_json.from_keywords(named.written())).config.tracking
    assert tracking.trackers() == ["wandb"]
    assert (tracking.wandb_project, tracking.run_name) == ("SimpleFoundation", "mistral-reasoning")


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant", "constant_with_warmup", "polynomial"])
def test_documented_schedulers(recipe: ModuleType, scheduler: str) -> None:
    resolved = resolve(flat_json.from_keywords(recipe.TrainingConfig(lr_scheduler_type=scheduler).written()))
    assert resolved.config.training.lr_scheduler_type == scheduler


def test_a_library_user_gets_typed_errors(stories_model: Path, tmp_path: Path, recipe: ModuleType) -> None:
    from tunesmith.errors import ConfigError, DataError, ModelError

    def trainer(**values: Any) -> Any:
        names = {"model_name_or_path": str(stories_model), "output_dir": str(tmp_path / "run")} | values
        return recipe.ModelTrainer(recipe.TrainingConfig(**names))

    with pytest.raises(ConfigError, match="learning_rate"):
        trainer(learning_rate=-1)
    with pytest.raises(ConfigError, match="did you mean"):
        recipe.ModelTrainer(recipe.TrainingConfig(), max_step=3)
    with pytest.raises(DataError, match=r"absent\.json"):
        trainer().train("absent.json")
    with pytest.raises(ModelError, match="no_such_layer"):
        trainer(lora_target_modules=["no_such_layer"]).train(TRAIN_FILE)
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        recipe.TrainingConfig(learning_rat=1)


@pytest.mark.parametrize(
    ("flags", "code", "part"),
    [
        (["--learning_rat", "1"], 2, "did you mean 'learning_rate'"),
        ([], 2, "train_file is not set"),
        (["--train_file", "absent.json"], 3, "absent.json"),
        (["--train_file", TRAIN_FILE, "--fp16", "True"], 4, "fp16 is on"),
        (["--train_file", TRAIN_FILE, "--deepspeed_config", "absent.json"], 2, "absent.json"),
        (["--config", "absent.json"], 2, "absent.json"),
    ],
)
def test_exit_codes(
    stories_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, part: str
) -> None:
    from tunesmith.entrypoints.reasoning import main

    assert main(["--model_name_or_path", str(stories_model), "--output_dir", str(tmp_path / "run"), *flags]) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert part in errors[0]


def test_default_fp16_becomes_float32_aloud_on_a_cpu(stories_model: Path, tmp_path: Path, recipe: ModuleType) -> None:
    config = recipe.TrainingConfig(model_name_or_path=str(stories_model), output_dir=str(tmp_path / "run"))
    recipe.ModelTrainer(config, max_steps=1).train(TRAIN_FILE)
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["model"]["precision"] == "float32"
    assert any("fp16" in notice for notice in record["notices"])


def test_resumed_training_ends_with_the_same_bytes(stories_model: Path, tmp_path: Path, recipe: ModuleType) -> None:
    import shutil

    def train(name: str, **settings: Any) -> Path:
        config = recipe.TrainingConfig(
            model_name_or_path=str(stories_model),
            output_dir=str(tmp_path / name),
            learning_rate=1e-3,
            log_every_n_steps=1,
            save_every_n_steps=2,
            gradient_accumulation_steps=2,
        )
        return Path(recipe.ModelTrainer(config, max_steps=4, **settings).train(TRAIN_FILE))

    whole = train("whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    resumed = train("resumed", resume_from_checkpoint="latest")
    first, second = (folder / "adapter_model.safetensors" for folder in (whole, resumed))
    assert first.read_bytes() == second.read_bytes()
    assert logged(tmp_path / "whole", "step", "loss")[2:] == logged(tmp_path / "resumed", "step", "loss")
