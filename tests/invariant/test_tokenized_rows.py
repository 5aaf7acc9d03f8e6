"""Rows of token ids through a whole run: the same losses as the texts that they came from, in every layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from helpers import logged, run_training, story_rows, write_rows
from tunesmith import notices
from tunesmith.cli.main import main
from tunesmith.config.schema import DataSection
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.row import Row

STEPS = {"max_steps": 3, "lora_r": 4, "target_modules": ["q_proj"], "per_device_train_batch_size": 4}


def as_ids(model: Path, rows: list[dict[str, str]], **more: Any) -> list[dict[str, Any]]:
    """The rows as the builder reads them, with padding as tokenizers of others leave it."""
    builder = ExampleBuilder(AutoTokenizer.from_pretrained(model), DataSection(max_length=256))
    made = []
    for number, values in enumerate(rows, start=1):
        example = builder.example(Row(values, "f", number))
        assert example is not None
        ids, labels = example.input_ids, example.labels
        made.append(
            {
                "input_ids": [*ids, 0, 0],
                "attention_mask": [1] * len(ids) + [0, 0],
                "completion_mask": [int(label != -100) for label in labels] + [0, 0],
            }
        )
    return made


@pytest.mark.parametrize("layout", [{"batching": "padded"}, {"batching": "packed", "streaming": True}])
def test_ids_train_as_their_texts_do(tmp_path: Path, stories_model: Path, layout: dict[str, Any]) -> None:
    rows, held = story_rows(16), story_rows(4, seed=9)
    curves = []
    for name, train, evaluation in (
        ("text", rows, held),
        ("ids", as_ids(stories_model, rows), as_ids(stories_model, held)),
    ):
        run_training(tmp_path / name, stories_model, train, eval_rows=evaluation, eval_strategy="steps", eval_steps=3,
                     cache=False, **STEPS, **layout)  # fmt: skip
        run = tmp_path / name / "run"
        curves.append([logged(run, "loss", "grad_norm"), logged(run, "eval_loss")])
    assert curves[0] == curves[1]
    assert len(curves[0][0]) == 3
    assert curves[0][1]


def test_every_verb_takes_them_or_says_why_not(
    tmp_path: Path, stories_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = as_ids(stories_model, story_rows(6))
    data = write_rows(tmp_path / "rows.jsonl", rows)
    shared = [f"--model_name_or_path={stories_model}", f"--train_data={data}", f"--cache_dir={tmp_path / 'cache'}",
              "--max_length=256", f"--output_dir={tmp_path / 'run'}"]  # fmt: skip

    def call(verb: str, *arguments: str) -> tuple[int, str, str]:
        notices.clear()
        code = main([verb, *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    code, out, err = call("preview", *shared, "--json", "--row", "2")
    assert code == 0, err
    (shown,) = json.loads(out)["rows"]
    assert [token["id"] for token in shown["tokens"]] == rows[1]["input_ids"][:-2]
    assert [int(token["trained"]) for token in shown["tokens"]] == rows[1]["completion_mask"][:-2]
    code, out, err = call("check", *shared)
    assert code == 0, err
    assert "read as tokenized" in out
    assert "is the beginning of the training row" in out
    train = [*shared, "--max_steps=1", "--lora_r=4", "--target_modules=[q_proj]", "--save_strategy=no"]
    code, out, err = call("train", *train, "--verbose")
    assert code == 0, err
    assert "tokenised data is taken from" in err  # check has kept it
    assert "tokenised data" not in (tmp_path / "run" / "run.json").read_text()
    contract = json.loads((tmp_path / "run" / "inference.json").read_text())
    assert contract["prompt"] == {"kind": "ids", "query": None}
    assert contract["settings"]["data.format"] == "auto"
    code, out, err = call("train", *train, "--generate", f"--eval_data={data}", "--allow_leak", "--eval_strategy=epoch",
                          f"--output_dir={tmp_path / 'other'}")  # fmt: skip
    assert code == 3
    assert "rows of token ids are judged by their loss alone" in out + err
    code, out, err = call("evaluate", str(tmp_path / "run"), "--data", data)
    assert code == 3
    assert f"{data}:1: rows of token ids are judged by their loss alone" in out + err
    answers = tmp_path / "answers.jsonl"
    code, out, err = call("predict", str(tmp_path / "run"), data, str(answers), "--max_new_tokens=2")
    assert code == 0, err
    assert len(answers.read_text().splitlines()) == 6
    texts = write_rows(tmp_path / "texts.jsonl", [{"prompt": "Once upon a time"}])
    code, out, err = call("predict", str(tmp_path / "run"), texts, str(tmp_path / "b.jsonl"), "--max_new_tokens=2")
    assert code == 0, err
