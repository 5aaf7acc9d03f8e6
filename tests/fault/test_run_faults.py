"""Bad inputs and broken runs through the command line: one line, the right exit code, nothing written over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers import logged, story_rows, write_rows
from tunesmith.cli.main import main


@pytest.fixture
def attempt(tmp_path, stories_model, capsys):
    """Run ``tunesmith train`` on a small model; returns the exit code and the error lines."""

    def run(**settings: str) -> tuple[int, list[str]]:
        defaults = {
            "model_name_or_path": str(stories_model),
            "train_data": write_rows(tmp_path / "good.jsonl", story_rows(4)),
            "output_dir": str(tmp_path / "run"),
            "max_steps": "2",
            "save_strategy": "no",
        }
        arguments = [f"--{name}={value}" for name, value in (defaults | settings).items()]
        code = main(["train", *arguments])
        said = capsys.readouterr().err.splitlines()
        lines = [line for line in said if line.startswith("error:")]
        return code, lines

    return run


def test_broken_json_line(attempt, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", \n', encoding="utf-8")
    code, lines = attempt(train_data=str(path))
    assert code == 3
    assert len(lines) == 1
    assert f"{path}:2" in lines[0]
    assert not (tmp_path / "run" / "run.json").exists()


def test_wrong_keys_name_what_is_there_and_what_is_expected(attempt, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"frage": "a", "antwort": "b"}])
    code, lines = attempt(train_data=path)
    assert code == 3
    assert len(lines) == 1
    assert '"frage"' in lines[0]
    assert "columns" in lines[0]


def test_empty_file(attempt, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"")
    code, lines = attempt(train_data=str(tmp_path / "rows.jsonl"))
    assert code == 3
    assert len(lines) == 1
    assert "rows.jsonl" in lines[0]


def test_latin_1_byte(attempt, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "a", "completion": "b"}\n{"prompt": "caf\xe9", "completion": "b"}\n')
    code, lines = attempt(train_data=str(path))
    assert code == 3
    assert len(lines) == 1
    assert f"{path}:2" in lines[0]
    assert "0xe9" in lines[0].lower()


def test_missing_model(attempt, tmp_path):
    code, lines = attempt(model_name_or_path=str(tmp_path / "no-such-model"))
    assert code == 4
    assert len(lines) == 1
    assert "no-such-model" in lines[0]


def test_no_pad_token_is_no_error_and_hides_no_end_token(attempt, tmp_path, stories_model):
    assert "pad_token" not in json.loads((stories_model / "tokenizer_config.json").read_text())
    code, lines = attempt()
    assert lines == []
    assert code == 0


def test_no_end_token(attempt, tmp_path, stories_model):
    folder = tmp_path / "model"
    shutil.copytree(stories_model, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    code, lines = attempt(model_name_or_path=str(folder))
    assert code == 4
    assert len(lines) == 1
    assert "eos_token" in lines[0]


def test_a_finished_run_is_not_written_over(attempt, tmp_path):
    assert attempt()[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    code, lines = attempt(learning_rate="1e-5")
    assert code == 2
    assert "holds a run already" in lines[0]
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_failing_overwrite_keeps_the_old_run(attempt, tmp_path):
    assert attempt()[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    (tmp_path / "rows.jsonl").write_bytes(b"")
    assert attempt(train_data=str(tmp_path / "rows.jsonl"), overwrite_output_dir="true")[0] == 3
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_output_path_is_a_file(attempt, tmp_path):
    (tmp_path / "taken").write_text("mine")
    code, lines = attempt(output_dir=str(tmp_path / "taken"))
    assert code == 6
    assert "taken" in lines[0]
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_step(attempt, tmp_path):
    """F19: exit 5; step and rows are named; no NaN is logged as health and no such weights are saved."""
    code, lines = attempt(
        learning_rate="1e38", optim="sgd", max_grad_norm="0", max_steps="8", use_lora="false", logging_steps="1"
    )
    assert code == 5
    assert len(lines) == 1
    assert "not finite at step" in lines[0]
    assert "good.jsonl:" in lines[0]
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["status"] == "failed"
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert all(isinstance(loss, float) for (loss,) in logged(tmp_path / "run", "loss"))


def test_resume_of_a_folder_that_is_not_there(attempt, tmp_path):
    code, lines = attempt(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert code == 6
    assert "checkpoint-9" in lines[0]


def test_a_damaged_checkpoint_is_not_trusted(attempt, tmp_path):
    """One flipped bit in the newest checkpoint: the one before it is used, and both are named."""
    assert attempt(save_strategy="steps", save_steps="1", max_steps="3")[0] == 0
    newest = tmp_path / "run/checkpoint-3/adapter_model.safetensors"
    raw = bytearray(newest.read_bytes())
    raw[-1] ^= 1
    newest.write_bytes(raw)
    code, lines = attempt(save_strategy="steps", save_steps="1", max_steps="3", resume_from_checkpoint="latest")
    assert lines == []
    assert code == 0
    notices = json.loads((tmp_path / "run/run.json").read_text())
    assert notices["resumed_from"]["checkpoint"] == "checkpoint-2"
    assert any("checkpoint-3" in text and "has changed" in text for text in notices["notices"])


def test_every_checkpoint_damaged_is_an_error_and_not_a_fresh_start(attempt, tmp_path):
    assert attempt(save_strategy="steps", save_steps="1")[0] == 0
    for path in (tmp_path / "run").glob("checkpoint-*/optimizer.pt"):
        path.unlink()
    code, lines = attempt(save_strategy="steps", save_steps="1", resume_from_checkpoint="latest")
    assert code == 6
    assert "optimizer.pt is missing" in lines[0]


def test_no_pickle_of_arguments_and_no_secret_is_left_behind(attempt, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_sentinel_0123456789")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 20 + "sentinel" + "b" * 20)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("SOME_OTHER_SECRET", "sentinel-of-somebody-else")
    code, lines = attempt(use_wandb="true", save_strategy="steps", save_steps="1", report_to="tensorboard")
    assert lines == []
    assert code == 0
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any("wandb" in str(path) for path in files)
    assert any(path.name.startswith("events.out") for path in files)
    assert len(files) > 15
    assert not [path for path in files if b"sentinel" in path.read_bytes()]
    assert not [path for path in files if path.name == "training_args.bin"]


def test_checkpoints_rotate_and_the_best_stays(attempt, tmp_path, stories_model):
    eval_data = write_rows(tmp_path / "eval.jsonl", story_rows(9, seed=5)[6:])
    code, lines = attempt(
        eval_data=eval_data, eval_steps="1", save_strategy="steps", save_steps="1", save_total_limit="2", max_steps="5",
        load_best_model_at_end="true", learning_rate="0.5", lr_scheduler_type="constant", max_grad_norm="0",
        use_lora="false", optim="sgd",
    )  # fmt: skip
    assert lines == []
    assert code == 0
    run = tmp_path / "run"
    record = json.loads((run / "run.json").read_text())
    kept = sorted(path.name for path in run.glob("checkpoint-*"))
    assert len(kept) == 2
    assert "checkpoint-5" in kept
    assert record["best_checkpoint"] in kept
    losses = dict(logged(run, "step", "eval_loss"))
    assert record["best_checkpoint"] == f"checkpoint-{min(losses, key=losses.get)}"
    assert record["result"]["metrics"]["eval_loss"] == min(losses.values())


def test_early_stopping_stops_a_run_that_gets_worse(attempt, tmp_path):
    eval_data = write_rows(tmp_path / "eval.jsonl", story_rows(9, seed=5)[6:])
    code, lines = attempt(
        eval_data=eval_data, eval_steps="1", early_stopping_patience="2", early_stopping_threshold="10", max_steps="9"
    )
    assert lines == []
    assert code == 0
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["result"]["steps"] == 3


@pytest.mark.parametrize("name", ["README.md", "LICENSE"])
def test_project_files_are_there(name):
    assert (Path(__file__).parents[2] / name).is_file()
