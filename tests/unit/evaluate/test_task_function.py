"""A task function comes from a command line and from nowhere else, and a run scored by one says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tunesmith.cli.main import main
from tunesmith.config.load import load
from tunesmith.errors import ConfigErrors, UnsafeError
from tunesmith.evaluate.run import evaluate_run
from tunesmith.report import record

OWN = """import pathlib
pathlib.Path(__file__).with_name("imported").touch()

def score(output, row, reference):
    return {"score": len(output) > 0, "same": output == reference}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.py", 'model_id = "m"\ntask_function = "{}:score"\n'),
        ("run.json", '{{"model_name_or_path": "m",\n "task_function": "{}:score"}}'),
        ("run.yaml", "model:\n  path: m\nevaluation:\n  task_function: {}:score\n"),
    ],
)
def test_no_file_may_name_one(tmp_path: Path, own: Path, name: str, text: str) -> None:
    config = tmp_path / name
    config.write_text(text.format(own), encoding="utf-8")
    with pytest.raises(UnsafeError, match=rf"{name}.*task_function cannot be set in a file") as caught:
        load(config)
    assert caught.value.exit_code == 7
    assert not (tmp_path / "imported").exists()


def test_a_command_line_may_and_nothing_runs_before_it_is_needed(tmp_path: Path, own: Path) -> None:
    resolved = load(None, ["--model", "m", "--task_function", f"{own}:score"])
    assert resolved.config.evaluation.task_function == f"{own}:score"
    assert not (tmp_path / "imported").exists()
    for wrong in (f"{own}", "own.txt:score", f"{tmp_path / 'none.py'}:score", f"{own}:not-a-name"):
        with pytest.raises(Exception, match="names no function of a Python file"):
            load(None, ["--model", "m", "--task_function", wrong])
    with pytest.raises(ConfigErrors, match="both given"):
        load(None, ["--model", "m", "--task_function", wrong, "--task", "exact", "--generate", "--fp16", "--bf16"])


def test_a_record_never_runs_it(
    tmp_path: Path, own: Path, stories_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Once upon a time", "completion": " there was"}\n' * 3, encoding="utf-8")
    folder = tmp_path / "run"
    settings = ["--model", str(stories_model), "--no_use_lora", "--eval_data", str(rows), "--train_data", str(rows)]
    settings += ["--output_dir", str(folder), "--max_new_tokens", "4"]
    resolved = load(None, [*settings, "--task_function", f"{own}:score"])
    record.begin(folder, resolved, ["tunesmith", "train"], {})
    record.close(folder, "finished", {})
    shutil.copytree(stories_model, folder, dirs_exist_ok=True)

    assert record.read_record(folder).resolved.config.evaluation.task_function is None
    assert main(["evaluate", str(folder)]) == 7
    told = capsys.readouterr().err
    assert f"this run was scored by a function of a file, {own}:score" in told
    assert f"give --task_function {own}:score" in told
    assert not (tmp_path / "imported").exists()

    result = evaluate_run(folder, settings=["--task", "exact"])
    assert result.metrics["task"] == "exact"
    assert not (tmp_path / "imported").exists()
    result = evaluate_run(folder, settings=["--task_function", f"{own}:score"])
    assert (result.metrics["task"], result.metrics["score"]) == ("own.py:score", 1.0)
    assert result.metrics["confidence"]["score"] == pytest.approx([0.4385, 1.0], abs=1e-4)
    assert (tmp_path / "imported").exists()
    assert result.predictions[0]["reference"]["row"]["completion"] == " there was"
