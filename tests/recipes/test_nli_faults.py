"""The faults that programs like the NLI recipe are known to have: each test is named after one and shows it absent."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tunesmith import notices
from tunesmith.config.resolve import Resolved
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.ledger import Ledger
from tunesmith.data.masking import IGNORE_INDEX, Example
from tunesmith.data.nli import nli_answer, nli_prompt, nli_text
from tunesmith.data.prepare_nli import prepare_nli
from tunesmith.data.row import Row
from tunesmith.entrypoints import nli as door
from tunesmith.entrypoints.nli import MINIMAL_DEFAULTS, open_config
from tunesmith.errors import DataError
from tunesmith.evaluate.answers import read_label
from tunesmith.model.device import CPU
from tunesmith.model.precision import Precision
from tunesmith.train.arguments import sft_keywords
from tunesmith.train.plan import make_plan

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "nli_cot"
CONFIGS = RECIPE / "train" / "configs"
DEFAULT = CONFIGS / "default.py"
BEGIN_INSTRUCTION, END_INSTRUCTION, END = "[INST]", "[/INST]", "</s>"


@pytest.fixture(autouse=True)
def in_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPE)
    notices.clear()


def opened(text: str, folder: Path, *overrides: str) -> Resolved:
    """The settings of a file that extends the default one."""
    path = folder / "mine.py"
    path.write_text(f"from train.configs.default import *\n{text}\n")
    found = open_config(path, overrides, default=DEFAULT)
    assert found.fallback is None
    return found.resolved


def keywords(resolved: Resolved) -> dict[str, Any]:
    """What the trainer is given."""
    return sft_keywords(resolved, CPU, Precision("float32", "test"), make_plan(resolved, 1, 1), resuming=False)


# A flag that is off by default beats what the file sets


def test_use_wandb_false_in_a_file_is_honoured(tmp_path: Path) -> None:
    def trackers(*arguments: Any) -> list[str]:
        return opened(*arguments).config.tracking.trackers()

    assert trackers("use_wandb = True", tmp_path) == ["wandb"]
    assert trackers("use_wandb = False", tmp_path) == []
    assert trackers("use_wandb = False", tmp_path, "--use_wandb") == ["wandb"]
    assert trackers("use_wandb = True", tmp_path, "--no_wandb") == []


def test_gradient_checkpointing_false_in_a_file_is_honoured(tmp_path: Path) -> None:
    resolved = opened("gradient_checkpointing = False", tmp_path)
    assert resolved.config.training.gradient_checkpointing is False
    assert resolved.origins["training.gradient_checkpointing"] == f"{tmp_path / 'mine.py'}:2"
    assert keywords(resolved)["activation_checkpointing"] is False
    assert keywords(opened("", tmp_path))["activation_checkpointing"] is True


def test_use_packing_true_in_a_file_is_honoured(tmp_path: Path) -> None:
    assert opened("use_packing = True", tmp_path).config.training.batching == "packed"
    assert opened("use_packing = True", tmp_path, "--no_packing").config.training.batching == "auto"


def test_distributed_training_true_in_a_file_is_honoured(tmp_path: Path) -> None:
    assert opened("distributed_training = True", tmp_path).config.launch.distributed_training is True
    assert opened("", tmp_path).config.launch.distributed_training is False


def test_distributed_training_asks_for_a_process_for_each_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from tunesmith.launch.processes import processes_wanted

    asked, silent = opened("distributed_training = True", tmp_path), opened("", tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert (processes_wanted(asked), processes_wanted(silent)) == (4, 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert processes_wanted(asked) == 1
    assert "one process trains" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["False", "false", "no", "0"])
def test_distributed_training_false_on_the_command_line_means_false(tmp_path: Path, word: str) -> None:
    resolved = opened("distributed_training = True", tmp_path, "--distributed_training", word)
    assert resolved.config.launch.distributed_training is False


# Files that fail to load


def test_the_documented_star_import_works_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = sorted(path.stem for path in CONFIGS.glob("*.py") if path != DEFAULT)
    assert len(names) == 7
    for name in names:
        found = open_config(CONFIGS / f"{name}.py", default=DEFAULT)
        assert found.fallback is None
        assert found.resolved.origins["training.output_dir"].startswith(str(CONFIGS / f"{name}.py"))


def test_another_configuration_is_never_trained_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from train.configs.defualt import *\n")
    assert door.main(DEFAULT, ["--config", str(path), "--strict_config"]) == 2
    assert "No module named 'train.configs.defualt'" in capsys.readouterr().err
    door.load_config(path, default=DEFAULT)
    assert "CONFIGURATION NOT LOADED" in capsys.readouterr().err


def test_minimal_defaults_lack_no_setting(tmp_path: Path) -> None:
    resolved = open_config(None, default=tmp_path / "missing.py").resolved
    assert keywords(resolved)["learning_rate"] == MINIMAL_DEFAULTS["learning_rate"]
    assert resolved.config.data.train_data == MINIMAL_DEFAULTS["train_data"]
    assert resolved.config.quantization.load_in_4bit is True


# Tokens


THOUGHT = 'step 1: a set {x} is "closed" }. step 2: it is entailed.'


@pytest.fixture
def row() -> Row:
    return Row({"id": "1", "text": nli_text("A dog runs.", "An animal runs.", THOUGHT, 1)}, "rows.jsonl", 1)


@pytest.fixture
def untemplated() -> Row:
    asked = {"premise": "A dog runs.", "hypothesis": "An animal runs."}
    return Row({"id": "1", **asked, "thought_process": THOUGHT, "predicted_label": 1}, "rows.jsonl", 1)


def builder(tokenizer: Any, **data: Any) -> ExampleBuilder:
    settings = open_config(None, default=DEFAULT).resolved.config.data
    return ExampleBuilder(tokenizer, settings.model_copy(update=data))


def example_of(tokenizer: Any, row: Row, **data: Any) -> Example:
    example = builder(tokenizer, **data).example(row)
    assert example is not None
    return example


@pytest.mark.parametrize("shape", ["row", "untemplated"])
def test_one_begin_token_in_training_and_in_inference(
    mistral_tokenizer: Any, shape: str, request: pytest.FixtureRequest
) -> None:
    row = request.getfixturevalue(shape)
    example, prompt = example_of(mistral_tokenizer, row), builder(mistral_tokenizer).prompt(row)
    begin = mistral_tokenizer.bos_token_id
    assert example.input_ids.count(begin) == prompt.input_ids.count(begin) == 1
    assert example.input_ids[0] == prompt.input_ids[0] == begin
    assert example.input_ids[: len(prompt.input_ids)] == prompt.input_ids


@pytest.mark.parametrize("shape", ["row", "untemplated"])
def test_no_loss_on_the_prompt_and_the_end_token_learned_once(
    mistral_tokenizer: Any, shape: str, request: pytest.FixtureRequest
) -> None:
    example = example_of(mistral_tokenizer, request.getfixturevalue(shape))
    trained = [label for label in example.labels if label != IGNORE_INDEX]
    end = mistral_tokenizer.eos_token_id
    assert trained.count(end) == 1
    assert trained[-1] == end
    assert mistral_tokenizer.decode(trained[:-1]).strip() == nli_answer(THOUGHT, 1)
    silent = [token for token, label in zip(example.input_ids, example.labels, strict=True) if label == IGNORE_INDEX]
    assert nli_prompt("A dog runs.", "An animal runs.") in mistral_tokenizer.decode(silent)
    assert len(silent) > 40


def test_a_row_that_is_too_long_loses_no_end_token_in_silence(mistral_tokenizer: Any, row: Row) -> None:
    length = len(example_of(mistral_tokenizer, row).input_ids)
    end = mistral_tokenizer.eos_token_id
    ledger = Ledger()
    assert builder(mistral_tokenizer, max_length=length - 1).example(row, ledger) is None  # the recipe's policy
    assert sum(map(len, ledger.total().dropped.values())) == 1
    with pytest.raises(DataError) as caught:
        builder(mistral_tokenizer, max_length=length - 1, too_long="error").example(row)
    assert caught.value.where == "rows.jsonl:1"
    ledger = Ledger()
    cut = builder(mistral_tokenizer, max_length=length - 5, too_long="truncate_prompt").example(row, ledger)
    assert cut is not None
    assert (len(cut.input_ids), cut.labels[-1], cut.input_ids[-1]) == (length - 5, end, end)
    assert sum(map(len, ledger.total().cut.values())) == 1


# Answers


def test_an_unreadable_answer_has_no_label(row: Row) -> None:
    prompt = nli_prompt("A dog runs.", "An animal runs.")
    assert "is entailed" in prompt
    texts = ("", "the hypothesis is entailed by the premise", "step 1: so it follows", '{"thought_process": "is ent')
    assert [text for text in texts if read_label(text).readable] == []


@pytest.mark.parametrize("label", [5, -1, 2, "entailed", None])
def test_a_label_that_is_none_is_not_accepted(label: Any) -> None:
    assert not read_label(json.dumps({"thought_process": "x", "predicted_label": label})).readable


@pytest.mark.parametrize("label", [0, 1])
def test_a_brace_in_the_thought_breaks_nothing(label: int) -> None:
    assert read_label(nli_answer(THOUGHT, label)).value == label
    assert read_label(f" {nli_answer('} } {', label)} and so on").value == label


# Whole runs


def train(folder: Path, *arguments: str) -> int:
    return door.main(DEFAULT, ["--config", str(CONFIGS / "minimal_test.py"), "--output_dir", str(folder), *arguments])


@pytest.mark.parametrize("trouble", ["missing", "empty", "broken", "wrong columns", "latin-1"])
def test_a_failed_data_load_is_no_success(
    trouble: str, tmp_path: Path, stories_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    good = json.dumps({"id": "1", "text": nli_text("p", "h", "t", 1)}) + "\n"
    contents = {
        "empty": b"",
        "broken": good.encode() + b'{"id": "2", \n',
        "wrong columns": b'{"left": 1, "right": 2}\n',
        "latin-1": good.encode() + '{"id": "2", "text": "caf\xe9"}\n'.encode("latin-1"),
    }
    if trouble in contents:
        rows.write_bytes(contents[trouble])
    held_out = tmp_path / "eval.jsonl"
    held_out.write_text(good)
    files = ["--train_data", str(rows), "--eval_data", str(held_out)]
    assert train(tmp_path / "run", "--model_id", str(stories_model), *files) == 3
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert str(rows) in errors[0]
    assert ":2:" in errors[0] or trouble not in ("broken", "latin-1")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_missing_model_is_exit_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "--model_id", str(tmp_path / "nowhere")) == 4
    assert "nowhere" in capsys.readouterr().err


@pytest.fixture(scope="module")
def real_rows(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fine-tuning files of 24 and 8 real e-SNLI rows that the small model has room for."""
    folder = tmp_path_factory.mktemp("esnli")
    prepared = prepare_nli(csv=str(real_data / "nli_esnli" / "esnli_dev.csv"))
    for name, rows, number in (("train", prepared.train, 24), ("eval", prepared.eval, 8)):
        short = [row for row in rows if len(row["text"]) < 600][:number]
        assert len(short) == number
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in short))
    return folder


