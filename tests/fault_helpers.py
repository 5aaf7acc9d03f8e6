"""Runs that are tried, killed and compared, and what else the tests of faults share."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from helpers import tensors, write_rows

ROWS = [{"prompt": f"what is {number} ", "completion": f"it is {number}"} for number in range(8)]
EVAL = [{"prompt": f"who is {number} ", "completion": f"he is {number}"} for number in range(2)]
SAVES = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
Attempt = Callable[..., tuple[int, str]]


class Killed(BaseException):
    """Ends a run at a point as a kill would: nothing of ours may catch it and clean up."""


def training(folder: Path, model: Path, **settings: Any) -> list[str]:
    """The command line of a short run in ``folder / "run"`` on the rows in ``folder / "rows"``."""
    (folder / "rows").mkdir(exist_ok=True)
    defaults = {
        "model_name_or_path": model, "train_data": write_rows(folder / "rows" / "rows.jsonl", ROWS),
        "output_dir": folder / "run", "max_steps": 2, "save_strategy": "no", "max_length": 64, "logging_steps": 1,
        "per_device_train_batch_size": 2, "learning_rate": 1e-2, "lora_dropout": 0.1,
    }  # fmt: skip
    return ["train", *(f"--{name}={value}" for name, value in (defaults | settings).items())]


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(run: Path) -> dict[str, str]:
    """The tensors of a run's final model, as hashes."""
    return {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in tensors(run).items()}


def kill_at(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, *, call: int = 1) -> None:
    """Replace a function by one that ends everything at its n-th call; the record of the end is not written either."""
    calls, function = [0], getattr(place, name)

    def killing(*args: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            monkeypatch.setattr("tunesmith.train.run.record_end", lambda *_: None)
            monkeypatch.setattr("tunesmith.train.space.shutil.rmtree", lambda *_, **__: None)
            raise Killed
        return function(*args, **keywords)

    monkeypatch.setattr(place, name, killing)


def then(function: Callable[..., Any], action: Callable[[], Any]) -> Callable[..., Any]:
    def both(*args: Any, **keywords: Any) -> Any:
        value = function(*args, **keywords)
        action()
        return value

    return both


SOURCES = sorted(Path(tunesmith.__file__).parent.rglob("*.py"))
JOBS = {
    "slurm": [],
    "kubernetes": ["--image=ours", "--volume=claim"],
    "skypilot": ["--image=ours", "--gpu_type=none"],
}
SENTINELS = {
    "HF_TOKEN": "hf_sentinelOfTheHub00000000000000000",
    "WANDB_API_KEY": "5e471e1000000000000000000000000000005e47",
    "AWS_ACCESS_KEY_ID": "AKIASENTINEL00000000",
    "AWS_SECRET_ACCESS_KEY": "sentinel/of+the/cloud00000000000000000",
    "AWS_SESSION_TOKEN": "sentinel-of-a-session-00000000",
}


@cache
def calls() -> list[tuple[Path, str, ast.Call]]:
    """Every call in the sources: the file, the text of what is called, and the call."""
    nodes = ((file, node) for file in SOURCES for node in ast.walk(ast.parse(file.read_text())))
    return [(file, ast.unparse(node.func), node) for file, node in nodes if isinstance(node, ast.Call)]
