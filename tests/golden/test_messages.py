"""What a user reads after the commonest mistakes, as it was last agreed on: one line a problem, and what to do.

``UPDATE_GOLDEN=1 pytest tests/golden/test_messages.py`` (or ``make golden``) writes the files anew; what has changed is
then read in the commit.
"""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from tunesmith import notices
from tunesmith.cli.main import main
from tunesmith.config.resolve import schema_defaults

FOLDER = Path(__file__).with_name("messages")
ROWS = '{"prompt": "How are you?", "completion": "Fine."}\n{"prompt": "And you?", "completion": "Fine, too."}\n'
BASE = "--model_name_or_path nano-mistral --train_data rows.jsonl"
YAML = "model:\n  path: nano-mistral\ndataset:\n  name: rows.jsonl\n"
RUNNING = json.dumps(
    {
        "status": "running",
        "settings": schema_defaults() | {"model.model_name_or_path": "nano-mistral", "data.train_data": ["rows.jsonl"]},
        "settings_fingerprint": "0",
    }
)
"""Record of a run that was killed."""
TRAINING = "training:\n  output_dir: out\n"


@dataclass(frozen=True, slots=True)
class Mistake:
    """A command in a folder with ``rows.jsonl`` and these files."""

    command: str
    files: tuple[tuple[str, str], ...] = ()


def of_rows(text: str, more: str = "") -> Mistake:
    """``preview`` of rows that are wrong."""
    return Mistake(
        f"preview --model_name_or_path nano-mistral --train_data wrong.jsonl {more}", (("wrong.jsonl", text),)
    )


def of_file(name: str, text: str, more: str = "") -> Mistake:
    """``config`` of a file that is wrong."""
    return Mistake(f"config {name} {more}", ((name, text),))


MISTAKES = {
    # settings, in four dialects
    "unknown_setting": Mistake(f"train {BASE} --learning_rat 1e-4"),
    "unknown_setting_yaml": of_file("run.yaml", YAML + TRAINING + "  learning_rat: 0.1\n"),
    "unknown_setting_json": of_file("run.json", '{"model_name": "nano-mistral", "learning_rat": 0.1}'),
    "unknown_setting_python": of_file("run.py", 'model_id = "nano-mistral"\nlearning_rat = 0.1\n'),
    "unknown_setting_hydra": of_file("run.yaml", "model:\n  lora:\n    rr: 8\ntrain:\n  learning_rate: 0.1\n"),
    "two_mistakes": of_file("run.yaml", YAML + TRAINING + "  learning_rat: 0.1\n  epochs: many\n"),
    "wrong_kind": of_file("run.yaml", YAML + TRAINING + "  learning_rate: fast\n"),
    "wrong_value": Mistake(f"config {BASE} --num_train_epochs -1"),
    "two_spellings": of_file("run.yaml", YAML + TRAINING + "  epochs: 1\n  num_train_epochs: 2\n"),
    "written_twice": of_file("run.yaml", YAML + TRAINING + "  epochs: 1\n  epochs: 2\n"),
    "broken_yaml": of_file("run.yaml", "model:\n  path: [nano-mistral\n"),
    "broken_json": of_file("run.json", "{'model_name': 'nano-mistral'}"),
    "broken_python": of_file("run.py", 'model_id = "nano-mistral"\nlearning_rate = LR\n'),
    "no_such_config": Mistake("train runn.yaml", (("run.yaml", YAML),)),
    "config_of_no_kind": of_file("run.ini", "[model]\n"),
    "option_without_value": Mistake(f"config {BASE} --learning_rate"),
    "no_training_data": Mistake("train --model_name_or_path nano-mistral"),
    "early_stopping_without_evaluation": Mistake(f"config {BASE} --early_stopping_patience 3 --eval_strategy no"),
    "best_without_evaluation": Mistake(f"config {BASE} --load_best_model_at_end --eval_strategy no"),
    "upload_without_name": Mistake(f"config {BASE} --push_to_hub"),
    "two_quantizations": Mistake(f"config {BASE} --load_in_4bit --load_in_8bit"),
    # data
    "missing_file": Mistake("train --model_name_or_path nano-mistral --train_data row.jsonl"),
    "wrong_column": of_rows('{"question": "How are you?", "label": "Fine."}\n'),
    "renamed_to_nothing": Mistake(f"preview {BASE} --columns prompt=question"),
    "unreadable_line": of_rows(ROWS + '{"prompt": "x", "completion": \n'),
    "empty_file": of_rows(""),
    "no_answer": of_rows('{"prompt": "How are you?", "completion": ""}\n' * 3),
    "unknown_role": of_rows(
        '{"messages": [{"role": "robot", "content": "Hi"}, {"role": "assistant", "content": "x"}]}\n'
    ),
    "all_too_long": of_rows('{"prompt": "' + "word " * 50 + '", "completion": "Fine."}\n', "--max_length 16"),
    "evaluation_rows_in_training": Mistake(f"preview {BASE} --eval_data rows.jsonl --eval_strategy epoch"),
    "template_missing": Mistake(f"preview {BASE} --template chat.jinja"),
    # model, machine, folders
    "missing_model_folder": Mistake("train --model_name_or_path ./model --train_data rows.jsonl"),
    "no_model_in_folder": Mistake("train --model_name_or_path here --train_data rows.jsonl", (("here/x.txt", ""),)),
    "half_precision_on_cpu": Mistake(f"check {BASE} --fp16 --device_map cpu"),
    "output_holds_a_run": Mistake(f"train {BASE} --output_dir run", (("run/run.json", RUNNING),)),
    "output_holds_other_files": Mistake(f"train {BASE} --output_dir mine", (("mine/metrics.jsonl", ""),)),
    "output_is_a_file": Mistake(f"train {BASE} --output_dir taken", (("taken", ""),)),
    "nothing_to_resume": Mistake(f"train {BASE} --output_dir new --resume_from_checkpoint new/checkpoint-5"),
    "no_token": Mistake(f"train {BASE} --push_to_hub --hub_model_id me/model"),
    # other verbs
    "unknown_verb": Mistake("finetune rows.jsonl"),
    "unknown_recipe": Mistake("init nli here"),
    "no_run_to_report": Mistake("report here", (("here/x.txt", ""),)),
    "no_run_to_evaluate": Mistake("evaluate ./runs/first"),
    "unfinished_run": Mistake("evaluate run", (("run/run.json", RUNNING),)),
    "nothing_to_merge": Mistake("merge here merged", (("here/x.txt", ""),)),
    "answers_are_there": Mistake("predict nano-mistral rows.jsonl answers.jsonl", (("answers.jsonl", ""),)),
    "columns_say_nothing": Mistake("init --data table.csv new", (("table.csv", "a,b,c\n1,2,3\n4,5,6\n"),)),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_message(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    mistake = MISTAKES[name]
    for file, text in (("rows.jsonl", ROWS), *mistake.files):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text(text, encoding="utf-8")
    notices.clear()
    code = main(shlex.split(mistake.command))
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    text = "\n".join([f"$ tunesmith {' '.join(mistake.command.split())}", *errors, f"[exit code {code}]", ""])
    text = text.replace(str(tmp_path), "FOLDER")
    assert code in range(2, 8), text
    assert all(line.startswith("error: ") for line in errors), text
    file = FOLDER / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), "make golden writes it anew"


def test_no_file_is_left_over() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == set(MISTAKES)
