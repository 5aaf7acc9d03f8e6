"""Short real training runs for tests: settings by keyword, rows by list, everything below a temporary folder."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from tunesmith import notices
from tunesmith.config.draft import COMMAND_LINE, Draft, Setting
from tunesmith.config.names import NameTable
from tunesmith.config.resolve import Resolved, resolve
from tunesmith.config.rules import check

NAMES = NameTable()


def resolved_from(**settings: Any) -> Resolved:
    """A checked configuration from settings by their flat names."""
    written = tuple(Setting(name, value, COMMAND_LINE, NAMES.find(name, "test")) for name, value in settings.items())
    resolved = resolve(Draft("test", written))
    check(resolved)
    return resolved


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write JSON lines and return the path as a setting."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def story_rows(number: int, seed: int = 0) -> list[dict[str, str]]:
    """Prompt/completion rows of unequal lengths, in words that the small story model knows."""
    generator = random.Random(seed)
    names, things = ["Lily", "Tom", "Ben", "Mia", "Sam"], ["ball", "dog", "cake", "tree", "toy car", "red boat"]
    rows = []
    for index in range(number):
        name, thing = generator.choice(names), generator.choice(things)
        prompt = f"Once upon a time, {name} had {index} things. " + "It was a sunny day. " * generator.randrange(4)
        completion = f" {name} saw a {thing}." + f" {name} was happy." * generator.randrange(3)
        rows.append({"prompt": prompt, "completion": completion})
    return rows


def run_training(folder: Path, model: Path | str, rows: list[dict[str, Any]], **settings: Any) -> Any:
    """Train and return the result; the run folder is ``folder / "run"`` unless ``output_dir`` is given."""
    from tunesmith.train.run import train

    notices.clear()
    folder.mkdir(parents=True, exist_ok=True)
    eval_rows = settings.pop("eval_rows", None)
    defaults: dict[str, Any] = {
        "model_name_or_path": str(model),
        "train_data": write_rows(folder / "train.jsonl", rows),
        "output_dir": str(folder / "run"),
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 2,
        "max_length": 256,
        "lora_dropout": 0.0,
    }
    if eval_rows is not None:
        defaults["eval_data"] = write_rows(folder / "eval.jsonl", eval_rows)
    return train(resolved_from(**(defaults | settings)), command=["test"])


def logged(folder: Path, *keys: str) -> list[tuple[Any, ...]]:
    """The values of ``keys`` in every entry of metrics.jsonl that has them all."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [tuple(entry[key] for key in keys) for entry in entries if all(key in entry for key in keys)]


def commands(page: Path) -> list[str]:
    """The lines of a page's bash blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def tensors(folder: Path) -> dict[str, Any]:
    """Every tensor of the safetensors files in a folder."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
