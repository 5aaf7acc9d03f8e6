"""``tunesmith check``: what training would meet, without training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import MistralConfig

from helpers import run_training, story_rows, write_rows
from tunesmith import notices
from tunesmith.cli.main import main
from tunesmith.errors import TunesmithError

COMMON: dict[str, Any] = {"max_length": 256, "per_device_train_batch_size": 2, "num_train_epochs": 2, "save_steps": 7}


def command(model: Path, data: str, folder: Path, *more: str, **settings: Any) -> list[str]:
    values = COMMON | {"output_dir": folder / "run", "cache_dir": folder / "cache"} | settings
    flags = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    return ["check", "--model_name_or_path", str(model), "--train_data", data, *flags, *more]


def checked(capsys: pytest.CaptureFixture[str], argv: list[str]) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON result and what went to stderr."""
    notices.clear()
    capsys.readouterr()
    code = main([*argv, "--json"])
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert set(found) == {"ledger", "coverage", "layout", "steps", "memory", "problems"}
    return code, found, captured.err


def test_a_sound_run_is_as_it_then_is(stories_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = story_rows(15)
    data = write_rows(tmp_path / "rows.jsonl", rows)
    code, found, err = checked(capsys, command(stories_model, data, tmp_path))
    assert (code, found["problems"]) == (0, []), err
    assert not (tmp_path / "run").exists(), "a check leaves no run folder behind"
    settings = COMMON | {"save_strategy": "steps", "learning_rate": 2e-4, "lora_dropout": 0.05}
    result = run_training(tmp_path / "real", stories_model, rows, **settings)
    run = json.loads((result.folder / "run.json").read_text(encoding="utf-8"))
    ledger = json.loads((result.folder / "ledger.json").read_text(encoding="utf-8"))
    assert found["ledger"]["training"]["total"] == ledger["training"]["total"]
    assert {name: found["steps"][name] for name in run["plan"]} == run["plan"]
    assert found["memory"]["trainable"] == run["model"]["trainable"]
    assert found["memory"]["parameters"] == run["model"]["total"]
    metrics = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = {entry["step"]: entry["learning_rate"] for entry in metrics if "learning_rate" in entry}
    assert found["steps"]["total_steps"] == 16
    assert {int(step): rate for step, rate in found["steps"]["learning_rate"].items()} == pytest.approx(
        {int(step): rates[int(step)] for step in found["steps"]["learning_rate"]}
    )
    checkpoints = sorted(result.folder.glob("checkpoint-*"))
    assert found["steps"]["checkpoints"] == found["memory"]["disk"]["checkpoints"] == len(checkpoints) == 3
    written = (checkpoints[0] / "adapter_model.safetensors").stat().st_size
    states = (checkpoints[0] / "optimizer.pt").stat().st_size
    assert found["memory"]["disk"]["checkpoint_bytes"] == pytest.approx(written + states, rel=0.2)


def test_the_report_for_people(stories_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "rows.jsonl", story_rows(15))
    notices.clear()
    assert main(command(stories_model, data, tmp_path, learning_rate="3e-4")) == 0
    out = capsys.readouterr().out
    headings = ("SETTINGS", "DATA", "TEMPLATE", "STEPS", "MEMORY", "DISK", "no problems")
    places = [out.index(heading) for heading in headings]
    assert places == sorted(places)
    assert "= 0.0003" in out
    assert "command line" in out
    assert "is the beginning of the training row" in out
    assert "ends with '</s>', trained" in out
    assert "fits" in out


def test_problems_of_several_rooms_come_together(
    stories_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(stories_model, folder)
    (folder / "model.safetensors").unlink()
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b " * 300}])
    code, found, err = checked(capsys, command(folder, data, tmp_path, "--gpu", "0.5GB"))
    assert code == 4, "training looks for the model first"
    assert len(found["problems"]) == 3
    for problem, words in zip(found["problems"], ("no weights", ":1: ", "GiB at its peak"), strict=True):
        assert words in problem
        assert f"error: {problem}" in err
    assert found["ledger"] is None
    assert found["memory"]["fits"] is False


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"learning_rate": "fast"}, 2, "learning_rate"),
        ({"global_batch_size": 5}, 2, "global_batch_size"),
        ({"warmup_steps": 500}, 2, "warmup_steps 500"),
        ({"train_data": "absent.jsonl"}, 3, "absent.jsonl"),
        ({"max_length": 12}, 3, "max_length"),
        ({"fp16": "true"}, 4, "float16 needs a CUDA device"),
        ({"target_modules": "nowhere"}, 4, "nowhere"),
        ({"device_map": "cuda:3"}, 4, "cuda:3"),
        ({"resume_from_checkpoint": "absent"}, 6, "cannot resume"),
    ],
)
def test_exit_code_is_what_training_gives(
    settings: dict[str, Any],
    code: int,
    words: str,
    stories_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    data = write_rows(tmp_path / "rows.jsonl", story_rows(8))
    argv = command(stories_model, data, tmp_path, **settings)
    assert main(["train", *argv[1:]]) == code
    trained = capsys.readouterr().err.splitlines()
    found_code, found, _ = checked(capsys, argv)
    assert found_code == code
    assert any(words in problem for problem in found["problems"]), found["problems"]
    assert f"error: {found['problems'][0]}" in trained
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_a_folder_with_a_run_is_refused_and_left_alone(
    stories_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", story_rows(8))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}", encoding="utf-8")
    code, found, _ = checked(capsys, command(stories_model, data, tmp_path))
    assert code == 2
    assert "holds what no run has written" in found["problems"][0]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def seven_billion(stories_model: Path, folder: Path) -> Path:
    """Configuration of 7 billion parameters, with a tokenizer and without weights."""
    MistralConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=32000, max_position_embeddings=32768, sliding_window=None,
    ).save_pretrained(folder)  # fmt: skip
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(stories_model / name, folder)
    return folder


