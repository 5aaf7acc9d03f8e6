"""The commonest mistakes are told before a library of training is imported, in a process that has none of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "transformers", "trl", "peft", "datasets")
MODEL = "--model_name_or_path=nano-mistral"
MISTAKES = {
    "train --learning_rat=1": 2,
    "train nope.yaml": 2,
    f"train {MODEL} --train_data=nope.jsonl": 3,
    f"train {MODEL} --train_data=good.jsonl --eval_data=nope.jsonl --eval_strategy=epoch": 3,
    "train --model_name_or_path=./nope --train_data=good.jsonl": 4,
    f"train {MODEL} --train_data=good.jsonl --output_dir=other": 2,
    f"train {MODEL} --train_data=good.jsonl --output_dir=good.jsonl": 2,
    f"train {MODEL} --train_data=good.jsonl --push_to_hub --hub_model_id=a/b": 6,
    f"train {MODEL} --train_data=good.jsonl --report_to=mlflow": 4,
    f"preview {MODEL} --train_data=nope.jsonl": 3,
    f"check {MODEL} --train_data=nope.jsonl": 3,
    f"check {MODEL} --train_data=nope.jsonl --json": 3,
    "check --model_name_or_path=./nope --train_data=good.jsonl --output_dir=other": 2,
    f"sweep {MODEL} --train_data=nope.jsonl --param=seed=1,2 --metric=loss": 3,
    "sweep --train_data=good.jsonl --param=model_name_or_path=nano-mistral,./nope --metric=loss": 4,
    "evaluate ./nope": 4,
    "evaluate empty": 4,
    "evaluate nano-mistral --data nope.jsonl": 3,
    "predict ./nope good.jsonl answers.jsonl": 4,
    "predict nano-mistral nope.jsonl answers.jsonl": 3,
    "chat ./nope": 4,
    "merge nope merged": 4,
    "merge empty merged": 4,
    "merge adapter other": 6,
    "push nope a/b": 4,
    "push empty a/b": 6,
    "report nope": 6,
    "watch nope": 6,
    "runs nope": 6,
    "init --data nope.csv new": 3,
    "init nlu new": 2,
}
"""Command -> its exit code."""
PROGRAM = """
import contextlib, io, json, sys
from tunesmith.cli.main import main
heavy, found = sys.argv[2:], {}
sys.modules["mlflow"] = None  # not installed
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(command.split())
    found[command] = [code, said.getvalue(), [name for name in heavy if name in sys.modules]]
print(json.dumps(found))
"""


def test_mistakes_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "empty").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text("mine")
    environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(list(MISTAKES)), *HEAVY],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    for command, code in MISTAKES.items():
        assert found[command][0] == code, (command, found[command])
        assert found[command][1].startswith("error: "), command
        assert found[command][2] == [], command