@pytest.fixture
def documented_arguments(real_rows: Path, stories_model: Path) -> list[str]:
    files = ["--train_data", str(real_rows / "train.jsonl"), "--eval_data", str(real_rows / "eval.jsonl")]
    return ["--model_id", str(stories_model), *files, "--max_seq_length", "512", "--no_wandb"]


def test_minimal_test_trains_a_real_model_on_real_rows(
    documented_arguments: list[str], stories_model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train(run, *documented_arguments) == 0
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["result"]["steps"] == 24
    lines = (CONFIGS / "minimal_test.py").read_text().splitlines()
    number = next(number for number, line in enumerate(lines, start=1) if line.startswith("lora_r = 8"))
    assert record["origins"]["adapter.lora_r"] == f"train/configs/minimal_test.py:{number}"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in metrics if "loss" in line]
    assert len(losses) == 24
    assert all(math.isfinite(loss) for loss in losses)
    evaluated = [line["eval_loss"] for line in metrics if "eval_loss" in line]
    assert evaluated[-1] < evaluated[0]
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(stories_model)
    model = PeftModel.from_pretrained(base, run)
    moved = [name for name, value in model.named_parameters() if "lora_B" in name and value.abs().sum() > 0]
    assert len(moved) == len([name for name, _ in model.named_parameters() if "lora_B" in name]) > 0
    assert model.peft_config["default"].r == 8


