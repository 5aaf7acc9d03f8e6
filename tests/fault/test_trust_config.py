"""Configurations that are wrong, odd or made to harm: one line, the right code, and never an exit 1, through the verb
``config``, which needs no model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.cli.main import main
from tunesmith.config.load import load

Refused = Callable[..., str]
BASE = ["--model_name_or_path=nano-mistral", "--train_data=x.jsonl"]
YAML = "model:\n  path: nano-mistral\ndataset:\n  name: x.jsonl\n"
TRAINING = YAML + "training:\n  "


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Give a file (or only settings) to ``tunesmith config``; returns its errors."""

    def run(content: str | bytes | None, *settings: str, name: str = "own.yaml", code: int = 2) -> str:
        file = []
        if content is not None:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
            dialect = {".yaml": "yaml", ".json": "json", ".py": "python"}[Path(name).suffix]
            file = [str(tmp_path / name), f"--dialect={dialect}"]
        assert main(["config", *file, *settings]) == code
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert lines
        assert len(lines) == 1 or code == 2, lines  # what is wrong with settings is told together
        assert all(len(line) < 10_000 for line in lines)
        return "\n".join(lines)

    return run


def test_C1_unknown_key(refused: Refused) -> None:
    assert "own.yaml:6: unknown setting 'training.learnig_rate'; did you mean" in refused(TRAINING + "learnig_rate: 1")