def test_memory_of_another_device_and_what_to_change(
    stories_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = seven_billion(stories_model, tmp_path / "seven")
    data = write_rows(tmp_path / "rows.jsonl", story_rows(15))

    def on(gpu: str, **settings: Any) -> tuple[dict[str, Any], list[str]]:
        _, found, _ = checked(capsys, command(model, data, tmp_path, "--gpu", gpu, **settings))
        assert "no weights" in found["problems"][0]
        return found["memory"], found["problems"][1:]

    few = {"load_in_4bit": "true", "gradient_checkpointing": "true", "fp16": "true"}
    small, problems = on("24GB", **few)
    assert (small["fits"], small["precision"], problems) == (True, "float16", [])
    full, problems = on("24GB", use_lora="false")
    assert full["fits"] is False
    assert "needs about" in problems[0]
    assert "use_lora: true with load_in_4bit: true" in problems[0]
    half, problems = on("NVIDIA T4", per_device_train_batch_size=8)
    assert half["fits"] is False
    assert problems[0].endswith("set gradient_checkpointing: true")
    assert on("h200", per_device_train_batch_size=8)[0]["fits"] is True


def test_disk_that_is_too_small_is_a_problem(
    stories_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = seven_billion(stories_model, tmp_path / "seven")
    data = write_rows(tmp_path / "rows.jsonl", story_rows(200))
    argv = command(model, data, tmp_path, "--gpu", "h200", use_lora="false", save_steps=1)
    _, found, _ = checked(capsys, argv)
    disk = found["memory"]["disk"]
    assert disk["checkpoints"] == 200
    assert disk["needed"] == 200 * disk["checkpoint_bytes"] + disk["model_bytes"] > disk["free"]
    assert "save_total_limit" in found["problems"][-1]
    _, found, _ = checked(capsys, [*argv, "--save_total_limit", "2"])
    assert found["memory"]["disk"]["checkpoints"] == 3


def test_an_unknown_device_is_refused(stories_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", story_rows(3))
    assert main(command(stories_model, data, tmp_path, "--gpu", "big")) == 2


def test_every_problem_has_one_line() -> None:
    from tunesmith.train.check import Report

    report = Report()
    assert report.attempt(lambda: 3) == 3
    assert report.attempt(lambda: int("x")) is None
    assert report.exit_code == 1
    assert isinstance(report.problems[0], TunesmithError)
    assert report.problems[0].line().startswith("ValueError: invalid literal")
