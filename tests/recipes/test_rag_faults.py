"""The faults that programs like the RAG recipe are known to have: each test is named after one and shows it absent."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith import notices
from tunesmith.config.load import load
from tunesmith.config.schema import DataSection
from tunesmith.data.examples import ExampleBuilder, build_examples
from tunesmith.data.ledger import Ledger
from tunesmith.data.masking import IGNORE_INDEX
from tunesmith.data.row import Row
from tunesmith.entrypoints.rag import main as training
from tunesmith.errors import DataError

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "rag"

SECRETS = {
    "WANDB_API_KEY": "a1b2c3d4e5f6a7b8c9d0a1b2c3d4e5f6a7b8c9d0",
    "HF_TOKEN": "hf_sentinelOfTheFaultTestForTokens",
    "AWS_SECRET_ACCESS_KEY": "sentinel/of/the/fault/test/for/keys",
    "MY_PRIVATE_NOTE": "sentinel-of-a-plain-variable",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, stories_model: Path) -> Path:
    """A finished run of the recipe with an offline W&B run, in an environment full of secrets."""
    pytest.importorskip("wandb")
    folder = tmp_path_factory.mktemp("faults") / "rag"
    shutil.copytree(RECIPE, folder, ignore=shutil.ignore_patterns("__pycache__", "trained_models*"))
    arguments = [
        *("data_file=asqa-prefix-train.jsonl output_key=answers").split(),
        f"model.model_name_or_path={stories_model}",
        "model.load_in_8bit=false",
        "model.lora.target_modules=[q_proj]",
        "model.completion_start=null",
        "model.max_sequence_len=400",
        "train.learning_rate=1e-4",
        "train.max_steps=1",
        "train.output_dir=out",
        "use_wandb=true",
        "experiment=faults",
        "limit=8",
    ]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        patch.setenv("WANDB_MODE", "offline")
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["training.py", *arguments])
        notices.clear()
        assert training(folder, arguments) == 0
    return folder / "out"


def record(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return content


def test_dev_split_missing_raises_or_null_holds_out_a_quarter(run: Path) -> None:
    assert "dev_split" not in (run.parent / "configs" / "training.yaml").read_text(encoding="utf-8")
    assert "\ndev_split:\n" in (run.parent / "configs" / "paper" / "training-asqa.yaml").read_text(encoding="utf-8")
    assert record(run)["settings"]["data.dev_split"] == 0.0
    assert load(run.parent / "configs" / "paper" / "training-asqa.yaml").config.data.dev_split == 0.0
    ledger = json.loads((run / "ledger.json").read_text(encoding="utf-8"))
    assert ledger["training"]["total"]["kept"] == 8
    assert ledger["evaluation"] is None


def test_the_whole_environment_is_sent_to_wandb(run: Path) -> None:
    files = [path for path in run.rglob("*") if path.is_file()]
    log = next(path for path in files if path.suffix == ".wandb").read_bytes()
    assert b"training.learning_rate" in log  # the settings are there, and in plain bytes
    assert b"faults" in log
    found = [
        (path.name, name) for path in files for name, secret in SECRETS.items() if secret.encode() in path.read_bytes()
    ]
    assert found == []
    assert len(files) >= 12


def test_plain_yaml_reads_1e_4_as_a_string(run: Path) -> None:
    assert record(run)["settings"]["training.learning_rate"] == 1e-4
    assert record(run)["settings"]["training.weight_decay"] == 0.001


def test_the_tokenizer_is_not_saved_with_the_adapter(run: Path, stories_tokenizer: Any) -> None:
    from transformers import AutoTokenizer

    assert (run / "adapter_model.safetensors").is_file()
    saved = AutoTokenizer.from_pretrained(run)
    text = "Once upon a time, Anna said hello."
    assert saved(text)["input_ids"] == stories_tokenizer(text)["input_ids"]


def rag_row(number: int = 1, **more: Any) -> Row:
    values = {"query": "Who?", "prompt": "[1] Anna is here.\n\nWho?", "answers": ["Anna"], "positive_passages": ["p"]}
    return Row({**values, **more}, "rows.jsonl", number)


def data(**settings: Any) -> DataSection:
    return DataSection(format="rag", columns={"completion": "answers"}, **settings)


def test_a_template_path_that_cannot_work(tmp_path: Path, stories_tokenizer: Any) -> None:
    file = tmp_path / "template.txt"
    file.write_text("Question: {query}\nAnswer: {output}\n", encoding="utf-8")
    builder = ExampleBuilder(stories_tokenizer, data(template=str(file), instruction="Be short."))
    example = builder.example(rag_row())
    assert example is not None
    text = stories_tokenizer.decode(example.input_ids)
    assert text.startswith("<s> Question: Be short.\n\n[1] Anna is here.\n\nWho?\nAnswer: Anna")
    learnt = [token for token in example.labels if token != IGNORE_INDEX]
    assert stories_tokenizer.decode(learnt[:-1]).strip() == "Anna"
    assert learnt[-1] == stories_tokenizer.eos_token_id
    prompt = builder.prompt(rag_row())
    assert example.input_ids[: len(prompt.input_ids)] == prompt.input_ids


def test_a_template_may_place_the_instruction(tmp_path: Path, stories_tokenizer: Any) -> None:
    file = tmp_path / "template.txt"
    file.write_text("{instruction} ## {query} ## {output}", encoding="utf-8")
    example = ExampleBuilder(stories_tokenizer, data(template=str(file), instruction="Be short.")).example(rag_row())
    assert example is not None
    assert stories_tokenizer.decode(example.input_ids).startswith("<s> Be short. ## [1] Anna is here.\n\nWho? ## Anna")


def test_loss_begins_after_the_last_match_of_completion_start(stories_tokenizer: Any) -> None:
    row = rag_row(prompt="### Assistant: is a word of this prompt.\n\nWho?")
    example = ExampleBuilder(stories_tokenizer, data(completion_start="### Assistant:")).example(row)
    assert example is not None
    learnt = [token for token in example.labels if token != IGNORE_INDEX]
    assert stories_tokenizer.decode(learnt, skip_special_tokens=True).strip() == "Anna"


def test_completion_start_without_a_match_masks_rows_in_silence(stories_tokenizer: Any) -> None:
    builder = ExampleBuilder(stories_tokenizer, data(completion_start="<|assistant|>"))
    rows = [rag_row(number) for number in (3, 4, 5)]
    ids = stories_tokenizer("<|assistant|>", add_special_tokens=False)["input_ids"]
    with pytest.raises(DataError) as caught:
        build_examples(rows, builder, Ledger())
    (line,) = caught.value.lines()
    assert line.startswith("rows.jsonl:3: ")
    assert line.endswith("(and 2 more: 4, 5)")
    assert "'<|assistant|>'" in line
    assert str(ids) in line


def test_an_empty_answer_is_trained_in_place_of_a_missing_one(stories_tokenizer: Any) -> None:
    for answers in (None, [], ""):
        with pytest.raises(DataError, match=r"rows.jsonl:9"):
            build_examples([rag_row(9, answers=answers)], ExampleBuilder(stories_tokenizer, data()), Ledger())