WRITTEN = {
    "own.yaml": YAML + "training:\n  {}: {}\n",
    "own.json": '{{"model_name_or_path": "nano-mistral", "train_file": "x.jsonl", "{}": {}}}',
    "own.py": "model_id = 'nano-mistral'\ntrain_data = 'x.jsonl'\n{} = {}\n",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_C1_a_name_nearly_right_in_every_kind_of_file(refused: Refused, name: str) -> None:
    said = refused(WRITTEN[name].format("learnig_rate", 1), name=name)
    assert f"{name}:" in said
    assert "did you mean" in said
    assert "learning_rate" in said


def test_C1_a_name_nearly_right_on_the_command_line_and_deep_in_a_file(refused: Refused) -> None:
    assert "did you mean 'learning_rate'" in refused(None, *BASE, "--learnig_rate=1")
    assert "own.yaml:6: " in refused(TRAINING + "learning_rate:\n    rate: 1\n")


@pytest.mark.parametrize("name", WRITTEN)
def test_C2_every_source_reads_the_same_number(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(WRITTEN[name].format("learning_rate", "1e-4"))
    from_file = load(tmp_path / name).config.training.learning_rate
    written = load(tmp_path / name, ["--learning_rate", "1E-4"]).config.training.learning_rate
    assert from_file == written == 0.0001


def test_C2_C4_numbers_are_those_of_yaml_1_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.yaml").write_text(TRAINING + "learning_rate: 1e-4\n  run_name: no\n")
    assert main(["config", str(tmp_path / "own.yaml"), "--written"]) == 0
    out = capsys.readouterr().out
    assert "0.0001" in out
    assert "no " in out


@pytest.mark.parametrize("text", ["learning_rate: abc", "seed: '5'", "seed: true", "seed: 2.5", "packing: 'false'",
                                  "per_device_train_batch_size: -1", "seed: 1:30", "learning_rate: .nan",
                                  "per_device_train_batch_size: 2.5", "gradient_accumulation_steps: 0",
                                  "learning_rate: '0.1'", "bf16: 'false'", "seed: off", "max_steps: [1]",
                                  "logging_steps: {a: 1}", "warmup_ratio: .inf", "optim: 5"])  # fmt: skip
def test_C3_C4_wrong_types(refused: Refused, text: str) -> None:
    assert "own.yaml:6: " in refused(TRAINING + text)


def test_C5_key_twice(refused: Refused) -> None:
    assert "own.yaml:7: key 'seed' stands twice (first in line 6)" in refused(TRAINING + "seed: 1\n  seed: 2")
    assert "twice" in refused(None, *BASE, '--columns={"a": "b", "a": "c"}')


def test_C6_tags(refused: Refused) -> None:
    assert "is not allowed" in refused("a: !!python/object/apply:os.system ['true']", code=7)
    for tag in ("!!int abc", "!!float abc", "!!bool maybe", "!!null 5", "!!binary x", "!!seq abc", "!!int {a: 1}"):
        assert "own.yaml:" in refused(TRAINING + f"seed: {tag}")


def test_C7_aliases_and_depth(refused: Refused) -> None:
    laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
    )
    for content in (laughs, "model: &a {b: *a}", "model: &a [*a]", "a: " + "[" * 900 + "]" * 900,
                    "\n".join(" " * level + "a:" for level in range(400))):  # fmt: skip
        refused(content)
    assert "levels" in refused(TRAINING + "lr_scheduler_kwargs: " + "{a: " * 40 + "1" + "}" * 40)
    for levels in (200, 100_000):
        text = '{"a":' * levels + "1" + "}" * levels
        refused(None, *BASE, f"--lr_scheduler_kwargs={text}")
        refused(f'{{"lr_scheduler_kwargs": {text}}}', name="own.json")


RANGES = ["seed=4294967296", "seed=" + "9" * 5000, "data_seed=99999999999999999999", "num_train_epochs=1e300",
          "dataloader_num_workers=100000", "num_proc=100000", "lora_r=1000000000", "warmup_ratio=1",
          "max_steps=99999999999", "per_device_train_batch_size=99999999999999999999", "template_date=2026-99-99",
          "bootstrap_samples=99999999999", "num_processes=2147483647",
          "loraplus_lr_ratio=1e308", "nodes=2147483647", "learning_rate=" + "9" * 400]  # fmt: skip


@pytest.mark.parametrize("setting", RANGES, ids=lambda setting: setting[:30])
def test_C3_out_of_range(refused: Refused, setting: str) -> None:
    assert setting.partition("=")[0] in refused(None, *BASE, f"--{setting}")


BEST = ["--load_best_model_at_end", "--eval_data=e.jsonl", "--eval_steps=20"]
TOGETHER = {
    "save steps are no multiple of eval steps": ([*BEST, "--save_steps=50"], ("save_steps 50", "eval_steps 20")),
    "best model by other times than saving": ([*BEST, "--save_strategy=epoch"], ("by steps", "by epoch")),
    "best model without evaluation": (["--load_best_model_at_end"], ("load_best_model_at_end", "eval_data")),
    "early stopping without evaluation": (["--early_stopping_patience=2"], ("early_stopping_patience", "eval_data")),
    "best by a figure that nobody computes": (
        [*BEST, "--save_steps=20", "--metric_for_best_model=eval_accuracy"], ("eval_accuracy", "generate")),
    "longer than the positions": (["--max_length=100000"], ("max_length 100000", "positions")),
    "two quantizations": (["--load_in_4bit", "--load_in_8bit"], ("load_in_4bit", "load_in_8bit")),
    "full training of 4 bits": (["--no_use_lora", "--load_in_4bit"], ("use_lora", "load_in_4bit")),
    "two precisions": (["--bf16", "--fp16"], ("bf16", "fp16")),
    "warmup longer than training": (["--max_steps=5", "--warmup_steps=6"], ("warmup_steps 6", "max_steps 5")),
    "plateau without evaluation": (["--lr_scheduler_type=reduce_lr_on_plateau"], ("reduce_lr_on_plateau", "eval_data")),
    "batch that cannot be made": (["--global_batch_size=6"], ("global_batch_size 6", "per_device_train_batch_size 8")),
}  # fmt: skip


@pytest.mark.parametrize("name", TOGETHER)
def test_C8_rules_name_both_settings(refused: Refused, name: str) -> None:
    settings, words = TOGETHER[name]
    said = refused(None, *BASE, *settings)
    for word in words:
        assert word in said


def test_C8_all_contradictions_are_listed_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    settings = [part for name in ("two precisions", "two quantizations", "warmup longer than training")
                for part in TOGETHER[name][0]]  # fmt: skip
    assert main(["config", *BASE, *settings]) == 2
    assert len([line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]) == 3


def test_C9_files_that_are_none(refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "big").open("wb") as file:
        file.truncate(2**30)
    for name in (tmp_path, tmp_path / "absent", tmp_path / "pipe", tmp_path / "big", "/dev/zero"):
        for dialect in ("yaml", "json", "python"):
            assert main(["config", str(name), f"--dialect={dialect}"]) == 2
            assert str(name) in capsys.readouterr().err


@pytest.mark.parametrize("content", ["hello", "5", "- a", "model: 5", b"\xe9", "a: \0", 'a: "\\U00110000"',
                                     'model:\n  path: "a\\0b"', 'model:\n  path: "\\ud800"', "a: *b"])  # fmt: skip
def test_C9_contents_that_are_none(refused: Refused, content: str | bytes) -> None:
    assert "own.yaml" in refused(content)


@pytest.mark.parametrize("content", ["", "# nothing", "5", "true", "1.5", "2026-01-01", "null", "hello", "- a", "[]"])
def test_C9_contents_whose_dialect_cannot_be_told(content: str, tmp_path: Path, capsys) -> None:
    for name in ("own.yaml", "own.yml", "own.json"):
        (tmp_path / name).write_text(content)
        assert main(["config", str(tmp_path / name)]) == 2
        assert name in capsys.readouterr().err


@pytest.mark.parametrize("text", ["'a\\0b'", "'\\ud800'", "10**5000", "[[[[" + "[" * 60 + "]" * 60 + "]]]]"])
def test_C10_python_values(refused: Refused, text: str) -> None:
    assert "own.py" in refused(f"model_id = 'nano-mistral'\nrun_name = {text}", name="own.py")


@pytest.mark.parametrize("text", ["import os; os._exit(0)", "import sys; sys.exit(0)", "raise ValueError", "x = (",
                                  "import os\nwhile True: os.write(2, b'x' * 2**20)", "x = 'a' * 10**11"])  # fmt: skip
def test_C10_python_files_that_do_not_end_well(refused: Refused, text: str) -> None:
    assert "own.py" in refused(text, name="own.py")


def test_C14_switches(refused: Refused) -> None:
    assert "bf16" in refused(None, *BASE, "--bf16=maybe")
    assert "not a switch" in refused(None, *BASE, "--no_learning_rate")
    assert "maybe" in refused(None, *BASE, "--bf16", "maybe")


@pytest.mark.parametrize("words", [["--distributed_training", "False"], ["--distributed_training=no"],
                                   ["--no_distributed_training"], ["--no-distributed-training"],
                                   ["launch.distributed_training=off"]])  # fmt: skip
def test_C14_no_is_no(words: list[str]) -> None:
    assert load(None, [*BASE, *words]).config.launch.distributed_training is False
    assert load(None, [*BASE, "--distributed_training"]).config.launch.distributed_training is True


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_C15_names_that_cannot_be_stored(refused: Refused, text: str) -> None:
    assert "output_dir holds " in refused(None, *BASE, f"--output_dir={text}")


def test_C15_folders_that_are_not_the_runs_own(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "inner").mkdir(parents=True)
    (tmp_path / "model").mkdir()
    (tmp_path / "data" / "x.jsonl").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.chdir(tmp_path / "data" / "inner")
    given = [f"--model_name_or_path={tmp_path / 'model'}", f"--train_data={tmp_path / 'data' / 'x.jsonl'}"]
    above = [tmp_path, tmp_path / "data", tmp_path / "model", tmp_path / "loop" / "x"]
    for name in ("", "/", "~", "..", ".", "/etc/x", "/usr", "a\nb", "a" * 300, *above):
        assert "output_dir" in refused(None, *given, f"--output_dir={name}")
