"""Optimizers and schedules that cannot work are refused by ``check``, and by ``train`` before anything is removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import story_rows, write_rows
from tunesmith.cli.main import main


@pytest.fixture
def call(tmp_path: Path, stories_model: Path, capsys: pytest.CaptureFixture[str]):
    """Run a verb; returns the exit code and the error lines."""

    def run(verb: str, *settings: str) -> tuple[int, list[str]]:
        rows = write_rows(tmp_path / "rows.jsonl", story_rows(4))
        code = main([
            verb, f"--model_name_or_path={stories_model}", f"--train_data={rows}", f"--output_dir={tmp_path / 'run'}",
            "--max_steps=4", "--max_length=128", *settings,
        ])  # fmt: skip
        said = capsys.readouterr()
        return code, [line for line in (said.out + said.err).splitlines() if "error" in line]

    return run


CANNOT_WORK = {  # f08 and its kind -> exit code, what the line must hold
    "--lr_scheduler_type=cosine_with_min_lr": (2, "min_lr"),
    "--lr_scheduler_type=warmup_stable_decay": (2, "num_decay_steps"),
    "--lr_scheduler_type=reduce_lr_on_plateau": (2, "no evaluation to watch"),
    '--lr_scheduler_kwargs={"nonsense": 1}': (2, "nonsense"),
    '--lr_scheduler_type=cosine --lr_scheduler_kwargs={"num_cycles": "many"}': (2, "cosine"),
    '--lr_scheduler_type=polynomial --lr_scheduler_kwargs={"lr_end": 1.0}': (2, "lr_end"),
    "--optim=galore_adamw": (2, "not offered here"),
    "--optim=apollo_adamw": (2, "not offered here"),
    "--optim=adamw_torch_8bit": (4, "torchao"),
    "--optim=lomo": (4, "lomo"),
    "--optim=grokadamw": (4, "grokadamw"),
    "--optim=adamw_torch_npu_fused": (4, "npu"),
    "--optim=adamw_anyprecision": (4, "anyprecision"),
    "--seed=4294967296": (2, "seed"),
    "--data_seed=4294967296": (2, "seed"),
    "--tf32=true": (4, "tf32"),
}


@pytest.mark.parametrize("settings", CANNOT_WORK)
def test_check_refuses_what_training_would(settings: str, call) -> None:
    code, said = CANNOT_WORK[settings]
    found, lines = call("check", *settings.replace("{", "§{").replace(" --", "\n--").replace("§{", "{").split("\n"))
    assert found == code, lines
    assert said in lines[0].lower(), lines


def test_a_schedule_that_fails_removes_nothing(call, tmp_path: Path) -> None:
    assert call("train", "--save_steps=2")[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again = call("train", "--overwrite_output_dir", "--lr_scheduler_type=cosine_with_min_lr")
    assert again[0] == 2
    assert "command line" in again[1][0]
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("optim", ["adafactor", "adamw_torch_fused", "paged_adamw_8bit", "lion_8bit", "rmsprop", "sgd"])
def test_what_can_work_is_not_refused(optim: str, call) -> None:
    assert call("check", f"--optim={optim}") == (0, [])
