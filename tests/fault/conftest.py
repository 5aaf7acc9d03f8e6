"""A small model, an adapter on it, and command lines to try them: for files that are damaged, and runs that break."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fault_helpers import ROWS, Attempt, training
from helpers import resolved_from, write_rows
from tiny_models import build, write_tokenizer
from tunesmith import notices
from tunesmith.cli.main import main
from tunesmith.export.save import save_model
from tunesmith.model.device import here
from tunesmith.model.load import load_model
from tunesmith.model.precision import choose_precision
from tunesmith.model.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a small model in one file and in shards, an adapter on the former, and rows."""
    home = tmp_path_factory.mktemp("whole")
    model = build("mistral")
    model.save_pretrained(home / "model")
    model.save_pretrained(home / "shards", max_shard_size="200KB")
    for name in ("model", "shards"):
        write_tokenizer(home / name, bos_token="<s>", eos_token="</s>")
    write_rows(home / "rows.jsonl", ROWS[:4])
    return home


@pytest.fixture
def base(whole: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may damage."""
    return Path(shutil.copytree(whole / "model", tmp_path / "base"))


@pytest.fixture
def call(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Call a verb on a model; returns the exit code and the lines of errors."""

    def run(verb: str, folder: Path, *settings: str) -> tuple[int, str]:
        rows = str(whole / "rows.jsonl")
        training = [
            f"--model_name_or_path={folder}", f"--train_data={rows}", f"--output_dir={tmp_path / 'run'}",
            "--max_steps=1", "--max_length=64", "--save_strategy=no", "--cache=false",
        ]  # fmt: skip
        arguments = {
            "train": training,
            "check": training,
            "predict": [str(folder), rows, str(tmp_path / "answers.jsonl"), "--max_new_tokens=2", "--overwrite"],
            "evaluate": [str(folder), f"--eval_data={rows}", "--task=exact", "--max_new_tokens=2"],
            "merge": [str(folder), str(tmp_path / "merged"), "--no_proof"],
        }
        code = main([verb, *arguments[verb], *settings])
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        return code, "\n".join(errors)

    return run


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """A run folder with an adapter on ``base``."""
    resolved = resolved_from(
        model_name_or_path=str(base), train_data=str(write_rows(tmp_path / "r.jsonl", ROWS[:4])),
        output_dir=str(tmp_path / "adapter"), max_length=64, max_steps=1,
    )  # fmt: skip
    device = here(resolved)
    model = load_model(resolved, choose_precision(resolved, device), device)
    folder = tmp_path / "adapter"
    save_model(model, load_tokenizer(resolved.config.model), folder, resolved.config.model)
    (folder / "run.json").write_text(json.dumps({"settings": resolved.values(), "origins": resolved.origins}))
    return folder


@pytest.fixture
def attempt(tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> Attempt:
    """Train in ``tmp_path / "run"``; returns the exit code and all that was said."""

    def run(**settings: Any) -> tuple[int, str]:
        notices.clear()
        code = main(training(tmp_path, whole / "model", **settings))
        return code, capsys.readouterr().err

    (tmp_path / "rows").mkdir()
    return run


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call tunesmith; returns exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def python(tmp_path: Path, said) -> Callable[..., tuple[int, str, str]]:
    def run(text: str, folder: Path = tmp_path, *settings: str) -> tuple[int, str, str]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "own.py").write_text(f"model_id = 'nano-mistral'\n{text}")
        return said("config", folder / "own.py", "--written", *settings)

    return run