def test_the_fallback_stands_in_run_json(
    documented_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    small = ["--output_dir", str(run), "--max_steps", "1", "--batch_size", "1", "--grad_accumulation_steps", "1"]
    assert door.main(DEFAULT, ["--config", str(tmp_path / "nowhere.py"), *small, *documented_arguments]) == 0
    assert "CONFIGURATION NOT LOADED" in capsys.readouterr().err
    record = json.loads((run / "run.json").read_text())
    assert any("default.py IS USED INSTEAD" in text for text in record["notices"])
    assert record["settings"]["adapter.lora_r"] == 16


def test_packing_from_a_file_really_packs(stories_model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Tom has {n}", "completion": " balls."}) + "\n" for n in range(12)))
    path = tmp_path / "mine.py"
    path.write_text(
        "from train.configs.minimal_test import *\n"
        f"use_packing = True\nmodel_id = {str(stories_model)!r}\ntrain_data = {str(rows)!r}\neval_data = None\n"
    )
    steps = {}
    for name, extra in (("packed", []), ("auto", ["--no_packing"])):
        assert door.main(DEFAULT, ["--config", str(path), "--output_dir", str(tmp_path / name), *extra]) == 0
        record = json.loads((tmp_path / name / "run.json").read_text())
        assert record["settings"]["training.batching"] == name
        steps[name] = record["result"]["steps"]
    assert steps["auto"] == 12
    assert steps["packed"] == 1  # twelve rows of about a dozen tokens fit into one of 256
